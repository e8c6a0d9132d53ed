"""From a published h5ad and a dataset spec to a standard h5ad: streaming, verified, nothing guessed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
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
from .hashing import file_sha256
from .issues import Issue, first_of, has_errors, make_issue, sort_issues
from .labels import CONTROL, parse_dose, split_label
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
from .source_cells import SourceCells, recipe_of, rows_of, source_cells, taken_labels
from .spec_models import Count, DatasetSpec
from .standard import (
    CONTEXT,
    DOSE,
    DOSE_UNIT,
    IS_CONTROL,
    LABEL_SOURCE,
    N_TARGETS,
    PERTURBATION,
    TIME_H,
    MatrixMeta,
    StandardMeta,
)

DEPTH, TOTAL_COUNTS = "depth", "total_counts"
WRITTEN = (PERTURBATION, CONTEXT, IS_CONTROL, N_TARGETS, LABEL_SOURCE, TOTAL_COUNTS, DEPTH)
SOURCE_PREFIX = "source_"


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
        The file contradicts the spec; all problems at once (E611 to E620, E626 to E631, E635, E638 to E640).
    SpecError
        The spec keeps a column under a name of the standard.
    OutputError
        `out` cannot be written, exists without `force`, or is `src`.
    """
    target = check_output(out, inputs=[src], force=force)
    taken = sorted(set(spec.keep_obs.values()) & set(standard_columns(spec)))
    if taken:
        raise SpecError(
            f"{spec.id}: keep_obs may not write {taken[0]!r}, a column of the standard; choose another name."
        )
    with H5ad(src, location=spec.matrix.location) as file:
        issues = column_issues(file, spec)
        if issues:
            raise InvalidFile(issues)
        genes, gene_columns, issues = unique_genes(file, spec.genes)
        gene_columns |= _kept_var(file, spec, gene_columns)
        cells = source_cells(file, spec)
        digest = file_sha256(file.path)
        issues += cell_issues(file, spec, cells) + source_issues(file, spec, digest)
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
        kept_labels = taken_labels(cells.perturbation, cells.keep)
        return Conversion(
            path=target,
            n_cells=int(cells.keep.sum()),
            n_genes=file.n_vars,
            n_dropped=int((~cells.keep).sum()),
            n_controls=int(cells.controls.sum()),
            n_perturbations=sum(name != CONTROL for name in kept_labels.categories),
            contexts=tuple(taken_labels(cells.context, cells.keep).categories),
            target_sum=target_sum,
            target_sum_from=target_sum_from,
            label_map=cells.label_map,
            issues=tuple(sort_issues(issues)),
        )


