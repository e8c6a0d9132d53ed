"""Library-size normalisation and log1p of row blocks, in float64."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .errors import UsageError
from .standard import MatrixMeta


def row_totals(rows: sp.csr_array) -> np.ndarray:
    """The sum of each row, float64, shape (n_rows,), accumulated in stored order."""
    return np.asarray(rows.astype(np.float64).sum(axis=1)).ravel()


def lognormalize(rows: sp.csr_array, target_sum: float) -> sp.csr_array:
    """ln(1 + x * target_sum / total) of counts, float64 CSR of the same shape; an empty cell stays zero.

    `rows` is not modified.
    """
    data = rows.data.astype(np.float64)
    totals = row_totals(rows)
    factor = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    data *= np.repeat(factor, np.diff(rows.indptr))
    return sp.csr_array((np.log1p(data), rows.indices, rows.indptr), shape=rows.shape)


def to_log1p(rows: sp.csr_array, matrix: MatrixMeta) -> sp.csr_array:
    """Rows in log1p space, float64: counts are normalised to `matrix.target_sum`, log1p rows pass as they are.

    Raises
    ------
    UsageError
        Counts without a declared target sum.
    """
    if matrix.kind == "log1p":
        return sp.csr_array(rows, dtype=np.float64)
    if matrix.target_sum is None:
        raise UsageError(
            "counts need a declared target_sum to become log1p values; `vcbench data convert` records one."
        )
    return lognormalize(rows, matrix.target_sum)


def median_total(totals: np.ndarray) -> float:
    """The median of the positive totals. Raises `UsageError` when there is none."""
    positive = totals[totals > 0]
    if not len(positive):
        raise UsageError("no control cell has a count, so no target sum can be derived.")
    return float(np.median(positive))
