"""Products of gene pairs summed over cells while streaming CSR rows, in row order (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def add_products(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    slot: np.ndarray,
    products: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
) -> None:
    """Add each row's products of chosen genes with all genes, and every gene's sum and sum of squares.

    `slot` holds the row of `products` of each gene, -1 for genes that were not chosen. The last three arrays are
    float64 and changed in place; rows are added one after the other, so totals do not depend on the blocks.
    """
    for row in range(indptr.shape[0] - 1):
        for a in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[a])
            sums[indices[a]] += value
            squares[indices[a]] += value * value
            at = slot[indices[a]]
            if at < 0:
                continue
            for b in range(indptr[row], indptr[row + 1]):
                products[at, indices[b]] += value * np.float64(data[b])
