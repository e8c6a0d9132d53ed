"""Rank sums of every group against one control group, all groups and genes in one sweep (numba).

Per gene only the stored (non-zero) values are sorted, once; zeros are one tie block known by counting. The
results are integers, so they do not depend on threads, on how genes are cut into blocks, or on storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import prange

from ...data_specs.errors import ShapeError
from .jit import compiled
from .threads import numba_threads

# The cube of the largest tie block must fit an int64.
MAX_POOLED_CELLS = 2_097_151
_LOW = np.uint64(0xFFFFFFFF)
_SIGN = np.uint64(0x8000000000000000)
_POSITION_BITS = np.uint64(32)
_ONE = np.uint64(1)
_SHORT_RUN = 24
_MOST_DIGIT_BITS = 11
_CHUNKS_PER_THREAD = 8


_BITS = {
    np.dtype(np.float32): np.dtype(np.uint32),
    np.dtype(np.uint32): np.dtype(np.uint32),
    np.dtype(np.float64): np.dtype(np.uint64),
}


@dataclass(frozen=True)
class GeneColumns:
    """Stored values of a block of genes, gene after gene.

    Attributes
    ----------
    values
        float32 or float64 without NaN, or uint32 ranks (equal ranks are ties, 0 is a zero), shape (n_stored,); the
        order within a gene has no meaning.
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
        bits = columns.values.view(_BITS[columns.values.dtype])
        _rank_sums(
            bits,
            columns.values.dtype.kind == "f",
            columns.codes,
            columns.indptr,
            bounds,
            sizes,
            control,
            two_u,
            ties,
        )
    two_u[control] = 0
    ties[control] = 0
    return two_u, ties


def _check(columns: GeneColumns, sizes: np.ndarray, control: int) -> None:
    if columns.values.dtype not in _BITS:
        raise ShapeError(
            f"ranked values must be float32 or float64 (or uint32 ranks), not {columns.values.dtype}"
        )
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


@compiled()
def _bit_length(value):  # pragma: no cover - compiled
    n = 0
    while value:
        n += 1
        value >>= _ONE
    return n


@compiled()
def _radix_pass(source, target, low, high, shift, width, counts):  # pragma: no cover - compiled
    """Stable counting sort of source[low:high] by `width` bits from `shift` on. False: nothing to do, nothing moved."""
    n_buckets = 1 << width
    mask = np.uint64(n_buckets - 1)
    counts[:n_buckets] = 0
    for i in range(low, high):
        counts[(source[i] >> shift) & mask] += 1
    if counts[(source[low] >> shift) & mask] == high - low:
        return False
    position = low
    for k in range(n_buckets):
        count = counts[k]
        counts[k] = position
        position += count
    for i in range(low, high):
        word = source[i]
        k = (word >> shift) & mask
        target[counts[k]] = word
        counts[k] += 1
    return True


@compiled()
def _insertion_sort(data, low, high, drop):  # pragma: no cover - compiled
    """Sort data[low:high] by the words without their lowest `drop` bits, stable."""
    for i in range(low + 1, high):
        word = data[i]
        key = word >> drop
        k = i - 1
        while k >= low and (data[k] >> drop) > key:
            data[k + 1] = data[k]
            k -= 1
        data[k + 1] = word


@compiled()
def _sort_run(words, spare, low, high, drop, n_bits, counts):  # pragma: no cover - compiled
    """Sort words[low:high] in place by their bits `drop` to `drop + n_bits`; higher bits are equal."""
    if high - low <= 2 * _SHORT_RUN:
        _insertion_sort(words, low, high, drop)
        return
    source, target = words, spare
    moved = False
    done = 0
    while done < n_bits:
        width = min(_MOST_DIGIT_BITS, n_bits - done)
        if _radix_pass(source, target, low, high, drop + np.uint64(done), width, counts):
            source, target = target, source
            moved = not moved
        done += width
    if moved:
        words[low:high] = spare[low:high]


