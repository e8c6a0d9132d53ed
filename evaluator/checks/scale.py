"""Whether log values look like ln(1 + scaled counts), and of which total."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...data_specs.issues import Issue
from .case import Case
from .matrix_kind import KindVerdict
from .value_scan import ValueScan
from .values import example

# Totals within this relative spread count as equal.
EQUAL_SPREAD = 1e-3
# Sums of expm1 that spread by more than this, while the plain sums are equal, are no log values.
UNEQUAL_SPREAD = 0.05
# A predicted profile may exceed the declared total by this share before it is reported.
TOTAL_MARGIN = 0.05
_FEWEST_ROWS = 8


def scale_issues(case: Case, scan: ValueScan, verdict: KindVerdict) -> Iterator[Issue]:
    """Problems of a matrix that is read as log1p; the most specific explanation only."""
    if verdict.kind != "log1p" or not scan.n_values:
        return
    place = "/X" if case.source.matrix.storage == "dense" else "/X/data"
    whole = np.flatnonzero(scan.whole_rows)
    if not scan.fractional.count:
        if len(whole):
            found = f"{scan.n_values:,} whole numbers up to {scan.maximum:g} and no fraction"
            yield case.issue("E305", place, found=found, expected="ln(1 + scaled counts)")
        return
    if len(whole):
        found = f"{len(whole):,} rows of whole numbers (first: {case.row_name(int(whole[0]))}), "
        found += f"{np.count_nonzero(scan.fractional_rows):,} rows with fractions"
        yield case.issue("E320", place, found=found, expected="one scale in all rows")
        return
    if scan.above_cap.count:
        cap = case.edition.panel.max_log1p
        yield case.issue(
            "E306", place, found=example(case, scan.above_cap, "values too large"), expected=f"below {cap:g}"
        )
        return
    filled = scan.n_detected[scan.sampled] > 0
    plain, grown = scan.totals[scan.sampled][filled], scan.expm1_totals[filled]
    if len(plain) >= _FEWEST_ROWS and spread(plain) < EQUAL_SPREAD and spread(grown) > UNEQUAL_SPREAD:
        found = f"every row sums to {np.median(plain):.6g}, expm1 of the rows to {grown.min():.6g} to {grown.max():.6g}"
        yield case.issue("W307", place, found=found, expected="rows whose expm1 has one sum")
        return
    yield from _target_issues(case, grown)


def _target_issues(case: Case, grown: np.ndarray) -> Iterator[Issue]:
    target = case.meta.matrix.target_sum if case.meta and case.meta.matrix.kind == "log1p" else None
    if target is None or not len(grown):
        return
    middle = float(np.median(grown))
    above = middle > target * (1 + TOTAL_MARGIN)
    elsewhere = (
        len(grown) >= _FEWEST_ROWS and spread(grown) < EQUAL_SPREAD and abs(middle / target - 1) > 0.01
    )
    if above or (elsewhere and case.rows == "cell"):
        found = f"expm1 of the rows sums to {middle:.6g} (median)"
        yield case.issue(
            "W309", "/uns/vcbench/matrix/target_sum", found=found, expected=f"about {target:.6g}"
        )


def spread(values: np.ndarray) -> float:
    """Standard deviation over mean; 0 when the mean is 0 or there is no value."""
    mean = float(values.mean()) if len(values) else 0.0
    return float(values.std()) / abs(mean) if mean else 0.0
