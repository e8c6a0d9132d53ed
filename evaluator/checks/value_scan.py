"""One streaming pass over X: per-row sums and flags, and the first example of every kind of bad value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ...data_specs.sources import Source

# The 2025 tools call a matrix counts unless some value has a larger fraction than this.
DETECTION_FRACTION = 1e-3
# A count may differ from a whole number by this much.
COUNT_TOLERANCE = 1e-6
SCALE_SAMPLE_ROWS = 2048
# Above this, expm1 overflows; such values are reported through the cap or their row total.
_LARGEST_EXPONENT = 700.0
Progress = Callable[[int, int], None]
# Called with the cleaned rows of a block (float64, without zeros) and the number of the first.
OnRows = Callable[[sp.csr_array, int], None]


@dataclass
class Sighting:
    """How many values have a property, and the first as (row, column, value)."""

    count: int = 0
    first: tuple[int, int, float] | None = None

    def add(self, mask: np.ndarray, rows: sp.csr_array, data: np.ndarray, start: int) -> None:
        """Count the stored entries of a block that `mask` marks."""
        n_found = int(np.count_nonzero(mask))
        if n_found and self.first is None:
            at = int(np.argmax(mask))
            row = start + int(np.searchsorted(rows.indptr, at, side="right")) - 1
            self.first = (row, int(rows.indices[at]), float(data[at]))
        self.count += n_found


@dataclass
class ValueScan:
    """What the pass saw. Arrays have shape (n_obs,); values that are not finite enter sums as 0.

    Attributes
    ----------
    totals
        Sum of each row, float64.
    prints
        Two random projections of each row, float64, shape (n_obs, 2): equal rows have equal bits.
    n_detected
        Genes other than zero in each row, int64.
    fractional_rows, whole_rows
        Rows with a value that is no whole number; rows of whole numbers only, with at least one of 2 or more.
    sampled, expm1_totals
        Evenly spaced rows and their sums of expm1, for judging the scale of log values.
    detection
        Values whose signed fraction exceeds `DETECTION_FRACTION`, by the precision of the file.
    """

    n_rows: int
    cap: float | None
    totals: np.ndarray = field(init=False)
    prints: np.ndarray = field(init=False)
    n_detected: np.ndarray = field(init=False)
    fractional_rows: np.ndarray = field(init=False)
    whole_rows: np.ndarray = field(init=False)
    sampled: np.ndarray = field(init=False)
    expm1_totals: np.ndarray = field(init=False)
    nan: Sighting = field(default_factory=Sighting)
    infinite: Sighting = field(default_factory=Sighting)
    negative: Sighting = field(default_factory=Sighting)
    fractional: Sighting = field(default_factory=Sighting)
    detection: Sighting = field(default_factory=Sighting)
    above_cap: Sighting = field(default_factory=Sighting)
    inexact: Sighting = field(default_factory=Sighting)
    n_values: int = 0
    n_stored_zeros: int = 0
    n_duplicates: int = 0
    maximum: float = 0.0

    def __post_init__(self) -> None:
        n = self.n_rows
        self.totals, self.prints = np.zeros(n), np.zeros((n, 2))
        self.n_detected = np.zeros(n, dtype=np.int64)
        self.fractional_rows, self.whole_rows = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self.sampled = np.arange(0, n, max(1, -(-n // SCALE_SAMPLE_ROWS)))
        self.expm1_totals = np.zeros(len(self.sampled))


def scan_values(
    source: Source,
    *,
    cap: float | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    progress: Progress | None = None,
    on_rows: OnRows | None = None,
) -> ValueScan:
    """Read X once in row blocks. The result does not depend on the block size or the storage.

    Parameters
    ----------
    cap
        Values of at least this are counted in `above_cap`.
    progress
        Called with (rows done, rows in all) after each block.
    on_rows
        Called with the cleaned rows of every block that has values.
    """
    dense = source.matrix.storage == "dense"
    scanner = ValueScanner(source.n_obs, source.n_vars, source.matrix.dtype, cap=cap, count_zeros=not dense)
    for block in source.row_blocks(max_bytes=block_bytes, canonical=False):
        clean = scanner.add(block.matrix, block.start)
        if on_rows is not None and clean is not None:
            on_rows(clean, block.start)
        if progress is not None:
            progress(block.stop, source.n_obs)
    return scanner.scan


class ValueScanner:
    """Fills `scan` block by block, for callers that have the rows in their hands. `dtype` is that of the file."""

    def __init__(
        self, n_obs: int, n_vars: int, dtype: np.dtype, *, cap: float | None = None, count_zeros: bool = True
    ):
        self.scan = ValueScan(n_obs, cap)
        self._projection, self._count_zeros = row_projection(n_vars), count_zeros
        single = dtype.kind == "f" and dtype.itemsize <= 4
        self._step = float(np.float32(DETECTION_FRACTION)) if single else DETECTION_FRACTION

    def add(self, rows: sp.csr_array, start: int) -> sp.csr_array | None:
        """Add rows, the first of them row `start`; makes them canonical in place.

        Returns the cleaned rows, float64; None when there are no values.
        """
        if not rows.nnz:
            return None
        return _add_block(self.scan, rows, start, self._projection, self._step, count_zeros=self._count_zeros)


def row_projection(n_vars: int) -> np.ndarray:
    """The columns that rows are summed over: ones, and two random ones by which equal rows are found; (n_vars, 3)."""
    projection = np.random.default_rng(20251).uniform(0.5, 1.5, (n_vars, 3))
    projection[:, 0] = 1.0
    return projection


def _add_block(
    scan: ValueScan, rows: sp.csr_array, start: int, projection: np.ndarray, step: float, *, count_zeros: bool
) -> sp.csr_array | None:
    n_before, low = rows.nnz, rows.data.min()
    # A smallest value above zero proves that there are no zeros, several times faster than counting them.
    if count_zeros and not low > 0:
        scan.n_stored_zeros += int(np.count_nonzero(rows.data == 0))
    rows.sum_duplicates()
    scan.n_duplicates += n_before - rows.nnz
    if rows.nnz < n_before or not low > 0:
        rows.eliminate_zeros()
    if not rows.nnz:
        return None
    data = rows.data.astype(np.float64)
    high = _add_bad_values(scan, rows, data, start)
    stop = start + len(rows.indptr) - 1
    scan.n_values += rows.nnz
    scan.n_detected[start:stop] = np.diff(rows.indptr)
    scan.maximum = max(scan.maximum, high)
    clean = sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = clean @ projection
    scan.totals[start:stop], scan.prints[start:stop] = sums[:, 0], sums[:, 1:]
    _add_fractions(scan, rows, data, start, step)
    low, high = np.searchsorted(scan.sampled, (start, stop))
    if high > low:
        part = clean[scan.sampled[low:high] - start]
        part.data = np.expm1(np.minimum(part.data, _LARGEST_EXPONENT))
        scan.expm1_totals[low:high] = part @ np.ones(projection.shape[0])
    return clean


def _add_bad_values(scan: ValueScan, rows: sp.csr_array, data: np.ndarray, start: int) -> float:
    """Count NaN, infinite, negative, too large and inexact values; what is not finite becomes 0 in `data`.

    Returns the largest of `data`.
    """
    low, high = float(rows.data.min()), float(rows.data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        scan.nan.add(np.isnan(data), rows, data, start)
        scan.infinite.add(np.isinf(data), rows, data, start)
        data[~np.isfinite(data)] = 0.0
        low, high = float(data.min()), float(data.max())
    if low < 0:
        scan.negative.add(data < 0, rows, data, start)
    if scan.cap is not None and high >= scan.cap:
        scan.above_cap.add(data >= scan.cap, rows, data, start)
    if high > 2**24:
        scan.inexact.add(data > 2**24, rows, data, start)
    return high


def _add_fractions(scan: ValueScan, rows: sp.csr_array, data: np.ndarray, start: int, step: float) -> None:
    lengths = np.diff(rows.indptr)
    # The values as stored are half as long; NaN equals nothing, so what is not finite goes the careful way.
    if bool((np.trunc(rows.data) == rows.data).all()) and data.min() > 0:
        # Positive whole numbers sum to more than their number where one of them is 2 or more.
        stop = start + len(lengths)
        scan.whole_rows[start:stop] = scan.totals[start:stop] > lengths
        return
    whole = np.trunc(data)
    all_whole = np.array_equal(whole, data)
    filled = np.flatnonzero(lengths)
    segments = rows.indptr[:-1][filled]
    has_odd = np.zeros(len(filled), dtype=bool)
    if not all_whole:
        fraction = data - whole
        odd = np.abs(fraction) > COUNT_TOLERANCE
        if odd.any():
            scan.fractional.add(odd, rows, data, start)
            scan.detection.add(fraction > step, rows, data, start)
            has_odd = np.logical_or.reduceat(odd, segments)
    scan.fractional_rows[start + filled] = has_odd
    scan.whole_rows[start + filled] = ~has_odd & (np.maximum.reduceat(data, segments) >= 2)
