"""Rank sums of every group against one control group, all groups and genes in one sweep (numba).

Per gene only the stored (non-zero) values are sorted, once; zeros are one tie block known by counting. The
results are integers, so they do not depend on threads, on how genes are cut into blocks, or on storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit, prange

from ...data_specs.errors import ShapeError
from .threads import numba_threads

# The cube of the largest tie block must fit an int64.
MAX_POOLED_CELLS = 2_097_151
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_SHORT_RUN = 24
_CHUNKS_PER_THREAD = 8


@dataclass(frozen=True)
class GeneColumns:
    """Stored values of a block of genes, gene after gene.

    Attributes
    ----------
    values
        float32 or float64, shape (n_stored,), without NaN; the order within a gene has no meaning.
    codes
        Group of each value's cell, an integer dtype, shape (n_stored,), values in [0, n_groups).
    indptr
        int64, shape (n_genes + 1,): gene j owns `values[indptr[j]:indptr[j + 1]]`.
    """

    values: np.ndarray
    codes: np.ndarray
    indptr: np.ndarray

    @property
    def n_genes(self) -> int:
        return len(self.indptr) - 1


def rank_sums(
    columns: GeneColumns, group_sizes: np.ndarray, control: int, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mann-Whitney U of every group against the control, doubled, and the tie term of each pooled sample.

    Cells without a stored value have the value zero. With mid-ranks in the pooled sample of a group (n1 cells)
    and the control, U1 = R1 - n1 (n1 + 1) / 2.

    Parameters
    ----------
    columns
        Stored values; stored zeros and negative values are fine.
    group_sizes
        Cells of each group, shape (n_groups,), zeros included.
    control
        Index of the control group. Its own rows of the result are 0.
    threads
        Threads of the kernel; None: as many as numba uses.

    Returns
    -------
    two_u, ties
        int64, shape (n_groups, n_genes): 2 * U1, and the sum of t^3 - t over tied blocks. Equal to
        `scipy.stats.mannwhitneyu(group, control).statistic * 2` and the tie term of `scipy.stats.rankdata`.

    Raises
    ------
    ShapeError
        Arrays that do not fit together, or a pooled sample of more than 2,097,151 cells.
    """
    sizes = np.ascontiguousarray(group_sizes, dtype=np.int64)
    _check(columns, sizes, control)
    two_u = np.zeros((len(sizes), columns.n_genes), dtype=np.int64)
    ties = np.zeros_like(two_u)
    with numba_threads(threads) as n_threads:
        bounds = _even_chunks(columns.indptr, n_threads * _CHUNKS_PER_THREAD)
        kernel = _rank_sums_f32 if columns.values.dtype == np.float32 else _rank_sums_f64
        kernel(columns.values, columns.codes, columns.indptr, bounds, sizes, control, two_u, ties)
    two_u[control] = 0
    ties[control] = 0
    return two_u, ties


def _check(columns: GeneColumns, sizes: np.ndarray, control: int) -> None:
    if columns.values.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ShapeError(f"ranked values must be float32 or float64, not {columns.values.dtype}")
    if len(columns.values) != len(columns.codes) or columns.indptr[-1] != len(columns.values):
        raise ShapeError("values, codes and indptr of the gene columns disagree")
    if not 0 <= control < len(sizes):
        raise ShapeError(f"control index {control} for {len(sizes)} groups")
    others = np.delete(sizes, control)
    largest = int(sizes[control]) + int(others.max(initial=0))
    if largest > MAX_POOLED_CELLS:
        raise ShapeError(f"a group and the control hold {largest:,} cells; at most {MAX_POOLED_CELLS:,} fit")


def _even_chunks(indptr: np.ndarray, n_chunks: int) -> np.ndarray:
    """Gene boundaries of at most `n_chunks` runs with about equal work (stored values, and 64 per gene)."""
    n_genes = len(indptr) - 1
    work = (indptr - indptr[0]) + 64 * np.arange(n_genes + 1, dtype=np.int64)
    goals = np.linspace(0, work[-1], min(n_chunks, max(n_genes, 1)) + 1)
    bounds = np.searchsorted(work, goals, side="left").astype(np.int64)
    bounds[0], bounds[-1] = 0, n_genes
    return bounds


