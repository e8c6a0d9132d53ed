"""From metric values to scores: policies, the two ends, and the score columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...data_specs.errors import MetricError, UnknownName
from ...data_specs.spec_models import Edition
from .catalog import ENTRIES, SCORED, PolicyName

PENALTY_EXPONENT = 2.0
PENALTY_CAP = 6.0
OPEN_LIMIT = 2.0
NO_VALUE = float("nan")


@dataclass(frozen=True)
class Policy:
    """How a value becomes a score between a zero end b and a one end a.

    `anchor` is the fixed one end (None: the value is scaled by b alone). `boxcox` turns a negative score s into
    -((1 - s)^2 - 1)/2, at least -6. `missing` is the metric value that stands for a missing one when there is no floor.
    """

    lower_is_better: bool
    anchor: float | None
    boxcox: bool = False
    clamp_low: float = -math.inf
    clamp_high: float = math.inf
    missing: float | None = None
    absolute_baseline: bool = False

    @property
    def floor(self) -> float:
        """The lowest possible score."""
        if math.isfinite(self.clamp_low):
            return self.clamp_low
        return -PENALTY_CAP if self.boxcox else -math.inf


POLICIES: dict[PolicyName, Policy] = {
    "error": Policy(True, 0.0, boxcox=True),
    "error_linear": Policy(True, 0.0, clamp_low=-PENALTY_CAP),
    "bounded": Policy(False, 1.0, clamp_low=0.0),
    "unfloored": Policy(False, 1.0, missing=0.0),
    "open": Policy(False, None, clamp_low=-OPEN_LIMIT, clamp_high=OPEN_LIMIT),
    "signed": Policy(False, None, clamp_low=-OPEN_LIMIT, clamp_high=OPEN_LIMIT, absolute_baseline=True),
    "mse_norm": Policy(True, 0.0, boxcox=True, clamp_low=0.0, clamp_high=1.0),
}


@dataclass(frozen=True)
class Score:
    """One metric in one column: its value, the ends, the score before and after penalty and clamps."""

    value: float
    zero: float
    one: float | None
    unclamped: float
    score: float


@dataclass(frozen=True)
class Column:
    """One way of scoring. `average` is the mean of the scores; `left_out` maps metrics without ends to the reason."""

    name: str
    scores: Mapping[str, Score]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def average(self) -> float:
        return math.fsum(s.score for s in self.scores.values()) / len(self.scores)

    def contribution(self, metric: str) -> float:
        """What one metric adds to the average."""
        return self.scores[metric].score / len(self.scores)


def score_value(value: float, zero: float, policy: Policy, *, one: float | None = None) -> Score:
    """The score of one value. `one` replaces the policy's anchor. Ends are not checked here."""
    anchor = policy.anchor if one is None else one
    raw = _raw(value, zero, policy, anchor)
    score = _bounded(raw, policy)
    if not math.isfinite(value) or not math.isfinite(score):
        if math.isfinite(policy.floor):
            score = policy.floor
        else:
            score = _bounded(
                _raw(policy.missing if policy.missing is not None else 0.0, zero, policy, anchor), policy
            )
    return Score(value, zero, anchor, raw, score)


def _raw(value: float, zero: float, policy: Policy, anchor: float | None) -> float:
    if not math.isfinite(value):
        return NO_VALUE
    if anchor is not None:
        if policy.lower_is_better:
            return 1.0 - (value - anchor) / (zero - anchor)
        return (value - zero) / (anchor - zero)
    bottom = abs(zero) if policy.absolute_baseline else zero
    return (zero - value) / bottom if policy.lower_is_better else (value - zero) / bottom


def _bounded(raw: float, policy: Policy) -> float:
    if math.isnan(raw):
        return NO_VALUE
    score = raw
    if score < 0 and policy.boxcox:
        try:
            penalised = -((1.0 - score) ** PENALTY_EXPONENT - 1.0) / PENALTY_EXPONENT
        except OverflowError:
            penalised = -math.inf
        score = max(-PENALTY_CAP, penalised)
    return min(max(score, policy.floor), policy.clamp_high)


