"""Ranks of log1p counts per million for whole matrices: each row's few different counts are ranked once, for all genes.

A value depends on its cell and its count alone, and a cell holds about a hundred different counts among thousands of
stored ones. So the logarithms of (cell, count) pairs are taken and sorted once; genes then sort small integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..kernels.blocks import row_chunks
from .kernels import distinct_counts, pack_rows, rank_entries

if TYPE_CHECKING:
    import scipy.sparse as sp

# Larger counts would make the tables of a row longer than the row.
LARGEST_COUNT = 2**20


class PartCounts:
    """The different counts of every row of a streamed part, block by block."""

    def __init__(self) -> None:
        self._indptr: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._divisors: list[np.ndarray] = []
        self.largest = 0

    def add(self, rows: sp.csr_array, groups: np.ndarray, divisors: np.ndarray, n_threads: int) -> bool:
        """Note a block. False when it holds a value that is no whole number from 1 to 2^20."""
        largest = rows.data.max(initial=0)
        if not 0 <= largest <= LARGEST_COUNT:
            return False
        found = np.empty(len(rows.data), dtype=np.uint32)
        n_found = np.empty(len(groups), dtype=np.int64)
        chunks = row_chunks(rows.indptr, n_threads)
        distinct_counts(rows.data, rows.indptr, groups, chunks, int(largest), found, n_found)
        if len(n_found) and n_found.min() < 0:
            return False
        indptr = np.concatenate([[0], np.cumsum(n_found)])
        counts = np.empty(indptr[-1], dtype=np.uint32)
        pack_rows(found, rows.indptr, n_found, counts)
        self._indptr.append(indptr)
        self._counts.append(counts)
        self._divisors.append(divisors)
        self.largest = max(self.largest, int(largest))
        return True

    def values(self) -> np.ndarray:
        """log1p of every noted count, divided by its row's divisor, float64.

        The ranked value is numpy's float64 log1p of the divided count: ties depend on exactly this.
        """
        out = np.empty(sum(len(counts) for counts in self._counts))
        at = 0
        for indptr, counts, divisors in zip(self._indptr, self._counts, self._divisors, strict=True):
            part = out[at : at + len(counts)]
            np.divide(counts, np.repeat(divisors, np.diff(indptr)), out=part)
            at += len(counts)
        return np.log1p(out, out=out)

    def with_ranks(self, ranks: np.ndarray) -> RankTable:
        """The table that turns the counts of each row into `ranks`, in the order of `values`."""
        sizes = np.cumsum([len(counts) for counts in self._counts])[:-1]
        return RankTable(self._indptr, self._counts, np.split(ranks, sizes), self.largest)


class RankTable:
    """Turns the counts of a part's blocks into ranks, block by block in the order in which they were noted."""

    def __init__(
        self, indptr: list[np.ndarray], counts: list[np.ndarray], ranks: list[np.ndarray], largest: int
    ):
        self._indptr, self._counts, self._ranks, self._largest = indptr, counts, ranks, largest

    def ranked(self, block: int, rows: sp.csr_array, n_threads: int) -> sp.csr_array:
        """The rows of block number `block` with ranks (uint32) in place of their counts; rows left out hold zeros."""
        import scipy.sparse as sp

        out = np.zeros(len(rows.data), dtype=np.uint32)
        chunks = row_chunks(rows.indptr, n_threads)
        table = (self._indptr[block], self._counts[block], self._ranks[block])
        rank_entries(rows.data, rows.indptr, chunks, *table, self._largest, out)
        return sp.csr_array((out, rows.indices, rows.indptr), shape=rows.shape, copy=False)


def rank_tables(parts: Sequence[PartCounts]) -> list[RankTable]:
    """Common ranks of all parts: equal values have equal ranks, larger values larger ones, from 1 on."""
    values = [part.values() for part in parts]
    sizes = np.cumsum([len(part) for part in values])[:-1]
    ranks = dense_ranks(np.concatenate(values) if len(values) > 1 else values[0])
    return [part.with_ranks(own) for part, own in zip(parts, np.split(ranks, sizes), strict=True)]


def dense_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value among the different values, from 1 on, uint32, shape of `values` (one-dimensional)."""
    order = np.argsort(values)
    ordered = values[order]
    steps = np.ones(len(values), dtype=np.uint32)
    np.not_equal(ordered[1:], ordered[:-1], out=steps[1:], casting="unsafe")
    del ordered
    np.cumsum(steps, out=steps)
    ranks = np.empty(len(values), dtype=np.uint32)
    ranks[order] = steps
    return ranks
