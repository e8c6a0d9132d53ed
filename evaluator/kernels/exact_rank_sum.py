"""The exact null distribution of the Mann-Whitney U for small samples without ties."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def upper_tail(n1: int, n2: int) -> np.ndarray:
    """P(U >= u) under the null for u = 0 to n1 * n2, float64; symmetric in n1 and n2.

    The number of arrangements with a given U is a coefficient of the Gaussian binomial (n1 + n2 choose n1); it
    is built with exact integers, one factor (1 - q^(n2 + i)) / (1 - q^i) at a time.
    """
    small, large = sorted((n1, n2))
    size = small * large + 1
    counts = np.zeros(size, dtype=object)
    counts[0] = 1
    for i in range(1, small + 1):
        shift = large + i
        if shift < size:
            counts[shift:] = counts[shift:] - counts[:-shift]
        for start in range(min(i, size)):
            counts[start::i] = np.cumsum(counts[start::i])
    tail = np.cumsum(counts[::-1])[::-1]
    return np.array([value / tail[0] for value in tail], dtype=np.float64)


def exact_p(two_u: np.ndarray, n1: int, n2: int) -> np.ndarray:
    """Two-sided exact p of doubled U statistics (any shape, all even: no ties), clipped to 1.

    Equal to `scipy.stats.mannwhitneyu(..., method="exact")`.
    """
    u = np.asarray(two_u, dtype=np.int64) // 2
    larger = np.maximum(u, n1 * n2 - u)
    return np.minimum(2.0 * upper_tail(n1, n2)[larger], 1.0)
