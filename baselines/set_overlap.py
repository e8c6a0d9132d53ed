"""Overlaps of many small sets, counted through the items they share (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True)
def jaccard_pairs(
    item_ends: np.ndarray,
    items: np.ndarray,
    member_ends: np.ndarray,
    members: np.ndarray,
    left_sizes: np.ndarray,
    right_sizes: np.ndarray,
    above: float,
    ends: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
) -> None:
    """Jaccard similarity of left sets with right sets, where it exceeds `above`.

    Left set i holds `items[item_ends[i]:item_ends[i + 1]]`; item t belongs to the right sets
    `members[member_ends[t]:member_ends[t + 1]]`. The result is CSR: `ends` always, `columns` (ascending) and
    `values` when they are not empty, so a first call with empty ones counts.
    """
    shared = np.zeros(right_sizes.shape[0], dtype=np.int64)
    n_pairs = 0
    for left in range(item_ends.shape[0] - 1):
        shared[:] = 0
        for at in range(item_ends[left], item_ends[left + 1]):
            item = items[at]
            for other in range(member_ends[item], member_ends[item + 1]):
                shared[members[other]] += 1
        for right in range(right_sizes.shape[0]):
            if shared[right] == 0:
                continue
            similarity = shared[right] / (left_sizes[left] + right_sizes[right] - shared[right])
            if similarity > above:
                if columns.shape[0]:
                    columns[n_pairs] = right
                    values[n_pairs] = similarity
                n_pairs += 1
        ends[left + 1] = n_pairs
