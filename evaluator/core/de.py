"""Differential expression of the edition: Welch t per gene, Benjamini-Hochberg, ranking by absolute t."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# 34 bits of mantissa are about 10 significant digits.
_RANK_BITS = 34.0
# Means closer than this (relative) are equal up to the order of summation.
_EQUAL_RTOL = 1e-12


@dataclass(frozen=True)
class DeTable:
    """DE of one perturbation, arrays of shape (G,).

    `t`, `p`, `q` are the statistic, two-sided p-value and BH-adjusted p-value; `significant` is q < alpha;
    `order` ranks genes by absolute t, ties by gene position (positions follow sorted symbols).
    """

    t: np.ndarray
    p: np.ndarray
    q: np.ndarray
    significant: np.ndarray
    order: np.ndarray

    @property
    def n_significant(self) -> int:
        """Number of DE genes."""
        return int(self.significant.sum())

    def ranked(self, *, exclude: np.ndarray | None = None, changed: bool = False) -> np.ndarray:
        """Gene positions, strongest first, without those in `exclude`; with `changed`, only those with t != 0."""
        keep = np.ones(len(self.t), dtype=bool)
        if exclude is not None:
            keep[exclude] = False
        if changed:
            keep &= self.t != 0
        return self.order[keep[self.order]]


def welch(
    mean: np.ndarray,
    variance: np.ndarray,
    n: int,
    ref_mean: np.ndarray,
    ref_variance: np.ndarray,
    ref_n: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t and two-sided p of each gene from group means, unbiased variances and sizes.

    Both groups without variance: t = 0, p = 1 when the means are equal, else t = ±inf, p = 0 (as SciPy and scanpy).
    NaN where a group has fewer than two cells.
    """
    from scipy.special import stdtr

    part, ref_part = variance / n, ref_variance / ref_n
    difference = mean - ref_mean
    equal = np.abs(difference) <= _EQUAL_RTOL * np.maximum(np.abs(mean), np.abs(ref_mean))
    difference = np.where(equal, 0.0, difference)
    error = part + ref_part
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / np.sqrt(error)
        freedom = error**2 / (part**2 / (n - 1) + ref_part**2 / (ref_n - 1))
    flat = error == 0
    t = np.where(flat & equal, 0.0, t)
    p = 2.0 * stdtr(np.where(flat, 1.0, freedom), -np.abs(t))
    return t, p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """BH-adjusted p-values over all entries, same shape. NaN input gives NaN everywhere."""
    n = len(p)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n / np.arange(1, n + 1)
    adjusted = np.minimum.accumulate(scaled[::-1])[::-1]
    out = np.empty(n)
    out[order] = np.minimum(adjusted, 1.0)
    return out


def rank_by_magnitude(values: np.ndarray) -> np.ndarray:
    """Positions by falling absolute value. Values equal to about 10 digits tie; ties keep position order."""
    mantissa, exponent = np.frexp(np.abs(values))
    rounded = np.ldexp(np.rint(mantissa * 2.0**_RANK_BITS), exponent - int(_RANK_BITS))
    return np.argsort(-rounded, kind="stable")


def de_table(
    mean: np.ndarray,
    variance: np.ndarray,
    n: int,
    ref_mean: np.ndarray,
    ref_variance: np.ndarray,
    ref_n: int,
    *,
    alpha: float,
) -> DeTable | None:
    """The DE table of a group of cells against control cells; None when either has fewer than two cells."""
    if n < 2 or ref_n < 2:
        return None
    t, p = welch(mean, variance, n, ref_mean, ref_variance, ref_n)
    q = benjamini_hochberg(p)
    return DeTable(t, p, q, q < alpha, rank_by_magnitude(t))
