"""Counts or log1p? The detection rule of the edition, and the median normalisation that follows for counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numba import prange

from ...data_specs.sources import Source
from ...data_specs.standard import MatrixKind
from ..kernels.blocks import count_genes, row_chunks
from ..kernels.jit import compiled
from ..kernels.threads import numba_threads

FRACTION = 1e-3
LOG1P_LIMIT = 15.0


@dataclass(frozen=True)
class ValueScan:
    """What one pass over the chosen rows of X saw, in the working dtype.

    `totals` is float64, shape (n_obs,), 0 for rows left out; `stored` counts non-zero values per gene over the
    chosen rows, int64, shape (n_genes,). `minimum` and `maximum` ignore NaN and include 0.
    """

    dtype: np.dtype
    totals: np.ndarray
    stored: np.ndarray
    minimum: float
    maximum: float
    has_fraction: bool
    n_nan: int
    n_negative: int


@dataclass(frozen=True)
class Scale:
    """The verdict on one matrix and how its rows become log1p values.

    `divisors` (working dtype, shape (n_obs,)) is None for log1p data; `median_total` is what every cell is
    scaled to.
    """

    kind: MatrixKind
    decided_by: Literal["detected", "requested"]
    dtype: np.dtype
    median_total: float | None
    divisors: np.ndarray | None

    def rows(self, block: sp.csr_array, start: int) -> sp.csr_array:
        """Rows `start` and following in log1p space, working dtype. The values of `block` may be reused.

        Division and logarithm happen in the working dtype, as scanpy does them.
        """
        data = block.data.astype(self.dtype, copy=False)
        if self.divisors is not None:
            factors = self.divisors[start : start + len(block.indptr) - 1]
            data = np.true_divide(data, np.repeat(factors, np.diff(block.indptr)))
            np.log1p(data, out=data)
        return sp.csr_array((data, block.indices, block.indptr), shape=block.shape)


def working_dtype(stored: np.dtype) -> np.dtype:
    """The dtype all steps use: float64 stays, everything else (float16, integers, float32) becomes float32."""
    return np.dtype(np.float64) if stored == np.float64 else np.dtype(np.float32)


def scan_values(
    source: Source, keep: np.ndarray, *, block_bytes: int, threads: int | None = None
) -> ValueScan:
    """Read X once and collect what detection and normalisation need.

    Parameters
    ----------
    keep
        Boolean, shape (n_obs,): the rows that count.
    """
    dtype = working_dtype(source.matrix.dtype)
    totals = np.zeros(source.n_obs)
    stored = np.zeros(source.n_vars, dtype=np.int64)
    limits = np.zeros(2)
    tally = np.zeros(3, dtype=np.int64)
    fraction = dtype.type(FRACTION)
    for block in source.row_blocks(max_bytes=block_bytes, wanted=keep):
        rows = block.matrix
        data = rows.data.astype(dtype, copy=False)
        part = slice(block.start, block.stop)
        with numba_threads(threads) as n_threads:
            chunks = row_chunks(rows.indptr, n_threads)
            seen = np.zeros((len(chunks) - 1, 2)), np.zeros((len(chunks) - 1, 3), dtype=np.int64)
            _scan_rows(data, rows.indptr, chunks, keep[part], fraction, totals[part], *seen)
            groups = np.where(keep[part], 0, -1)
            stored += count_genes(rows.indices, rows.indptr, groups, source.n_vars, n_threads)
        limits[0] = min(limits[0], seen[0][:, 0].min())
        limits[1] = max(limits[1], seen[0][:, 1].max())
        tally += seen[1].sum(axis=0)
    n_fraction, n_nan, n_negative = (int(n) for n in tally)
    return ValueScan(
        dtype, totals, stored, float(limits[0]), float(limits[1]), n_fraction > 0, n_nan, n_negative
    )


@compiled(parallel=True)
def _scan_rows(data, indptr, chunks, keep, fraction, totals, limits, tally):  # pragma: no cover - compiled
    for chunk in prange(len(chunks) - 1):
        smallest, largest = 0.0, 0.0
        n_fraction, n_nan, n_negative = 0, 0, 0
        for row in range(chunks[chunk], chunks[chunk + 1]):
            if not keep[row]:
                continue
            total = 0.0
            for k in range(indptr[row], indptr[row + 1]):
                value = data[k]
                total += value
                n_nan += np.isnan(value)
                n_fraction += value - np.trunc(value) > fraction
                n_negative += value < 0
                # A NaN compares false both times.
                if value < smallest:
                    smallest = np.float64(value)
                if value > largest:
                    largest = np.float64(value)
            totals[row] = total
        limits[chunk, 0], limits[chunk, 1] = smallest, largest
        tally[chunk, 0], tally[chunk, 1], tally[chunk, 2] = n_fraction, n_nan, n_negative


def detected_kind(scan: ValueScan) -> MatrixKind:
    """`log1p` when any stored value has a fraction above 0.001, else `counts`."""
    return "log1p" if scan.has_fraction else "counts"


def make_scale(
    scan: ValueScan, keep: np.ndarray, *, storage: str, requested: MatrixKind | None = None
) -> Scale:
    """The scale of a scanned matrix.

    Counts are divided by total / median. The median is taken over the kept rows; for dense storage over
    those with a count, as scanpy does (it matters only where cells are empty). Empty cells stay as they are.
    """
    kind = requested or detected_kind(scan)
    decided_by = "requested" if requested else "detected"
    if kind == "log1p":
        return Scale(kind, decided_by, scan.dtype, None, None)
    totals = scan.totals.astype(scan.dtype)
    kept = totals[keep]
    counted = kept[kept > 0] if storage == "dense" else kept
    median = np.median(counted) if len(counted) else scan.dtype.type(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        divisors = totals / median
    divisors[totals == 0] = 1
    return Scale(kind, decided_by, scan.dtype, float(median), divisors)
