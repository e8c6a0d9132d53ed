"""The overall score of an edition as a function of metric values: resamples go through the edition's own rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...data_specs.spec_models import Edition

if TYPE_CHECKING:
    from ..scorecard import ScoreResult

Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class OverallRule:
    """`rule({context: {metric: value}})` is the score, NaN where it has none.

    Without `by_context` the only context is "" and its values are those over all rows. Baselines and replicate
    anchors are fixed: they are part of the rule.
    """

    by_context: bool
    metrics: tuple[str, ...]
    rule: Callable[[Values], float]


def overall_rule(edition: Edition, result: ScoreResult) -> OverallRule | None:
    """The rule behind `result.score`, from the ends in the result's own tables; None where there is no score."""
    if result.score is None:
        return None
    if edition.scoring.pipeline == "vcc2026":
        return _vcc2026(result)
    if edition.scoring.pipeline == "celleval":
        return _celleval(edition, result)
    return None


def _vcc2026(result: ScoreResult) -> OverallRule:
    from ...data_specs.errors import MetricError
    from ..vcc2026.columns import REPLICATE
    from ..vcc2026.scores import column

    table = result.tables["score_columns"]
    table = table[(table["column"] == REPLICATE) & (table["metric"] != "avg_score")]
    ends = {
        str(context): (
            dict(zip(part["metric"], part["zero"].astype(float), strict=True)),
            dict(zip(part["metric"], part["one"].astype(float), strict=True)),
        )
        for context, part in table.groupby("context")
    }

    def rule(values: Values) -> float:
        averages = []
        for context, (zeros, ones) in ends.items():
            try:
                averages.append(column(REPLICATE, values[context], zeros, ones=ones).average)
            except MetricError:
                return math.nan
        return math.fsum(averages) / len(averages)

    return OverallRule(True, tuple(dict.fromkeys(table["metric"])), rule)


def _celleval(edition: Edition, result: ScoreResult) -> OverallRule:
    from ..celleval.score_rule import average, from_baseline
    from ..metrics.spec import family_metrics

    table = result.tables["from_baseline"]
    table = table[table["metric"] != "avg_score"]
    by_context = "context" in table
    parts = table.groupby("context") if by_context else [("", table)]
    baselines = {
        str(context): dict(zip(part["metric"], part["baseline"].astype(float), strict=True))
        for context, part in parts
    }
    goal = {"higher": 1.0, "lower": 0.0, "none": None}
    best = {name: goal[spec.better] for name, spec in family_metrics("celleval").items()}
    scale = 100.0 if edition.score.kind == "vcc2025" else 1.0

    def rule(values: Values) -> float:
        averages = [
            average(from_baseline({name: values[context][name] for name in baseline}, baseline, best))
            for context, baseline in baselines.items()
        ]
        return scale * math.fsum(averages) / len(averages)

    return OverallRule(by_context, tuple(dict.fromkeys(table["metric"])), rule)