@compiled()
def _sort_words(data, spare, n, drop, n_bits, counts):  # pragma: no cover - compiled
    """The array, `data` or `spare`, that holds the first n words sorted by their bits `drop` to `drop + n_bits`.

    Two passes over the highest bits leave hardly any pair undecided; the rest is settled run by run.
    """
    if n <= _SHORT_RUN:
        _insertion_sort(data, 0, n, drop)
        return data
    width = min(_MOST_DIGIT_BITS, max(_bit_length(np.uint64(n)) + 1, 6))
    low_bits = max(n_bits - 2 * width, 0)
    first = min(width, n_bits - low_bits)
    shift = drop + np.uint64(low_bits)
    source, target = data, spare
    if _radix_pass(source, target, 0, n, shift, first, counts):
        source, target = target, source
    second = n_bits - low_bits - first
    if second > 0 and _radix_pass(source, target, 0, n, shift + np.uint64(first), second, counts):
        source, target = target, source
    if low_bits == 0:
        return source
    i = 0
    while i < n:
        upper = source[i] >> shift
        word = source[i] >> drop
        mixed = False
        j = i + 1
        while j < n and (source[j] >> shift) == upper:
            mixed = mixed or (source[j] >> drop) != word
            j += 1
        if mixed:
            _sort_run(source, target, i, j, drop, low_bits, counts)
        i = j
    return source


@compiled()
def _sweep(words, low, high, drop, less, control, two_u, ties, in_block):  # pragma: no cover - compiled
    """Walk sorted words (key above the lowest `drop` bits, group in them); controls passed and their own tie term."""
    own_ties = 0
    mask = (_ONE << drop) - _ONE
    i = low
    while i < high:
        key = words[i] >> drop
        j = i + 1
        if j == high or (words[j] >> drop) != key:
            group = np.int64(words[i] & mask)
            two_u[group] += 2 * less
            less += group == control
            i = j
            continue
        while j < high and (words[j] >> drop) == key:
            j += 1
        for k in range(i, j):
            in_block[np.int64(words[k] & mask)] += 1
        n_control = in_block[control]
        in_block[control] = 0
        control_ties = n_control * n_control * n_control - n_control
        own_ties += control_ties
        for k in range(i, j):
            group = np.int64(words[k] & mask)
            n_group = in_block[group]
            if n_group > 0:
                in_block[group] = 0
                two_u[group] += n_group * (2 * less + n_control)
                pooled = n_group + n_control
                ties[group] += pooled * pooled * pooled - pooled - control_ties
        less += n_control
        i = j
    return less, own_ties


@compiled()
def _finish_gene(
    words, n_negative, n, drop, sizes, control, two_u, ties, stored, in_block
):  # pragma: no cover
    """Sums of one gene from its sorted words: negatives, then the zeros as one block, then positives."""
    less, own_ties = _sweep(words, 0, n_negative, drop, 0, control, two_u, ties, in_block)
    zeros_control = sizes[control] - stored[control]
    for group in range(len(sizes)):
        zeros = sizes[group] - stored[group]
        two_u[group] += zeros * (2 * less + zeros_control)
        pooled = zeros + zeros_control
        ties[group] += pooled * pooled * pooled - pooled
    less += zeros_control
    less, more_ties = _sweep(words, n_negative, n, drop, less, control, two_u, ties, in_block)
    for group in range(len(sizes)):
        ties[group] += own_ties + more_ties


@compiled()
def _load_keys(bits, signed, codes, start, stop, keys, groups, stored):  # pragma: no cover - compiled
    """Ordered keys and groups of the non-zero values of one gene; how many, how many of them negative, key range."""
    wide = bits.itemsize == 8
    n, n_negative = 0, 0
    smallest, largest = ~np.uint64(0), np.uint64(0)
    for i in range(start, stop):
        raw = np.uint64(bits[i])
        if signed:
            if not wide:
                raw <<= _POSITION_BITS
            if (raw << _ONE) == 0:
                continue
            if raw & _SIGN:
                raw = ~raw
                n_negative += 1
            else:
                raw |= _SIGN
            if not wide:
                raw >>= _POSITION_BITS
        elif raw == 0:
            continue
        group = codes[i]
        stored[group] += 1
        keys[n] = raw
        groups[n] = group
        smallest, largest = min(smallest, raw), max(largest, raw)
        n += 1
    return n, n_negative, smallest, largest


