"""From a standard h5ad back to a published layout: streaming, verified, published columns restored."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import check_output
from .conversion import DEPTH, TOTAL_COUNTS, file_issue
from .errors import InvalidFile, UnknownName, UsageError
from .gears_rankings import GearsRankings
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .h5ad_columns import Labels
from .h5ad_write import write_h5ad_stream
from .issues import Issue, first_of, has_errors, sort_issues
from .labels import CONTROL, LabelRecipe, split_label, unescape
from .layout_models import Layout
from .matrix_scan import OnRows
from .normalize import to_log1p
from .schema_check import check_standard
from .source_cells import rows_of, taken_labels
from .specs import parse_spec, read_toml, shipped_toml
from .standard import (
    CONTEXT,
    DOSE,
    DOSE_UNIT,
    IS_CONTROL,
    LABEL_SOURCE,
    N_TARGETS,
    PERTURBATION,
    TIME_H,
    StandardMeta,
    read_meta,
)

OWN_COLUMNS = {PERTURBATION, CONTEXT, IS_CONTROL, N_TARGETS, LABEL_SOURCE, TOTAL_COUNTS, DEPTH} | {
    DOSE,
    DOSE_UNIT,
    TIME_H,
}
EXPORT_KEY = "vcbench_export"
# Text of a ranking is held in memory: this many names take about 2 GB.
MAX_RANKED = 25_000_000


@dataclass(frozen=True)
class Export:
    """What `export` wrote. `n_dropped` counts control cells that the layout leaves out; `restored` are the obs columns
    that were given back their published names; `issues` holds the notes on the input."""

    path: Path
    layout: str
    n_cells: int
    n_genes: int
    n_dropped: int
    matrix: str
    target_sum: float | None
    restored: tuple[str, ...]
    issues: tuple[Issue, ...]


@dataclass
class Plan:
    """What is written: columns of the kept cells, the kind of X, the layer of counts, the groups of rankings."""

    keep: np.ndarray
    obs: dict[str, Any]
    genes: list[str]
    var: dict[str, Any]
    kind: str
    counts_layer: str | None
    rankings: GearsRankings | None = None
    restored: list[str] = field(default_factory=list)


def layout_ids() -> list[str]:
    """Ids of the layouts that `export` writes, sorted."""
    return sorted(shipped_toml("layouts"))


@cache
def load_layout(name: str) -> Layout:
    """A shipped layout by id, or a layout TOML by path (a name that ends in `.toml`).

    Raises
    ------
    UnknownName
        No shipped layout has this id.
    SpecError
        The TOML breaks the schema.
    """
    if name.endswith(".toml"):
        return parse_spec(Layout, read_toml(Path(name)), origin=name)
    shipped = shipped_toml("layouts")
    if name not in shipped:
        raise UnknownName("layout", name, sorted(shipped), "vcbench data export --help")
    return parse_spec(Layout, tomllib.loads(shipped[name].read_text(encoding="utf-8")), origin=f"{name}.toml")


def export(
    src: str | os.PathLike[str],
    layout: Layout | str,
    *,
    out: str | os.PathLike[str],
    rankings: bool = True,
    force: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> Export:
    """Write `out`, the standard h5ad `src` in a published layout.

    The input is checked first (`check_standard`, values and scale included), then X is streamed: counts stay counts,
    or become ln(1 + x * target_sum / total) with the recorded target sum where the layout holds log1p. Columns that
    conversion renamed get their published names back, and labels are written as published where the layout reads
    them as the same perturbation. Without `rankings`, a layout with rankings of genes is written without them.
    `src` is not modified.

    Raises
    ------
    InvalidFile
        The file breaks the standard, or the layout cannot hold it (E646 to E649); all problems at once.
    UsageError
        The file holds mean profiles, or its rankings would not fit into memory.
    OutputError
        `out` cannot be written, exists without `force`, or is `src`.
    """
    layout = load_layout(layout) if isinstance(layout, str) else layout
    target = check_output(out, inputs=[src], force=force)
    issues = check_standard(src, block_bytes=block_bytes, on_rows=on_rows)
    if has_errors(issues):
        raise InvalidFile(issues)
    with H5ad(src) as file:
        meta = cells_meta(file)
        problems = _layout_issues(file, meta, layout)
        if problems:
            raise InvalidFile(sort_issues(problems))
        plan = _plan(file, meta, layout, rankings)
        write_plan(file, meta, layout.id, plan, target, block_bytes, on_rows)
        return Export(
            path=target,
            layout=layout.id,
            n_cells=int(plan.keep.sum()),
            n_genes=file.n_vars,
            n_dropped=int((~plan.keep).sum()),
            matrix=plan.kind,
            target_sum=meta.matrix.target_sum,
            restored=tuple(plan.restored),
            issues=tuple(issues),
        )


def cells_meta(file: H5ad) -> StandardMeta:
    meta = read_meta(file)
    if meta is None or meta.rows != "cell":
        raise UsageError(
            f"{file.path}: holds mean profiles; published layouts hold cells. `vcbench pack` takes profiles."
        )
    return meta


def _layout_issues(file: H5ad, meta: StandardMeta, layout: Layout) -> list[Issue]:
    issues = []
    if layout.matrix == "counts" and meta.matrix.kind != "counts":
        issues.append(_issue("E647", file, "X", found="log1p values", expected="counts", layout=layout.id))
    labels = file.labels(PERTURBATION)
    if layout.controls == "drop" and rows_of(labels, CONTROL).all():
        issues.append(
            _issue(
                "E649",
                file,
                f"obs/{PERTURBATION}",
                found="control cells alone",
                expected="perturbed cells",
                layout=layout.id,
            )
        )
    bad = [str(name) for name in labels.categories if not _writable(str(name), layout)]
    if bad:
        joiner = f" without {layout.labels.separator!r} in them" if layout.labels.separator else ""
        most = f", at most {layout.max_targets} a perturbation" if layout.max_targets else ""
        issues.append(
            _issue(
                "E646",
                file,
                f"obs/{PERTURBATION}",
                found=first_of(bad),
                expected=f"target names{joiner}{most}",
                layout=layout.id,
            )
        )
    return issues


def _writable(label: str, layout: Layout) -> bool:
    parts = [unescape(part) for part in split_label(label)]
    if len(parts) > (layout.max_targets or len(parts)):
        return False
    separator = layout.labels.separator
    if separator is None and len(parts) > 1:
        return False
    # Rankings are stored under the names of conditions, and HDF5 takes a slash for a folder.
    forbidden = {separator} if separator else set()
    forbidden |= {"/"} if layout.de_rankings else set()
    return not any(sign in part for part in parts for sign in forbidden)


def published_names(meta: StandardMeta) -> dict[str, str]:
    """Written name to published name of the obs columns that conversion kept; empty where none is recorded."""
    text = meta.extra.get("columns")
    return dict(json.loads(text)) if isinstance(text, str) else {}


def written_labels(labels: Labels, source: Labels, layout: Layout) -> Labels:
    """The label column of a layout: the published label where it has the layout's form and reads as the same."""
    rules = layout.labels
    recipe = LabelRecipe(
        control=(rules.control,),
        control_patterns=(),
        unassigned=("",),
        separator=rules.separator,
        fillers=(rules.filler,) if rules.filler else (),
    )
    pairs, inverse = np.unique(np.stack([labels.codes, source.codes]), axis=1, return_inverse=True)
    names = []
    for code, published in pairs.T:
        label = str(labels.categories[code])
        text = str(source.categories[published]) if published >= 0 else ""
        same = re.fullmatch(rules.form, text) and recipe.canonical(text) == label
        names.append(text if same else _composed(label, layout))
    return Labels.from_codes(inverse.ravel(), names)


