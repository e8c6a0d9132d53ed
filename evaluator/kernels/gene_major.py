"""Collect streamed CSR rows gene after gene, for kernels that sort the values of a gene (numba)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numba import prange

from ...data_specs.errors import ShapeError
from .blocks import first_entry, gene_chunks
from .jit import compiled
from .ranksum import GeneColumns
from .threads import numba_threads

_TILE_GENES = 512


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


def code_dtype(n_groups: int) -> np.dtype:
    """The dtype of the group codes that a buffer stores beside each value."""
    return np.dtype(np.uint16 if n_groups < 2**16 else np.uint32)


class GeneMajorBuffer:
    """The values of genes `start` to `stop`, filled row block by row block.

    Parameters
    ----------
    stored_per_gene
        Values that `add` will bring for each gene, shape (n_genes,).
    dtype
        float32, float64, or uint32 for ranks.
    n_groups
        Decides how wide the stored group codes are.
    genes
        Columns of the rows that `stored_per_gene` speaks of, ascending; None: all columns. `start` and `stop` count
        in it.
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
        genes: np.ndarray | None = None,
    ):
        counts = np.asarray(stored_per_gene[start:stop], dtype=np.int64)
        self._genes = (
            np.arange(start, stop) if genes is None else np.asarray(genes[start:stop], dtype=np.int64)
        )
        self._counts = counts
        self._indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        self._cursor = self._indptr[:-1].copy()
        self._values = np.empty(self._indptr[-1], dtype=dtype)
        self._codes = np.empty(self._indptr[-1], dtype=code_dtype(n_groups))
        self._threads = threads
        first = int(self._genes[0]) if len(self._genes) else 0
        self._offset = first
        self._slots = np.full((int(self._genes[-1]) + 1 - first) if len(self._genes) else 0, -1, np.int64)
        self._slots[self._genes - first] = np.arange(len(self._genes))

    def add(self, rows: sp.csr_array, groups: np.ndarray) -> None:
        """Add rows whose column indices are sorted; rows of group -1 are left out."""
        if rows.data.dtype != self._values.dtype:
            raise ShapeError(f"rows of {rows.data.dtype} for a buffer of {self._values.dtype}")
        if not len(self._genes):
            return
        with numba_threads(self._threads) as n_threads:
            cuts = gene_chunks(self._counts, n_threads)
            last = self._genes[-1] + 1
            bounds = np.array([self._genes[cut] if cut < len(self._genes) else last for cut in cuts])
            _scatter(
                rows.data,
                rows.indices,
                rows.indptr,
                groups,
                bounds,
                self._offset,
                self._slots,
                self._cursor,
                self._indptr,
                self._values,
                self._codes,
            )

    def columns(self) -> GeneColumns:
        """The filled columns. Raises `ShapeError` when other values came than were announced."""
        if not np.array_equal(self._cursor, self._indptr[1:]):
            raise ShapeError("the rows held other values than were counted")
        return GeneColumns(self._values, self._codes, self._indptr)


@compiled(parallel=True)
def _scatter(
    data, indices, indptr, groups, bounds, offset, slots, cursor, ends, values, codes
):  # pragma: no cover - compiled
    """Each thread serves a run of genes over all rows, so no two threads write to the same gene.

    A few genes at a time, so that the places written to stay in the nearest cache.
    """
    n_rows = len(groups)
    one = np.uint64(1)
    for part in prange(len(bounds) - 1):
        first, last = bounds[part], bounds[part + 1]
        place = np.empty(n_rows, dtype=np.int64)
        for row in range(n_rows):
            place[row] = first_entry(indices, np.int64(indptr[row]), np.int64(indptr[row + 1]), first)
        for tile in range(first, last, _TILE_GENES):
            tile_end = min(tile + _TILE_GENES, last)
            for row in range(n_rows):
                group = groups[row]
                if group < 0:
                    continue
                k, end = place[row], np.int64(indptr[row + 1])
                while k < end and indices[k] < tile_end:
                    # Unsigned indices spare a test for negative ones.
                    slot = slots[np.uint64(indices[k] - offset)]
                    if slot >= 0:
                        column = np.uint64(slot)
                        at = np.uint64(cursor[column])
                        # A value beyond the announced ones would land in the next gene; `columns` reports it.
                        if at < np.uint64(ends[column + one]):
                            values[at] = data[k]
                            codes[at] = group
                        cursor[column] += 1
                    k += 1
                place[row] = k
