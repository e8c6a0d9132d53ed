"""Collect streamed CSR rows gene after gene, for kernels that sort the values of a gene (numba)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numba import njit, prange

from ...data_specs.errors import ShapeError
from .ranksum import GeneColumns
from .threads import numba_threads


def gene_blocks(stored_per_gene: np.ndarray, *, max_values: int) -> list[tuple[int, int]]:
    """Runs of genes, in order, that hold at most `max_values` stored values each (always at least one gene)."""
    ends = np.concatenate([[0], np.cumsum(stored_per_gene, dtype=np.int64)])
    blocks, start = [], 0
    while start < len(stored_per_gene):
        stop = int(np.searchsorted(ends, ends[start] + max_values, side="right")) - 1
        stop = min(max(stop, start + 1), len(stored_per_gene))
        blocks.append((start, stop))
        start = stop
    return blocks


class GeneMajorBuffer:
    """The values of genes `start` to `stop`, filled row block by row block.

    Parameters
    ----------
    stored_per_gene
        Values that `add` will bring for each gene of the file, shape (n_genes,).
    dtype
        float32 or float64.
    n_groups
        Decides how wide the stored group codes are.
    """

    def __init__(
        self,
        stored_per_gene: np.ndarray,
        start: int,
        stop: int,
        *,
        dtype: np.dtype,
        n_groups: int,
        threads: int | None = None,
    ):
        self.start, self.stop = start, stop
        counts = np.asarray(stored_per_gene[start:stop], dtype=np.int64)
        self._indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._cursor = self._indptr[:-1].copy()
        self._values = np.empty(self._indptr[-1], dtype=dtype)
        self._codes = np.empty(self._indptr[-1], dtype=np.uint16 if n_groups < 2**16 else np.uint32)
        self._threads = threads

    def add(self, rows: sp.csr_array, groups: np.ndarray) -> None:
        """Add rows whose column indices are sorted; rows of group -1 are left out."""
        if rows.data.dtype != self._values.dtype:
            raise ShapeError(f"rows of {rows.data.dtype} for a buffer of {self._values.dtype}")
        with numba_threads(self._threads) as n_threads:
            genes = np.linspace(self.start, self.stop, n_threads + 1).astype(np.int64)
            _scatter(
                rows.data, rows.indices, rows.indptr, groups, genes, self._cursor, self._values, self._codes
            )

    def columns(self) -> GeneColumns:
        """The filled columns. Raises `ShapeError` when fewer values came than were announced."""
        if not np.array_equal(self._cursor, self._indptr[1:]):
            raise ShapeError("the rows held other values than were counted")
        return GeneColumns(self._values, self._codes, self._indptr)


@njit(cache=True, parallel=True)
def _scatter(data, indices, indptr, groups, genes, cursor, values, codes):  # pragma: no cover - compiled
    """Each thread serves a run of genes over all rows, so no two threads write to the same gene."""
    for part in prange(len(genes) - 1):
        first, last = genes[part], genes[part + 1]
        offset = genes[0]
        for row in range(len(groups)):
            group = groups[row]
            if group < 0:
                continue
            low, high = np.int64(indptr[row]), np.int64(indptr[row + 1])
            while low < high:
                middle = (low + high) // 2
                if indices[middle] < first:
                    low = middle + 1
                else:
                    high = middle
            for k in range(low, np.int64(indptr[row + 1])):
                gene = np.int64(indices[k])
                if gene >= last:
                    break
                at = cursor[gene - offset]
                values[at] = data[k]
                codes[at] = group
                cursor[gene - offset] = at + 1