@njit(cache=True)
def _radix_sort(data, spare, n):  # pragma: no cover - compiled
    """Sort the first n words by their upper 32 bits, stable. True when the result lies in `spare`."""
    counts = np.zeros((3, 2048), dtype=np.int64)
    for i in range(n):
        word = data[i]
        counts[0, (word >> np.uint64(32)) & np.uint64(2047)] += 1
        counts[1, (word >> np.uint64(43)) & np.uint64(2047)] += 1
        counts[2, word >> np.uint64(54)] += 1
    source, target = data, spare
    swapped = False
    for digit in range(3):
        shift = np.uint64(32 + 11 * digit)
        row = counts[digit]
        if row[(source[0] >> shift) & np.uint64(2047)] == n:
            continue
        position = 0
        for k in range(2048):
            count = row[k]
            row[k] = position
            position += count
        for i in range(n):
            word = source[i]
            k = (word >> shift) & np.uint64(2047)
            target[row[k]] = word
            row[k] += 1
        source, target = target, source
        swapped = not swapped
    return swapped


@njit(cache=True)
def _insertion_sort(data, low, high):  # pragma: no cover - compiled
    for i in range(low + 1, high):
        word = data[i]
        k = i - 1
        while k >= low and data[k] > word:
            data[k + 1] = data[k]
            k -= 1
        data[k + 1] = word


@njit(cache=True)
def _sort_words(data, spare, n):  # pragma: no cover - compiled
    """The array, `data` or `spare`, that holds the first n words sorted by their upper 32 bits."""
    if n <= _SHORT_RUN:
        _insertion_sort(data, 0, n)
        return data
    if _radix_sort(data, spare, n):
        return spare
    return data


@njit(cache=True)
def _sweep(words, low, high, less, control, two_u, ties, in_block):  # pragma: no cover - compiled
    """Walk sorted words (key in the upper, group in the lower half); returns controls passed and their own tie term."""
    own_ties = 0
    i = low
    while i < high:
        key = words[i] >> _WORD
        j = i + 1
        if j == high or (words[j] >> _WORD) != key:
            group = np.int64(words[i] & _LOW)
            two_u[group] += 2 * less
            less += group == control
            i = j
            continue
        while j < high and (words[j] >> _WORD) == key:
            j += 1
        for k in range(i, j):
            in_block[np.int64(words[k] & _LOW)] += 1
        n_control = in_block[control]
        in_block[control] = 0
        control_ties = n_control * n_control * n_control - n_control
        own_ties += control_ties
        for k in range(i, j):
            group = np.int64(words[k] & _LOW)
            n_group = in_block[group]
            if n_group > 0:
                in_block[group] = 0
                two_u[group] += n_group * (2 * less + n_control)
                pooled = n_group + n_control
                ties[group] += pooled * pooled * pooled - pooled - control_ties
        less += n_control
        i = j
    return less, own_ties


@njit(cache=True)
def _finish_gene(words, n_negative, n, sizes, control, two_u, ties, stored, in_block):  # pragma: no cover
    """Sums of one gene from its sorted words: negatives, then the zeros as one block, then positives."""
    less, own_ties = _sweep(words, 0, n_negative, 0, control, two_u, ties, in_block)
    zeros_control = sizes[control] - stored[control]
    for group in range(len(sizes)):
        zeros = sizes[group] - stored[group]
        two_u[group] += zeros * (2 * less + zeros_control)
        pooled = zeros + zeros_control
        ties[group] += pooled * pooled * pooled - pooled
    less += zeros_control
    less, more_ties = _sweep(words, n_negative, n, less, control, two_u, ties, in_block)
    for group in range(len(sizes)):
        ties[group] += own_ties + more_ties


@njit(cache=True, parallel=True)
def _rank_sums_f32(values, codes, indptr, bounds, sizes, control, two_u, ties):  # pragma: no cover
    n_groups = len(sizes)
    for chunk in prange(len(bounds) - 1):
        longest = 0
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            longest = max(longest, indptr[gene + 1] - indptr[gene])
        data = np.empty(longest, dtype=np.uint64)
        spare = np.empty(longest, dtype=np.uint64)
        in_block = np.zeros(n_groups, dtype=np.int64)
        stored = np.empty(n_groups, dtype=np.int64)
        gene_u = np.empty(n_groups, dtype=np.int64)
        gene_ties = np.empty(n_groups, dtype=np.int64)
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            start, stop = indptr[gene], indptr[gene + 1]
            bits = values[start:stop].view(np.uint32)
            stored[:] = 0
            gene_u[:] = 0
            gene_ties[:] = 0
            n, n_negative = 0, 0
            for i in range(stop - start):
                raw = np.uint64(bits[i])
                if (raw & np.uint64(0x7FFFFFFF)) == 0:
                    continue
                group = np.int64(codes[start + i])
                stored[group] += 1
                if raw >> np.uint64(31):
                    raw ^= np.uint64(0xFFFFFFFF)
                    n_negative += 1
                else:
                    raw ^= np.uint64(0x80000000)
                data[n] = (raw << _WORD) | np.uint64(group)
                n += 1
            words = _sort_words(data, spare, n)
            _finish_gene(words, n_negative, n, sizes, control, gene_u, gene_ties, stored, in_block)
            for group in range(n_groups):
                two_u[group, gene] = gene_u[group]
                ties[group, gene] = gene_ties[group]


