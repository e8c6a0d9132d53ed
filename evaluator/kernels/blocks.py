"""How kernels share out a block of CSR rows: by rows, or by runs of genes so that sums keep their row order (numba)."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import compiled


def row_chunks(indptr: np.ndarray, n_chunks: int) -> np.ndarray:
    """Row boundaries of at most `n_chunks` runs with about equally many stored values, int64."""
    n_rows = len(indptr) - 1
    goals = np.linspace(indptr[0], indptr[-1], min(n_chunks, max(n_rows, 1)) + 1)
    bounds = np.searchsorted(indptr, goals, side="left").astype(np.int64)
    bounds[0], bounds[-1] = 0, n_rows
    return bounds


def gene_chunks(stored_per_gene: np.ndarray, n_chunks: int) -> np.ndarray:
    """Gene boundaries of `n_chunks` runs with about equally many stored values, int64."""
    ends = np.concatenate([[0], np.cumsum(stored_per_gene, dtype=np.int64)])
    goals = np.linspace(0, ends[-1], n_chunks + 1)
    bounds = np.searchsorted(ends, goals, side="left").astype(np.int64)
    bounds[0], bounds[-1] = 0, len(stored_per_gene)
    return bounds


@compiled()
def first_entry(indices, low, high, gene):  # pragma: no cover - compiled
    """The first place in the sorted indices[low:high] that holds `gene` or a later one."""
    while low < high:
        middle = (low + high) // 2
        if indices[middle] < gene:
            low = middle + 1
        else:
            high = middle
    return low


@compiled(parallel=True)
def _count_genes(indices, indptr, groups, chunks, partial):  # pragma: no cover - compiled
    for chunk in prange(len(chunks) - 1):
        counts = partial[chunk]
        for row in range(chunks[chunk], chunks[chunk + 1]):
            if groups[row] < 0:
                continue
            for k in range(indptr[row], indptr[row + 1]):
                counts[indices[k]] += 1


def count_genes(
    indices: np.ndarray, indptr: np.ndarray, groups: np.ndarray, n_genes: int, n_threads: int
) -> np.ndarray:
    """Stored values of each gene in the rows whose group is not negative, int64, shape (n_genes,)."""
    chunks = row_chunks(indptr, n_threads)
    partial = np.zeros((len(chunks) - 1, n_genes), dtype=np.int64)
    _count_genes(indices, indptr, groups, chunks, partial)
    return partial.sum(axis=0)
