"""`vcbench train` and `vcbench predict` end to end on a small standard file."""

import json
import tomllib

import anndata as ad
import numpy as np
import pytest
from builders import GENES, standard_h5ad
from vcbench.baselines.data import load_training_data
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import ModelError
from vcbench.data_specs.split_file import Split, read_split, write_split
from vcbench.evaluator.cli import cli

SINGLES = [f"G{i:03d}" for i in range(7)]
DOUBLES = ["G000+G001", "G002+G003", "G004+G009"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    data = standard_h5ad(folder / "data.h5ad", perturbations=[*SINGLES, *DOUBLES], contexts=("A", "B"))
    rows = {(c, p): ("test" if "+" in p else "train", "") for c in "AB" for p in [*SINGLES, *DOUBLES]}
    write_split(Split(rows, {"recipe": "by hand"}), folder / "split.csv")
    return folder, data


def trained(files, out, name="additive", *more):
    folder, data = files
    assert (
        run(cli, ["train", name, str(data), "--split", str(folder / "split.csv"), "-o", str(out), *more]) == 0
    )
    return out


def test_run_folder(files, tmp_path, capsys):
    folder, _ = files
    out = trained(
        files, tmp_path / "run", "linear", "--set", "n_components=4", "--seed", "7", "--format", "json"
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["model"] == "linear" and printed["n_train"] == 14 and printed["amplified"] is False
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "card.md",
        "checkpoints/best/model.json",
        "checkpoints/best/model.npz",
        "config.toml",
        "control_means.npz",
        "inputs.json",
        "metrics.jsonl",
        "split.csv",
        "split.json",
    }
    config = tomllib.loads((out / "config.toml").read_text())
    assert (config["model"], config["seed"], config["settings"]["n_components"]) == ("linear", 7, 4)
    inputs = json.loads((out / "inputs.json").read_text())
    assert inputs["genes"] == list(GENES) and inputs["matrix"] == {"kind": "log1p", "target_sum": 80.0}
    assert len(inputs["data"]["sha256"]) == 64 and inputs["features"] is None
    assert inputs["split"]["recipe"] == "by hand" and ["A", "G000"] in inputs["train_keys"]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["n_train_predicted"] == 14 and metrics[0]["train_mse"] > 0
    card = (out / "card.md").read_text()
    for text in (
        "| n_components | 4 |",
        "amplified: false",
        "correlation among predicted effects",
        "peak memory",
    ):
        assert text in card
    assert read_split(out / "split.csv").rows == read_split(folder / "split.csv").rows


def test_prediction_file(files, tmp_path, capsys):
    folder, data = files
    out = trained(files, tmp_path / "run")
    capsys.readouterr()
    assert run(cli, ["predict", str(out), "-o", str(tmp_path / "p.h5ad"), "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n_rows"], summary["n_predicted"], summary["n_refused"]) == (6, 4, 2)
    result = ad.read_h5ad(tmp_path / "p.h5ad")
    assert result.X.dtype == np.float32 and result.shape == (4, 40)
    assert list(result.obs.columns) == ["perturbation", "context", "status", "reason"]
    meta = result.uns["vcbench"]
    assert (
        meta["rows"] == "mean" and meta["matrix"]["kind"] == "log1p" and meta["matrix"]["target_sum"] == 80.0
    )
    refused = json.loads(meta["refused"])
    assert refused == [
        {"context": c, "perturbation": "G004+G009", "reason": "no training single of G009"} for c in "AB"
    ]
    data_means = load_training_data(data, read_split(folder / "split.csv"))
    at = {key: data_means.effects[i] for i, key in enumerate(data_means.keys)}
    for i, (context, label) in enumerate(zip(result.obs["context"], result.obs["perturbation"], strict=True)):
        a, b = label.split("+")
        expected = data_means.control_means[context] + at[(context, a)] + at[(context, b)]
        np.testing.assert_array_equal(result.X[i], expected.astype(np.float32))


def test_text_output_lists_refusals(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "additive", "--set", "scale=5")
    assert "amplified" in capsys.readouterr().err
    assert "amplified: true" in (out / "card.md").read_text()
    assert run(cli, ["predict", str(out), "-o", str(tmp_path / "p.h5ad")]) == 0
    printed = capsys.readouterr().out
    assert "4 predicted, 0 fallback, 2 refused of 6 rows" in printed
    assert printed.count("no training single of G009") == 2


def test_requested_rows_and_all(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean")
    (tmp_path / "rows.csv").write_text("context,perturbation\nB,G003+G001\nA,NEW\n")
    target = tmp_path / "p.h5ad"
    assert (
        run(cli, ["predict", str(out), "--perturbations", str(tmp_path / "rows.csv"), "-o", str(target)]) == 0
    )
    obs = ad.read_h5ad(target).obs
    assert list(zip(obs["context"], obs["perturbation"], strict=True)) == [("B", "G001+G003"), ("A", "NEW")]
    assert run(cli, ["predict", str(out), "--all", "-o", str(target), "--force"]) == 0
    assert ad.read_h5ad(target).n_obs == 20
    both = [
        "predict",
        str(out),
        "--all",
        "--perturbations",
        str(tmp_path / "rows.csv"),
        "-o",
        str(tmp_path / "q.h5ad"),
    ]
    assert run(cli, both) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    "text",
    [
        "perturbation\nG000\n",
        "context,label\nA,G000\n",
        "context,perturbation\nA,G000\nA,G000\n",
        "context,perturbation\nA,\n",
        "context,perturbation\n",
        b"\xff\xfe",
    ],
)
def test_bad_requests(files, tmp_path, capsys, text):
    out = trained(files, tmp_path / "run", "mean")
    rows = tmp_path / "rows.csv"
    rows.write_bytes(text if isinstance(text, bytes) else text.encode())
    capsys.readouterr()
    arguments = [
        "predict",
        str(out),
        "--perturbations",
        str(rows),
        "-o",
        str(tmp_path / "p.h5ad"),
        "--format",
        "json",
    ]
    assert run(cli, arguments) == 1
    printed = json.loads(capsys.readouterr().out)
    assert {issue["code"] for issue in printed["issues"]} == {"E674"}
    assert not (tmp_path / "p.h5ad").exists()


def test_new_context_with_other_genes(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean")
    genes = [*GENES[::-1][:30], "NEW1", "NEW2"]
    new = standard_h5ad(
        tmp_path / "new.h5ad", perturbations=(), contexts=("C",), genes=genes, target_sum=50.0
    )
    (tmp_path / "rows.csv").write_text("perturbation\nG000\nG001\n")
    (tmp_path / "two.csv").write_text("context,perturbation\nC,G000\nA,G000\n")
    target = tmp_path / "p.h5ad"
    arguments = ["predict", str(out), "--controls", str(new), "-o", str(target)]
    assert run(cli, [*arguments, "--perturbations", str(tmp_path / "two.csv"), "--format", "json"]) == 0
    summary = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert summary["n_predicted"] == 1 and summary["refused"][0]["context"] == "A"
    assert any("2 genes are new" in note for note in summary["notes"])
    assert any("10 genes of the run" in note for note in summary["notes"])
    result = ad.read_h5ad(target)
    assert list(result.var_names) == genes and result.uns["vcbench"]["matrix"]["target_sum"] == 80.0
    x = ad.read_h5ad(new).X.toarray()
    control = np.log1p(x / x.sum(axis=1, keepdims=True) * 80.0).mean(axis=0)
    effect = load_run(out).mean_effect[::-1][:30]
    np.testing.assert_allclose(result.X[0, :30], control[:30] + effect, atol=1e-5)
    np.testing.assert_allclose(result.X[0, 30:], control[30:] + effect.mean(), atol=1e-5)


def test_controls_that_do_not_fit(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean")
    other = standard_h5ad(tmp_path / "o.h5ad", genes=[f"Z{i}" for i in range(40)], perturbations=())
    logged = standard_h5ad(tmp_path / "l.h5ad", kind="log1p", target_sum=99.0)
    for file in (other, logged):
        assert run(cli, ["predict", str(out), "--controls", str(file), "-o", str(tmp_path / "p.h5ad")]) == 1
        assert "E675" in capsys.readouterr().err
    assert not (tmp_path / "p.h5ad").exists()


def test_cells_follow_the_profiles(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean", "--set", "scale=0.5")
    capsys.readouterr()
    arguments = ["predict", str(out), "--cells", "400", "--seed", "3", "--format", "json", "-o"]
    assert run(cli, [*arguments, str(tmp_path / "c.h5ad")]) == 0
    summary = json.loads(capsys.readouterr().out)
    cells = ad.read_h5ad(tmp_path / "c.h5ad")
    assert cells.n_obs == 6 * 400 and cells.uns["vcbench"]["rows"] == "cell"
    x = cells.X.toarray()
    assert (x == np.rint(x)).all() and (x >= 0).all()
    group = x[((cells.obs["context"] == "A") & (cells.obs["perturbation"] == "G000+G001")).to_numpy()]
    mean = np.log1p(group / group.sum(axis=1, keepdims=True) * 80.0).mean(axis=0)
    assert run(cli, ["predict", str(out), "-o", str(tmp_path / "p.h5ad")]) == 0
    wanted = ad.read_h5ad(tmp_path / "p.h5ad")
    row = ((wanted.obs["context"] == "A") & (wanted.obs["perturbation"] == "G000+G001")).to_numpy()
    report = next(r for r in summary["emission"] if (r["context"], r["perturbation"]) == ("A", "G000+G001"))
    assert np.sqrt(np.mean((mean - wanted.X[row][0]) ** 2)) == pytest.approx(report["rmse"], abs=1e-5)
    assert np.corrcoef(mean, wanted.X[row][0])[0, 1] > 0.95
    assert run(cli, [*arguments, str(tmp_path / "d.h5ad")]) == 0
    assert (tmp_path / "d.h5ad").read_bytes() == (tmp_path / "c.h5ad").read_bytes()


def test_cells_need_the_training_file(files, tmp_path, capsys):
    folder, data = files
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes(data.read_bytes())
    out = trained((folder, copy), tmp_path / "run", "mean")
    arguments = ["predict", str(out), "--cells", "5", "-o", str(tmp_path / "c.h5ad")]
    standard_h5ad(copy, seed=9)
    assert run(cli, arguments) == 2
    assert "changed since training" in capsys.readouterr().err
    copy.unlink()
    assert run(cli, arguments) == 2
    assert "--controls" in capsys.readouterr().err
    assert run(cli, [*arguments, "--controls", str(data)]) == 0


def test_misuse_exits_with_2_and_writes_nothing(files, tmp_path, capsys):
    _, data = files
    cases = {
        "Did you mean 'additive'": ["train", "aditive", str(data)],
        "Did you mean 'missing'": ["train", "additive", str(data), "--set", "mising=strict"],
        "expected strict|mean-delta": ["train", "additive", str(data), "--set", "missing=no"],
        "below 10": ["train", "additive", str(data), "--set", "scale=10"],
        "expected key=value": ["train", "additive", str(data), "--set", "scale"],
    }
    for message, arguments in cases.items():
        assert run(cli, [*arguments, "-o", str(tmp_path / "run")]) == 2
        assert message in capsys.readouterr().err
    for arguments in (
        ["train", "mean", str(tmp_path / "no.h5ad")],
        ["train", "mean", str(data), "--split", "no.csv"],
    ):
        assert run(cli, [*arguments, "-o", str(tmp_path / "run")]) == 1
        assert "E001" in (error := capsys.readouterr().err) or "E601" in error
    assert run(cli, ["train", "go-neighbours", str(data), "-o", str(tmp_path / "run")]) == 1
    assert "go:FILE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_never_overwritten_by_accident(files, tmp_path, capsys):
    _, data = files
    out = trained(files, tmp_path / "run", "mean")
    before = (out / "config.toml").read_bytes()
    again = ["train", "no-change", str(data), "-o", str(out)]
    assert run(cli, again) == 1 and (out / "config.toml").read_bytes() == before
    assert run(cli, [*again, "--force"]) == 0 and b"no-change" in (out / "config.toml").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert run(cli, ["train", "mean", str(data), "-o", str(tmp_path / "mine"), "--force"]) == 1
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    original = data.read_bytes()
    assert run(cli, ["train", "mean", str(data), "-o", str(data), "--force"]) == 1
    assert run(cli, ["predict", str(out), "--all", "-o", str(tmp_path)]) == 1
    assert data.read_bytes() == original
    capsys.readouterr()


def test_no_split_needs_rows(files, tmp_path, capsys):
    _, data = files
    assert run(cli, ["train", "mean", str(data), "-o", str(tmp_path / "run")]) == 0
    assert run(cli, ["predict", str(tmp_path / "run"), "-o", str(tmp_path / "p.h5ad")]) == 2
    assert "--perturbations CSV or --all" in capsys.readouterr().err
    assert run(cli, ["predict", str(tmp_path / "run"), "--all", "-o", str(tmp_path / "p.h5ad")]) == 0
    assert ad.read_h5ad(tmp_path / "p.h5ad").n_obs == 20


def test_all_refused_is_an_error_without_a_file(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run")
    (tmp_path / "rows.csv").write_text("context,perturbation\nA,NOPE\n")
    arguments = [
        "predict",
        str(out),
        "--perturbations",
        str(tmp_path / "rows.csv"),
        "-o",
        str(tmp_path / "p.h5ad"),
    ]
    assert run(cli, arguments) == 1
    assert "refused all 1 rows; first reason: no training single of NOPE" in capsys.readouterr().err
    assert not (tmp_path / "p.h5ad").exists()


def test_broken_run_folders(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean")
    assert run(cli, ["predict", str(tmp_path), "-o", str(tmp_path / "p.h5ad")]) == 1
    assert "not a run folder" in capsys.readouterr().err
    inputs = json.loads((out / "inputs.json").read_text())
    inputs["genes_sha256"] = "0" * 64
    (out / "inputs.json").write_text(json.dumps(inputs))
    with pytest.raises(ModelError, match="other genes"):
        _ = load_run(out).model
    config = (out / "config.toml").read_text().replace("run_version = 1", "run_version = 9")
    (out / "config.toml").write_text(config)
    with pytest.raises(ModelError, match="run version 9"):
        load_run(out)


def test_features_are_recorded(files, tmp_path, capsys):
    lines = [f"{gene}\t{i}\t{i * i % 7}" for i, gene in enumerate(GENES)]
    (tmp_path / "f.tsv").write_text("gene\ta\tb\n" + "\n".join(lines) + "\n")
    out = trained(files, tmp_path / "run", "knn", "--features", str(tmp_path / "f.tsv"))
    record = json.loads((out / "inputs.json").read_text())["features"]
    assert record["kind"] == "table" and record["file"] == "f.tsv" and len(record["sha256"]) == 64
    assert run(cli, ["predict", str(out), "-o", str(tmp_path / "p.h5ad")]) == 0
    assert ad.read_h5ad(tmp_path / "p.h5ad").n_obs == 6
    capsys.readouterr()


def test_predictions_stand_in_the_run_folder_for_pack(files, tmp_path, capsys):
    out = trained(files, tmp_path / "run", "mean")
    entry = ["pack", str(out), "--edition", "core", "-o", str(tmp_path / "entry.h5ad")]
    assert run(cli, entry) == 1
    told = capsys.readouterr().err
    fix = told.split("fix: vcbench ")[1].split()
    assert run(cli, fix) == 0
    assert run(cli, entry) == 0
    assert ad.read_h5ad(tmp_path / "entry.h5ad").n_obs == 6
    assert run(cli, fix) == 1 and "--force" in capsys.readouterr().err
