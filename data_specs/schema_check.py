"""The checker of standard h5ad files: every rule of the schema, all problems at once, streaming."""

from __future__ import annotations

import os
import shlex
from typing import Any

import numpy as np

from .errors import InvalidFile, UsageError
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .h5ad_columns import Labels
from .issues import Issue, first_of, make_issue, sort_issues
from .labels import CONTROL, is_canonical, split_label, targets_of
from .matrix_scan import MatrixScan, OnRows, scale_issues, scan_matrix, value_issues
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

REQUIRED = {
    "cell": (PERTURBATION, CONTEXT, IS_CONTROL, N_TARGETS, LABEL_SOURCE),
    "mean": (PERTURBATION, CONTEXT),
}
TOTAL_TOLERANCE = 1e-5


def check_standard(
    path: str | os.PathLike[str],
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> list[Issue]:
    """Every problem of a file under the standard schema, errors first; an empty list is a valid file.

    Checks the record in `uns["vcbench"]`, required columns, labels and the columns derived from them, unique
    names, controls per context and, in one pass over X, that its values are of the declared matrix kind. A
    file of mean profiles (`rows` is "mean") has no controls to find and may hold negative values. Problems of
    the container (not HDF5, truncated) are issues too. The file is not modified.
    """
    try:
        with H5ad(path) as file:
            return sort_issues(_check(file, block_bytes, on_rows))
    except InvalidFile as error:
        return sort_issues(error.issues)


def _check(file: H5ad, block_bytes: int, on_rows: OnRows | None) -> list[Issue]:
    if not file.n_obs or not file.n_vars:
        found = f"{file.n_obs:,} cells x {file.n_vars:,} genes"
        return [_issue("E629", file, "X", found=found, expected="at least one cell and one gene")]
    meta, issues = _record(file)
    rows = meta.rows if meta else "cell"
    issues += _names(file)
    issues += _missing_columns(file, rows)
    present = set(file.obs_columns)
    if PERTURBATION in present:
        issues += _labels(file, rows, no_genes=meta is not None and meta.modality in ("drug", "cytokine"))
    if CONTEXT in present:
        issues += _contexts(file, rows)
    scan = scan_matrix(
        file, expm1=bool(meta and meta.matrix.kind == "log1p"), block_bytes=block_bytes, on_rows=on_rows
    )
    return issues + _matrix(file, meta, scan)


def _record(file: H5ad) -> tuple[StandardMeta | None, list[Issue]]:
    try:
        meta = read_meta(file)
    except UsageError as error:
        return None, [
            _issue("E625", file, "uns/vcbench", found=str(error), expected="a record of schema version 1")
        ]
    if meta is None:
        return None, [
            _issue("E624", file, "uns", found="no entry vcbench", expected="the record uns/vcbench")
        ]
    if meta.control_label != CONTROL:
        found = f"control_label {meta.control_label!r}"
        return meta, [_issue("E625", file, "uns/vcbench", found=found, expected=f"control_label {CONTROL!r}")]
    return meta, []


def _names(file: H5ad) -> list[Issue]:
    issues = []
    for code, axis, names in (("E611", "var", file.genes), ("E612", "obs", file.obs_names)):
        unique, counts = np.unique(names.astype(str), return_counts=True)
        if len(unique) < len(names):
            found = first_of(unique[counts > 1])
            issues.append(_issue(code, file, axis, found=found, expected="each name once"))
    return issues


def _missing_columns(file: H5ad, rows: str) -> list[Issue]:
    present = ", ".join(file.obs_columns) or "no column"
    return [
        _issue("E626", file, "obs", found=present, expected=column, column=column)
        for column in REQUIRED[rows]
        if column not in file.obs_columns
    ]


def _labels(file: H5ad, rows: str, *, no_genes: bool) -> list[Issue]:
    labels = file.labels(PERTURBATION)
    issues = []
    n_missing = int((labels.codes < 0).sum())
    if n_missing:
        found = f"{n_missing:,} cells without one"
        issues.append(
            _issue("E627", file, "obs/perturbation", found=found, expected="a label for every cell")
        )
    odd = [str(name) for name in labels.categories if not is_canonical(str(name))]
    if odd:
        expected = "control, A, or A+B with parts in order and once"
        issues.append(_issue("E621", file, "obs/perturbation", found=first_of(odd), expected=expected))
    unused = _unused_categories(file, labels)
    if unused:
        expected = "only categories that occur"
        issues.append(_issue("W613", file, "obs/perturbation", found=first_of(unused), expected=expected))
    issues += [] if no_genes else _unmeasured(file, labels)
    if rows == "cell":
        issues += _derived_columns(file, labels)
    return issues


def _unused_categories(file: H5ad, labels: Labels) -> list[str]:
    used = set(labels.categories)
    return [name for name in file.stored_categories(PERTURBATION) or () if name not in used]


def _unmeasured(file: H5ad, labels: Labels) -> list[Issue]:
    genes = set(file.genes.tolist())
    targets = sorted({t for name in labels.categories for t in targets_of(str(name))})
    missing = [t for t in targets if t not in genes]
    if not missing:
        return []
    expected = f"all {len(targets):,} targets among the genes"
    return [_issue("W612", file, "var", found=first_of(missing), expected=expected)]


def _derived_columns(file: H5ad, labels: Labels) -> list[Issue]:
    issues, present = [], set(file.obs_columns)
    names = labels.categories
    known = labels.codes >= 0
    expected = {
        IS_CONTROL: np.array([name == CONTROL for name in names], dtype=bool),
        N_TARGETS: np.array([len(split_label(str(name))) for name in names], dtype=np.int64),
    }
    for code, column in (("E622", IS_CONTROL), ("E623", N_TARGETS)):
        if column not in present:
            continue
        wanted = expected[column][labels.codes[known]]
        stored = _as_numbers(file.values(column))[known]
        wrong = np.flatnonzero(stored != wanted)
        if len(wrong):
            row = np.flatnonzero(known)[wrong[0]]
            cell = f"cell {file.obs_names[row]!r} of {names[labels.codes[row]]!r}"
            found = f"{len(wrong):,} cells (first: {stored[wrong[0]]:g} for {cell})"
            right = f"{int(wanted[wrong[0]])} there"
            issues.append(_issue(code, file, f"obs/{column}", found=found, expected=right))
    if LABEL_SOURCE in present:
        issues += _source_issues(file, labels)
    small = [name for name, n in labels.counts().items() if n == 1]
    if small:
        issues.append(
            _issue("W616", file, "obs/perturbation", found=first_of(small), expected="at least 2 cells each")
        )
    return issues


def _as_numbers(values: np.ndarray) -> np.ndarray:
    """Booleans, numbers, or their text as float64; anything else is NaN, which agrees with nothing."""
    words = {"true": 1.0, "false": 0.0}
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    return np.array([words.get(str(v).lower(), _number(v)) for v in values], dtype=np.float64)


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")


def _source_issues(file: H5ad, labels: Labels) -> list[Issue]:
    source = file.labels(LABEL_SOURCE)
    # A published compound has one meaning per dose, unit and time.
    parts = [file.labels(name).codes for name in (DOSE, DOSE_UNIT, TIME_H) if name in file.obs_columns]
    pairs = np.unique(np.stack([source.codes, *parts, labels.codes]), axis=1)
    pairs = pairs[:, (pairs[0] >= 0) & (pairs[-1] >= 0)]
    keys, counts = np.unique(pairs[:-1], axis=1, return_counts=True)
    torn = [str(source.categories[code]) for code in np.unique(keys[0, counts > 1])]
    if not torn:
        return []
    expected = "one perturbation for each published label (and dose and time)"
    return [_issue("E634", file, f"obs/{LABEL_SOURCE}", found=first_of(torn), expected=expected)]


def _contexts(file: H5ad, rows: str) -> list[Issue]:
    context = file.labels(CONTEXT)
    issues = []
    empty = context.codes < 0
    blank = np.flatnonzero([not str(name).strip() for name in context.categories])
    empty |= np.isin(context.codes, blank)
    if empty.any():
        found = f"{int(empty.sum()):,} cells without one"
        issues.append(
            _issue("E620", file, f"obs/{CONTEXT}", found=found, expected="a context for every cell")
        )
    if PERTURBATION not in file.obs_columns:
        return issues
    labels = file.labels(PERTURBATION)
    if rows == "mean":
        return issues + _repeated_rows(file, context, labels)
    control = np.flatnonzero(labels.categories == CONTROL)
    of_control = labels.codes == control[0] if len(control) else np.zeros(len(labels.codes), dtype=bool)
    with_control = set(context.codes[of_control].tolist())
    without = [str(c) for i, c in enumerate(context.categories) if i not in with_control and i not in blank]
    if without:
        found = f"no control in {first_of(without)}"
        issues.append(
            _issue(
                "E619", file, "obs/perturbation", found=found, expected=f"{CONTROL!r} cells in every context"
            )
        )
    return issues


def _repeated_rows(file: H5ad, context: Labels, labels: Labels) -> list[Issue]:
    keys, counts = np.unique(np.stack([context.codes, labels.codes]), axis=1, return_counts=True)
    twice = [
        f"{context.categories[c]}/{labels.categories[p]}"
        for c, p in keys[:, counts > 1].T
        if c >= 0 and p >= 0
    ]
    if not twice:
        return []
    expected = "one row per context and perturbation"
    return [_issue("E636", file, "obs", found=first_of(twice), expected=expected)]


def _matrix(file: H5ad, meta: StandardMeta | None, scan: MatrixScan) -> list[Issue]:
    rows = meta.rows if meta else "cell"
    kind = meta.matrix.kind if meta else ""
    issues = value_issues(scan, file, kind)
    if rows == "mean":
        issues = [issue for issue in issues if issue.code == "E614"]
    if meta is not None:
        target_sum = meta.matrix.target_sum
        if target_sum is None or not np.isfinite(target_sum) or target_sum <= 0:
            found, expected = f"target_sum {target_sum}", "a positive number"
            issues.append(_issue("E628", file, "uns/vcbench/matrix", found=found, expected=expected))
        elif rows == "cell" and not any(issue.code in ("E614", "E615", "E617") for issue in issues):
            issues += scale_issues(scan, file, meta.matrix)
    n_empty = int((scan.totals == 0).sum())
    if n_empty and rows == "cell" and not scan.negative.count:
        found = f"{n_empty:,} cells (first: {file.obs_names[int(np.argmin(scan.totals != 0))]!r})"
        issues.append(_issue("W610", file, "X", found=found, expected="a count in every cell"))
    if scan.stored_zeros:
        found = f"{scan.stored_zeros:,} stored zeros"
        issues.append(_issue("W611", file, "X", found=found, expected="only non-zero values stored"))
    if kind == "counts" and not (scan.nonfinite.count or scan.negative.count):
        issues += _totals(file, scan)
    return issues


def _totals(file: H5ad, scan: MatrixScan) -> list[Issue]:
    if "total_counts" not in file.obs_columns:
        return []
    stored = _as_numbers(file.values("total_counts"))
    wrong = np.flatnonzero(~(np.abs(stored - scan.totals) <= TOTAL_TOLERANCE * np.maximum(scan.totals, 1)))
    if not len(wrong):
        return []
    row = int(wrong[0])
    found = f"{len(wrong):,} cells (first: {stored[row]:g} for cell {file.obs_names[row]!r})"
    expected = f"the sum over the genes of the file, {scan.totals[row]:g} there"
    return [_issue("E637", file, "obs/total_counts", found=found, expected=expected)]


def _issue(code: str, file: H5ad, place: str, *, found: str, expected: str, **fill: Any) -> Issue:
    return make_issue(
        code,
        where=f"{file.name}:/{place}",
        found=found,
        expected=expected,
        file=shlex.quote(str(file.path)),
        **fill,
    )
