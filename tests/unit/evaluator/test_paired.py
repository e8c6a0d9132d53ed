"""Paired comparison of two entries."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import UnknownName, UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import paired_metrics
from vcbench.evaluator.scorecard import MetricValue, ScoreCard, ScoreResult, write_scorecard
from vcbench.evaluator.uncertainty.paired import EXACT, NO_VALUES, SAMPLED, compare_paired, holm, sign_flip

MSE = {"mse": MetricValue(value=1.0, n=1, n_total=1, better="lower")}


def table_of(values, context="K"):
    names = [f"P{i:02d}" for i in range(len(values))]
    return pd.DataFrame({"context": context, "perturbation": names, "mse": np.asarray(values, dtype=float)})


def test_the_exact_test_is_scipys():
    values = np.random.default_rng(0).normal(0.5, 1.0, 9)
    theirs = permutation_test(
        (values, np.zeros(9)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(values, rng=np.random.default_rng(0)) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_the_sampled_test_agrees_with_the_exact_one_and_never_gives_zero():
    values = np.random.default_rng(1).normal(0.4, 1.0, 12)
    exact = sign_flip(values, rng=np.random.default_rng(0))
    with_nothing = np.concatenate([values, [0.0]])
    assert sign_flip(with_nothing, rng=np.random.default_rng(0)) == pytest.approx(exact, abs=0.02)
    assert sign_flip(np.ones(40), rng=np.random.default_rng(0), n_flips=99) == 0.01
    assert sign_flip(np.zeros(4), rng=np.random.default_rng(0)) == 1.0


def test_holm_is_monotone_and_at_most_one():
    assert holm([0.5, 0.01, 0.9, 0.02]) == pytest.approx([1.0, 0.04, 1.0, 0.06])


def test_difference_effect_and_wins_by_hand():
    a, b = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 2, 5, 4.5, 7, 6.5])
    (found,) = compare_paired(table_of(a), table_of(b).sample(frac=1, random_state=0), MSE)
    d = a - b
    assert (found.n, found.test) == (6, EXACT)
    assert (
        found.difference == pytest.approx(d.mean()) and found.first == a.mean() and found.second == b.mean()
    )
    assert found.effect_size == pytest.approx(d.mean() / d.std(ddof=1))
    assert found.wins == pytest.approx(5.5 / 6)
    assert found.p == found.p_holm == 2 / 2**5
    assert found.low < found.difference < found.high


def test_only_shared_values_enter_and_few_have_no_interval():
    a, b = table_of([1.0, 2, 3, 4]), table_of([1.5, np.nan, 3.5, 4.25])
    (found,) = compare_paired(a, b, MSE)
    assert found.n == 3 and found.low is None and "needs 5" in found.reason
    (other,) = compare_paired(a, b, {"r2": MSE["mse"]})
    assert other.p is None and other.reason == NO_VALUES


def test_contexts_of_a_perturbation_flip_together():
    rng = np.random.default_rng(2)
    parts = [(table_of(rng.normal(size=20), c), table_of(rng.normal(size=20), c)) for c in "AB"]
    a, b = (pd.concat(side, ignore_index=True) for side in zip(*parts, strict=True))
    (found,) = compare_paired(a, b, MSE, by_context=True)
    assert found.n == 20 and found.test == SAMPLED
    means = [(x["mse"] - y["mse"]).mean() for x, y in parts]
    assert found.difference == pytest.approx(np.mean(means))
    (again,) = compare_paired(a.sample(frac=1, random_state=3), b, MSE, by_context=True)
    assert again == found


@pytest.fixture
def cards(tmp_path):
    rng = np.random.default_rng(4)
    for name, shift in (("a", 0.0), ("b", 1.0)):
        table = table_of(rng.gamma(2.0, size=15) + shift)
        metrics = {"mse": MetricValue(value=float(table["mse"].mean()), n=15, n_total=15, better="lower")}
        made = ScoreCard(
            name=name, edition="core", profile="means", metrics=metrics, inputs={"truth": {"sha256": "t"}}
        )
        write_scorecard(made, ScoreResult(table, metrics), tmp_path / name)
    return tmp_path


def test_compare_paired_command(cards, capsys):
    arguments = ["compare", str(cards / "a"), str(cards / "b"), "--paired"]
    assert run(cli, [*arguments, "--format", "json", "--csv", str(cards / "p.csv")]) == 0
    shown = json.loads(capsys.readouterr().out)["paired"]
    assert (shown["first"], shown["second"]) == ("a", "b")
    (metric,) = shown["metrics"]
    assert metric["difference"] < 0 and 0 < metric["p"] <= 1 and metric["test"] == SAMPLED
    assert pd.read_csv(cards / "p.csv")["difference"][0] == pytest.approx(metric["difference"])
    assert run(cli, arguments) == 0
    assert "a minus b" in capsys.readouterr().out
    assert run(cli, [*arguments, "--by", "mse"]) == 2


def test_paired_needs_two_entries_and_known_metrics(cards):
    entries = read_entries([cards])
    with pytest.raises(UsageError, match="takes two entries"):
        paired_metrics(entries[:1])
    with pytest.raises(UnknownName):
        paired_metrics(entries, columns=["msee"])
