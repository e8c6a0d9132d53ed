"""`vcbench tune`: equal budgets, validation rows alone, trials that are never repeated or changed."""

import csv
import json

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines import tuning
from vcbench.baselines.registry import create, names
from vcbench.baselines.tuning import Trial, best_trials, spaces, trial_settings, tune
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import OutputError, UnknownName, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli

LABELS = ("G000", "G001", "G002", "G003", "G004", "G005", "G006", "G000+G001", "G002+G003")
PART = {"G005": "test", "G002+G003": "test", "G006": "validation", "G004": "validation"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=16, controls=40)
    rows = {("K562", label): (PART.get(label, "train"), "") for label in LABELS}
    write_split(Split(rows, {"scheme": "by hand"}), folder / "split.csv")
    lines = [f"T{k}\t-\t" + "\t".join(f"G{i:03d}" for i in range(40) if (i + k) % 3) for k in range(12)]
    (folder / "go.gmt").write_text("\n".join(lines) + "\n")
    return data, folder / "split.csv", f"go:{folder / 'go.gmt'}"


def test_every_baseline_has_a_space_of_its_own_settings():
    known = [name for name in names() if not name.startswith("openproblems/")]
    assert set(spaces()) == set(known)
    for name in known:
        if name in tuning.DEEP_WITH_FEATURES or name == "scgpt":
            pytest.importorskip("torch", reason="torch is not installed")
        for number in range(12):
            create(name, trial_settings(name, number, seed=1))


def test_draws_depend_on_seed_model_and_number_alone():
    first = [trial_settings("ridge", n, 0) for n in range(6)]
    assert first[0] == {} and len({str(s) for s in first}) == 6
    assert first == [trial_settings("ridge", n, 0) for n in range(6)]
    assert trial_settings("ridge", 1, 1) != first[1]
    values = np.array([trial_settings("ridge", n, 0)["ridge"] for n in range(1, 200)])
    assert values.min() >= 0.01 and values.max() <= 1000 and 0.3 < (values < np.sqrt(10)).mean() < 0.7
    with pytest.raises(UsageError, match="no search space"):
        trial_settings("nothing", 0, 0)


def test_most_rows_first_then_the_value():
    trials = [
        Trial("a", 0, {}, 0.5, 3, 4, 1.0),
        Trial("a", 1, {"k": 1}, 0.2, 4, 4, 1.0),
        Trial("a", 2, {"k": 2}, 0.3, 4, 4, 1.0),
        Trial("b", 0, {}, None, 0, 4, 1.0, "no"),
    ]
    assert best_trials(trials, "higher") == {"a": trials[2]}
    assert best_trials(trials, "lower") == {"a": trials[1]}


def test_trials_are_kept_extended_and_protected(files, tmp_path, monkeypatch):
    data, split, features = files
    out = tmp_path / "tuned"
    first = tune(["ridge", "mean", "no-change"], data, split, out, budget=2, features=features)
    assert [(t.model, t.trial) for t in first] == [
        ("ridge", 0),
        ("ridge", 1),
        ("mean", 0),
        ("mean", 1),
        ("no-change", 0),
    ]
    assert all(t.n_total == 2 and t.seconds >= 0 for t in first)
    ran = []
    monkeypatch.setattr(tuning, "_train", lambda *a, _train=tuning._train: (ran.append(a[0]), _train(*a)))
    more = tune(["ridge", "mean", "no-change"], data, split, out, budget=3, features=features)
    assert ran == ["ridge", "mean"] and [t for t in more if t.trial < 2] == first
    with pytest.raises(OutputError, match="other data, split"):
        tune(["ridge"], data, split, out, budget=1, features=features, seed=5)
    table = list(csv.DictReader((out / "trials.csv").open()))
    assert len(table) == 7 and table[0]["settings"] == "{}"
    record = json.loads((out / "tuning.json").read_text())
    assert record["budget"] == 3 and record["best"]["ridge"]["model"] == "ridge"
    words = ["train", "ridge", data, "--split", split, "--config", out / "ridge.toml", "--features", features]
    assert run(cli, [str(word) for word in [*words, "-o", tmp_path / "run"]]) == 0