@compiled()
def _ranked_words(keys, groups, n, n_bits, data, spare, counts):  # pragma: no cover - compiled
    """Words of (tie block number, group) in the order of the keys, for keys that leave no room for the group."""
    upper_bits = min(n_bits, 32)
    shift = np.uint64(n_bits - upper_bits)
    for i in range(n):
        data[i] = ((keys[i] >> shift) << _POSITION_BITS) | np.uint64(i)
    words = _sort_words(data, spare, n, _POSITION_BITS, upper_bits, counts)
    other = spare if words is data else data
    i = 0
    while i < n:
        j = i + 1
        mixed = False
        while j < n and (words[j] >> _POSITION_BITS) == (words[i] >> _POSITION_BITS):
            mixed = mixed or keys[words[j] & _LOW] != keys[words[i] & _LOW]
            j += 1
        if mixed:
            for k in range(i, j):
                position = words[k] & _LOW
                words[k] = (keys[position] << _POSITION_BITS) | position
            _sort_run(words, other, i, j, _POSITION_BITS, 32, counts)
        i = j
    block = np.uint64(0)
    previous = np.uint64(0)
    for i in range(n):
        position = words[i] & _LOW
        key = keys[position]
        if i > 0 and key != previous:
            block += _ONE
        previous = key
        words[i] = (block << _POSITION_BITS) | np.uint64(groups[position])
    return words


@compiled(parallel=True)
def _rank_sums(bits, signed, codes, indptr, bounds, sizes, control, two_u, ties):  # pragma: no cover
    n_groups = len(sizes)
    group_bits = _bit_length(np.uint64(n_groups - 1))
    for chunk in prange(len(bounds) - 1):
        longest = 0
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            longest = max(longest, indptr[gene + 1] - indptr[gene])
        keys = np.empty(longest, dtype=np.uint64)
        groups = np.empty(longest, dtype=np.uint32)
        data = np.empty(longest, dtype=np.uint64)
        spare = np.empty(longest, dtype=np.uint64)
        counts = np.empty(1 << _MOST_DIGIT_BITS, dtype=np.int64)
        in_block = np.zeros(n_groups, dtype=np.int64)
        stored = np.empty(n_groups, dtype=np.int64)
        gene_u = np.empty(n_groups, dtype=np.int64)
        gene_ties = np.empty(n_groups, dtype=np.int64)
        for gene in range(bounds[chunk], bounds[chunk + 1]):
            stored[:] = 0
            gene_u[:] = 0
            gene_ties[:] = 0
            n, n_negative, smallest, largest = _load_keys(
                bits, signed, codes, indptr[gene], indptr[gene + 1], keys, groups, stored
            )
            words = data
            drop = _POSITION_BITS
            if n > 0:
                n_bits = _bit_length(largest - smallest)
                if n_bits + group_bits <= 64:
                    drop = np.uint64(group_bits)
                    for i in range(n):
                        data[i] = ((keys[i] - smallest) << drop) | np.uint64(groups[i])
                    words = _sort_words(data, spare, n, drop, n_bits, counts)
                else:
                    for i in range(n):
                        keys[i] -= smallest
                    words = _ranked_words(keys, groups, n, n_bits, data, spare, counts)
            _finish_gene(words, n_negative, n, drop, sizes, control, gene_u, gene_ties, stored, in_block)
            for group in range(n_groups):
                two_u[group, gene] = gene_u[group]
                ties[group, gene] = gene_ties[group]
