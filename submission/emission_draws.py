"""Draws whose group means hit what was asked for: systematic rounding, and Poisson counts with fixed group totals.

Every single value keeps the distribution it would have when drawn alone; only the sum over the cells of a gene no
longer scatters, so a group of 400 cells has its mean to within one count in 400.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numba import njit

# Genes with more expected counts per cell than this are drawn cell by cell and then brought to their total.
_MANY = 8


class SystematicRounding:
    """Rounds values down or up, gene by gene in row order: each goes up with its fraction as probability, and the sum
    of a gene's values is kept to within one. Whole numbers stay.

    Parameters
    ----------
    n_genes
        Genes in all.
    rng
        Draws one start per gene; used once.
    """

    def __init__(self, n_genes: int, rng: np.random.Generator):
        self._carry = rng.random(n_genes)

    def __call__(self, values: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """The rounded values, float64. `genes` (n_values,) says which gene each belongs to; later calls go on."""
        out = np.empty(len(values))
        _round(values, genes, self._carry, out)
        return out


@njit(cache=True, nogil=True)
def _round(values: np.ndarray, genes: np.ndarray, carry: np.ndarray, out: np.ndarray) -> None:
    for k in range(len(values)):
        gene, whole = genes[k], math.floor(values[k])
        rest = carry[gene] + (values[k] - whole)
        if rest >= 1.0:
            rest -= 1.0
            whole += 1
        carry[gene] = rest
        out[k] = whole


def poisson_with_totals(totals: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    """Counts of mean `totals[i] * share[g]`, CSR float64, shape (n_cells, n_genes).

    The total of each gene over the cells is its expectation, rounded at random; given the total, the counts of
    independent Poisson variables are multinomial with the cells' totals as weights, which is how they are drawn.
    """
    n, shape = len(totals), (len(totals), len(share))
    genes = np.flatnonzero(share > 0)
    if not len(genes) or not totals.sum() > 0:
        return sp.csr_array(shape)
    expected = share[genes] * totals.sum()
    wanted = np.floor(expected).astype(np.int64)
    wanted += rng.random(len(genes)) < expected - wanted
    many = wanted > _MANY * n
    cut, other = _alias_table(totals / totals.sum())
    few = genes[~many]
    drawn = rng.random(int(wanted[~many].sum()))
    parts = [_allocate(wanted[~many], cut, other, drawn)]
    columns = [few]
    if many.any():
        first = rng.poisson(wanted[many][:, None] * (totals / totals.sum()))
        steps = rng.random(int(np.abs(wanted[many] - first.sum(axis=1)).sum()))
        parts.append(_to_totals(first, wanted[many], cut, other, steps))
        columns.append(genes[many])
    rows = np.concatenate([p[0] for p in parts])
    counts = np.concatenate([p[1] for p in parts])
    lengths = np.concatenate([p[2] for p in parts])
    of_gene = np.repeat(np.concatenate(columns), lengths)
    return sp.csr_array((counts, (rows, of_gene)), shape=shape)


def _alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table: one uniform number picks a cell with probability `weights`."""
    n = len(weights)
    cut, other = np.ones(n), np.arange(n, dtype=np.int32)
    scaled = weights * n
    small, large = list(np.flatnonzero(scaled < 1)), list(np.flatnonzero(scaled >= 1))
    while small and large:
        low, high = small.pop(), large[-1]
        cut[low], other[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    return cut, other


@njit(cache=True, nogil=True)
def _pick(uniform: float, cut: np.ndarray, other: np.ndarray) -> int:
    place = uniform * len(cut)
    cell = min(int(place), len(cut) - 1)
    return cell if place - cell < cut[cell] else other[cell]


@njit(cache=True, nogil=True)
def _allocate(
    wanted: np.ndarray, cut: np.ndarray, other: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cells, counts) of the non-zero entries gene by gene, and how many each gene has."""
    n, size = len(cut), 0
    for g in range(len(wanted)):
        size += min(wanted[g], n)
    rows, counts = np.empty(size, np.int32), np.empty(size, np.float64)
    lengths = np.zeros(len(wanted), np.int64)
    tally = np.zeros(n, np.int32)
    at, used = 0, 0
    for g in range(len(wanted)):
        for _ in range(wanted[g]):
            tally[_pick(uniforms[used], cut, other)] += 1
            used += 1
        for cell in range(n):
            if tally[cell]:
                rows[at], counts[at] = cell, tally[cell]
                tally[cell] = 0
                at += 1
                lengths[g] += 1
    return rows[:at], counts[:at], lengths


@njit(cache=True, nogil=True)
def _to_totals(
    first: np.ndarray, wanted: np.ndarray, cut: np.ndarray, other: np.ndarray, uniforms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_allocate`, for counts `first` (n_genes, n_cells) that single counts are added to or taken from."""
    n_genes, n = first.shape
    rows, counts = np.empty(n_genes * n, np.int32), np.empty(n_genes * n, np.float64)
    lengths = np.zeros(n_genes, np.int64)
    at, used = 0, 0
    for g in range(n_genes):
        gap = wanted[g] - first[g].sum()
        for _ in range(abs(gap)):
            cell = _pick(uniforms[used], cut, other)
            used += 1
            if gap > 0:
                first[g, cell] += 1
            else:
                while first[g, cell] == 0:
                    cell = (cell + 1) % n
                first[g, cell] -= 1
        for cell in range(n):
            if first[g, cell]:
                rows[at], counts[at] = cell, first[g, cell]
                at += 1
                lengths[g] += 1
    return rows[:at], counts[:at], lengths