@njit(cache=True)
def _sort_by_low_half(words, keys, low, high, data, spare):  # pragma: no cover - compiled
    """Order words[low:high], positions in their lower half, by the lower 32 bits of their keys."""
    n = high - low
    for i in range(n):
        position = words[low + i] & _LOW
        data[i] = (keys[position] << _WORD) | position
    ordered = _sort_words(data, spare, n)
    for i in range(n):
        words[low + i] = ordered[i] & _LOW


@njit(cache=True)
def _order_keys(keys, n, data, spare, run_data, run_spare):  # pragma: no cover - compiled
    """Positions of the first n 64-bit keys in ascending order, in the lower half of the returned words."""
    for i in range(n):
        data[i] = (keys[i] & ~_LOW) | np.uint64(i)
    words = _sort_words(data, spare, n)
    i = 0
    while i < n:
        upper = words[i] >> _WORD
        first = keys[words[i] & _LOW]
        mixed = False
        j = i + 1
        while j < n and (words[j] >> _WORD) == upper:
            mixed = mixed or keys[words[j] & _LOW] != first
            j += 1
        if mixed:
            _sort_by_low_half(words, keys, i, j, run_data, run_spare)
        i = j
    return words


@njit(cache=True, parallel=True)
def _rank_sums_f64(values, codes, indptr, bounds, sizes, control, two_u, ties):  # pragma: no cover
    n_groups = len(sizes)
    for chunk in prange(len(bounds) - 1):
        longest = 0
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            longest = max(longest, indptr[gene + 1] - indptr[gene])
        keys = np.empty(longest, dtype=np.uint64)
        groups = np.empty(longest, dtype=np.uint32)
        data = np.empty(longest, dtype=np.uint64)
        spare = np.empty(longest, dtype=np.uint64)
        run_data = np.empty(longest, dtype=np.uint64)
        run_spare = np.empty(longest, dtype=np.uint64)
        in_block = np.zeros(n_groups, dtype=np.int64)
        stored = np.empty(n_groups, dtype=np.int64)
        gene_u = np.empty(n_groups, dtype=np.int64)
        gene_ties = np.empty(n_groups, dtype=np.int64)
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            start, stop = indptr[gene], indptr[gene + 1]
            bits = values[start:stop].view(np.uint64)
            stored[:] = 0
            gene_u[:] = 0
            gene_ties[:] = 0
            n, n_negative = 0, 0
            for i in range(stop - start):
                raw = bits[i]
                if (raw & np.uint64(0x7FFFFFFFFFFFFFFF)) == 0:
                    continue
                group = np.int64(codes[start + i])
                stored[group] += 1
                if raw >> np.uint64(63):
                    raw ^= np.uint64(0xFFFFFFFFFFFFFFFF)
                    n_negative += 1
                else:
                    raw ^= np.uint64(0x8000000000000000)
                keys[n] = raw
                groups[n] = np.uint32(group)
                n += 1
            words = _order_keys(keys, n, data, spare, run_data, run_spare)
            _rank_words(words, keys, groups, n)
            _finish_gene(words, n_negative, n, sizes, control, gene_u, gene_ties, stored, in_block)
            for group in range(n_groups):
                two_u[group, gene] = gene_u[group]
                ties[group, gene] = gene_ties[group]


@njit(cache=True)
def _rank_words(words, keys, groups, n):  # pragma: no cover - compiled
    """Replace ordered positions by words of (tie block number, group)."""
    block = np.uint64(0)
    previous = np.uint64(0)
    for i in range(n):
        position = words[i] & _LOW
        key = keys[position]
        if i > 0 and key != previous:
            block += np.uint64(1)
        previous = key
        words[i] = (block << _WORD) | np.uint64(groups[position])
