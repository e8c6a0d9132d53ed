"""Group sums, bulks and the jackknife noise of bulks, streamed in two passes over the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...data_specs.errors import MetricError
from ..kernels.blocks import count_genes, gene_chunks
from ..kernels.threads import numba_threads
from .cells import Cells, cell_divisors, group_sizes, totals_of
from .kernels import add_group_sums, add_leave_one_out
from .rank_keys import PartCounts

if TYPE_CHECKING:
    import scipy.sparse as sp

BULK_TARGET_SUM = 5e4
# The power series in L/(T-L) holds to 1e-14 up to here; a group has at most 30 cells beyond.
SERIES_LIMIT = 1 / 30
SERIES_TERMS = 14


@dataclass(frozen=True)
class Bulks:
    """Group sums and what follows from them; a group without cells has zeros.

    Attributes
    ----------
    n_cells
        Cells per group, int64, shape (n_groups,).
    sums
        Counts summed over the cells, float64, shape (n_groups, n_genes).
    bulk
        log1p(5e4 * sums / total of the group), same shape; zeros where the total is zero.
    noise
        Jackknife estimate of the sampling variance of `bulk`, summed over all genes, shape (n_groups,).
    mean_cpm
        Mean over cells of counts per million, same shape as `sums`.
    """

    n_cells: np.ndarray
    sums: np.ndarray
    bulk: np.ndarray
    noise: np.ndarray
    mean_cpm: np.ndarray


def log_bulk(sums: np.ndarray, target_sum: float = BULK_TARGET_SUM) -> np.ndarray:
    """log1p(target_sum * sums / total) of each row; a row with total zero gives zeros. Shape kept, float64."""
    totals = sums.sum(axis=1)
    factor = np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.log1p(sums * factor[:, None])


@dataclass(frozen=True)
class FirstPass:
    """What one pass over the cells gave.

    Attributes
    ----------
    n_cells, sums, scaled, stored
        Per group: cells and sums of counts and of counts per million, shape (n_groups,) and (n_groups, n_genes); values
        per gene, shape (n_genes,).
    totals
        Row totals of every block, for each part of the cells.
    counts
        The different counts of every row, for each part; None where values are no whole numbers.
    """

    n_cells: np.ndarray
    sums: np.ndarray
    scaled: np.ndarray
    stored: np.ndarray
    totals: list[list[np.ndarray]]
    counts: list[PartCounts | None]

    @property
    def mean_cpm(self) -> np.ndarray:
        """Mean over cells of counts per million, shape (n_groups, n_genes); zeros for a group without cells."""
        return self.scaled / np.maximum(self.n_cells, 1)[:, None]

    def joined(self, other: FirstPass) -> FirstPass:
        """The parts of both, in this order; sums per group stay those of `self`."""
        return replace(
            self,
            stored=self.stored + other.stored,
            totals=self.totals + other.totals,
            counts=self.counts + other.counts,
        )


def first_pass(
    parts: Sequence[Cells], n_groups: int, n_genes: int, *, with_counts: bool, threads: int | None = None
) -> FirstPass:
    """Read the cells once. `with_counts` also notes the different counts of every row, for the ranks of tests.

    Raises `InvalidFile` where a part's own check finds values that are not counts.
    """
    sums, scaled = np.zeros((n_groups, n_genes)), np.zeros((n_groups, n_genes))
    stored = np.zeros(n_genes, dtype=np.int64)
    totals: list[list[np.ndarray]] = []
    counts: list[PartCounts | None] = []
    bounds: np.ndarray | None = None
    with numba_threads(threads) as n_threads:
        for part in parts:
            totals.append([])
            noted = PartCounts() if with_counts else None
            for rows, codes in part.blocks():
                if bounds is None:
                    seen = count_genes(rows.indices, rows.indptr, codes, n_genes, n_threads)
                    bounds = gene_chunks(seen, n_threads)
                total = totals_of(rows)
                divisors = cell_divisors(total)
                entries = (rows.data, rows.indices, rows.indptr)
                add_group_sums(*entries, codes, divisors, bounds, sums, scaled, stored)
                totals[-1].append(total)
                if noted is not None and not noted.add(rows, codes, divisors, n_threads):
                    noted = None
            counts.append(noted)
            _prove(part, noted, totals[-1])
    return FirstPass(group_sizes(parts, n_groups), sums, scaled, stored, totals, counts)


def _prove(part: Cells, noted: PartCounts | None, totals: Sequence[np.ndarray]) -> None:
    """Run the part's check of its values unless whole numbers were noted and no cell is too large."""
    if part.check is not None:
        largest = max((float(total.max(initial=0.0)) for total in totals), default=0.0)
        if noted is None or largest > part.check.max_cell_total:
            part.check.run()