def _composed(label: str, layout: Layout) -> str:
    rules = layout.labels
    parts = [unescape(part) for part in split_label(label)]
    if not parts:
        return rules.control
    if len(parts) == 1 and rules.filler:
        parts.append(rules.filler)
    return (rules.separator or "").join(parts)


def _plan(file: H5ad, meta: StandardMeta, layout: Layout, rankings: bool) -> Plan:
    labels = file.labels(PERTURBATION)
    controls = rows_of(labels, CONTROL)
    keep = ~controls if layout.controls == "drop" else np.ones(file.n_obs, dtype=bool)
    obs, restored = restored_columns(file, meta, keep, OWN_COLUMNS)
    for standard, name in layout.columns.items():
        if standard in file.obs_columns and name not in restored:
            obs[name] = kept_column(file, standard, keep)
    if layout.context_column is not None and layout.context_column not in restored:
        obs[layout.context_column] = taken_labels(file.labels(CONTEXT), keep)
    written = taken_labels(written_labels(labels, file.labels(LABEL_SOURCE), layout), keep)
    obs[layout.labels.column] = written
    for name, rule in layout.derived.items():
        obs[name] = _derived(rule, layout, obs, written, labels.codes[keep], labels)
    genes = file.genes.tolist()
    plan = Plan(
        keep=keep,
        obs=obs,
        genes=genes,
        var=_var(file, layout),
        kind=meta.matrix.kind if layout.matrix == "declared" else layout.matrix,
        counts_layer=layout.counts_layer if meta.matrix.kind == "counts" else None,
        restored=restored,
    )
    if layout.de_rankings and rankings:
        groups = obs["condition_name"]
        if len(groups.categories) * len(genes) > MAX_RANKED:
            raise UsageError(
                f"{file.path}: rankings of {len(genes):,} genes for {len(groups.categories):,} conditions do not fit "
                "into memory; export without them (--no-rankings), or fewer genes."
            )
        contexts = obs[layout.context_column] if layout.context_column else None
        assert isinstance(contexts, Labels)
        plan.rankings = GearsRankings(groups, written, contexts, layout.labels.control, genes)
    return plan


