"""Stream one side: group means, and the rank sums of every perturbation against the control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numba import prange

from ..kernels.blocks import count_genes, first_entry, gene_chunks
from ..kernels.gene_major import gene_blocks
from ..kernels.jit import compiled
from ..kernels.rank_buffer import rank_buffer, values_at_a_time
from ..kernels.threads import numba_threads
from ..memory import column_bytes
from .rules import Rules
from .side import Side


@dataclass(frozen=True)
class Measured:
    """What the metrics of one side need.

    Attributes
    ----------
    sizes
        Cells of each group, int64, shape (n_targets + 1,); the last group is the control.
    bulk
        Means in log1p space, shape (n_targets + 1, n_genes), in the dtype of the data (float64 sums, rounded).
    exact_bulk
        The same means in float64.
    de_mean
        Means as the DE step takes them (`Rules.mean_accumulation`), same shape; None without DE.
    two_u, ties
        int64, shape (n_targets, n_genes); None without DE. See `kernels.ranksum`.
    """

    sizes: np.ndarray
    bulk: np.ndarray
    exact_bulk: np.ndarray
    de_mean: np.ndarray | None = None
    two_u: np.ndarray | None = None
    ties: np.ndarray | None = None

    @property
    def effects(self) -> np.ndarray:
        """Mean minus control mean of every target, shape (n_targets, n_genes), dtype of the data."""
        return self.bulk[:-1] - self.bulk[-1]


def measure(
    side: Side,
    rules: Rules,
    *,
    with_de: bool,
    threads: int | None = None,
    gather_bytes: int | None = None,
) -> Measured:
    """Group means and, with DE, rank sums of one side.

    The file is read once, and once more for every further `gather_bytes` of stored values that the rank sums
    need. Results do not depend on block sizes, threads or storage.
    """
    sizes = side.sizes
    shape = (len(sizes), side.source.n_vars)
    dtype = side.scale.dtype
    sums = np.zeros(shape)
    in_row_order = with_de and rules.mean_accumulation == "row_order"
    row_order = np.zeros(shape if in_row_order else (0, shape[1]), dtype=dtype)
    stored = _stored_per_gene(side, threads)
    weights = (1.0 / np.maximum(sizes, 1)).astype(dtype)

    def add_means(rows: sp.csr_array, groups: np.ndarray) -> None:
        with numba_threads(threads) as n_threads:
            bounds = gene_chunks(stored, n_threads)
            _add_means(rows.data, rows.indices, rows.indptr, groups, weights, bounds, sums, row_order)

    if not with_de:
        for _, rows, groups in side.blocks():
            add_means(rows, groups)
        exact = sums / sizes[:, None]
        return Measured(sizes, exact.astype(dtype), exact)

    two_u = np.empty(shape, dtype=np.int64)
    ties = np.empty(shape, dtype=np.int64)
    budget = column_bytes(side.memory) if gather_bytes is None else gather_bytes
    max_values = values_at_a_time(budget, dtype, len(sizes), side.device)
    for start, stop in gene_blocks(stored, max_values=max_values):
        buffer = rank_buffer(
            stored, start, stop, dtype=dtype, n_groups=len(sizes), device=side.device, threads=threads
        )
        for _, rows, groups in side.blocks():
            if start == 0:
                add_means(rows, groups)
            buffer.add(rows, groups)
        part = slice(start, stop)
        two_u[:, part], ties[:, part] = buffer.rank_sums(sizes, side.control)
        # The next buffer must not stand beside this one.
        del buffer
    exact = sums / sizes[:, None]
    bulk = exact.astype(dtype)
    de_mean = row_order if in_row_order else bulk
    return Measured(sizes, bulk, exact, de_mean, two_u[:-1], ties[:-1])


def _stored_per_gene(side: Side, threads: int | None) -> np.ndarray:
    """Stored values of the chosen rows per gene; the scan's own count serves when it saw the same rows."""
    if side.counted:
        return side.scan.stored
    stored = np.zeros(side.source.n_vars, dtype=np.int64)
    for block in side.source.row_blocks(max_bytes=side.block_bytes, wanted=side.groups >= 0):
        groups, rows = side.groups[block.start : block.stop], block.matrix
        with numba_threads(threads) as n_threads:
            stored += count_genes(rows.indices, rows.indptr, groups, len(stored), n_threads)
    return stored


@compiled(parallel=True)
def _add_means(
    data, indices, indptr, groups, weights, bounds, sums, row_order
):  # pragma: no cover - compiled
    """Each thread serves the genes between two `bounds`, rows in order. An empty `row_order` is left out."""
    wanted = len(row_order) > 0
    for part in prange(len(bounds) - 1):
        first, last = bounds[part], bounds[part + 1]
        for row in range(len(groups)):
            group = groups[row]
            if group < 0:
                continue
            weight = weights[group]
            end = np.int64(indptr[row + 1])
            for k in range(first_entry(indices, np.int64(indptr[row]), end, first), end):
                if indices[k] >= last:
                    break
                gene = np.uint64(indices[k])
                sums[group, gene] += np.float64(data[k])
                if wanted:
                    row_order[group, gene] += data[k] * weight
