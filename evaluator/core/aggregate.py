"""From values per perturbation to one number with its n, overall and per stratum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...data_specs.labels import split_label
from ...data_specs.split_file import Split
from ...data_specs.splits.subgroups import subgroup, train_targets
from ..metrics.base import Null, Value
from ..metrics.spec import MetricSpec
from ..scorecard import MetricValue
from .pairing import Key


def aggregate(spec: MetricSpec, values: Sequence[Value], n_cells: np.ndarray) -> MetricValue:
    """Mean over perturbations that have a value.

    Parameters
    ----------
    values
        One entry per evaluated perturbation, Null where there is no value.
    n_cells
        True cells of each, the weights of `cell_weighted`.

    Returns
    -------
    MetricValue
        `std` is over perturbations (ddof 1, null for one); `reason` counts the nulls by reason, if any.
    """
    known = np.array([not isinstance(v, Null) for v in values], dtype=bool)
    numbers = np.array([v for v in values if not isinstance(v, Null)], dtype=np.float64)
    weights = np.asarray(n_cells, dtype=np.float64)[known]
    n = len(numbers)
    reasons = Counter(v.reason for v in values if isinstance(v, Null))
    text = "; ".join(f"{reason} ({count} of {len(values)})" for reason, count in reasons.most_common())
    return MetricValue(
        value=float(numbers.mean()) if n else None,
        n=n,
        n_total=len(values),
        better=spec.better,
        perfect=spec.perfect,
        cell_weighted=float(np.sum(numbers * weights) / weights.sum()) if n and weights.sum() else None,
        std=float(numbers.std(ddof=1)) if n > 1 else None,
        reason=text or None,
    )


def subgroups(keys: Sequence[Key], split: Split | None) -> list[str]:
    """The stratum of each row.

    With a split its subgroup, or what the training rows make of it; without one `single`, `double` or `multiple`
    by the number of targets.
    """
    if split:
        seen = train_targets(split.keys("train"))
        return [split.subgroup(key) or subgroup(key[1], seen) for key in keys]
    sizes = {1: "single", 2: "double"}
    return [sizes.get(len(split_label(name)), "multiple") for _, name in keys]


def effect_tier(n_de: int | None, bounds: Sequence[int]) -> str:
    """The tier of a number of truth-DE genes: `none`, `1-9`, `10-99`, `100+` for bounds 1, 10, 100; `unknown` for None.

    Examples
    --------
    >>> [effect_tier(n, (1, 10, 100)) for n in (0, 9, 10, 100, None)]
    ['none', '1-9', '10-99', '100+', 'unknown']
    """
    if n_de is None:
        return "unknown"
    if n_de < bounds[0]:
        return "none"
    for low, high in pairwise(bounds):
        if n_de < high:
            return f"{low}-{high - 1}"
    return f"{bounds[-1]}+"


def stratified(
    specs: Sequence[MetricSpec],
    values: Sequence[Sequence[Value]],
    n_cells: np.ndarray,
    axes: dict[str, list[str]],
) -> dict[str, dict[str, MetricValue]]:
    """Aggregates over each `axis=value` subset of the rows. `values[m][i]` is metric m of row i."""
    out: dict[str, dict[str, MetricValue]] = {}
    for axis, names in axes.items():
        for name in sorted(set(names)):
            rows = [i for i, other in enumerate(names) if other == name]
            out[f"{axis}={name}"] = {
                spec.name: aggregate(spec, [column[i] for i in rows], n_cells[rows])
                for spec, column in zip(specs, values, strict=True)
            }
    return out
