"""The generalist ranking of 2025: mean rank over seven metrics, by hand."""

import numpy as np
import pandas as pd
import pytest
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.generalist import MEAN_RANK, METRICS, TITLE, generalist_board, mean_places
from vcbench.evaluator.leaderboard import compare
from vcbench.evaluator.metrics.spec import family_metrics
from vcbench.evaluator.scorecard import MetricValue, ScoreCard, ScoreResult, write_scorecard

SPECS = family_metrics("celleval")
#         PDS   DES   MAE    r     lfc  auc  sig
VALUES = {
    "a": (0.90, 0.30, 0.02, 0.50, 0.4, 0.6, 0.9),
    "b": (0.80, 0.40, 0.03, 0.50, 0.5, 0.6, 0.8),
    "c": (0.70, 0.20, 0.04, 0.10, None, 0.6, 0.7),
}


def card(folder, name, values, *, profile="generalist", edition="vcc2025", metrics=METRICS, n=4):
    found = {
        metric: MetricValue(
            value=value, n=n if value is not None else 2, n_total=4, better=SPECS[metric].better, perfect=None
        )
        for metric, value in zip(metrics, values, strict=True)
    }
    table = pd.DataFrame({"context": "", "perturbation": list("wxyz")})
    for metric, value in found.items():
        table[metric] = np.nan if value.value is None else value.value
    made = ScoreCard(
        name=name, edition=edition, profile=profile, metrics=found, inputs={"truth": {"sha256": "t"}}
    )
    write_scorecard(made, ScoreResult(table, found), folder / name)


@pytest.fixture
def cards(tmp_path):
    folder = tmp_path / "cards"
    folder.mkdir()
    for name, values in VALUES.items():
        card(folder, name, values)
    return folder


def test_the_seven_metrics_are_those_of_the_profile():
    assert set(METRICS) == set(load_edition("vcc2025").profiles["generalist"].metrics)


def test_mean_ranks_by_hand(cards):
    board = generalist_board(read_entries([cards]))
    # Ranks: PDS 1 2 3; DES 2 1 3; MAE 1 2 3; r 1.5 1.5 3; lfc 2 1 3 (null last); AUC 2 2 2; sig 1 2 3.
    assert [(row.name, row.rank) for row in board.rows] == [("a", 1), ("b", 2), ("c", 3)]
    means = {row.name: row.values[MEAN_RANK] for row in board.rows}
    assert means == pytest.approx({"a": 10.5 / 7, "b": 11.5 / 7, "c": 20 / 7})
    first = board.rows[0].values
    assert [first[name] for name in METRICS] == [1, 2, 1, 1.5, 2, 2, 1]
    assert board.rows[2].n["de_spearman_lfc_sig"] == 2


def test_equal_mean_ranks_share_a_rank_and_a_perfect_reference_is_unranked(tmp_path):
    card(tmp_path, "x", (0.9, 0.3, 0.02, 0.5, 0.4, 0.6, 0.9))
    card(tmp_path, "y", (0.9, 0.3, 0.02, 0.5, 0.4, 0.6, 0.9 + 1e-12))
    card(tmp_path, "z", (0.1,) * 7)
    card(tmp_path, "perfect", (1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0))
    board = generalist_board(read_entries([tmp_path]))
    assert [(row.name, row.rank) for row in board.rows] == [("perfect", None), ("x", 1), ("y", 1), ("z", 3)]
    assert board.rows[1].values[MEAN_RANK] == 1.5


def test_places():
    assert mean_places({"a": 1.0, "b": 1.0, "c": 1.0}, "lower") == {"a": 2.0, "b": 2.0, "c": 2.0}
    assert mean_places({"a": None, "b": None, "c": 3.0}, "higher") == {"a": 2.5, "b": 2.5, "c": 1.0}


def test_compare_adds_the_table_where_it_applies(cards, tmp_path, capsys):
    titles = [board.title for board in compare(read_entries([cards]))]
    assert titles[-1] == TITLE
    other = tmp_path / "other"
    other.mkdir()
    for name in "pq":
        card(other, name, (0.5, 0.5, 0.5), profile="vcc", metrics=METRICS[:3])
    assert TITLE not in [board.title for board in compare(read_entries([other]))]
    page = tmp_path / "board.html"
    assert run(cli, ["compare", str(cards), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "Generalist" in printed and "(2/4)" in printed and "null ranks last" in printed
    assert "(2/4)" in page.read_text() and "mean_rank" in page.read_text()