def end_problem(zero: float, policy: Policy, anchor: float | None) -> str | None:
    """Why these ends define no scale, or None."""
    if not math.isfinite(zero):
        return "the baseline has no value"
    if anchor is not None:
        if not math.isfinite(anchor):
            return "the replicate has no value"
        gap = zero - anchor if policy.lower_is_better else anchor - zero
        if gap > 0 and math.isfinite(gap):
            return None
        better = "below" if policy.lower_is_better else "above"
        return (
            f"the upper end {anchor:.6g} is not {better} the baseline's {zero:.6g}, so 0 and 1 have no order"
        )
    bottom = abs(zero) if policy.absolute_baseline else zero
    return None if bottom > 0 else f"the baseline's value {zero:.6g} cannot divide"


def column(
    name: str,
    values: Mapping[str, float],
    zeros: Mapping[str, float],
    *,
    ones: Mapping[str, float] | None = None,
) -> Column:
    """The column of a baseline, or of a baseline and replicates (`ones`).

    Every metric of `values` that is scored and has a baseline enters; with `ones` only those it covers. A metric
    whose ends define no scale is left out, unless it decides (it is one of the six, or known from cell-eval).

    Raises
    ------
    MetricError
        A deciding metric has unusable ends, prediction or baseline alone lacks a value, or no metric is left.
    """
    unknown = sorted(set(ones or {}) - set(values))
    if unknown:
        raise MetricError(
            f"{name}: the anchor covers {unknown[0]!r}, which was not measured. Score with a profile that has it."
        )
    scores: dict[str, Score] = {}
    left_out: dict[str, str] = {}
    for metric, value in values.items():
        entry = ENTRIES[metric]
        if entry.policy == "none" or (ones is not None and metric not in ones):
            continue
        if metric not in zeros:
            left_out[metric] = "the baseline was not measured on it"
            continue
        zero = zeros[metric]
        if _has_gate(metric) and math.isnan(value) and math.isnan(zero):
            left_out[metric] = "the truth admits no perturbation"
            continue
        if _has_gate(metric) and math.isnan(value) != math.isnan(zero):
            raise MetricError(
                f"{name}: {metric} has a value on one side only although its gate reads the truth."
            )
        policy = POLICIES[entry.policy]
        one = None if ones is None else ones[metric]
        if ones is not None and policy.absolute_baseline:
            policy = POLICIES["open"]
        problem = end_problem(zero, policy, policy.anchor if one is None else one)
        if problem is None:
            scores[metric] = score_value(value, zero, policy, one=one)
        elif entry.legacy or metric in SCORED:
            raise MetricError(f"{name}: {metric} cannot be scored: {problem}.")
        else:
            left_out[metric] = problem
    if not scores:
        raise MetricError(f"{name}: no metric is left to score.")
    return Column(name, scores, left_out)


def scale_column(name: str, edition: Edition, values: Mapping[str, float]) -> Column:
    """The column of a named scale of the edition: constants in place of baseline and replicate.

    Raises
    ------
    UnknownName
        The edition has no such scale.
    MetricError
        A metric of the scale was not measured.
    """
    scales = named_scales(edition)
    if name not in scales:
        raise UnknownName("scale", name, sorted(scales), f"vcbench explain {edition.id}")
    scores = {}
    for metric, rule in scales[name].items():
        if metric not in values:
            raise MetricError(f"{name}: {metric} was not measured. Score with a profile that has it.")
        policy = Policy(
            rule["one"] < rule["zero"],
            rule["one"],
            clamp_low=rule.get("clamp_low", -math.inf),
            clamp_high=rule.get("clamp_high", math.inf),
            missing=0.0,
        )
        scores[metric] = score_value(values[metric], rule["zero"], policy)
    return Column(name, scores)


def named_scales(edition: Edition) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """The edition's scales by name: metric to its constants `zero`, `one`, `clamp_low`, `clamp_high`."""
    return edition.score.parameters.get("scales", {})


def _has_gate(metric: str) -> bool:
    from .de_lists import GATES

    return ENTRIES[metric].short in GATES or ENTRIES[metric].short in ("nsig_spearman", "delta_pearson")
