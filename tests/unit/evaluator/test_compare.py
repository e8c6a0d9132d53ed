"""Ranked tables: common rows, filled refusals, references, and refusal to mix."""

import json

import numpy as np
import pandas as pd
import pytest
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import UnknownName, UsageError
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import compare, format_cell
from vcbench.evaluator.scorecard import MetricValue, ScoreCard, ScoreResult, write_scorecard
from vcbench.evaluator.uncertainty.intervals import with_intervals

ROWS = [("K562", "A"), ("K562", "B"), ("K562", "C")]


def card(folder, name, mse, *, pearson=None, refused=(), edition="core", profile="standard", truth="t"):
    pearson = mse if pearson is None else pearson
    table = pd.DataFrame(ROWS, columns=["context", "perturbation"])
    table["status"] = ["refused" if p in refused else "predicted" for _, p in ROWS]
    table["mse"], table["pearson_delta"] = np.array(mse, float), np.array(pearson, float)
    table.loc[table["status"] == "refused", ["mse", "pearson_delta"]] = np.nan
    metrics = {
        "mse": MetricValue(value=float(np.nanmean(mse)), n=3, n_total=3, better="lower", perfect=0.0),
        "pearson_delta": MetricValue(value=None, n=3, n_total=3, better="higher", perfect=1.0),
    }
    made = ScoreCard(
        name=name, edition=edition, profile=profile, metrics=metrics, inputs={"truth": {"sha256": truth}}
    )
    write_scorecard(made, ScoreResult(table, metrics), folder / name)
    return folder / name


def boards(folder, **options):
    return compare(read_entries([folder]), **options)


def test_ranks_by_direction_with_perfect_as_reference(tmp_path):
    card(tmp_path, "a", [1, 2, 3])
    card(tmp_path, "b", [0.5, 0.5, 0.5])
    card(tmp_path, "perfect", [0, 0, 0])
    (board,) = boards(tmp_path, by="mse", columns=["mse"])
    assert [(r.name, r.rank, r.values["mse"]) for r in board.rows] == [
        ("perfect", None, 0),
        ("b", 1, 0.5),
        ("a", 2, 2),
    ]
    (board,) = boards(tmp_path, by="pearson_delta")
    assert [r.name for r in board.rows if r.rank] == ["a", "b"]


def test_equal_values_share_a_rank(tmp_path):
    for name, value in (("a", 1), ("b", 1), ("c", 2)):
        card(tmp_path, name, [value] * 3)
    (board,) = boards(tmp_path, by="mse")
    assert [(r.name, r.rank) for r in board.rows] == [("a", 1), ("b", 1), ("c", 3)]


def test_refusing_hard_rows_does_not_help(tmp_path):
    card(tmp_path, "picky", [1, 1, 9], refused=("C",))
    card(tmp_path, "steady", [0.9, 0.9, 6])
    card(tmp_path, "mean", [2, 2, 5])
    common, filled = boards(tmp_path, by="mse", columns=["mse"])
    assert (common.n_rows, common.n_total) == (2, 3)
    assert [(r.name, r.values["mse"]) for r in common.rows] == [
        ("steady", 0.9),
        ("picky", 1.0),
        ("mean", 2.0),
    ]
    values = {r.name: (round(r.values["mse"], 9), r.n_filled) for r in filled.rows}
    assert values == {"picky": (round(7 / 3, 9), 1), "steady": (2.6, 0), "mean": (3.0, 0)}


def test_without_a_filler_the_second_table_says_why(tmp_path):
    card(tmp_path, "picky", [1, 1, 9], refused=("C",))
    _, filled = boards(tmp_path, by="mse")
    assert filled.rows == () and "no entry named 'mean'" in filled.notes[0]


def test_an_entry_without_values_comes_last_and_unranked(tmp_path):
    card(tmp_path, "no-change", [1, 1, 1], pearson=[np.nan] * 3)
    card(tmp_path, "bad", [1, 1, 1], pearson=[-1, -1, -1])
    (board,) = boards(tmp_path, by="pearson_delta")
    assert [(r.name, r.rank) for r in board.rows] == [("bad", 1), ("no-change", None)]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"edition": "vcc2025"}, "editions"), ({"profile": "full"}, "profiles"), ({"truth": "other"}, "truths")],
)
def test_never_mixes(tmp_path, change, word):
    card(tmp_path, "a", [1, 1, 1])
    card(tmp_path, "b", [1, 1, 1], **change)
    with pytest.raises(UsageError, match=f"different {word}"):
        read_entries([tmp_path])


def test_unknown_metric_and_empty_folder(tmp_path):
    with pytest.raises(UsageError, match="no ScoreCard"):
        read_entries([tmp_path])
    card(tmp_path, "a", [1, 1, 1])
    with pytest.raises(UnknownName, match="Did you mean 'mse'"):
        boards(tmp_path, by="mes")


