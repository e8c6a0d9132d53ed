"""Intervals over perturbations: by hand, against scipy, and through scoring."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from vcbench.evaluator.scorecard import MetricValue
from vcbench.evaluator.scoring import score
from vcbench.evaluator.uncertainty.bootstrap import BCA, BOOTSTRAP_T, bca, bootstrap_t, draw_means
from vcbench.evaluator.uncertainty.design import Design, table_parts
from vcbench.evaluator.uncertainty.intervals import (
    OTHER_AGGREGATE,
    PANEL,
    Aggregation,
    metric_intervals,
    score_interval,
)
from vcbench.evaluator.uncertainty.overall import OverallRule
from vcc2026_panels import golden


def table_of(n=40, seed=0, contexts=("K",), metrics=("mse", "pearson_delta")):
    rng = np.random.default_rng(seed)
    names = [f"P{i:03d}" for i in range(n)]
    frame = pd.DataFrame(
        {
            "context": np.repeat(contexts, n),
            "perturbation": names * len(contexts),
        }
    )
    for name in metrics:
        frame[name] = rng.gamma(2.0, size=n * len(contexts))
    return frame


def values_of(table, names, *, by_context=False, better="lower"):
    out = {}
    for name in names:
        parts = table.groupby("context")[name].mean() if by_context else table[name]
        known = table[name].notna()
        out[name] = MetricValue(
            value=float(parts.mean()), n=int(known.sum()), n_total=len(table), better=better, perfect=0.0
        )
    return out


def intervals(table, names, *, seed=0, by_context=False, ratios=None, panel=frozenset()):
    return metric_intervals(
        table,
        values_of(table, names, by_context=by_context),
        Aggregation(by_context, ratios, panel),
        np.random.default_rng(seed),
    )


def drawn_of(table, name, *, by_context=False):
    design = Design.of(table["perturbation"].tolist(), table["context"].tolist() if by_context else None)
    top, bottom = design.sums(*table_parts(table[[name]].to_numpy(dtype=float)))
    weights = np.concatenate(list(design.resamples(50, np.random.default_rng(3))))
    drawn = draw_means(design, top, bottom, n_resamples=50, rng=np.random.default_rng(3))
    return design, weights, drawn


def test_a_plain_mean_has_the_textbook_standard_errors():
    table = table_of(12)
    _, weights, drawn = drawn_of(table, "mse")
    x = table["mse"].to_numpy()
    assert drawn.value[0] == pytest.approx(x.mean(), rel=1e-14)
    assert drawn.error[0] == pytest.approx(x.std(ddof=1) / np.sqrt(12), rel=1e-12)
    for b in range(50):
        sample = np.repeat(x, weights[b].astype(int))
        assert drawn.values[b, 0] == pytest.approx(sample.mean(), rel=1e-12)
        assert drawn.errors[b, 0] == pytest.approx(sample.std(ddof=1) / np.sqrt(12), rel=1e-9)
    assert drawn.left_out[4, 0] == pytest.approx(np.delete(x, 4).mean(), rel=1e-12)


def test_a_perturbation_is_drawn_with_all_its_contexts():
    table = table_of(9, contexts=("A", "B"))
    table.loc[[2, 12], "mse"] = np.nan
    design, weights, drawn = drawn_of(table, "mse", by_context=True)
    wide = table.pivot(index="perturbation", columns="context", values="mse").loc[list(design.names)]
    for b in range(50):
        sample = wide.iloc[np.repeat(np.arange(9), weights[b].astype(int))]
        assert drawn.values[b, 0] == pytest.approx(sample.mean().mean(), rel=1e-12)
    centred = (wide - wide.mean()).fillna(0.0) / wide.notna().sum() / 2
    error = np.sqrt((centred.sum(axis=1) ** 2).sum() * 9 / 8)
    assert drawn.error[0] == pytest.approx(error, rel=1e-12)


def test_bca_is_scipys_without_the_expansion_of_small_samples():
    x = np.random.default_rng(1).lognormal(size=400)
    design = Design.of([f"P{i}" for i in range(400)])
    top, bottom = design.sums(*table_parts(x[:, None]))
    drawn = draw_means(design, top, bottom, n_resamples=9999, rng=np.random.default_rng(0))
    ours = bca(x.mean(), drawn.values[:, 0], drawn.left_out[:, 0])
    theirs = scipy_bootstrap((x,), np.mean, method="BCa", rng=np.random.default_rng(2)).confidence_interval
    assert ours.method == BCA
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * (theirs.high - theirs.low))
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * (theirs.high - theirs.low))


def test_intervals_do_not_depend_on_the_order_of_rows_and_are_seeded():
    table = table_of(30, contexts=("A", "B"))
    shuffled = table.sample(frac=1, random_state=1)
    first = intervals(table, ["mse", "pearson_delta"])
    assert intervals(shuffled, ["mse", "pearson_delta"]) == first
    assert intervals(table, ["mse", "pearson_delta"], seed=1) != first
    assert first["mse"].method == BOOTSTRAP_T
    assert first["mse"].low < table["mse"].mean() < first["mse"].high


def test_nulls_are_left_out():
    table = table_of(30)
    table.loc[:9, "mse"] = np.nan
    found = intervals(table, ["mse"])["mse"]
    few = intervals(table[10:], ["mse"])["mse"]
    assert found.low == pytest.approx(few.low, rel=0.1) and found.high == pytest.approx(few.high, rel=0.1)


def test_what_has_no_interval_says_why():
    table = table_of(30)
    table["few"] = np.where(np.arange(30) < 4, 1.0 + np.arange(30), np.nan)
    table["same"], table["panel"], table["other"] = 0.5, 0.7, np.arange(30.0)
    metrics = values_of(table, ["few", "same", "panel", "other"])
    metrics["other"] = metrics["other"].model_copy(update={"value": 3.0})
    metrics["gone"] = metrics["same"].model_copy()
    metrics["null"] = metrics["same"].model_copy(update={"value": None})
    rule = Aggregation(panel=frozenset({"panel"}))
    found = metric_intervals(table, metrics, rule, np.random.default_rng(0))
    assert all(interval.low is None and interval.high is None for interval in found.values())
    assert {name: interval.reason for name, interval in found.items()} == {
        "few": "4 perturbations with a value, an interval needs 5",
        "same": "every perturbation has the same value",
        "panel": PANEL,
        "other": OTHER_AGGREGATE,
        "gone": OTHER_AGGREGATE,
        "null": "the metric has no value",
    }


def test_ties_that_break_bootstrap_t_fall_back_to_bca():
    table = table_of(6)
    table["mse"] = [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    found = intervals(table, ["mse"])["mse"]
    assert found.method == BCA and found.low == 0.0 and found.high > 1 / 6
    assert bootstrap_t(0.5, 0.1, np.full(99, 0.7), np.zeros(99)) is None


def test_an_interval_stays_on_the_side_of_the_perfect_value():
    table = table_of(6)
    table["mse"] = [0.01, 0.02, 0.01, 0.03, 0.02, 3.0]
    assert intervals(table, ["mse"])["mse"].low >= 0.0
    table.loc[0, "mse"] = -0.5
    assert intervals(table, ["mse"])["mse"].low < 0.0


def test_a_ratio_is_resampled_as_a_ratio():
    table = table_of(50, contexts=("A", "B"), metrics=("top", "bottom"))
    ratio = [part["top"].sum() / part["bottom"].sum() for _, part in table.groupby("context")]
    metrics = {"r": MetricValue(value=float(np.mean(ratio)), n=100, n_total=100, better="lower")}
    rule = Aggregation(True, {"r": ("top", "bottom")})
    found = metric_intervals(table, metrics, rule, np.random.default_rng(0))["r"]
    assert found.method == BOOTSTRAP_T and found.low < np.mean(ratio) < found.high
    assert found.high - found.low < 1.0


def test_a_linear_score_has_the_interval_of_its_mean():
    table = table_of(60)
    overall = OverallRule(False, ("mse",), lambda values: 10 * values[""]["mse"])
    rng = np.random.default_rng
    found = score_interval(table, 10 * table["mse"].mean(), overall, Aggregation(), rng(0))
    mean = intervals(table, ["mse"])["mse"]
    assert found.method == BCA
    assert found.low == pytest.approx(10 * mean.low, rel=0.05)
    assert found.high == pytest.approx(10 * mean.high, rel=0.05)
    off = score_interval(table, 3.0, overall, Aggregation(), rng(0))
    assert off.low is None and "alone" in off.reason


def test_a_2026_card_has_intervals_of_members_and_ratio():
    real, pred = golden("real"), golden("pred")
    card = score(pred, real, edition="vcc2026", pert_col="target").card
    member = card.metrics["pds_cosine"]
    assert member.level == 0.95 and member.low is not None and member.low <= member.value <= member.high
    norm = card.metrics["expr_mse_unbiased_capped_norm"]
    assert norm.low is not None and norm.low < norm.value < norm.high
    assert card.score is None and card.score_interval is None
    plain = score(pred, real, edition="vcc2026", pert_col="target", intervals=False).card
    assert plain.metrics["pds_cosine"].value == member.value
    assert plain.metrics["pds_cosine"].low is None and plain.metrics["pds_cosine"].interval_reason is None
