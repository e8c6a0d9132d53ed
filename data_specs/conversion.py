"""From a published h5ad and a dataset spec to a standard h5ad: streaming, verified, nothing guessed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import check_output
from .errors import InvalidFile, SpecError
from .gene_names import repeated_names, unique_genes
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .h5ad_columns import Labels
from .h5ad_write import write_h5ad_stream
from .issues import Issue, first_of, has_errors, make_issue, sort_issues
from .labels import CONTROL, UNASSIGNED, LabelRecipe, split_label
from .matrix_scan import (
    MatrixScan,
    OnRows,
    constant_scale,
    scale_issues,
    scale_range,
    scale_tolerance,
    scan_matrix,
    value_issues,
)
from .normalize import median_total
from .spec_models import Count, DatasetSpec
from .standard import (
    CONTEXT,
    IS_CONTROL,
    LABEL_SOURCE,
    N_TARGETS,
    PERTURBATION,
    MatrixMeta,
    StandardMeta,
)

DEPTH, TOTAL_COUNTS = "depth", "total_counts"
WRITTEN = (PERTURBATION, CONTEXT, IS_CONTROL, N_TARGETS, LABEL_SOURCE, TOTAL_COUNTS, DEPTH)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did. Counts are of the written file, except `n_dropped` (unassigned cells of the source).

    `target_sum_from` says where the target sum comes from: `control median`, `declared` or `measured`;
    `label_map` is source label to canonical label; `issues` holds warnings and notes.
    """

    path: Path
    n_cells: int
    n_genes: int
    n_dropped: int
    n_controls: int
    n_perturbations: int
    contexts: tuple[str, ...]
    target_sum: float
    target_sum_from: str
    label_map: dict[str, str]
    issues: tuple[Issue, ...]


@dataclass(frozen=True)
class _Cells:
    """The cells of the source as the standard sees them; `keep` masks those with an assigned perturbation."""

    source: Labels
    label_map: dict[str, str]
    perturbation: Labels
    context: Labels
    keep: np.ndarray

    @property
    def controls(self) -> np.ndarray:
        return self.keep & _is(self.perturbation, CONTROL)


def recipe_of(spec: DatasetSpec) -> LabelRecipe:
    """The label recipe of a dataset spec."""
    rules = spec.labels
    return LabelRecipe(
        control=rules.control,
        control_patterns=rules.control_patterns,
        unassigned=rules.unassigned,
        separator=rules.separator,
        fillers=rules.fillers,
        strip_regex=rules.strip_regex,
        aliases=rules.aliases,
    )


