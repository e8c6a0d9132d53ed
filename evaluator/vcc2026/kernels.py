"""Loops over stored entries of CSR rows; sums keep their row order, whatever the blocks and threads (numba)."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..kernels.blocks import first_entry
from ..kernels.jit import compiled

# Seven terms of the power series of log1p reach double precision up to here.
TINY = 1.0 / 128.0


@compiled(parallel=True)
def row_sums(data: np.ndarray, indptr: np.ndarray, chunks: np.ndarray, out: np.ndarray) -> None:
    """Write the float64 sum of each row, added in stored order, to `out`, shape (n_rows,)."""
    for chunk in prange(len(chunks) - 1):
        for row in range(chunks[chunk], chunks[chunk + 1]):
            total = 0.0
            for k in range(indptr[row], indptr[row + 1]):
                total += np.float64(data[k])
            out[row] = total


@compiled(parallel=True)
def check_rows(
    data: np.ndarray,
    indptr: np.ndarray,
    chunks: np.ndarray,
    tolerance: float,
    totals: np.ndarray,
    tally: np.ndarray,
) -> None:
    """Row totals as `row_sums`, and what each chunk holds of: not finite, negative, off a whole number by more than
    `tolerance` (in the precision of the data). `tally` is int64, shape (n_chunks, 3), and gains the counts."""
    for chunk in prange(len(chunks) - 1):
        nonfinite, negative, fractional = 0, 0, 0
        for row in range(chunks[chunk], chunks[chunk + 1]):
            total = 0.0
            for k in range(indptr[row], indptr[row + 1]):
                value = data[k]
                total += np.float64(value)
                negative += value < 0
                nonfinite += not np.isfinite(value)
                fractional += abs(value - np.rint(value)) > tolerance
            totals[row] = total
        tally[chunk, 0] += nonfinite
        tally[chunk, 1] += negative
        tally[chunk, 2] += fractional


@compiled(parallel=True)
def add_group_sums(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    divisors: np.ndarray,
    bounds: np.ndarray,
    sums: np.ndarray,
    scaled_sums: np.ndarray,
    stored: np.ndarray,
) -> None:
    """Add each row and the row divided by its divisor to its group; rows with group -1 are skipped.

    `sums` and `scaled_sums` are float64, shape (n_groups, n_genes), `stored` (values per gene) int64, all changed in
    place. Each thread serves the genes between two `bounds`, rows in order.
    """
    for part in prange(len(bounds) - 1):
        first, last = bounds[part], bounds[part + 1]
        for row in range(groups.shape[0]):
            group = groups[row]
            if group < 0:
                continue
            divisor = divisors[row]
            own_sums, own_scaled = sums[group], scaled_sums[group]
            end = np.int64(indptr[row + 1])
            for k in range(first_entry(indices, np.int64(indptr[row]), end, first), end):
                if indices[k] >= last:
                    break
                gene = np.uint64(indices[k])
                value = np.float64(data[k])
                own_sums[gene] += value
                own_scaled[gene] += value / divisor
                stored[gene] += 1


@compiled()
def log1p_small(x: float) -> float:
    """log1p of x in [0, 0.25] to an ulp or two: 2 artanh(x / (2 + x)) as a series."""
    z = x / (2.0 + x)
    s = z * z
    series = 1.0 / 17.0
    series = series * s + 1.0 / 15.0
    series = series * s + 1.0 / 13.0
    series = series * s + 1.0 / 11.0
    series = series * s + 1.0 / 9.0
    series = series * s + 1.0 / 7.0
    series = series * s + 1.0 / 5.0
    series = series * s + 1.0 / 3.0
    return 2.0 * z + 2.0 * z * s * series


@compiled()
def log1p_tiny(x: float) -> float:
    """log1p of x in [0, TINY] to an ulp or two: the power series."""
    series = 1.0 / 7.0
    series = 1.0 / 6.0 - series * x
    series = 1.0 / 5.0 - series * x
    series = 1.0 / 4.0 - series * x
    series = 1.0 / 3.0 - series * x
    series = 1.0 / 2.0 - series * x
    return x - x * x * series


@compiled(parallel=True)
def add_leave_one_out(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    remaining: np.ndarray,
    excess: np.ndarray,
    bounds: np.ndarray,
    sums: np.ndarray,
    weights: np.ndarray,
    target_sum: float,
    first_power: np.ndarray,
    second_power: np.ndarray,
) -> None:
    """Add what each stored entry changes in the leave-one-out sums of its group and gene.

    For cell i with remaining total r and excess e = L/r, gene total P and count y, the value without the cell is
    v0 + d with v0 = log1p(e * w), w = a/(1+a), a = target_sum * P / T (what a cell without the gene gives), and
    d = -log1p(target_sum * y / (r + target_sum * (P - y))). `first_power` gains d, `second_power` (v0+d)^2 - v0^2.

    Rows with group -1 or remaining <= 0 are skipped. All group arrays have shape (n_groups, n_genes). Each thread
    serves the genes between two `bounds`, rows in order.
    """
    for part in prange(len(bounds) - 1):
        first, last = bounds[part], bounds[part + 1]
        for row in range(groups.shape[0]):
            group = groups[row]
            r = remaining[row]
            if group < 0 or not r > 0.0:
                continue
            e = excess[row]
            own_sums, own_weights = sums[group], weights[group]
            own_first, own_second = first_power[group], second_power[group]
            end = np.int64(indptr[row + 1])
            for k in range(first_entry(indices, np.int64(indptr[row]), end, first), end):
                if indices[k] >= last:
                    break
                gene = np.uint64(indices[k])
                y = target_sum * np.float64(data[k])
                rest = max(target_sum * own_sums[gene] - y, 0.0)
                x = y / (r + rest)
                change = -log1p_small(x) if x <= 0.25 else -np.log1p(x)
                x = e * own_weights[gene]
                if x <= TINY:
                    base = log1p_tiny(x)
                else:
                    base = log1p_small(x) if x <= 0.25 else np.log1p(x)
                own_first[gene] += change
                own_second[gene] += change * (2.0 * base + change)


@compiled(parallel=True)
def distinct_counts(
    data: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    chunks: np.ndarray,
    limit: int,
    found: np.ndarray,
    n_found: np.ndarray,
) -> None:
    """The different counts of each row, at found[indptr[row]:] in order of appearance, `n_found[row]` of them.

    Values must lie in [1, limit]. A row with another value, or one that is no whole number, gets -1; rows with group
    -1 get 0.
    """
    for chunk in prange(len(chunks) - 1):
        seen = np.full(limit + 1, -1, dtype=np.int32)
        for row in range(chunks[chunk], chunks[chunk + 1]):
            n_found[row] = 0
            if groups[row] < 0:
                continue
            start = np.int64(indptr[row])
            n = 0
            for k in range(start, np.int64(indptr[row + 1])):
                value = data[k]
                if not (value >= 1 and value <= limit):
                    n = -1
                    break
                count = np.int64(value)
                if value != count:
                    n = -1
                    break
                if seen[count] != row:
                    seen[count] = row
                    found[start + n] = count
                    n += 1
            n_found[row] = n


@compiled()
def pack_rows(
    found: np.ndarray, indptr: np.ndarray, n_found: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover - compiled
    """Copy the first `n_found[row]` entries of each row to `out`, row after row."""
    at = 0
    for row in range(n_found.shape[0]):
        start = np.int64(indptr[row])
        for k in range(n_found[row]):
            out[at] = found[start + k]
            at += 1


@compiled(parallel=True)
def rank_entries(
    data: np.ndarray,
    indptr: np.ndarray,
    chunks: np.ndarray,
    table_indptr: np.ndarray,
    table_counts: np.ndarray,
    table_ranks: np.ndarray,
    limit: int,
    out: np.ndarray,
) -> None:
    """Replace each count by the rank that the table of its row gives it; rows without a table keep what `out` held."""
    for chunk in prange(len(chunks) - 1):
        rank_of = np.zeros(limit + 1, dtype=np.uint32)
        for row in range(chunks[chunk], chunks[chunk + 1]):
            low, high = table_indptr[row], table_indptr[row + 1]
            if low == high:
                continue
            for k in range(low, high):
                rank_of[table_counts[k]] = table_ranks[k]
            for k in range(indptr[row], indptr[row + 1]):
                out[k] = rank_of[np.int64(data[k])]
