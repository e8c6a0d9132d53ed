"""Intervals of everything a ScoreCard aggregates: metrics, strata and the overall score.

The perturbations of the panel count as a sample of those one could have tested; the interval is for the mean over that
population. What a perturbation's own value owes to its few cells is part of its spread. Baselines, anchors, and values
that depend on the other perturbations of the panel (ranks) are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...data_specs.spec_models import Edition
from .bootstrap import BCA, LEVEL, N_RESAMPLES, Interval, bca, draw_means, mean_intervals, no_interval
from .design import Design, group_ratios, table_parts
from .overall import OverallRule, overall_rule

if TYPE_CHECKING:
    import pandas as pd

    from ..scorecard import MetricValue, ScoreResult

# Mixed with the root seed, so that these draws are none of a metric's.
STREAM = 0x1A7
# Aggregates are sums in another order than here.
SAME_RTOL, SAME_ATOL = 1e-8, 1e-12
NOT_ASKED = "left out (--no-intervals)"
PANEL = "one value for the whole panel, not a mean over perturbations"
OTHER_AGGREGATE = "the aggregate is not the mean of the values per perturbation"
# The column of the per-perturbation table behind each axis of the strata.
AXIS_COLUMNS = {"context": "context", "subgroup": "stratum"}


@dataclass(frozen=True)
class Aggregation:
    """How an edition makes one number of a column.

    `by_context`: the mean over contexts of their means, else over all rows. `ratios` maps a metric to its numerator
    and denominator columns: sum over sum. `panel` are metrics that have one value for the whole panel.
    """

    by_context: bool = False
    ratios: Mapping[str, tuple[str, str]] | None = None
    panel: frozenset[str] = frozenset()


def aggregation(edition: Edition, family: str) -> Aggregation:
    """How the pipeline of the edition aggregates the metrics of this family."""
    from ..metrics.spec import FAMILIES, family_metrics

    known = family_metrics(family) if family in FAMILIES else {}
    panel = frozenset(name for name, spec in known.items() if spec.scope == "panel")
    if edition.scoring.pipeline != "vcc2026":
        return Aggregation(panel=panel)
    from ..vcc2026.catalog import NORM, NORM_PARTS
    from ..vcc2026.de_lists import PANEL_METRICS

    # The areas under a curve have a value per perturbation and are averaged like any other.
    averaged = frozenset(name for name in panel if any(name.endswith(f"_{short}") for short in PANEL_METRICS))
    return Aggregation(True, {NORM: NORM_PARTS}, panel - averaged - {NORM})


def with_intervals(
    result: ScoreResult,
    *,
    edition: Edition,
    family: str,
    seed: int,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
) -> ScoreResult:
    """The result with an interval, or the reason for none, in every metric, stratum and the overall score.

    Deterministic in `seed`, and independent of the order of the rows.
    """
    rule = aggregation(edition, family)

    def entropy() -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([seed, STREAM]))

    table = result.per_perturbation
    strata = {}
    for subset, values in result.strata.items():
        rows = _rows_of(table, subset)
        strata[subset] = (
            _named(values, dict.fromkeys(values, no_interval(OTHER_AGGREGATE, level)))
            if rows is None
            else _named(
                values, metric_intervals(table.loc[rows], values, rule, entropy(), level, n_resamples)
            )
        )
    metrics = metric_intervals(table, result.metrics, rule, entropy(), level, n_resamples)
    overall = overall_rule(edition, result)
    return replace(
        result,
        metrics=_named(result.metrics, metrics),
        strata=strata,
        score_interval=None
        if overall is None or result.score is None
        else score_interval(table, result.score, overall, rule, entropy(), level, n_resamples),
        parameters={
            **result.parameters,
            "intervals": {"level": level, "resamples": n_resamples, "resampled": "perturbations"},
        },
    )


def _rows_of(table: pd.DataFrame, subset: str) -> np.ndarray | None:
    axis, _, value = subset.partition("=")
    column = AXIS_COLUMNS.get(axis, axis)
    return None if column not in table else (table[column].astype(str) == value).to_numpy()


def _named(values: Mapping[str, MetricValue], intervals: Mapping[str, Interval]) -> dict[str, MetricValue]:
    out = {}
    for name, value in values.items():
        found = intervals[name]
        out[name] = value.model_copy(
            update={
                "low": found.low,
                "high": found.high,
                "level": found.level,
                "interval_method": found.method,
                "interval_reason": found.reason,
            }
        )
    return out


def metric_intervals(
    table: pd.DataFrame,
    metrics: Mapping[str, MetricValue],
    rule: Aggregation,
    rng: np.random.Generator,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, Interval]:
    """The interval of each metric from the values per perturbation in `table`; all share the draws.

    A perturbation is drawn with all its rows (contexts). The interval stays on the side of the perfect value
    when every value does.
    """
    found: dict[str, Interval] = {}
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, value in metrics.items():
        if value.value is None:
            found[name] = no_interval("the metric has no value", level)
        elif name in rule.panel:
            found[name] = no_interval(PANEL, level)
        elif (parts := metric_parts(table, name, rule)) is None:
            found[name] = no_interval(OTHER_AGGREGATE, level)
        else:
            columns[name] = parts
    if not columns:
        return found
    design = Design.of(table["perturbation"].tolist(), table["context"].tolist() if rule.by_context else None)
    top, bottom = design.sums(*(np.column_stack(side) for side in zip(*columns.values(), strict=True)))
    drawn = draw_means(design, top, bottom, n_resamples=n_resamples, rng=rng)
    for m, (name, interval) in enumerate(zip(columns, mean_intervals(drawn, level=level), strict=True)):
        value = metrics[name]
        assert value.value is not None
        if not math.isclose(drawn.value[m], value.value, rel_tol=SAME_RTOL, abs_tol=SAME_ATOL):
            interval = no_interval(OTHER_AGGREGATE, level)
        elif name in table:
            interval = _on_the_side_of(interval, value, table[name].to_numpy(dtype=float))
        found[name] = interval
    return {name: found[name] for name in metrics}


def metric_parts(table: pd.DataFrame, name: str, rule: Aggregation) -> tuple[np.ndarray, np.ndarray] | None:
    """Numerators and denominators of a metric per row, float64; None when the table has no values of it."""
    if rule.ratios and name in rule.ratios:
        top, bottom = rule.ratios[name]
        if top not in table or bottom not in table:
            return None
        values = table[[top, bottom]].to_numpy(dtype=float)
        both = np.isfinite(values).all(axis=1)
        return np.where(both, values[:, 0], 0.0), np.where(both, values[:, 1], 0.0)
    if name not in table:
        return None
    top, bottom = table_parts(table[name].to_numpy(dtype=float)[:, None])
    return top[:, 0], bottom[:, 0]


def _on_the_side_of(interval: Interval, value: MetricValue, values: np.ndarray) -> Interval:
    """The interval without what lies beyond the perfect value, when no perturbation lies there."""
    if value.perfect is None or interval.low is None or interval.high is None:
        return interval
    known = values[np.isfinite(values)]
    if value.better == "lower" and (known >= value.perfect).all():
        return replace(interval, low=max(interval.low, value.perfect))
    if value.better == "higher" and (known <= value.perfect).all():
        return replace(interval, high=min(interval.high, value.perfect))
    return interval


def score_interval(
    table: pd.DataFrame,
    score: float,
    overall: OverallRule,
    rule: Aggregation,
    rng: np.random.Generator,
    level: float = LEVEL,
    n_resamples: int = N_RESAMPLES,
) -> Interval:
    """The interval of the overall score: every resample of perturbations goes through the edition's own rule."""
    if any(name in rule.panel for name in overall.metrics):
        return no_interval(f"a member of the score has {PANEL}", level)
    parts = [metric_parts(table, name, rule) for name in overall.metrics]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return no_interval("the table lacks the values of a member of the score", level)
    design = Design.of(
        table["perturbation"].tolist(), table["context"].tolist() if overall.by_context else None
    )
    top, bottom = design.sums(*(np.column_stack(side) for side in zip(*known, strict=True)))

    def scores(weights: np.ndarray) -> np.ndarray:
        values = group_ratios(weights, top, bottom).tolist()
        return np.array([_score(overall, design.groups, one) for one in values])

    if not math.isclose(scores(np.ones((1, design.n)))[0], score, rel_tol=SAME_RTOL, abs_tol=SAME_ATOL):
        return no_interval("the score does not follow from the values per perturbation alone", level)
    drawn = np.concatenate([scores(weights) for weights in design.resamples(n_resamples, rng)])
    return bca(score, drawn, scores(1.0 - np.eye(design.n)), level=level, method=BCA)


def _score(overall: OverallRule, groups: Sequence[str], values: Sequence[Sequence[float]]) -> float:
    return overall.rule(
        {
            group: dict(zip(overall.metrics, column, strict=True))
            for group, column in zip(groups, values, strict=True)
        }
    )
