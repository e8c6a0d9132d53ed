"""Values of X: finite, in range and of the kind that is claimed; empty rows and groups; repeated rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...data_specs.issues import Issue, Severity
from ...data_specs.standard import MatrixKind
from .case import Case, first_with_count
from .panel import stored_issue
from .value_scan import Sighting, ValueScan

COPIES_BY_CHANCE = 1e-3


def value_issues(case: Case, scan: ValueScan, kind: MatrixKind | None) -> Iterator[Issue]:
    """Every problem of single values and of rows and groups, for X read as `kind`."""
    place = "/X" if case.source.matrix.storage == "dense" else "/X/data"
    yield from _number_issues(case, scan, place)
    if kind == "counts":
        yield from _count_issues(case, scan, place)
    yield from _storage_issues(case, scan, place)
    yield from _empty_issues(case, scan)
    yield from _repetition_issues(case, scan)


def example(case: Case, sighting: Sighting, noun: str) -> str:
    """The count and the first example by names."""
    if sighting.first is None:
        return f"0 {noun}"
    row, column, value = sighting.first
    gene = str(case.source.genes[column])
    return f"{sighting.count:,} {noun} (first: {value:g} in {case.row_name(row)}, gene {gene!r})"


def _number_issues(case: Case, scan: ValueScan, place: str) -> Iterator[Issue]:
    if scan.nan.count:
        yield case.issue("E301", place, found=example(case, scan.nan, "NaN values"), expected="numbers")
    if scan.infinite.count:
        yield case.issue(
            "E302", place, found=example(case, scan.infinite, "infinite values"), expected="finite numbers"
        )
    if scan.negative.count:
        # A mean profile is a model's output; packing it clips what lies below zero.
        severity: Severity = "warning" if case.rows == "mean" else "error"
        found = example(case, scan.negative, "negative values")
        yield case.issue("E303", place, found=found, expected="values of at least 0", severity=severity)


def _count_issues(case: Case, scan: ValueScan, place: str) -> Iterator[Issue]:
    if scan.fractional.count:
        found = example(case, scan.fractional, "fractional values")
        yield case.issue("E304", place, found=found, expected="whole numbers")
    cap = case.edition.panel.max_cell_total
    if cap is not None and (scan.totals > cap).any():
        worst = int(np.argmax(scan.totals))
        n_above = int(np.count_nonzero(scan.totals > cap))
        found = f"{n_above:,} cells above (largest: {scan.totals[worst]:,.0f} in {case.row_name(worst)})"
        yield case.issue("E311", "/X", found=found, expected=f"cell totals of at most {cap:,.0f}")
    if scan.inexact.count:
        found = example(case, scan.inexact, "counts above 16,777,216")
        yield case.issue("W321", place, found=found, expected="counts that float32 holds exactly")


def _storage_issues(case: Case, scan: ValueScan, place: str) -> Iterator[Issue]:
    if scan.n_stored_zeros:
        yield case.issue(
            "W314", place, found=f"{scan.n_stored_zeros:,} stored zeros", expected="zeros left out"
        )
    if scan.n_duplicates:
        found = f"{scan.n_duplicates:,} entries repeat a (row, gene)"
        yield case.issue("W315", "/X/indices", found=found, expected="each (row, gene) stored once")
    dtype, official = case.source.matrix.dtype, case.edition.file.containers != ("h5ad",)
    loses_digits = dtype.kind == "b" or dtype == np.float16
    if loses_digits or (official and dtype.newbyteorder("=") != np.float32):
        yield case.issue(
            "W316",
            place,
            found=str(dtype),
            expected="float32",
            severity="warning" if loses_digits else "info",
        )
    limit = case.edition.panel.max_stored
    if limit is not None and case.source.matrix.storage == "dense" and scan.n_values > limit:
        yield stored_issue(case, scan.n_values)


def _empty_issues(case: Case, scan: ValueScan) -> Iterator[Issue]:
    empty = scan.n_detected == 0
    codes, n_groups = case.group_codes, len(case.groups)
    filled = np.bincount(codes[(codes >= 0) & ~empty], minlength=n_groups)
    silent = np.flatnonzero(filled == 0)
    if len(silent):
        found = first_with_count(
            [case.show(case.groups[i]) for i in silent], "groups hold only zeros", n_groups
        )
        yield case.issue("E313", "/X", found=found, expected="a value above 0 in every group")
        empty &= ~np.isin(codes, silent)
    rows = np.flatnonzero(empty)
    if len(rows):
        found = f"{len(rows):,} of {case.source.n_obs:,} rows hold only zeros (first: {case.row_name(int(rows[0]))})"
        yield case.issue("W312", "/X", found=found, expected="a value above 0 in every row")


def distinct_rows(case: Case, scan: ValueScan) -> np.ndarray:
    """How many different rows each group has, int64, shape (n_groups,)."""
    order = np.lexsort((scan.prints[:, 1], scan.prints[:, 0], case.group_codes))
    codes, prints = case.group_codes[order], scan.prints[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (codes[1:] != codes[:-1]) | (prints[1:] != prints[:-1]).any(axis=1)
    return np.bincount(codes[new & (codes >= 0)], minlength=len(case.groups))


def _repetition_issues(case: Case, scan: ValueScan) -> Iterator[Issue]:
    sizes = case.group_sizes
    if case.rows == "cell":
        tiled = np.flatnonzero((distinct_rows(case, scan) == 1) & (sizes > 1) & (_filled(case, scan) > 0))
        if len(tiled):
            names = [f"{case.show(case.groups[i])}: {sizes[i]:,} equal cells" for i in tiled]
            severity: Severity = "info" if case.edition.emission == "tile" else "warning"
            found = first_with_count(names, "groups without any spread", len(case.groups))
            yield case.issue("W318", "/X", found=found, expected="cells that differ", severity=severity)
    if case.rows == "cell" and case.edition.emission != "tile":
        yield from _copied_cells(case, scan)
    same = _identical_contexts(case, scan)
    if same:
        context, n_perturbations = same[0]
        where = "" if context is None else f" in context {context!r}"
        found = f"{n_perturbations:,} perturbations with one mean profile{where}"
        yield case.issue("W317", "/X", found=found, expected="predictions that differ between perturbations")


def _copied_cells(case: Case, scan: ValueScan) -> Iterator[Issue]:
    """Cells that equal an earlier cell of the entry; groups of one repeated cell have their own code (W318)."""
    control = np.array([name == case.control for _, name in case.groups], dtype=bool)
    whole = (distinct_rows(case, scan) == 1) | control
    rows = np.flatnonzero((case.group_codes >= 0) & (scan.n_detected > 0))
    rows = rows[~whole[case.group_codes[rows]]]
    if not len(rows):
        return
    _, first = np.unique(scan.prints[rows], axis=0, return_index=True)
    copies = np.setdiff1d(np.arange(len(rows)), first)
    # A few equal cells occur by chance among cells of few counts.
    if len(copies) > max(1, COPIES_BY_CHANCE * len(rows)):
        found = f"{len(copies):,} of {len(rows):,} cells (first: {case.row_name(int(rows[copies[0]]))})"
        yield case.issue("W322", "/X", found=found, expected="cells that differ")


def _filled(case: Case, scan: ValueScan) -> np.ndarray:
    codes = case.group_codes
    return np.bincount(codes[(codes >= 0) & (scan.n_detected > 0)], minlength=len(case.groups))


def _identical_contexts(case: Case, scan: ValueScan) -> list[tuple[str | None, int]]:
    """Contexts of two or more perturbations whose mean profiles are all equal, with their number."""
    codes, known = case.group_codes, case.group_codes >= 0
    features = np.column_stack([scan.totals, scan.prints])
    with np.errstate(over="ignore", invalid="ignore"):
        means = (
            np.column_stack(
                [
                    np.bincount(codes[known], weights=features[known, k], minlength=len(case.groups))
                    for k in range(features.shape[1])
                ]
            )
            / np.maximum(case.group_sizes, 1)[:, None]
        )
    found = []
    for context in dict.fromkeys(context for context, _ in case.groups):
        own = [i for i, (where, name) in enumerate(case.groups) if where == context and name != case.control]
        part = means[own]
        if len(own) > 1 and part[:, 0].any() and np.ptp(part, axis=0).max() <= 1e-9 * np.abs(part).max():
            found.append((context, len(own)))
    return found
