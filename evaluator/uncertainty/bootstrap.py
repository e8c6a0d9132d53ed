"""Bootstrap intervals of means over perturbations: bootstrap-t, and BCa for what is no mean.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 14; Hesterberg, What Teachers
Should Know About the Bootstrap (The American Statistician 69, 2015), for the expanded percentiles of small samples.
Coverage on simulated panels: `benchmarks/results/interval_coverage.md`; below 30 perturbations with skewed values it is
somewhat less than nominal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .design import Design

LEVEL = 0.95
N_RESAMPLES = 1999
MIN_PERTURBATIONS = 5
# A resample without any value has no mean; more of them than this and the interval would describe the others only.
MAX_LOST = 0.01
BOOTSTRAP_T, BCA = "bootstrap-t over perturbations", "BCa over perturbations, expanded"


@dataclass(frozen=True)
class Interval:
    """A confidence interval, or the reason why there is none (then `low` and `high` are None)."""

    low: float | None
    high: float | None
    level: float = LEVEL
    method: str | None = None
    reason: str | None = None


def no_interval(reason: str, level: float = LEVEL) -> Interval:
    """No interval, and why."""
    return Interval(None, None, level, None, reason)


@dataclass(frozen=True)
class Drawn:
    """Estimates of M columns. `value`, `error` have shape (M,), `values`, `errors` (B, M); `left_out` (n, M).

    Errors are standard errors; `left_out[i]` is the estimate without perturbation i; `n` counts perturbations with a
    value. NaN where a resample has no value.
    """

    value: np.ndarray
    error: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    left_out: np.ndarray
    n: np.ndarray


def draw_means(
    design: Design, top: np.ndarray, bottom: np.ndarray, *, n_resamples: int, rng: np.random.Generator
) -> Drawn:
    """Means over groups of `top / bottom`, of the sample and of `n_resamples` resamples of its perturbations.

    Parameters
    ----------
    top, bottom
        As `Design.sums` returns them, shape (n_groups, n, M). All columns share the draws.
    """
    ones = np.ones((1, design.n))
    totals = bottom.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        center = np.where(totals > 0, top.sum(axis=1) / np.where(totals > 0, totals, 1.0), np.nan)
    # Around the estimate, so that squares do not cancel.
    around = top - np.nan_to_num(center)[:, None, :] * bottom
    has_value = (bottom != 0).any(axis=0).astype(np.float64)
    _, error = _estimates(ones, around, bottom, has_value)
    parts = [_estimates(w, around, bottom, has_value) for w in design.resamples(n_resamples, rng)]
    value = center.mean(axis=0)
    left_out, _ = _estimates(1.0 - np.eye(design.n), around, bottom, has_value)
    return Drawn(
        value,
        error[0],
        value + np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        value + left_out,
        has_value.sum(axis=0).astype(np.int64),
    )


def _estimates(
    weights: np.ndarray, around: np.ndarray, bottom: np.ndarray, has_value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(difference from the estimate, its linearised standard error), each (B, M)."""
    n_groups = len(around)
    sizes = [weights @ part for part in bottom]
    with np.errstate(divide="ignore", invalid="ignore"):
        shifts = [
            np.where(size > 0, weights @ part / size, np.nan)
            for part, size in zip(around, sizes, strict=True)
        ]
        total = np.zeros_like(shifts[0])
        for c in range(n_groups):
            for d in range(n_groups):
                squares = weights @ (around[c] * around[d])
                squares -= shifts[d] * (weights @ (around[c] * bottom[d]))
                squares -= shifts[c] * (weights @ (bottom[c] * around[d]))
                squares += shifts[c] * shifts[d] * (weights @ (bottom[c] * bottom[d]))
                total += squares / (sizes[c] * sizes[d])
        n = weights @ has_value
        variance = np.where(n > 1, total * n / (n - 1), np.nan) / n_groups**2
    return np.mean(shifts, axis=0), np.sqrt(np.maximum(variance, 0.0))