def measure_bulks(
    parts: Sequence[Cells],
    n_groups: int,
    n_genes: int,
    *,
    target_sum: float = BULK_TARGET_SUM,
    threads: int | None = None,
) -> Bulks:
    """Bulks of every group of cells. `parts` are read twice; a group may be spread over several parts.

    Raises
    ------
    MetricError
        Values are not counts: a cell's total exceeds that of its group.
    """
    first = first_pass(parts, n_groups, n_genes, with_counts=False, threads=threads)
    jackknife = Jackknife(first, target_sum=target_sum, threads=threads)
    for part, totals in zip(parts, first.totals, strict=True):
        for (rows, codes), total in zip(part.blocks(), totals, strict=True):
            jackknife.add(rows, codes, total)
    return finished_bulks(first, jackknife)


def finished_bulks(first: FirstPass, jackknife: Jackknife) -> Bulks:
    """Bulks after the jackknife saw all cells."""
    bulk = log_bulk(first.sums, jackknife.target_sum)
    return Bulks(first.n_cells, first.sums, bulk, jackknife.noise(), first.mean_cpm)


class Jackknife:
    """Delete-one jackknife variance of each bulk, summed over genes, gathered block by block in a second pass.

    Cells without a gene differ only by e = L/(T-L): log1p(a(1+e)) - log1p(a) = log1p(e*a/(1+a)), so power sums
    of e give their share for all genes at once; stored entries add their difference to it.
    """

    def __init__(self, first: FirstPass, *, target_sum: float = BULK_TARGET_SUM, threads: int | None = None):
        self.target_sum, self._threads, self._n_cells, self._sums = (
            target_sum,
            threads,
            first.n_cells,
            first.sums,
        )
        self._totals = first.sums.sum(axis=1)
        self._usable = (first.n_cells >= 2) & (self._totals > 0)
        a = (target_sum * first.sums) / np.where(self._usable, self._totals, 1.0)[:, None]
        a /= 1.0 + a
        self._weights = a
        self._first, self._second = np.zeros_like(first.sums), np.zeros_like(first.sums)
        self._direct: dict[int, np.ndarray] = {}
        self._powers = np.zeros((SERIES_TERMS, len(first.sums)))
        self._stored = first.stored

    def add(self, rows: sp.csr_array, codes: np.ndarray, total: np.ndarray) -> None:
        """Add a block of rows with their totals. Raises `MetricError` when a total exceeds that of its group."""
        known = (codes >= 0) & self._usable[codes]
        remaining = np.where(known, self._totals[codes] - total, 0.0)
        remaining = _checked_remaining(remaining, total)
        alone = known & (remaining == 0) & (total > 0)
        excess = np.divide(total, remaining, out=np.zeros_like(total), where=remaining > 0)
        near = known & (excess <= SERIES_LIMIT) & ~alone
        _add_powers(self._powers, codes[near], excess[near])
        for row in np.flatnonzero(known & ((excess > SERIES_LIMIT) | alone)):
            group = int(codes[row])
            if alone[row]:
                value = -log_bulk(self._sums[group][None], self.target_sum)[0]
            else:
                value = np.log1p(excess[row] * self._weights[group])
            # Apart from the entries, so that the order of additions is that of the rows, whatever the blocks.
            moments = self._direct.setdefault(group, np.zeros((2, len(value))))
            moments[0] += value
            moments[1] += value * value
        with numba_threads(self._threads) as n_threads:
            add_leave_one_out(
                rows.data,
                rows.indices,
                rows.indptr,
                np.where(known, codes, -1),
                remaining,
                excess,
                gene_chunks(self._stored, n_threads),
                self._sums,
                self._weights,
                self.target_sum,
                self._first,
                self._second,
            )

    def noise(self) -> np.ndarray:
        """The variance of each group, float64, shape (n_groups,); 0 for fewer than two cells or no counts."""
        first, second = _series(self._powers, self._weights)
        first += self._first
        second += self._second
        for group, moments in self._direct.items():
            first[group] += moments[0]
            second[group] += moments[1]
        n = np.maximum(self._n_cells, 2).astype(float)
        first *= first
        first /= n[:, None]
        second -= first
        spread = second.sum(axis=1)
        return np.where(self._usable, np.maximum((n - 1) / n * spread, 0.0), 0.0)


def _checked_remaining(remaining: np.ndarray, total: np.ndarray) -> np.ndarray:
    # Fractional values may round to a remainder a hair below zero when every other cell is empty.
    if (remaining < -1e-9 * np.abs(total)).any():
        raise MetricError("a cell's total exceeds the total of its group: these values are not counts.")
    return np.maximum(remaining, 0.0)


def _add_powers(powers: np.ndarray, codes: np.ndarray, excess: np.ndarray) -> None:
    power = excess.copy()
    for k in range(len(powers)):
        np.add.at(powers[k], codes, power)
        power *= excess


def _series(powers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums over cells of log1p(e*w) and of its square, from the power sums of e; shape of `weights`."""
    harmonic = np.cumsum(1.0 / np.arange(1, len(powers) + 1))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for k in range(len(powers), 0, -1):
        sign = 1.0 if k % 2 else -1.0
        first += sign / k * powers[k - 1][:, None]
        first *= weights
        square = 0.0 if k == 1 else -sign * 2.0 * harmonic[k - 2] / k
        second += square * powers[k - 1][:, None]
        second *= weights
    return first, second
