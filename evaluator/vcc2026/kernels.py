"""Loops over stored entries of CSR rows, in row order: sums do not depend on how rows were cut (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def row_sums(data: np.ndarray, indptr: np.ndarray, out: np.ndarray) -> None:
    """Write the float64 sum of each row, added in stored order, to `out`, shape (n_rows,)."""
    for row in range(out.shape[0]):
        total = 0.0
        for k in range(indptr[row], indptr[row + 1]):
            total += np.float64(data[k])
        out[row] = total


@njit(cache=True)
def add_group_sums(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    divisors: np.ndarray,
    sums: np.ndarray,
    scaled_sums: np.ndarray,
) -> None:
    """Add each row and the row divided by its divisor to its group; rows with group -1 are skipped.

    `sums` and `scaled_sums` are float64, shape (n_groups, n_genes), changed in place.
    """
    for row in range(groups.shape[0]):
        group = groups[row]
        if group < 0:
            continue
        divisor = divisors[row]
        for k in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[k])
            sums[group, indices[k]] += value
            scaled_sums[group, indices[k]] += value / divisor


@njit(cache=True)
def add_leave_one_out(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    remaining: np.ndarray,
    excess: np.ndarray,
    sums: np.ndarray,
    weights: np.ndarray,
    target_sum: float,
    first: np.ndarray,
    second: np.ndarray,
) -> None:
    """Add what each stored entry changes in the leave-one-out sums of its group and gene.

    For cell i with remaining total r and excess e = L/r, gene total P and count y, the value without the cell is
    v0 + d with v0 = log1p(e * w), w = a/(1+a), a = target_sum * P / T (what a cell without the gene gives), and
    d = -log1p(target_sum * y / (r + target_sum * (P - y))). `first` gains d, `second` gains (v0+d)^2 - v0^2.

    Rows with group -1 or remaining <= 0 are skipped. All group arrays have shape (n_groups, n_genes).
    """
    for row in range(groups.shape[0]):
        group = groups[row]
        r = remaining[row]
        if group < 0 or not r > 0.0:
            continue
        e = excess[row]
        for k in range(indptr[row], indptr[row + 1]):
            gene = indices[k]
            y = np.float64(data[k])
            rest = max(sums[group, gene] - y, 0.0)
            change = -np.log1p(target_sum * y / (r + target_sum * rest))
            base = np.log1p(e * weights[group, gene])
            first[group, gene] += change
            second[group, gene] += change * (2.0 * base + change)


@njit(cache=True)
def count_slots(
    indices: np.ndarray, indptr: np.ndarray, groups: np.ndarray, slots: np.ndarray, counts: np.ndarray
) -> None:
    """Add the stored entries of each wanted gene to `counts`; rows with group -1 and genes with slot -1 are skipped."""
    for row in range(groups.shape[0]):
        if groups[row] < 0:
            continue
        for k in range(indptr[row], indptr[row + 1]):
            slot = slots[indices[k]]
            if slot >= 0:
                counts[slot] += 1


@njit(cache=True)
def pick_entries(
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    groups: np.ndarray,
    divisors: np.ndarray,
    slots: np.ndarray,
    values: np.ndarray,
    entry_slots: np.ndarray,
    entry_groups: np.ndarray,
) -> int:
    """Write the wanted entries of some rows, each divided by its row's divisor; returns how many."""
    n = 0
    for row in range(groups.shape[0]):
        group = groups[row]
        if group < 0:
            continue
        divisor = divisors[row]
        for k in range(indptr[row], indptr[row + 1]):
            slot = slots[indices[k]]
            if slot >= 0:
                values[n] = np.float64(data[k]) / divisor
                entry_slots[n] = slot
                entry_groups[n] = group
                n += 1
    return n


@njit(cache=True)
def place_entries(
    values: np.ndarray,
    entry_slots: np.ndarray,
    entry_groups: np.ndarray,
    cursor: np.ndarray,
    column_values: np.ndarray,
    column_groups: np.ndarray,
) -> None:
    """Append entries to the columns of their genes; `cursor[slot]` is the next free place and moves on."""
    for i in range(values.shape[0]):
        place = cursor[entry_slots[i]]
        column_values[place] = values[i]
        column_groups[place] = entry_groups[i]
        cursor[entry_slots[i]] = place + 1