def mean_intervals(drawn: Drawn, *, level: float = LEVEL) -> list[Interval]:
    """The interval of every column: bootstrap-t, or expanded BCa where ties leave bootstrap-t without a bound."""
    out = []
    for m in range(len(drawn.value)):
        if drawn.n[m] < MIN_PERTURBATIONS:
            out.append(no_interval(_too_few(int(drawn.n[m])), level))
            continue
        found = bootstrap_t(
            float(drawn.value[m]), float(drawn.error[m]), drawn.values[:, m], drawn.errors[:, m], level=level
        )
        if found is None:
            found = bca(float(drawn.value[m]), drawn.values[:, m], drawn.left_out[:, m], level=level)
        out.append(found)
    return out


def _too_few(n: int) -> str:
    return f"{n} perturbations with a value, an interval needs {MIN_PERTURBATIONS}"


def bootstrap_t(
    value: float, error: float, values: np.ndarray, errors: np.ndarray, *, level: float = LEVEL
) -> Interval | None:
    """The studentised interval; None when too many resamples are constant, so that a bound is not finite."""
    if not error > RELATIVE_ZERO * max(abs(value), 1e-300):
        return no_interval("every perturbation has the same value", level)
    known = np.isfinite(values)
    if 1 - known.mean() > MAX_LOST:
        return no_interval("too few perturbations have a value: resamples without any are frequent", level)
    difference, errors = values[known] - value, errors[known]
    studentised = np.copysign(np.inf, difference)
    studentised[difference == 0] = 0.0
    spread = errors > RELATIVE_ZERO * error
    studentised[spread] = difference[spread] / errors[spread]
    lower, upper = _order_statistics(studentised, [(1 - level) / 2, (1 + level) / 2])
    low, high = value - upper * error, value - lower * error
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Interval(low, high, level, BOOTSTRAP_T)


# Spread below this share of the value (or of the sample's spread) is rounding of equal values.
RELATIVE_ZERO = 1e-9


def bca(
    value: float, values: np.ndarray, left_out: np.ndarray, *, level: float = LEVEL, method: str = BCA
) -> Interval:
    """The bias-corrected and accelerated interval of any statistic, percentiles expanded by Student's t for small n.

    Parameters
    ----------
    values, left_out
        The statistic of each resample, shape (B,), and without each perturbation, shape (n,).
    """
    from scipy.special import ndtr, ndtri, stdtrit

    known, jack = values[np.isfinite(values)], left_out[np.isfinite(left_out)]
    n = len(jack)
    if n < MIN_PERTURBATIONS:
        return no_interval(_too_few(n), level)
    if len(values) - len(known) > MAX_LOST * len(values) or len(jack) < len(left_out):
        return no_interval("the statistic has no value in many resamples", level)
    if np.ptp(known) <= RELATIVE_ZERO * max(abs(value), 1e-300):
        return no_interval("every resample has the same value", level)
    below = np.count_nonzero(known < value) + np.count_nonzero(known == value) / 2
    bias = float(ndtri(np.clip(below / len(known), 0.5 / len(known), 1 - 0.5 / len(known))))
    deviation = jack.mean() - jack
    squares = float(np.sum(deviation**2))
    acceleration = float(np.sum(deviation**3)) / (6 * squares**1.5) if squares > 0 else 0.0
    shares = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, tail))
        shares.append(float(ndtr(bias + z / (1 - acceleration * z))))
    low, high = _order_statistics(known, shares)
    return Interval(low, high, level, method)


def _order_statistics(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The values at ranks share * (B + 1), rounded; 1,999 resamples make the usual shares exact."""
    ordered = np.sort(values)
    ranks = [min(len(values), max(1, round(share * (len(values) + 1)))) for share in shares]
    return [float(ordered[rank - 1]) for rank in ranks]