def test_command_writes_html_and_csv_and_json(tmp_path, capsys):
    cards = tmp_path / "cards"
    cards.mkdir()
    card(cards, "a", [1, 2, 3])
    card(cards, "<b>", [0.5, 0.5, 0.5])
    html, table = tmp_path / "board.html", tmp_path / "board.csv"
    args = [
        "compare",
        str(cards),
        "--by",
        "mse",
        "--html",
        str(html),
        "--csv",
        str(table),
        "--format",
        "json",
    ]
    assert run(cli, args) == 0
    out = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in out["tables"][0]["rows"]] == ["<b>", "a"]
    page = html.read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and "http" not in page
    assert list(pd.read_csv(table)["name"]) == ["<b>", "a"]
    assert run(cli, args) == 1
    assert "exists already" in capsys.readouterr().err


def many(folder, name, values, *, better="lower"):
    """A card of one metric over many perturbations, with the truth and profile of a calibration."""
    table = pd.DataFrame({"context": "K562", "perturbation": [f"P{i:02d}" for i in range(len(values))]})
    table["mse"] = values
    value = float(np.mean(values))
    metrics = {
        "mse": MetricValue(value=value, n=len(values), n_total=len(values), better=better, perfect=0.0)
    }
    made = ScoreCard(
        name=name,
        edition="core",
        profile="means",
        metrics=metrics,
        inputs={"truth": {"sha256": "t" * 64}},
        seeds={"root": 3},
    )
    result = with_intervals(ScoreResult(table, metrics), edition=load_edition("core"), family="core", seed=3)
    write_scorecard(made.model_copy(update={"metrics": dict(result.metrics)}), result, folder / name)
    return dict(result.metrics)["mse"]


def test_intervals_of_all_rows_are_those_of_the_card(tmp_path):
    stored = many(tmp_path, "a", np.random.default_rng(0).gamma(2, size=30))
    many(tmp_path, "b", np.random.default_rng(1).gamma(3, size=30))
    (board,) = boards(tmp_path)
    row = next(r for r in board.rows if r.name == "a")
    assert (row.low["mse"], row.high["mse"]) == (stored.low, stored.high)
    assert format_cell(board, row, "mse") == f"{stored.value:.4g} [{stored.low:.4g}, {stored.high:.4g}]"
    (bare,) = boards(tmp_path, intervals="none")
    assert format_cell(bare, row, "mse") == f"{stored.value:.4g}"
    frame = board.to_frame().set_index("name")
    assert frame.loc["a", "mse_low"] == stored.low


def test_intervals_follow_the_shared_rows(tmp_path):
    values = np.random.default_rng(0).gamma(2, size=30)
    many(tmp_path, "a", values)
    table = pd.read_csv(tmp_path / "a" / "per_perturbation.csv")
    many(tmp_path, "b", values + 1)
    for name in ("a", "b"):
        own = table.assign(mse=table["mse"] + (name == "b"))
        own["status"] = np.where((name == "b") & (own.index >= 12), "refused", "predicted")
        own.to_csv(tmp_path / name / "per_perturbation.csv", index=False)
    common, _ = boards(tmp_path)
    row = next(r for r in common.rows if r.name == "a")
    assert row.values["mse"] == pytest.approx(values[:12].mean())
    assert row.low["mse"] < values[:12].mean() < row.high["mse"]


def calibration_file(path, *, discriminates, reason="the mean is as good", truth="t" * 64):
    metric = dict.fromkeys(("no_change", "mean", "permuted", "replicate", "interpolated_duplicate"), 0.5)
    metric |= {"dynamic_range_fraction": 0.2, "bound_discrimination": 0.6}
    metric |= {"discriminates": discriminates, "reason": reason}
    stored = {"calibration_version": 1, "edition": "core", "profile": "means", "truth": {"sha256": truth}}
    path.write_text(json.dumps(stored | {"metrics": {"mse": metric}}))
    return path


def test_a_calibration_marks_what_tells_nothing_apart(tmp_path, capsys):
    cards = tmp_path / "cards"
    cards.mkdir()
    for seed, name in enumerate("ab"):
        many(cards, name, np.random.default_rng(seed).gamma(2, size=20))
    file, table, page = (tmp_path / name for name in ("c.json", "t.csv", "p.html"))
    calibration_file(file, discriminates=False)
    args = ["compare", str(cards), "--calibration", str(file)]
    assert run(cli, [*args, "--csv", str(table), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert (
        "mse *" in out and "cannot tell a replicate from the mean on this truth: the mean is as good" in out
    )
    assert list(pd.read_csv(table)["mse_discriminates"]) == [False, False]
    assert "mse *" in page.read_text() and "the mean is as good" in page.read_text()
    assert run(cli, [*args, "--format", "json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["tables"]
    assert (
        shown["calibration"]["mse"]["discriminates"] is False and shown["rows"][0]["low"]["mse"] is not None
    )
    paired = ["compare", str(cards / "a"), str(cards / "b"), "--paired", "--calibration", str(file)]
    assert run(cli, paired) == 0
    assert "mse *" in capsys.readouterr().out
    assert run(cli, [*paired, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["paired"]["metrics"][0]["discriminates"] is False
    calibration_file(file, discriminates=True)
    assert run(cli, args) == 0
    assert "mse *" not in capsys.readouterr().out
    calibration_file(file, discriminates=True, truth="u" * 64)
    assert run(cli, args) == 1
    assert "E732" in capsys.readouterr().err
