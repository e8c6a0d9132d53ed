"""`vcbench train` and `predict` with a small deep model: run folder, resume, poisoned test rows, new contexts."""

import json
import shutil
import tomllib

import anndata as ad
import numpy as np
import pytest
from builders import GENES, standard_h5ad
from vcbench.baselines import registry
from vcbench.baselines.deep import require_torch
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import ModelError
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli

needs_torch = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("torch") is None,
    reason="deep models need the extra vcbench[train]",
)
LABELS = ["G000", "G001", "G002", "G003", "G000+G001", "G000+G002"]
ROLES = {"G003": "validation", "G000+G001": "validation", "G000+G002": "test"}


@pytest.fixture(autouse=True)
def mock(monkeypatch):
    monkeypatch.setitem(registry.DEEP, "mock", ("mock_deep:MockDeep", "Embedding times decoder"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, contexts=("A", "B"), cells=16)
    rows = {(c, p): (ROLES.get(p, "train"), "") for c in "AB" for p in LABELS}
    write_split(Split(rows), folder / "split.csv")
    return folder, data


def train(files, out, *more, data=None):
    folder, own = files
    arguments = ["train", "mock", str(data or own), "--split", str(folder / "split.csv"), "-o", str(out)]
    return run(cli, [*arguments, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    registry.DEEP["mock"] = ("mock_deep:MockDeep", "Embedding times decoder")
    try:
        assert train(files, out, "--seed", "7", "--set", "hidden=2") == 0
    finally:
        # Tests that use the run register the mock themselves; others must not meet it.
        registry.DEEP.pop("mock")
    return out


@needs_torch
def test_run_folder(trained, files):
    found = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    best = {f"checkpoints/best/{name}" for name in ("weights.safetensors", "model.json", "constants.npz")}
    last = {f"checkpoints/last/{name}" for name in ("weights.safetensors", "training.pt")}
    others = {
        "card.md",
        "config.toml",
        "control_means.npz",
        "inputs.json",
        "metrics.jsonl",
        "split.csv",
        "split.json",
    }
    assert found == best | last | others
    config = tomllib.loads((trained / "config.toml").read_text())
    assert config["seed"] == 7 and config["settings"]["hidden"] == 2 and config["settings"]["lr"] == 0.05
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"loss", "lr", "valid_mse", "valid_pearson_delta_top20_de", "cells_per_s"} <= lines[0].keys()
    card = (trained / "card.md").read_text()
    for text in (
        "| hidden | 2 |",
        "trained numbers",
        "peak memory",
        "| validation mse |",
        "weights of the best mse",
    ):
        assert text in card
    assert "amplified" not in card


@needs_torch
def test_loaded_runs_predict_effects_fallbacks_and_refusals(trained):
    loaded = load_run(trained)
    keys = [("A", "G000"), ("B", "G000"), ("A", "G001+G002"), ("A", "G030"), ("C", "G000"), ("B", "control")]
    found = loaded.model.predict(keys, loaded.control_means)
    assert found.status == ("predicted", "predicted", "predicted", "fallback", "refused", "predicted")
    assert (
        found.reason[3] == "G030 was not trained; mean effect"
        and "'C' has no control profile" in found.reason[4]
    )
    effects = [found.profiles[i] - loaded.control_means[context] for i, (context, _) in enumerate(keys[:4])]
    np.testing.assert_allclose(effects[0], effects[1], atol=1e-12)
    singles = loaded.model.predict([("A", "G001"), ("A", "G002")], loaded.control_means).profiles
    added = (singles - loaded.control_means["A"]).sum(0)
    np.testing.assert_allclose(effects[2], added, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(effects[3], loaded.mean_effect, atol=1e-12)
    assert np.isnan(found.profiles[4]).all() and (found.profiles[5] == loaded.control_means["B"]).all()


@needs_torch
def test_prediction_in_a_new_context_with_other_genes(trained, tmp_path, capsys):
    genes = (*GENES[5:], "NEW1", "NEW2")
    controls = standard_h5ad(tmp_path / "c.h5ad", perturbations=(), contexts=("Z",), genes=genes, seed=3)
    (tmp_path / "rows.csv").write_text("context,perturbation\nZ,G000\nZ,G033\n")
    arguments = [
        "predict",
        str(trained),
        "--controls",
        str(controls),
        "--perturbations",
        str(tmp_path / "rows.csv"),
    ]
    assert run(cli, [*arguments, "-o", str(tmp_path / "p.h5ad"), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["n_predicted"], printed["n_fallback"], printed["n_refused"]) == (1, 1, 0)
    assert any("2 genes are new to the run" in text for text in printed["notes"])
    predicted = ad.read_h5ad(tmp_path / "p.h5ad")
    loaded = load_run(trained)
    effect = (
        loaded.model.predict([("A", "G000")], loaded.control_means).profiles[0] - loaded.control_means["A"]
    )
    from vcbench.baselines.data import load_control_means

    _, means = load_control_means(controls, target_sum=80.0)
    np.testing.assert_allclose(predicted.X[0, :35], (means["Z"][:35] + effect[5:]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predicted.X[0, 35:] - means["Z"][35:], effect[5:].mean(), atol=1e-5)


@needs_torch
def test_test_rows_change_nothing(trained, files, tmp_path):
    _, data = files
    poisoned = ad.read_h5ad(data)
    rows = np.flatnonzero((poisoned.obs["perturbation"] == "G000+G002").to_numpy())
    x = poisoned.X.tolil()
    x[rows] = 777.0
    poisoned.X = x.tocsr()
    poisoned.write_h5ad(tmp_path / "poisoned.h5ad")
    out = tmp_path / "run"
    assert train(files, out, "--seed", "7", "--set", "hidden=2", data=tmp_path / "poisoned.h5ad") == 0
    for name in ("best/weights.safetensors", "last/weights.safetensors", "best/constants.npz"):
        assert (out / "checkpoints" / name).read_bytes() == (trained / "checkpoints" / name).read_bytes()


@needs_torch
def test_resume_continues_a_run_and_refuses_another(trained, files, tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--seed", "7", "--set", "hidden=2")
    # Nothing there yet: a resume starts.
    assert train(files, out, *options, "--resume") == 0
    weights = (out / "checkpoints/best/weights.safetensors").read_bytes()
    assert weights == (trained / "checkpoints/best/weights.safetensors").read_bytes()
    assert train(files, out, *options) == 1 and "exists already" in capsys.readouterr().err
    assert train(files, out, *options, "--resume") == 0
    assert train(files, out, "--seed", "8", "--set", "hidden=2", "--resume") == 2
    assert "changed: seed (was 7, is 8)" in capsys.readouterr().err
    shutil.rmtree(out / "checkpoints")
    assert train(files, out, *options, "--resume") == 0
    assert weights == (out / "checkpoints/best/weights.safetensors").read_bytes()


@needs_torch
def test_dry_run_estimates_and_writes_nothing(files, tmp_path, capsys):
    folder, data = files
    arguments = [
        "train",
        "mock",
        str(data),
        "--split",
        str(folder / "split.csv"),
        "--dry-run",
        "--device",
        "cpu",
    ]
    assert run(cli, [*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    n_cells = 2 * 3 * 16
    assert found["n_cells"] == n_cells and found["steps_per_epoch"] == n_cells // 16 and found["steps"] == 18
    assert found["n_parameters"] == 3 * 3 + 3 * 40 and found["optimizer_mib"] >= 2 * found["weights_mib"]
    assert found["epoch_s"] > 0 and found["total_s"] > found["epoch_s"] and found["peak_mib"]["host"] > 50
    assert run(cli, arguments) == 0 and "whole training" in capsys.readouterr().out
    assert (
        run(cli, ["train", "mean", str(data), "--dry-run"]) == 0
        and "fitted in one step" in capsys.readouterr().out
    )
    assert sorted(path.name for path in folder.iterdir()) == ["data.h5ad", "split.csv", "split.json"]


@needs_torch
def test_settings_come_from_a_toml_file_and_set_replaces_them(files, tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text("hidden = 5\nepochs = 1\nprecision = 'float64'\n")
    assert train(files, tmp_path / "run", "--config", str(config), "--set", "hidden=4") == 0
    settings = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["settings"]
    assert (settings["hidden"], settings["epochs"], settings["precision"]) == (4, 1, "float64")
    import torch

    assert next(load_run(tmp_path / "run").model.module.parameters()).dtype == torch.float64
    assert train(files, tmp_path / "x", "--set", "hiden=4") == 2
    assert "Did you mean 'hidden'" in capsys.readouterr().err


@needs_torch
def test_a_run_without_weights_or_of_another_model_is_refused(trained, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder)
    shutil.rmtree(run_folder / "checkpoints" / "best")
    with pytest.raises(ModelError, match="no checkpoint yet; train on with --resume"):
        _ = load_run(run_folder).model
    shutil.copytree(trained / "checkpoints" / "best", run_folder / "checkpoints" / "best")
    record = json.loads((run_folder / "checkpoints/best/model.json").read_text())
    for changed, message in (
        ({"model": "gears"}, "holds the model 'gears'"),
        ({"config": {"x": 1}}, "no setting"),
    ):
        (run_folder / "checkpoints/best/model.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(Exception, match=message):
            _ = load_run(run_folder).model


def test_missing_torch_names_the_extra(monkeypatch, files, tmp_path, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"mock needs torch and safetensors: pip install 'vcbench\[train\]'"):
        require_torch("mock")
    assert train(files, tmp_path / "run") == 1
    assert "pip install 'vcbench[train]'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_deep_models_are_explained_without_training(monkeypatch):
    found = registry.explain("mock")
    assert (
        any(text.startswith("hidden (a whole number") for text in found["settings"])
        and found["presets"] == []
    )
    assert "mock" in registry.names() and "mock" not in registry.simple_names() and registry.is_deep("mock")


@needs_torch
def test_own_cells_start_from_control_cells(trained, files, tmp_path, monkeypatch):
    from mock_deep import MockDeep

    def doubled(self, key, controls, *, rng):
        return controls.toarray() * 2 if key[1] == "G000+G002" else controls

    arguments = ["predict", str(trained), "--cells", "30", "--seed", "3", "-o"]
    assert run(cli, [*arguments, str(tmp_path / "emitted.h5ad")]) == 0
    monkeypatch.setattr(MockDeep, "has_cells", True)
    with pytest.raises(ModelError, match="no cells of its own"):
        MockDeep().cells(("A", "G000"), None, rng=None)
    monkeypatch.setattr(MockDeep, "cells", doubled)
    assert run(cli, [*arguments, str(tmp_path / "own.h5ad")]) == 0
    own = ad.read_h5ad(tmp_path / "own.h5ad")
    assert own.uns["vcbench"]["matrix"]["kind"] == "log1p"
    data = ad.read_h5ad(files[1])
    pool = data.X[((data.obs["perturbation"] == "control") & (data.obs["context"] == "A")).to_numpy()]
    counts = pool.toarray()
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * own.uns["vcbench"]["matrix"]["target_sum"])
    found = own.X[(own.obs["context"] == "A").to_numpy()].toarray() / 2
    # 30 cells from a smaller pool: every control cell once before any comes again.
    nearest = np.abs(found[:, None] - logged[None]).max(axis=2)
    assert nearest.min(axis=1).max() < 1e-6
    uses = np.bincount(nearest.argmin(axis=1), minlength=len(logged))
    assert uses.max() - uses.min() <= 1

    # Other genes: those of the run are replaced, new ones keep the control cell's value.
    other = standard_h5ad(tmp_path / "other.h5ad", contexts=("A", "B"), perturbations=LABELS, seed=5)
    changed = ad.read_h5ad(other)
    changed.var_names = ["NEW", *changed.var_names[1:]]
    changed.write_h5ad(tmp_path / "renamed.h5ad")
    arguments += [str(tmp_path / "moved.h5ad"), "--controls", str(tmp_path / "renamed.h5ad")]
    assert run(cli, arguments) == 0
    moved = ad.read_h5ad(tmp_path / "moved.h5ad")
    assert list(moved.var_names) == ["NEW", *GENES[1:]]
    ratio = moved.X.toarray()
    controls = changed.X[
        ((changed.obs["perturbation"] == "control") & (changed.obs["context"] == "A")).to_numpy()
    ]
    dense = controls.toarray()
    logged = np.log1p(dense / dense.sum(axis=1, keepdims=True) * moved.uns["vcbench"]["matrix"]["target_sum"])
    expected = np.concatenate([logged[:, :1], 2 * logged[:, 1:]], axis=1)
    first = ratio[(moved.obs["context"] == "A").to_numpy()]
    assert np.abs(first[:, None] - expected[None]).max(axis=2).min(axis=1).max() < 1e-6
