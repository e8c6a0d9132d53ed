"""Sums and sums of squares per group while streaming CSR rows, in row order (numba)."""

from __future__ import annotations

import numpy as np

from .jit import compiled


@compiled()
def add_moments(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Add each row's values to its group; rows with group -1 are skipped.

    `sums` and `squares` are float64, shape (n_groups, n_genes), changed in place. Rows are added one after the
    other, so totals do not depend on how the rows were cut into blocks.
    """
    for row in range(groups.shape[0]):
        group = groups[row]
        if group < 0:
            continue
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            sums[group, indices[k]] += value
            squares[group, indices[k]] += value * value
