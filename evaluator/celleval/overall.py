"""The overall score of an edition: its members relative to a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...data_specs.spec_models import Edition
from ..metrics.spec import family_metrics
from ..scorecard import MetricValue, finite_or_none
from .score_rule import PUBLISHED, Term, average, from_baseline, read_aggregate

if TYPE_CHECKING:
    import pandas as pd

NO_BASELINE = (
    "an overall score needs a baseline: --baseline agg_results.csv or published, "
    "or a truth bundle built with one"
)
Overall = tuple[float | None, str | None, "pd.DataFrame | None"]


def overall_score(
    edition: Edition, metrics: Mapping[str, MetricValue], references: Mapping[str, Any]
) -> Overall:
    """(score, why there is none, table of terms).

    The baseline is `references["baseline"]`: the path of its `agg_results.csv`, `published` for the values the
    edition quotes, or the values themselves by metric (of a truth bundle).
    Members are the edition's, or every scored metric when it names none. The score is the mean of the terms,
    times 100 for `vcc2025` (the leaderboard's scale).

    Raises
    ------
    InvalidFile
        The table cannot be used (E578).
    """
    rule = edition.score
    if rule.kind not in ("celleval", "vcc2025"):
        return None, f"edition {edition.id} has no overall score", None
    given = references.get("baseline")
    if given is None:
        return None, NO_BASELINE, None
    goals = {name: _goal(spec.better) for name, spec in family_metrics("celleval").items()}
    members = [name for name in rule.members or metrics if goals[name] is not None]
    absent = [name for name in members if name not in metrics]
    if absent:
        return None, f"the profile does not compute {', '.join(absent)}", None
    if not members:
        return None, "the profile has no metric that is compared with a baseline", None
    if given == PUBLISHED:
        if not rule.published_baseline:
            return None, f"no baseline values are published for edition {edition.id}", None
        baseline = dict(rule.published_baseline)
    elif isinstance(given, Mapping):
        baseline = dict(given)
        lacking = [name for name in members if name not in baseline]
        if lacking:
            return None, f"the truth bundle's baseline was not measured on {', '.join(lacking)}", None
    else:
        baseline = read_aggregate(given, members, edition_id=edition.id)
    user = {name: _number(metrics[name].value) for name in members}
    terms = from_baseline(user, baseline, goals)
    scale = 100.0 if rule.kind == "vcc2025" else 1.0
    return finite_or_none(scale * average(terms)), None, _terms_table(terms, scale)


def _terms_table(terms: Sequence[Term], scale: float) -> pd.DataFrame:
    """One row per member, and their mean; contributions add up to the score."""
    import pandas as pd

    rows = [
        {
            "metric": term.metric,
            "from_baseline": term.clipped,
            "unclamped": term.raw,
            "value": term.user,
            "baseline": term.baseline,
            "contribution": scale * term.clipped / len(terms),
        }
        for term in terms
    ]
    mean = average(terms)
    return pd.DataFrame([*rows, {"metric": "avg_score", "from_baseline": mean, "contribution": scale * mean}])


def _goal(better: str) -> float | None:
    return {"higher": 1.0, "lower": 0.0, "none": None}[better]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
