"""A converted file back in the layout of its dataset's published file: columns, gene names and values as they were."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from .atomic import check_output
from .conversion import DEPTH, SOURCE_PREFIX, file_issue
from .errors import InvalidFile
from .export import Export, Plan, cells_meta, kept_column, write_plan
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .issues import has_errors
from .matrix_scan import OnRows
from .schema_check import check_standard
from .spec_models import DatasetSpec
from .specs import load_dataset
from .standard import CONTEXT, LABEL_SOURCE, StandardMeta

PUBLISHED = "published"


def export_published(
    src: str | os.PathLike[str],
    spec: DatasetSpec | str | None = None,
    *,
    out: str | os.PathLike[str],
    force: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> Export:
    """Write `out`, the standard h5ad `src` as the published file of `spec` that it was converted from.

    Parameters
    ----------
    spec
        The dataset spec (or its id or TOML) that converted the file; None: the one that the file names.

    Returns
    -------
    Export
        Columns, cell names, symbols and gene ids are the published ones, and X (or the layer of counts) has its
        values; where the counts were published in a layer, X is ln(1 + x) of them, scaled to the recorded target sum.
        What conversion left out is not given back: unassigned cells, versions of Ensembl ids, further layers.

    Raises
    ------
    InvalidFile
        The file breaks the standard, or was not converted by `spec` (E648).
    UsageError
        The file holds mean profiles.
    OutputError
        `out` cannot be written, exists without `force`, or is `src`.
    """
    target = check_output(out, inputs=[src], force=force)
    issues = check_standard(src, block_bytes=block_bytes, on_rows=on_rows)
    if has_errors(issues):
        raise InvalidFile(issues)
    with H5ad(src) as file:
        meta = cells_meta(file)
        chosen = load_dataset(spec or meta.dataset_id) if not isinstance(spec, DatasetSpec) else spec
        plan = _plan(file, meta, chosen)
        write_plan(file, meta, chosen.id, plan, target, block_bytes, on_rows)
        return Export(
            path=target,
            layout=chosen.id,
            n_cells=file.n_obs,
            n_genes=file.n_vars,
            n_dropped=0,
            matrix=plan.kind,
            target_sum=meta.matrix.target_sum,
            restored=tuple(plan.restored),
            issues=tuple(issues),
        )


def _plan(file: H5ad, meta: StandardMeta, spec: DatasetSpec) -> Plan:
    record = meta.extra.get("columns")
    converted = isinstance(record, str) and meta.dataset_id == spec.id
    if not converted or meta.matrix.kind != spec.matrix.kind:
        found = f"dataset_id {meta.dataset_id}, {meta.matrix.kind}"
        issue = file_issue(
            "E648",
            file.path,
            f"{file.name}:/uns/vcbench",
            found=found,
            expected=f"dataset_id {spec.id}, {spec.matrix.kind}, and the record of its columns",
            layout=spec.id,
        )
        raise InvalidFile([issue])
    keep = np.ones(file.n_obs, dtype=bool)
    columns: dict[str, str] = json.loads(str(record))
    obs = {published: kept_column(file, name, keep) for name, published in columns.items()}
    obs[spec.labels.column] = file.labels(LABEL_SOURCE)
    if spec.depth_column is not None and DEPTH in file.obs_columns:
        obs[spec.depth_column] = kept_column(file, DEPTH, keep)
    if spec.contexts.column is not None and spec.contexts.column not in obs:
        # Only a column of this very name, unchanged, is not kept beside the standard's.
        obs[spec.contexts.column] = file.labels(CONTEXT)
    genes, var = _genes(file, spec)
    in_layer = spec.matrix.location.removeprefix("layers/") if spec.matrix.location != "X" else None
    kind = "log1p" if in_layer and spec.matrix.kind == "counts" else meta.matrix.kind
    return Plan(
        keep=keep, obs=obs, genes=genes, var=var, kind=kind, counts_layer=in_layer, restored=list(obs)
    )


def _genes(file: H5ad, spec: DatasetSpec) -> tuple[list[str], dict[str, Any]]:
    """(var index, var columns): names, symbols and gene ids where the published file has them."""
    rules, present = spec.genes, file.var_columns
    names = [str(gene) for gene in file.genes]
    symbols = _texts(file, "gene_symbol") if "gene_symbol" in present else names
    ids = _texts(file, "gene_id") if "gene_id" in present else None
    index = ids if rules.index == "ensembl" and ids is not None else symbols
    var: dict[str, Any] = {}
    for column in spec.var_columns:
        if column == rules.symbol_column:
            var[column] = symbols
        elif column == rules.gene_id_column and ids is not None:
            var[column] = ids
        else:
            moved = SOURCE_PREFIX + column
            stored = moved if moved in present else column
            if stored in present:
                var[column] = file.values(stored, axis="var")
    return index, var


def _texts(file: H5ad, column: str) -> list[str]:
    return [str(value) for value in file.values(column, axis="var")]
