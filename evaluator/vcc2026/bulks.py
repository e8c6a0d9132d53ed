"""Group sums, bulks and the jackknife noise of bulks, streamed in two passes over the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import MetricError
from .cells import Cells, cell_divisors, group_sizes, totals_of
from .kernels import add_group_sums, add_leave_one_out

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


def measure_bulks(
    parts: Sequence[Cells], n_groups: int, n_genes: int, *, target_sum: float = BULK_TARGET_SUM
) -> Bulks:
    """Bulks of every group of cells. `parts` are read twice; a group may be spread over several parts.

    Raises
    ------
    MetricError
        Values are not counts: a cell's total exceeds that of its group.
    """
    sums = np.zeros((n_groups, n_genes))
    scaled = np.zeros_like(sums)
    totals: list[list[np.ndarray]] = []
    for part in parts:
        totals.append([])
        for rows, codes in part.blocks():
            total = totals_of(rows)
            add_group_sums(rows.data, rows.indices, rows.indptr, codes, cell_divisors(total), sums, scaled)
            totals[-1].append(total)
    n_cells = group_sizes(parts, n_groups)
    noise = _jackknife(parts, totals, sums, n_cells, target_sum)
    mean_cpm = scaled / np.maximum(n_cells, 1)[:, None]
    return Bulks(n_cells, sums, log_bulk(sums, target_sum), noise, mean_cpm)


def _jackknife(
    parts: Sequence[Cells],
    totals: list[list[np.ndarray]],
    sums: np.ndarray,
    n_cells: np.ndarray,
    target_sum: float,
) -> np.ndarray:
    """Delete-one jackknife variance of each bulk, summed over genes, shape (n_groups,).

    Cells without a gene differ only by e = L/(T-L): log1p(a(1+e)) - log1p(a) = log1p(e*a/(1+a)), so power sums
    of e give their share for all genes at once; stored entries add their difference to it.
    """
    group_totals = sums.sum(axis=1)
    usable = (n_cells >= 2) & (group_totals > 0)
    a = target_sum * sums / np.where(usable, group_totals, 1.0)[:, None]
    weights = a / (1.0 + a)
    first, second = np.zeros_like(sums), np.zeros_like(sums)
    powers = np.zeros((SERIES_TERMS, len(sums)))
    bulk = log_bulk(sums, target_sum)
    for part, part_totals in zip(parts, totals, strict=True):
        for (rows, codes), total in zip(part.blocks(), part_totals, strict=True):
            known = (codes >= 0) & usable[codes]
            remaining = np.where(known, group_totals[codes] - total, 0.0)
            remaining = _checked_remaining(remaining, total)
            alone = known & (remaining == 0) & (total > 0)
            excess = np.divide(total, remaining, out=np.zeros_like(total), where=remaining > 0)
            near = known & (excess <= SERIES_LIMIT) & ~alone
            _add_powers(powers, codes[near], excess[near])
            for row in np.flatnonzero(known & (excess > SERIES_LIMIT)):
                value = np.log1p(excess[row] * weights[codes[row]])
                first[codes[row]] += value
                second[codes[row]] += value * value
            for row in np.flatnonzero(alone):
                first[codes[row]] -= bulk[codes[row]]
                second[codes[row]] += bulk[codes[row]] ** 2
            active = np.where(known, codes, -1)
            add_leave_one_out(
                rows.data,
                rows.indices,
                rows.indptr,
                active,
                remaining,
                excess,
                sums,
                weights,
                target_sum,
                first,
                second,
            )
    base_first, base_second = _series(powers, weights)
    first += base_first
    second += base_second
    n = np.maximum(n_cells, 2).astype(float)
    spread = (second - first * first / n[:, None]).sum(axis=1)
    return np.where(usable, np.maximum((n - 1) / n * spread, 0.0), 0.0)


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