def convert(
    src: str | os.PathLike[str],
    spec: DatasetSpec,
    *,
    out: str | os.PathLike[str],
    force: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> Conversion:
    """Write `out`, the standard h5ad of `src` as `spec` describes it.

    X keeps its values and gene order (float32 CSR, stored zeros dropped). Labels become canonical with the
    published one kept in `label_source`; unassigned cells are left out and counted; `total_counts` is
    recomputed over the genes of the file and the published depth, where the spec names it, becomes `depth`.
    The target sum of counts is the median total of the control cells with a positive total; that of log1p
    values is the declared one, or the constant row sum of expm1(X). X is read twice: verified, then written.
    `src` is not modified.

    Raises
    ------
    InvalidFile
        The file contradicts the spec; all problems at once (codes E611 to E620, E626, E629 to E631, E635).
    SpecError
        The spec asks for a matrix other than X, or keeps a column under a name of the standard.
    OutputError
        `out` cannot be written, exists without `force`, or is `src`.
    """
    target = check_output(out, inputs=[src], force=force)
    if spec.matrix.location != "X":
        raise SpecError(
            f"{spec.id}: matrix.location is {spec.matrix.location!r}; only X is read. Move the layer to X first."
        )
    taken = sorted(set(spec.keep_obs.values()) & set(WRITTEN))
    if taken:
        raise SpecError(
            f"{spec.id}: keep_obs may not write {taken[0]!r}, a column of the standard; choose another name."
        )
    with H5ad(src) as file:
        issues = _column_issues(file, spec)
        if issues:
            raise InvalidFile(issues)
        genes, gene_columns, issues = unique_genes(file, spec.genes)
        cells = _cells(file, spec)
        digest = file_sha256(file.path)
        issues += _cell_issues(file, spec, cells) + _source_issues(file, spec, digest)
        scan = scan_matrix(
            file,
            expm1=spec.matrix.kind == "log1p",
            keep=cells.keep,
            block_bytes=block_bytes,
            on_rows=on_rows,
        )
        issues += value_issues(scan, file, spec.matrix.kind)
        target_sum, target_sum_from = None, ""
        if not has_errors(issues):
            target_sum, target_sum_from, more = _target_sum(file, spec, cells, scan)
            issues += more
        if has_errors(issues) or target_sum is None:
            raise InvalidFile(sort_issues(issues))
        meta = _meta(file, spec, cells, MatrixMeta(spec.matrix.kind, target_sum), target_sum_from, digest)
        _write(file, spec, cells, scan, target, genes, gene_columns, meta, block_bytes, on_rows)
        kept_labels = _take(cells.perturbation, cells.keep)
        return Conversion(
            path=target,
            n_cells=int(cells.keep.sum()),
            n_genes=file.n_vars,
            n_dropped=int((~cells.keep).sum()),
            n_controls=int(cells.controls.sum()),
            n_perturbations=sum(name != CONTROL for name in kept_labels.categories),
            contexts=tuple(_take(cells.context, cells.keep).categories),
            target_sum=target_sum,
            target_sum_from=target_sum_from,
            label_map=cells.label_map,
            issues=tuple(sort_issues(issues)),
        )


def _column_issues(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    if not file.n_obs or not file.n_vars:
        found = f"{file.n_obs:,} cells x {file.n_vars:,} genes"
        return [_issue("E629", file, "X", found=found, expected="at least one cell and one gene")]
    wanted: dict[str, list[str | None]] = {
        "obs": [spec.labels.column, spec.contexts.column, spec.depth_column, *spec.keep_obs],
        "var": [spec.genes.symbol_column, spec.genes.gene_id_column],
    }
    present = {"obs": file.obs_columns, "var": file.var_columns}
    return [
        _issue(
            "E626", file, axis, found=", ".join(present[axis]) or "no column", expected=column, column=column
        )
        for axis, columns in wanted.items()
        for column in dict.fromkeys(columns)
        if column is not None and column not in present[axis]
    ]


def _cells(file: H5ad, spec: DatasetSpec) -> _Cells:
    recipe = recipe_of(spec)
    source = file.labels(spec.labels.column)
    label_map = recipe.label_map(source.categories)
    canonical = [label_map[str(name)] for name in source.categories]
    perturbation = Labels.from_codes(source.codes, canonical)
    if spec.contexts.column is None:
        context = Labels(np.zeros(file.n_obs, np.int32), np.array([spec.contexts.value], dtype=object))
    else:
        published = file.labels(spec.contexts.column)
        renamed = [spec.contexts.rename.get(str(name), str(name)) for name in published.categories]
        context = Labels.from_codes(published.codes, renamed)
    keep = (perturbation.codes >= 0) & ~_is(perturbation, UNASSIGNED)
    return _Cells(source, label_map, perturbation, context, keep)


def _is(labels: Labels, name: str) -> np.ndarray:
    at = np.flatnonzero(labels.categories == name)
    return labels.codes == at[0] if len(at) else np.zeros(len(labels.codes), dtype=bool)


def _cell_issues(file: H5ad, spec: DatasetSpec, cells: _Cells) -> list[Issue]:
    issues = []
    names = file.obs_names.tolist()
    repeated = repeated_names(names)
    if repeated:
        issues.append(
            _issue("E612", file, "obs", found=first_of(sorted(repeated)), expected="each cell name once")
        )
    column = spec.labels.column
    n_dropped = int((~cells.keep).sum())
    if n_dropped == file.n_obs:
        issues.append(
            _issue(
                "E630",
                file,
                f"obs/{column}",
                found=f"{n_dropped:,} unassigned cells",
                expected="labelled cells",
            )
        )
        return issues
    recipe = recipe_of(spec)
    reserved = [str(name) for name in cells.source.categories if recipe.reserved(str(name))]
    if reserved:
        expected = "the label among labels.control, labels.fillers or labels.unassigned"
        issues.append(_issue("E638", file, f"obs/{column}", found=first_of(reserved), expected=expected))
    if n_dropped:
        issues.append(
            _issue(
                "W614",
                file,
                f"obs/{column}",
                found=f"{n_dropped:,} of {file.n_obs:,} cells without a perturbation",
                expected="cells with a label",
            )
        )
    nameless = int(((cells.context.codes < 0) & cells.keep).sum()) + int(
        (_is(cells.context, "") & cells.keep).sum()
    )
    if nameless:
        where = f"obs/{spec.contexts.column}"
        issues.append(
            _issue(
                "E620",
                file,
                where,
                found=f"{nameless:,} cells without one",
                expected="a context for every cell",
            )
        )
    if not cells.controls.any():
        found = f"{first_of(_take(cells.source, cells.keep).categories)} and no control"
        expected = " or ".join(repr(name) for name in spec.labels.control)
        issues.append(_issue("E619", file, f"obs/{column}", found=found, expected=expected))
    return issues + _count_issues(file, spec, cells)


def _count_issues(file: H5ad, spec: DatasetSpec, cells: _Cells) -> list[Issue]:
    labels = _take(cells.perturbation, cells.keep).categories
    found_counts: list[tuple[str, Count | None, int]] = [
        ("cells", spec.n_cells, file.n_obs),
        ("genes", spec.n_genes, file.n_vars),
        ("perturbations", spec.n_perturbations, sum(name != CONTROL for name in labels)),
        ("control cells", spec.n_control_cells, int(cells.controls.sum())),
    ]
    return [
        _issue(
            "E635",
            file,
            "",
            found=f"{found:,} {what}",
            expected=f"{count.value:,} (evidence: {count.verified})",
            severity="warning" if count.verified == "recall" else "error",
            what=what,
            spec=spec.id,
        )
        for what, count, found in found_counts
        if count is not None and abs(found - count.value) > count.rel_tolerance * count.value
    ]


def _source_issues(file: H5ad, spec: DatasetSpec, digest: str) -> list[Issue]:
    known = {f.sha256: f.name for f in spec.files if f.sha256}
    if not known or digest in known:
        return []
    expected = " or ".join(f"{name} {sha[:16]}…" for sha, name in known.items())
    return [_issue("W615", file, "", found=f"sha256 {digest[:16]}…", expected=expected, spec=spec.id)]


def _target_sum(
    file: H5ad, spec: DatasetSpec, cells: _Cells, scan: MatrixScan
) -> tuple[float | None, str, list[Issue]]:
    if spec.matrix.kind == "counts":
        totals = scan.totals[cells.controls]
        if not (totals > 0).any():
            found = f"{len(totals):,} control cells, all empty"
            return None, "", [_issue("E631", file, "X", found=found, expected="a control cell with a count")]
        return median_total(totals), "control median", []
    if spec.matrix.target_sum is not None:
        matrix = MatrixMeta("log1p", spec.matrix.target_sum)
        return spec.matrix.target_sum, "declared", scale_issues(scan, file, matrix)
    measured = constant_scale(scan, scale_tolerance(file))
    if measured is not None:
        return measured, "measured", []
    low, high = scale_range(scan)
    issue = _issue(
        "E628",
        file,
        "X",
        found=f"rows of expm1(X) that sum to {low:.6g} up to {high:.6g}, and no matrix.target_sum in {spec.id}",
        expected="equal row sums, or a declared target sum",
    )
    return None, "", [issue]


def _meta(
    file: H5ad, spec: DatasetSpec, cells: _Cells, matrix: MatrixMeta, target_sum_from: str, digest: str
) -> StandardMeta:
    recipe = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    filters = [{"filter": "unassigned cells", "before": file.n_obs, "after": int(cells.keep.sum())}]
    extra = {
        "source": {
            "name": file.name,
            "bytes": file.path.stat().st_size,
            "sha256": digest,
        },
        "conversion": {
            "recipe": spec.id,
            "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
            "target_sum_from": target_sum_from,
            "aliases_applied": json.dumps(dict(spec.labels.aliases), sort_keys=True),
        },
        "label_map": json.dumps(cells.label_map, sort_keys=True),
        "filters": json.dumps(filters),
    }
    return StandardMeta(
        dataset_id=spec.id,
        matrix=matrix,
        modality=spec.modality,
        organism=spec.organism,
        extra=extra,
    )


def _write(
    file: H5ad,
    spec: DatasetSpec,
    cells: _Cells,
    scan: MatrixScan,
    target: Path,
    genes: list[str],
    gene_columns: dict[str, Any],
    meta: StandardMeta,
    block_bytes: int,
    on_rows: OnRows | None,
) -> None:
    keep = cells.keep
    with write_h5ad_stream(
        target,
        genes=genes,
        obs=_obs(file, spec, cells, scan),
        obs_names=file.obs_names[keep].tolist(),
        var=gene_columns,
        uns=meta.to_uns(),
    ) as writer:
        for rows, done in _kept_rows(file, keep, block_bytes):
            writer.append(rows)
            if on_rows is not None:
                on_rows(done, file.n_obs)


def _kept_rows(file: H5ad, keep: np.ndarray, block_bytes: int) -> Iterator[tuple[Any, int]]:
    for block in file.row_blocks(max_bytes=block_bytes):
        mask = keep[block.start : block.stop]
        yield (
            (block.matrix if mask.all() else block.matrix[np.flatnonzero(mask)]).astype(np.float32),
            block.stop,
        )


def _obs(file: H5ad, spec: DatasetSpec, cells: _Cells, scan: MatrixScan) -> dict[str, Any]:
    keep = cells.keep
    labels = _take(cells.perturbation, keep)
    n_targets = np.array([len(split_label(str(name))) for name in labels.categories], dtype=np.int8)
    columns: dict[str, Any] = {
        PERTURBATION: labels,
        CONTEXT: _take(cells.context, keep),
        IS_CONTROL: cells.controls[keep],
        N_TARGETS: n_targets[labels.codes],
        LABEL_SOURCE: _take(cells.source, keep),
    }
    if spec.matrix.kind == "counts":
        columns[TOTAL_COUNTS] = scan.totals[keep].astype(np.float32)
    if spec.depth_column is not None:
        columns[DEPTH] = file.values(spec.depth_column)[keep]
    for source, name in spec.keep_obs.items():
        values = file.values(source)
        columns[name] = _take(file.labels(source), keep) if values.dtype == object else values[keep]
    return columns


def _take(labels: Labels, keep: np.ndarray) -> Labels:
    return Labels.from_codes(labels.codes[keep], labels.categories)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _issue(code: str, file: H5ad, place: str, *, found: str, expected: str, **fill: Any) -> Issue:
    where = f"{file.name}:/{place}" if place else file.name
    return make_issue(
        code, where=where, found=found, expected=expected, file=shlex.quote(str(file.path)), **fill
    )