def test_test_rows_are_never_read(files, tmp_path):
    data, split, features = files
    poisoned = tmp_path / "poisoned.h5ad"
    poisoned.write_bytes(data.read_bytes())
    with H5ad(data) as file:
        held_out = np.isin(file.labels("perturbation").values(), ["G005", "G002+G003"])
    import h5py

    with h5py.File(poisoned, "r+") as file:
        bounds = file["X/indptr"][()]
        values = file["X/data"][()]
        for row in np.flatnonzero(held_out):
            values[bounds[row] : bounds[row + 1]] += 7
        file["X/data"][...] = values
    found = [
        tune(["ridge", "linear", "knn"], path, split, tmp_path / name, budget=2, features=features)
        for name, path in (("a", data), ("b", poisoned))
    ]
    assert [(t.value, t.n) for t in found[0]] == [(t.value, t.n) for t in found[1]]


def test_a_model_that_fails_is_a_trial_with_a_reason(files, tmp_path):
    data, split, _ = files
    (trial,) = tune(["context-mean"], data, split, tmp_path / "t", budget=4, settings={"scale": 0.5})
    assert trial.value is not None
    (tmp_path / "other.gmt").write_text("T\t-\tX1\tX2\n")
    trials = tune(["ridge"], data, split, tmp_path / "u", budget=2, features=f"go:{tmp_path / 'other.gmt'}")
    assert [t.value for t in trials] == [None, None] and all(t.reason for t in trials)
    assert best_trials(trials, "higher") == {} and not (tmp_path / "u" / "ridge.toml").exists()


def test_refusals(files, tmp_path):
    data, split, _ = files
    rows = {("K562", label): ("train", "") for label in LABELS}
    write_split(Split(rows, {"scheme": "by hand"}), tmp_path / "none.csv")
    with pytest.raises(UsageError, match="no validation rows"):
        tune(["mean"], data, tmp_path / "none.csv", tmp_path / "t")
    with pytest.raises(UsageError, match="at least one"):
        tune(["mean"], data, split, tmp_path / "t", budget=0)
    for by in ("colour", "edistance"):
        with pytest.raises(UnknownName):
            tune(["mean"], data, split, tmp_path / "t", by=by)
    assert not (tmp_path / "t").exists()
    tune(["no-change"], data, split, tmp_path / "v", by="mse")
    (tmp_path / "v" / "trials" / "no-change-000" / "trial.json").write_text("{")
    with pytest.raises(OutputError, match="no record of a trial"):
        tune(["no-change"], data, split, tmp_path / "v", by="mse")
    with pytest.raises(UsageError, match="twice"):
        tune(["mean", "mean"], data, split, tmp_path / "t")


def test_command(files, tmp_path, capsys):
    data, split, features = files
    words = [
        "tune",
        "mean",
        "ridge",
        data,
        "--split",
        split,
        "--features",
        features,
        "--budget",
        "2",
        "--quiet",
    ]
    assert run(cli, [str(word) for word in [*words, "-o", tmp_path / "t"]]) == 0
    out = capsys.readouterr().out
    assert "best pearson_delta" in out and "ridge" in out and "2/2" in out
    assert run(cli, [str(word) for word in [*words, "-o", tmp_path / "t", "--format", "json"]]) == 0
    assert set(json.loads(capsys.readouterr().out)["best"]) == {"mean", "ridge"}
    assert run(cli, [str(word) for word in [*words, "-o", tmp_path / "u", "--by", "colour"]]) == 2


@pytest.mark.parametrize("model", ["gears", "cpa", "cellot", "scgpt"])
def test_deep_models_by_the_same_protocol(model, files, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    data, split, features = files
    small = {
        "gears": {"hidden_size": 8},
        "cpa": {"n_latent": 8, "n_hidden_encoder": 16, "n_hidden_decoder": 16},
        "cellot": {"hidden": 8, "latent": 4, "ae_epochs": 1, "epoch_iterations": 2},
        "scgpt": {"preset": "tiny"},
    }[model]
    settings = {"epochs": 1, **small}
    (trial,) = tune(
        [model], data, split, tmp_path / "t", budget=1, features=features, settings=settings, device="cpu"
    )
    assert trial.n == 2 and trial.value is not None and trial.settings == settings