def column_issues(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    """E629 for an empty file, E626 for every column that conversion reads and the file lacks."""
    if not file.n_obs or not file.n_vars:
        found = f"{file.n_obs:,} cells x {file.n_vars:,} genes"
        return [_issue("E629", file, "X", found=found, expected="at least one cell and one gene")]
    wanted: dict[str, list[str | None]] = {
        "obs": [
            spec.labels.column,
            spec.contexts.column,
            spec.depth_column,
            *dose_columns(spec),
            *spec.keep_obs,
        ],
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


def _kept_var(file: H5ad, spec: DatasetSpec, taken: dict[str, Any]) -> dict[str, Any]:
    skip = {spec.genes.symbol_column, spec.genes.gene_id_column}
    return {
        (SOURCE_PREFIX + name if name in taken else name): file.values(name, axis="var")
        for name in spec.var_columns
        if name in file.var_columns and name not in skip
    }


def cell_issues(file: H5ad, spec: DatasetSpec, cells: SourceCells) -> list[Issue]:
    """Problems of cell names, labels, doses, contexts and controls, and counts that differ from the spec's."""
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
    odd = [str(name) for name in cells.source.categories if recipe.unreadable(str(name))]
    if odd:
        expected = "labels such as [('NAME', 0.5, 'uM')]"
        issues.append(_issue("E640", file, f"obs/{column}", found=first_of(odd), expected=expected))
    if cells.n_without_dose and spec.labels.dose:
        found = f"{cells.n_without_dose:,} cells of a compound without a positive dose, a unit or a time"
        where = f"obs/{spec.labels.dose.column}"
        issues.append(_issue("E639", file, where, found=found, expected="numbers above 0 and a unit"))
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
        (rows_of(cells.context, "") & cells.keep).sum()
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
        found = f"{first_of(taken_labels(cells.source, cells.keep).categories)} and no control"
        expected = " or ".join(repr(name) for name in spec.labels.control)
        issues.append(_issue("E619", file, f"obs/{column}", found=found, expected=expected))
    return issues + _count_issues(file, spec, cells)


def _count_issues(file: H5ad, spec: DatasetSpec, cells: SourceCells) -> list[Issue]:
    labels = taken_labels(cells.perturbation, cells.keep).categories
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


def source_issues(file: H5ad, spec: DatasetSpec, digest: str) -> list[Issue]:
    """W615 when the sha256 is none of those that the spec records."""
    known = {f.sha256: f.name for f in spec.files if f.sha256}
    if not known or digest in known:
        return []
    expected = " or ".join(f"{name} {sha[:16]}…" for sha, name in known.items())
    return [_issue("W615", file, "", found=f"sha256 {digest[:16]}…", expected=expected, spec=spec.id)]


def _target_sum(
    file: H5ad, spec: DatasetSpec, cells: SourceCells, scan: MatrixScan
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
    file: H5ad, spec: DatasetSpec, cells: SourceCells, matrix: MatrixMeta, target_sum_from: str, digest: str
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
        "columns": json.dumps(kept_columns(spec, file.obs_columns), sort_keys=True),
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
    cells: SourceCells,
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


def _obs(file: H5ad, spec: DatasetSpec, cells: SourceCells, scan: MatrixScan) -> dict[str, Any]:
    keep = cells.keep
    labels = taken_labels(cells.perturbation, keep)
    n_targets = np.array([len(split_label(str(name))) for name in labels.categories], dtype=np.int8)
    columns: dict[str, Any] = {
        PERTURBATION: labels,
        CONTEXT: taken_labels(cells.context, keep),
        IS_CONTROL: cells.controls[keep],
        N_TARGETS: n_targets[labels.codes],
        LABEL_SOURCE: taken_labels(cells.source, keep),
    }
    if spec.matrix.kind == "counts":
        columns[TOTAL_COUNTS] = scan.totals[keep].astype(np.float32)
    if spec.depth_column is not None:
        columns[DEPTH] = file.values(spec.depth_column)[keep]
    columns |= _dose_copies(labels, None if cells.hours is None else cells.hours[keep])
    for name, source in kept_columns(spec, file.obs_columns).items():
        values = file.values(source)
        text = values.dtype == object
        columns[name] = taken_labels(file.labels(source), keep) if text else values[keep]
    return columns


def _dose_copies(labels: Labels, hours: np.ndarray | None) -> dict[str, Any]:
    """Dose, unit and hours of the one-part labels; nothing where no label has a dose and no column has hours."""
    parsed = [
        parse_dose(parts[0]) if len(parts := split_label(str(name))) == 1 else ("", None, None, None)
        for name in labels.categories
    ]
    columns: dict[str, Any] = {}
    if any(dose is not None for _, dose, _, _ in parsed):
        doses = np.array([np.nan if dose is None else dose for _, dose, _, _ in parsed])
        columns[DOSE] = doses[labels.codes]
        columns[DOSE_UNIT] = Labels.from_values([parsed[code][2] for code in labels.codes])
    if hours is not None:
        columns[TIME_H] = hours
    return columns


def dose_columns(spec: DatasetSpec) -> list[str]:
    """The obs columns that complete the labels of this layout."""
    rules = spec.labels.dose
    columns = (rules.column, rules.unit_column, rules.time_column) if rules else ()
    return [name for name in columns if name is not None]


def standard_columns(spec: DatasetSpec) -> tuple[str, ...]:
    """The obs columns of the standard that a file of this layout gets."""
    dosed = (DOSE, DOSE_UNIT, TIME_H) if spec.labels.dose or spec.labels.form == "tuples" else ()
    return (*WRITTEN, *dosed)


def kept_columns(spec: DatasetSpec, present: Iterable[str]) -> dict[str, str]:
    """Written name to published name of the obs columns that are kept beside the standard's own.

    Those of `keep_obs` take the name given there; other published columns keep theirs, or get the prefix `source_`
    where a column of the standard or of `keep_obs` has it. The label is in label_source, the depth in depth.
    """
    kept = {name: source for source, name in spec.keep_obs.items()}
    there = set(present)
    done = {*spec.keep_obs, spec.labels.column, spec.depth_column}
    unchanged = spec.contexts.column if not spec.contexts.rename else None
    for source in sorted(there) if spec.keep_all else spec.obs_columns:
        if source in done or source not in there or source == unchanged == CONTEXT:
            continue
        name = source
        while name in kept or name in standard_columns(spec):
            name = SOURCE_PREFIX + name
        kept[name] = source
    return kept


def file_issue(
    code: str, path: Path, where: str, *, found: str, expected: str, message: str | None = None, **fill: Any
) -> Issue:
    """An issue of a file, with its path quoted for the command that the issue proposes."""
    return make_issue(
        code,
        where=where,
        found=found,
        expected=expected,
        message=message,
        file=shlex.quote(str(path)),
        **fill,
    )


def _issue(code: str, file: H5ad, place: str, *, found: str, expected: str, **fill: Any) -> Issue:
    where = f"{file.name}:/{place}" if place else file.name
    return file_issue(code, file.path, where, found=found, expected=expected, **fill)
