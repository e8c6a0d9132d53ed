"""A library of results: several entries in one run, what made them, seeds as one row."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from probe_support import halves, informative, options, simulated, write_entry, write_truth
from vcbench.data_specs import h5ad
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import compare, format_cell
from vcbench.evaluator.provenance import parse_provenance, provenance_of
from vcbench.evaluator.scorecard import MetricValue, Provenance, ScoreCard, ScoreResult, write_scorecard
from vcbench.evaluator.scoring import Scorer, score

EDITIONS = [("core", "counts", "standard"), ("vcc2025", "counts", "vcc"), ("vcc2026", "counts", "vcc2026")]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return halves(simulated(tmp_path_factory.mktemp("cells"), cells=40, genes=80))


def arguments(edition, profile):
    chosen = options(edition)
    names = {"pert_col": chosen.pert_col, "control": chosen.control, "context_col": chosen.context_col}
    return {"edition": edition, "profile": profile, "threads": 1, **names}


def plain(card):
    left = card.model_dump(mode="json")
    return {key: value for key, value in left.items() if key not in ("timings_s", "provenance")}


@pytest.mark.parametrize(("edition", "form", "profile"), EDITIONS)
def test_entries_scored_together_get_what_they_get_alone(
    cells, tmp_path, edition, form, profile, monkeypatch
):
    truth, replicate = cells
    real = write_truth(truth, tmp_path / "real.h5ad")
    entries = [
        write_entry(
            informative(truth, replicate, seed=i, responding=share),
            tmp_path / f"e{i}.h5ad",
            edition=edition,
            form=form,
        )
        for i, share in enumerate((0.4, 0.9))
    ]
    alone = [score(entry, real, **arguments(edition, profile)) for entry in entries]
    passes = []
    original = h5ad.H5ad._raw_blocks

    def counted(self, *rest):
        passes.append(self.path.name)
        return original(self, *rest)

    monkeypatch.setattr(h5ad.H5ad, "_raw_blocks", counted)
    with Scorer(real, **arguments(edition, profile)) as scorer:
        together = [scorer.score(entries[0])]
        first = passes.count("real.h5ad")
        together.append(scorer.score(entries[1]))
    assert first > 0
    # Only control cells are read again where predictions are tested against them.
    again = passes.count("real.h5ad") - first
    assert again < first if edition == "vcc2026" else again == 0
    for one, other in zip(alone, together, strict=True):
        assert plain(one.card) == plain(other.card)
        pd.testing.assert_frame_equal(one.result.per_perturbation, other.result.per_perturbation)


def test_the_command_fills_a_folder_that_compare_ranks(cells, tmp_path, capsys):
    truth, replicate = cells
    real = write_truth(truth, tmp_path / "real.h5ad")
    entries = [
        write_entry(
            informative(truth, replicate, responding=s), tmp_path / f"{n}.h5ad", edition="core", form="mean"
        )
        for n, s in (("weak", 0.2), ("strong", 1.0))
    ]
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"nothing")
    out = tmp_path / "results"
    args = ["score", str(entries[0]), str(broken), str(entries[1]), "--truth", str(real), "--edition", "core"]
    args += [
        "--profile",
        "means",
        "-o",
        str(out),
        "--quiet",
        "--provenance",
        "commit=abc",
        "--format",
        "json",
    ]
    assert run(cli, args) == 1
    found = json.loads(capsys.readouterr().out)
    assert [card["name"] for card in found["cards"]] == ["weak", "strong"]
    assert [item["entry"] for item in found["failed"]] == [str(broken)]
    assert sorted(path.name for path in out.iterdir()) == ["strong", "weak"]
    card = json.loads((out / "weak" / "scorecard.json").read_text())
    assert card["provenance"]["commit"] == "abc" and card["provenance"]["command"].startswith(
        "vcbench score "
    )
    assert run(cli, ["compare", str(out), "--by", "mse", "--commands"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("strong") < shown.index("weak") and "strong: vcbench score " in shown
    assert run(cli, args) == 1 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (["--name", "x"], 2, "one entry"),
        (["again/weak.h5ad"], 2, "two entries are called 'weak'"),
        (["-o", "card"], 1, "a folder of ScoreCards"),
    ],
)
def test_several_entries_need_names_and_a_folder_of_their_own(
    tmp_path, capsys, change, code, text, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "scorecard.json").write_text("{}")
    args = ["score", "weak.h5ad", "other.h5ad", "--truth", "real.h5ad", "--edition", "core", *change]
    assert run(cli, args) == code
    assert text in capsys.readouterr().err


def seeded(folder, name, mse, *, model="net", seed=None, settings=None):
    table = pd.DataFrame({"context": "K", "perturbation": [f"P{i}" for i in range(8)]})
    table["mse"] = mse + np.arange(8) / 100
    value = float(table["mse"].mean())
    metrics = {"mse": MetricValue(value=value, n=8, n_total=8, better="lower", perfect=0.0)}
    made = ScoreCard(
        name=name,
        edition="core",
        profile="means",
        metrics=metrics,
        inputs={"truth": {"sha256": "t"}},
        provenance=Provenance(
            model=model,
            settings=settings or {},
            commit="c" * 40,
            command=f"vcbench score {name}.h5ad",
            seeds={} if seed is None else {"model": seed},
        ),
    )
    write_scorecard(made, ScoreResult(table, metrics), folder / name)
    return value


def test_seeds_become_one_row(tmp_path, capsys):
    values = [seeded(tmp_path, f"net{s}", v, seed=s) for s, v in ((1, 0.1), (2, 0.2), (3, 0.6))]
    seeded(tmp_path, "other", 0.25, model="ridge", seed=1)
    seeded(tmp_path, "wide", 0.9, seed=1, settings={"width": 9})
    seeded(tmp_path, "unseeded", 0.05)
    (board,) = compare(read_entries([tmp_path]), group_seeds=True)
    assert [(r.name, r.rank) for r in board.rows] == [("unseeded", 1), ("other", 2), ("net", 3), ("wide", 4)]
    row = board.rows[2]
    assert row.members == ("net1", "net2", "net3") and row.seeds == (1, 2, 3)
    assert row.values["mse"] == pytest.approx(np.mean(values))
    assert row.sd["mse"] == pytest.approx(np.std(values, ddof=1))
    assert format_cell(board, row, "mse") == f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}"
    assert row.commands == tuple(f"vcbench score net{i}.h5ad" for i in (1, 2, 3))
    frame = board.to_frame().set_index("name")
    assert frame.loc["net", "seeds"] == "1 2 3" and frame.loc["net", "mse_sd"] == pytest.approx(row.sd["mse"])
    (plain_board,) = compare(read_entries([tmp_path]))
    assert len(plain_board.rows) == 6
    assert run(cli, ["compare", str(tmp_path), "--group-seeds"]) == 0
    assert "mean ± standard deviation over seeds" in capsys.readouterr().out


def test_entries_that_share_a_seed_are_not_grouped(tmp_path):
    for name in ("cells", "means"):
        seeded(tmp_path, name, 0.1, seed=1)
    (board,) = compare(read_entries([tmp_path]), group_seeds=True)
    assert sorted(row.name for row in board.rows) == ["cells", "means"]


class Entry:
    name, path = "entry.h5ad", Path("entry.h5ad")

    def __init__(self, **vcbench):
        self.vcbench = vcbench


def test_provenance_comes_from_the_file_and_the_caller():
    record = json.dumps({"model": "gears", "settings": {"width": 8}, "commit": "a" * 40, "seed": 4})
    found = provenance_of(Entry(model="gears", run=record), command="vcbench score x")
    assert found == Provenance(
        model="gears", settings={"width": 8}, commit="a" * 40, command="vcbench score x", seeds={"model": 4}
    )
    found = provenance_of(Entry(run=record), parse_provenance(("seed=7", "commit=b", "depth=2")))
    assert (found.commit, found.seeds, found.settings) == ("b", {"model": 7}, {"width": 8, "depth": "2"})
    assert provenance_of(Entry()).model is None
    for wrong in ("{", "[]", '{"settings": 1}', '{"seed": "x"}'):
        with pytest.raises(InvalidFile) as error:
            provenance_of(Entry(run=wrong))
        assert [issue.code for issue in error.value.issues] == ["E017"]
    with pytest.raises(UsageError, match="no whole number"):
        provenance_of(Entry(), {"seed": "x"})
    for wrong in (("model",), ("model=a", "model=b")):
        with pytest.raises(UsageError, match="NAME=VALUE"):
            parse_provenance(wrong)


def test_predictions_say_which_run_made_them(cells, tmp_path):
    from vcbench.baselines.predict import choose_keys, predict, write_prediction
    from vcbench.baselines.run_folder import load_run
    from vcbench.baselines.train import load_data, train
    from vcbench.data_specs.h5ad import H5ad

    data = write_truth(cells[0], tmp_path / "data.h5ad")
    train("mean", load_data(data, None), tmp_path / "run", seed=5)
    loaded = load_run(tmp_path / "run")
    keys = choose_keys(loaded, perturbations=None, everything=True, contexts=())
    write_prediction(tmp_path / "pred.h5ad", predict(loaded, keys), loaded)
    with H5ad(tmp_path / "pred.h5ad") as source:
        found = provenance_of(source)
    assert found.model == "mean" and found.seeds == {"model": 5}
    assert len(found.settings["inputs"]["data"]) == 64
