"""Streaming pseudobulk: cells, means and variances of each group, in log1p space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data_specs.errors import ShapeError
from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ..data_specs.normalize import to_log1p
from ..data_specs.sources import Source
from ..data_specs.standard import MatrixMeta

# A variance this small against the mean square is rounding of equal values, not spread.
VARIANCE_FLOOR = 1e-12


@dataclass(frozen=True)
class GroupMoments:
    """Cells `n` (n_groups,), `mean` and unbiased `variance` (n_groups, n_genes), float64, log1p space.

    A group without cells has NaN means; with fewer than two cells NaN variances.
    """

    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def group_moments(
    file: Source,
    groups: np.ndarray,
    n_groups: int,
    matrix: MatrixMeta,
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> GroupMoments:
    """Moments of each group of rows over all genes.

    Parameters
    ----------
    groups
        Group of each row, int, shape (n_obs,), values in [0, n_groups); -1 leaves the row out.
    matrix
        The scale of X: counts are normalised to its target sum and logged, log1p passes as it is.

    Returns
    -------
    GroupMoments
        Bit-equal for any block size and storage of the same rows in the same order.
    """
    from .kernels.moments import add_moments

    if len(groups) != file.n_obs:
        raise ShapeError(f"{len(groups):,} groups for {file.n_obs:,} rows")
    groups = np.ascontiguousarray(groups, dtype=np.int64)
    sums = np.zeros((n_groups, file.n_vars))
    squares = np.zeros_like(sums)
    for block in file.row_blocks(max_bytes=block_bytes):
        rows = to_log1p(block.matrix, matrix)
        part = groups[block.start : block.stop]
        add_moments(rows.data, rows.indices, rows.indptr, part, sums, squares)
    n = np.bincount(groups[groups >= 0], minlength=n_groups).astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / n[:, None]
        mean_square = squares / n[:, None]
        spread = mean_square - mean * mean
        spread[spread <= VARIANCE_FLOOR * mean_square] = 0.0
        variance = spread * (n / (n - 1.0))[:, None]
    variance[n < 2] = np.nan
    return GroupMoments(n, mean, variance)
