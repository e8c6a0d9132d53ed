"""One streaming pass over X: row totals and every kind of value that a declared matrix kind forbids."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .issues import Issue, make_issue
from .standard import MatrixMeta

Place = tuple[int, int, float]
OnRows = Callable[[int, int], None]


@dataclass
class Finding:
    """How many stored values have a property, and the first of them as (row, column, value)."""

    count: int = 0
    first: Place | None = None

    def text(self, file: H5ad) -> str:
        """The count and the first example by names, or "0"."""
        if self.first is None:
            return "0"
        row, column, value = self.first
        return f"{self.count:,} values (first: {value:g} in cell {file.obs_names[row]!r}, gene {file.genes[column]!r})"


@dataclass
class MatrixScan:
    """What `scan_matrix` saw. `totals` and `expm1_totals` are float64, shape (n_obs,); skipped rows hold 0.

    `fractional` counts finite values that are not whole numbers; `stored_zeros` is 0 for dense storage.
    """

    totals: np.ndarray
    expm1_totals: np.ndarray | None
    nonfinite: Finding = field(default_factory=Finding)
    negative: Finding = field(default_factory=Finding)
    fractional: Finding = field(default_factory=Finding)
    stored_zeros: int = 0
    n_nonzero: int = 0
    maximum: float = 0.0


def scan_matrix(
    file: H5ad,
    *,
    expm1: bool = False,
    keep: np.ndarray | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> MatrixScan:
    """Read X once, in row blocks, and collect totals and findings.

    Parameters
    ----------
    expm1
        Also sum expm1 of the values per row (for log1p matrices).
    keep
        Boolean mask over rows; the others are not looked at.
    on_rows
        Called with (rows done, rows in all) after each block.
    """
    scan = MatrixScan(np.zeros(file.n_obs), np.zeros(file.n_obs) if expm1 else None)
    for block in file.row_blocks(max_bytes=block_bytes, canonical=False):
        rows = block.matrix
        entry_rows = np.repeat(np.arange(block.start, block.stop), np.diff(rows.indptr))
        columns, data = rows.indices, rows.data
        if keep is not None:
            kept = keep[entry_rows]
            entry_rows, columns, data = entry_rows[kept], columns[kept], data[kept]
        _collect(scan, entry_rows, columns, data.astype(np.float64), block.start, block.stop)
        if on_rows is not None:
            on_rows(block.stop, file.n_obs)
    return scan


def _collect(
    scan: MatrixScan, rows: np.ndarray, columns: np.ndarray, data: np.ndarray, start: int, stop: int
) -> None:
    finite = np.isfinite(data)
    for finding, mask in (
        (scan.nonfinite, ~finite),
        (scan.negative, finite & (data < 0)),
        (scan.fractional, finite & (data != np.rint(np.where(finite, data, 0.0)))),
    ):
        n_found = int(np.count_nonzero(mask))
        if n_found and finding.first is None:
            at = int(np.argmax(mask))
            finding.first = (int(rows[at]), int(columns[at]), float(data[at]))
        finding.count += n_found
    scan.stored_zeros += int(np.count_nonzero(data == 0))
    scan.n_nonzero += int(np.count_nonzero(data != 0))
    usable = np.where(finite, data, 0.0)
    scan.maximum = max(scan.maximum, float(usable.max(initial=0.0)))
    n_rows = stop - start
    scan.totals[start:stop] = np.bincount(rows - start, weights=usable, minlength=n_rows)
    if scan.expm1_totals is not None:
        # Values beyond 700 overflow expm1; they are no log1p values and are reported through their row total.
        grown = np.expm1(np.minimum(usable, 700.0))
        scan.expm1_totals[start:stop] = np.bincount(rows - start, weights=grown, minlength=n_rows)


def value_issues(scan: MatrixScan, file: H5ad, kind: str) -> list[Issue]:
    """The values that X of this kind must not hold: not finite, negative, fractional counts, whole log1p values."""
    where, quoted = f"{file.name}:/{file.location}", shlex.quote(str(file.path))
    issues = []
    if scan.nonfinite.count:
        issues.append(_value_issue("E614", where, scan.nonfinite.text(file), "finite numbers", quoted))
    if scan.negative.count:
        issues.append(_value_issue("E615", where, scan.negative.text(file), "values of at least 0", quoted))
    if kind == "counts" and scan.fractional.count:
        issues.append(_value_issue("E616", where, scan.fractional.text(file), "whole numbers", quoted))
    clean = not (scan.nonfinite.count or scan.negative.count)
    if kind == "log1p" and clean and scan.n_nonzero and not scan.fractional.count:
        found = f"{scan.n_nonzero:,} whole numbers up to {scan.maximum:g} and no fraction"
        issues.append(_value_issue("E617", where, found, "ln(1 + scaled counts)", quoted))
    return issues


def _value_issue(code: str, where: str, found: str, expected: str, quoted: str) -> Issue:
    return make_issue(code, where=where, found=found, expected=expected, file=quoted)


def scale_tolerance(file: H5ad) -> float:
    """The relative error allowed for row sums of expm1 values, by the precision X is stored in."""
    return 1e-3 if file.matrix.dtype.itemsize >= 4 else 2e-2


def constant_scale(scan: MatrixScan, tolerance: float) -> float | None:
    """The sum that every non-empty row of expm1(X) has within `tolerance`, or None when they differ."""
    sums = _positive_sums(scan)
    if not len(sums):
        return None
    middle = float(np.median(sums))
    return middle if np.abs(sums - middle).max() <= tolerance * middle else None


def scale_issues(scan: MatrixScan, file: H5ad, matrix: MatrixMeta) -> list[Issue]:
    """Whether expm1 row sums of a log1p matrix agree with its target sum.

    Over all genes they equal it, over a subset of genes they stay below it; a row above it, or equal rows
    beside it, contradict the declaration.
    """
    sums = _positive_sums(scan)
    if matrix.kind != "log1p" or matrix.target_sum is None or not len(sums):
        return []
    tolerance = scale_tolerance(file)
    constant = constant_scale(scan, tolerance)
    if constant is not None and abs(constant - matrix.target_sum) > tolerance * matrix.target_sum:
        found = f"every row of expm1(X) sums to {constant:.6g}"
    elif sums.max() > matrix.target_sum * (1 + tolerance):
        n_above = int(np.count_nonzero(sums > matrix.target_sum * (1 + tolerance)))
        found = f"{n_above:,} rows of expm1(X) sum to more (largest: {sums.max():.6g})"
    else:
        return []
    return [
        make_issue(
            "E618",
            where=f"{file.name}:/{file.location}",
            found=found,
            expected=f"row sums of at most the target sum {matrix.target_sum:.6g}",
            file=shlex.quote(str(file.path)),
        )
    ]


def scale_range(scan: MatrixScan) -> tuple[float, float]:
    """The smallest and largest positive row sum of expm1(X); (0, 0) when all rows are empty."""
    sums = _positive_sums(scan)
    return (float(sums.min()), float(sums.max())) if len(sums) else (0.0, 0.0)


def _positive_sums(scan: MatrixScan) -> np.ndarray:
    sums = np.empty(0) if scan.expm1_totals is None else scan.expm1_totals
    return sums[sums > 0]
