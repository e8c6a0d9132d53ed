"""Stream one side: group means, and the rank sums of every perturbation against the control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numba import njit

from ..kernels.gene_major import GeneMajorBuffer, gene_blocks
from ..kernels.ranksum import rank_sums
from .rules import Rules
from .side import Side

GATHER_BYTES = 2**30


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
    gather_bytes: int = GATHER_BYTES,
) -> Measured:
    """Group means and, with DE, rank sums of one side.

    The file is read once, and once more for every further `gather_bytes` of stored values that the rank sums
    need. Results do not depend on block sizes, threads or storage.
    """
    sizes = side.sizes
    shape = (len(sizes), side.source.n_vars)
    dtype = side.scale.dtype
    sums = np.zeros(shape)
    row_order = np.zeros(shape, dtype=dtype) if with_de and rules.mean_accumulation == "row_order" else None
    weights = (1.0 / np.maximum(sizes, 1)).astype(dtype)

    def add_means(rows: sp.csr_array, groups: np.ndarray) -> None:
        _add_means(rows.data, rows.indices, rows.indptr, groups, weights, sums, row_order)

    if not with_de:
        for _, rows, groups in side.blocks():
            add_means(rows, groups)
        exact = sums / sizes[:, None]
        return Measured(sizes, exact.astype(dtype), exact)

    two_u = np.empty(shape, dtype=np.int64)
    ties = np.empty(shape, dtype=np.int64)
    stored = _stored_per_gene(side)
    max_values = max(1, gather_bytes // (dtype.itemsize + 4))
    for start, stop in gene_blocks(stored, max_values=max_values):
        buffer = GeneMajorBuffer(stored, start, stop, dtype=dtype, n_groups=len(sizes), threads=threads)
        for _, rows, groups in side.blocks():
            if start == 0:
                add_means(rows, groups)
            buffer.add(rows, groups)
        part = slice(start, stop)
        two_u[:, part], ties[:, part] = rank_sums(buffer.columns(), sizes, side.control, threads=threads)
    exact = sums / sizes[:, None]
    bulk = exact.astype(dtype)
    de_mean = bulk if row_order is None else row_order
    return Measured(sizes, bulk, exact, de_mean, two_u[:-1], ties[:-1])


def _stored_per_gene(side: Side) -> np.ndarray:
    """Stored values of the chosen rows per gene; the scan's own count serves when it saw the same rows."""
    if side.counted:
        return side.scan.stored
    stored = np.zeros(side.source.n_vars, dtype=np.int64)
    for _, rows, groups in side.blocks():
        kept = np.repeat(groups >= 0, np.diff(rows.indptr))
        stored += np.bincount(rows.indices[kept], minlength=len(stored))
    return stored


@njit(cache=True)
def _add_means(data, indices, indptr, groups, weights, sums, row_order):  # pragma: no cover - compiled
    for row in range(len(groups)):
        group = groups[row]
        if group < 0:
            continue
        weight = weights[group]
        for k in range(indptr[row], indptr[row + 1]):
            sums[group, indices[k]] += np.float64(data[k])
            if row_order is not None:
                row_order[group, indices[k]] += data[k] * weight
