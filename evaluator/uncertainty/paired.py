"""Paired comparison of two entries on the perturbations both predict: differences, intervals, tests, effect sizes.

The test flips the signs of whole perturbations (Fisher's randomisation test): exact under the hypothesis that which of
the two entries is called the first does not matter. Holm (Scandinavian Journal of Statistics 6, 1979) adjusts over
metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bootstrap import (
    LEVEL,
    MIN_PERTURBATIONS,
    N_RESAMPLES,
    draw_means,
    mean_intervals,
    no_interval,
)
from .design import Design, table_parts

if TYPE_CHECKING:
    import pandas as pd

    from ..scorecard import MetricValue

# Up to this many perturbations all sign patterns are tried.
EXACT_N = 12
N_FLIPS = 9999
STREAM = 0x9A1
# Sums that differ by rounding alone are equal.
TIE_RTOL = 1e-9
EXACT, SAMPLED = "sign-flip permutation, exact", "sign-flip permutation, sampled"
NO_VALUES = "no values per perturbation: the two cannot be paired"


@dataclass(frozen=True)
class PairedMetric:
    """The first entry minus the second in one metric.

    `difference` is the mean over the `n` shared perturbations (rows of several contexts belong to one; in edition
    vcc2026 contexts weigh the same), `effect_size` the mean over the standard deviation of the differences,
    `wins` the share of perturbations where the first is better (half for ties; None without a direction), `p` the
    two-sided p value and `p_holm` the one adjusted over metrics. `reason` says why fields are None.
    """

    metric: str
    better: str
    n: int
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    level: float
    interval_method: str | None
    effect_size: float | None
    wins: float | None
    p: float | None
    p_holm: float | None
    test: str | None
    reason: str | None


def sign_flip(values: np.ndarray, *, rng: np.random.Generator, n_flips: int = N_FLIPS) -> float:
    """Two-sided p value that the sum of `values`, shape (n,), is no larger than with random signs.

    All 2^n sign patterns up to 12 values, else `n_flips` drawn ones and the one observed. 1.0 without values.
    """
    n = len(values)
    if not n or not np.any(values):
        return 1.0
    observed = abs(values.sum()) * (1 - TIE_RTOL)
    if n <= EXACT_N:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((1 - 2 * patterns) @ values) >= observed).mean())
    signs = 2.0 * rng.integers(0, 2, size=(n_flips, n)) - 1.0
    return float((1 + (np.abs(signs @ values) >= observed).sum()) / (n_flips + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    out, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = float(largest)
    return out


def compare_paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metrics: dict[str, MetricValue],
    *,
    by_context: bool = False,
    seed: int = 0,
    level: float = LEVEL,
) -> list[PairedMetric]:
    """The two entries metric by metric.

    Parameters
    ----------
    first, second
        Per-perturbation tables; rows are matched by (context, perturbation), others are left out.
    metrics
        The metrics to compare, with their direction.
    by_context
        Contexts weigh the same (edition vcc2026), whatever their number of perturbations.
    """
    keys = ["context", "perturbation"]
    joined = first.merge(second, on=keys, suffixes=("_first", "_second")).sort_values(keys, ignore_index=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, STREAM]))
    found = [_one(name, value, joined, by_context, rng, level) for name, value in metrics.items()]
    tested = [i for i, metric in enumerate(found) if metric.p is not None]
    adjusted = holm([found[i].p or 0.0 for i in tested])
    for i, p in zip(tested, adjusted, strict=True):
        found[i] = PairedMetric(**{**found[i].__dict__, "p_holm": p})
    return found


def _one(
    name: str,
    value: MetricValue,
    joined: pd.DataFrame,
    by_context: bool,
    rng: np.random.Generator,
    level: float,
) -> PairedMetric:
    columns = [f"{name}_first", f"{name}_second"]
    if any(column not in joined for column in columns):
        return _unpaired(name, value, 0, NO_VALUES, level)
    both = joined.loc[np.isfinite(joined[columns].to_numpy(dtype=float)).all(axis=1)]
    n = int(both["perturbation"].nunique())
    if not n:
        return _unpaired(name, value, 0, "no perturbation has a value in both", level)
    pair = both[columns].to_numpy(dtype=float)
    difference = pair[:, 0] - pair[:, 1]
    if np.ptp(pair[:, 0]) == 0 and np.ptp(pair[:, 1]) == 0 and n > 1 and difference[0] != 0:
        # A panel metric repeats its one value in every row.
        return _unpaired(name, value, n, "one value for the whole panel, or constant in both", level)
    design = Design.of(both["perturbation"].tolist(), both["context"].tolist() if by_context else None)
    top, bottom = design.sums(*table_parts(np.column_stack([pair, difference])))
    drawn = draw_means(design, top, bottom, n_resamples=N_RESAMPLES, rng=rng)
    interval = (
        mean_intervals(drawn, level=level)[2]
        if n >= MIN_PERTURBATIONS
        else no_interval(f"{n} shared perturbations, an interval needs {MIN_PERTURBATIONS}", level)
    )
    # What each perturbation adds to the mean difference.
    share = (top[:, :, 2] / bottom[:, :, 2].sum(axis=1, keepdims=True)).sum(axis=0) / len(design.groups)
    spread = share.std(ddof=1) if n > 1 else 0.0
    return PairedMetric(
        metric=name,
        better=value.better,
        n=n,
        first=float(drawn.value[0]),
        second=float(drawn.value[1]),
        difference=float(drawn.value[2]),
        low=interval.low,
        high=interval.high,
        level=level,
        interval_method=interval.method,
        effect_size=float(share.mean() / spread) if spread > 0 else None,
        wins=_wins(share, value.better),
        p=sign_flip(share, rng=rng),
        p_holm=None,
        test=EXACT if n <= EXACT_N else SAMPLED,
        reason=interval.reason,
    )


def _wins(share: np.ndarray, better: str) -> float | None:
    if better == "none":
        return None
    signed = share if better == "higher" else -share
    return float(((signed > 0) + 0.5 * (signed == 0)).mean())


def _unpaired(name: str, value: MetricValue, n: int, reason: str, level: float) -> PairedMetric:
    return PairedMetric(
        name, value.better, n, None, None, None, None, None, level, None, None, None, None, None, None, reason
    )