def restored_columns(
    file: H5ad, meta: StandardMeta, keep: np.ndarray, own: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """(the obs columns beside the standard's own, under their published names; those names that are restored)."""
    names = published_names(meta)
    skip = set(own)
    obs: dict[str, Any] = {}
    for column in file.obs_columns:
        if column in names:
            obs[names[column]] = kept_column(file, column, keep)
        elif column not in skip:
            obs.setdefault(column, kept_column(file, column, keep))
    return obs, [names[c] for c in file.obs_columns if c in names]


def kept_column(file: H5ad, name: str, keep: np.ndarray) -> Any:
    values = file.values(name)
    return taken_labels(file.labels(name), keep) if values.dtype == object else values[keep]


def _derived(
    rule: str, layout: Layout, obs: dict[str, Any], written: Labels, codes: np.ndarray, labels: Labels
) -> Any:
    if rule == "n_targets":
        n = np.array([len(split_label(str(name))) for name in labels.categories], dtype=np.int64)
        return n[codes]
    two = np.array([str(name).count("+") == 1 for name in written.categories])[written.codes]
    if rule == "one_part":
        return np.where(two, 0, 1)
    dose = Labels.from_values(np.where(two, "1+1", "1").astype(object))
    if rule == "dose_val":
        return dose
    context = obs[layout.context_column or CONTEXT].values()
    joined = zip(context, written.values(), dose.values(), strict=True)
    return Labels.from_values([f"{c}_{name}_{d}" for c, name, d in joined])


def _var(file: H5ad, layout: Layout) -> dict[str, Any]:
    skip = {"gene_id"} if layout.gene_id_column else set()
    var = {name: file.values(name, axis="var") for name in file.var_columns if name not in skip}
    if layout.symbol_column is not None:
        var[layout.symbol_column] = file.genes
    if layout.gene_id_column is not None and "gene_id" in file.var_columns:
        var[layout.gene_id_column] = file.values("gene_id", axis="var")
    return var


def write_plan(
    file: H5ad,
    meta: StandardMeta,
    layout_id: str,
    plan: Plan,
    target: Path,
    block_bytes: int,
    on_rows: OnRows | None,
) -> None:
    uns: dict[str, Any] = {
        EXPORT_KEY: {
            "layout": layout_id,
            "source": file.name,
            "dataset_id": meta.dataset_id,
            "matrix": {"kind": plan.kind, "target_sum": meta.matrix.target_sum},
        }
    }
    layers = [plan.counts_layer] if plan.counts_layer else []
    with write_h5ad_stream(
        target,
        genes=plan.genes,
        obs=plan.obs,
        obs_names=file.obs_names[plan.keep].tolist(),
        var=plan.var,
        uns=uns,
        layers=layers,
    ) as writer:
        done = 0
        for block in file.row_blocks(max_bytes=block_bytes, wanted=plan.keep):
            rows: Any = block.matrix[np.flatnonzero(plan.keep[block.start : block.stop])]
            shown: Any = to_log1p(rows, meta.matrix) if plan.kind == "log1p" else rows
            written = writer.append(shown.astype(np.float32))
            for name in layers:
                writer.layers[name].append(rows.astype(np.float32))
            if plan.rankings is not None:
                plan.rankings.add(done, written)
            done += rows.shape[0]
            if on_rows is not None:
                on_rows(block.stop, file.n_obs)
        # The writer stores uns when it closes, so what the pass has summed can still enter.
        if plan.rankings is not None:
            uns |= plan.rankings.to_uns()


def _issue(code: str, file: H5ad, place: str, *, found: str, expected: str, **fill: Any) -> Issue:
    return file_issue(code, file.path, f"{file.name}:/{place}", found=found, expected=expected, **fill)
