"""`vcbench score`: options, JSON on stdout, files, exit codes."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from core_support import cell_file, draw_cells, mean_file
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.hashing import file_sha256
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli
from vcbench.evaluator.cli_score import parse_truths
from vcbench.evaluator.scorecard import read_scorecard
from vcbench.evaluator.scoring import score

GENES = [f"G{i:03d}" for i in range(24)]
SIZES = {("K562", "control"): 12, ("K562", "G001"): 8, ("K562", "G002"): 8, ("K562", "G001+G002"): 8}


@pytest.fixture
def files(tmp_path):
    x, labels, contexts = draw_cells(np.random.default_rng(0), SIZES, len(GENES))
    truth = cell_file(tmp_path / "real.h5ad", x, labels, contexts, GENES)
    rng = np.random.default_rng(1)
    profiles = {key: rng.uniform(0, 3, len(GENES)) for key in SIZES if key[1] != "control"}
    pred = mean_file(tmp_path / "pred.h5ad", profiles, GENES)
    rows = {
        ("K562", "G001"): ("train", ""),
        ("K562", "G002"): ("train", ""),
        ("K562", "G001+G002"): ("test", "combo_seen2"),
    }
    write_split(Split(rows, {"recipe": "by hand"}), tmp_path / "split.csv")
    return {"pred": str(pred), "truth": str(truth), "split": str(tmp_path / "split.csv")}


def call(capsys, *args):
    code = run(cli, ["score", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def test_json(files, capsys):
    code, out, _ = call(
        capsys, files["pred"], "--truth", files["truth"], "--edition", "core", "--format", "json"
    )
    assert code == 0
    card = json.loads(out)
    assert {"edition", "profile", "name", "score", "score_reason", "metrics", "issues"} <= set(card)
    assert (card["edition"], card["profile"], card["name"], card["score"]) == (
        "core",
        "standard",
        "pred",
        None,
    )
    assert {"value", "n", "n_total", "better"} <= set(card["metrics"]["mse"])
    assert card["metrics"]["edistance"]["value"] is None
    assert card["inputs"]["truth"]["sha256"] == file_sha256(files["truth"])
    assert card["inputs"]["prediction"]["bytes"] == Path(files["pred"]).stat().st_size
    assert {"vcbench", "numpy", "scipy", "h5py", "python"} <= set(card["versions"])
    assert card["seeds"] == {"root": 0} and card["timings_s"]["total"] > 0


def test_command_equals_function(files, capsys):
    args = (files["pred"], "--truth", files["truth"], "--edition", "core", "--format", "json")
    values = json.loads(call(capsys, *args)[1])["metrics"]
    found = score(ad.read_h5ad(files["pred"]), ad.read_h5ad(files["truth"])).card.model_dump(mode="json")[
        "metrics"
    ]
    assert found == values


def test_folder_split_and_names(files, tmp_path, capsys):
    out = tmp_path / "card"
    code, text, err = call(
        capsys, files["pred"], "--truth", files["truth"], "--edition", "core", "--profile", "means",
        "--split", files["split"], "--name", "mine", "--seed", "3", "-o", out,
    )  # fmt: skip
    assert code == 0 and f"wrote {out}" in err
    assert "mine: edition core, profile means" in text and "score: –" in text
    card = read_scorecard(out)
    assert (card.name, card.seeds["root"], card.metrics["mse"].n_total) == ("mine", 3, 1)
    assert card.parameters["options"]["split"] == {"recipe": "by hand"}
    assert card.inputs["split"]["name"] == "split.csv"
    table = pd.read_csv(out / "per_perturbation.csv")
    assert list(table["stratum"]) == ["combo_seen2"] and list(table["perturbation"]) == ["G001+G002"]
    aggregate = pd.read_csv(out / "aggregate.csv")
    assert {"all", "subgroup=combo_seen2", "context=K562"} <= set(aggregate["subset"])
    issues = {issue["code"] for issue in card.issues}
    assert "W550" in issues


def test_existing_folders(files, tmp_path, capsys):
    args = (files["pred"], "--truth", files["truth"], "--edition", "core", "--profile", "means", "-o")
    out = tmp_path / "card"
    assert call(capsys, *args, out)[0] == 0
    before = (out / "scorecard.json").read_bytes()
    code, _, err = call(capsys, *args, out)
    assert code == 1 and "exists already" in err
    assert (out / "scorecard.json").read_bytes() == before
    assert call(capsys, *args, out, "--force")[0] == 0
    home = tmp_path / "home"
    home.mkdir()
    (home / "notes.txt").write_text("mine")
    code, _, err = call(capsys, *args, home, "--force")
    assert code == 1 and "holds no ScoreCard" in err and (home / "notes.txt").read_text() == "mine"
    code, _, err = call(capsys, *args, files["split"])
    assert code == 1 and "is a file" in err


def test_invalid_prediction(files, tmp_path, capsys):
    pred = mean_file(tmp_path / "half.h5ad", {("K562", "G001"): np.full(24, 0.5)}, GENES)
    out = tmp_path / "card"
    code, text, err = call(
        capsys, pred, "--truth", files["truth"], "--edition", "core", "--format", "json", "-o", out
    )
    assert code == 1 and not out.exists()
    assert [issue["code"] for issue in json.loads(text)["issues"] if issue["severity"] == "error"] == ["E554"]
    assert "E554 error" in err


def test_missing_and_broken_files(files, tmp_path, capsys):
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(Path(files["truth"]).read_bytes()[:3000])
    for pred in (tmp_path / "none.h5ad", broken, files["split"]):
        code, _, err = call(capsys, pred, "--truth", files["truth"], "--edition", "core")
        assert code == 1 and "error:" in err and "Traceback" not in err
    code, _, err = call(capsys, files["pred"], "--truth", broken, "--edition", "core")
    assert code == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--edition", "cor"], "Did you mean 'core'"),
        (["--edition", "core", "--profile", "full1"], "Did you mean 'full'"),
        (["--edition", "core", "--subset", "tests"], "Invalid value"),
        (["--edition", "core", "--matrix", "raw"], "Invalid value"),
        (["--edition", "core", "--truth", "A="], "names no file"),
    ],
)
def test_usage_errors(files, capsys, args, message):
    code, _, err = call(capsys, files["pred"], "--truth", files["truth"], *args)
    assert code == 2 and message in err


def test_truth_is_required(files, capsys):
    code, _, err = call(capsys, files["pred"], "--edition", "core")
    assert code == 2 and "--truth" in err


def test_parse_truths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.h5ad").write_text("")
    assert parse_truths(["x.h5ad", "A=y.h5ad", "a=b.h5ad"]) == [
        (None, "x.h5ad"),
        ("A", "y.h5ad"),
        (None, "a=b.h5ad"),
    ]
    from vcbench.data_specs.errors import UsageError

    with pytest.raises(UsageError, match="twice"):
        parse_truths(["A=x", "A=y"])


def test_renaming_a_single_truth_context(files, tmp_path, capsys):
    profiles = {("B", p): np.linspace(0, 2, 24) for _, p in SIZES if p != "control"}
    pred = mean_file(tmp_path / "b.h5ad", profiles, GENES)
    args = (
        pred,
        "--truth",
        f"B={files['truth']}",
        "--edition",
        "core",
        "--profile",
        "means",
        "--format",
        "json",
    )
    code, out, _ = call(capsys, *args)
    assert code == 0 and json.loads(out)["metrics"]["mse"]["n"] == 3
    assert json.loads(out)["inputs"]["truth"]["context"] == "B"


def test_gears_profile(files, capsys):
    args = (
        files["pred"],
        "--truth",
        files["truth"],
        "--edition",
        "core",
        "--profile",
        "gears",
        "--format",
        "json",
    )
    code, out, _ = call(capsys, *args)
    assert code == 0 and "mse_top20_de_non_dropout" in json.loads(out)["metrics"]


@pytest.mark.parametrize(
    "option", [["--baseline", "published"], ["--no-target-genes"], ["--target-map", "MAP"]]
)
def test_options_without_use_are_refused(files, tmp_path, capsys, option):
    (tmp_path / "map.csv").write_text("label,gene\nG001,G001\n")
    words = [str(tmp_path / "map.csv") if word == "MAP" else word for word in option]
    code, _, err = call(capsys, files["pred"], "--truth", files["truth"], "--edition", "core", *words)
    assert code == 2 and "edition core has no use for" in err


def test_an_entry_is_unpacked_once(files, tmp_path, monkeypatch):
    from vcbench.data_specs import containers
    from vcbench.submission.packing import pack

    truth = ad.read_h5ad(files["truth"])
    truth.obs["target_gene"] = truth.obs["perturbation"].astype(str).replace("control", "non-targeting")
    truth.write_h5ad(tmp_path / "truth25.h5ad")
    entry = pack(files["truth"], "vcc2025", out=tmp_path / "entry.vcc").entry
    unpacked = []
    original = containers._unpack
    monkeypatch.setattr(containers, "_unpack", lambda *args: (unpacked.append(args[0]), original(*args))[1])
    card = score(entry, tmp_path / "truth25.h5ad", edition="vcc2025").card
    assert unpacked == [entry] and card.inputs["prediction"]["name"] == "entry.vcc"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
