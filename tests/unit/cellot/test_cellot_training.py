"""CellOT in the loop: predictions of every kind of row, poisoned test rows, other spaces, own cells, early stopping."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from builders import standard_h5ad
from cuda_checks import check_training_on_cuda
from vcbench.data_specs.errors import ModelError, UsageError
from vcbench.data_specs.split_file import Split

LABELS = ("G000", "G001", "G002", "G003", "G004", "G000+G001", "G002+G003")
TEST = ("G003", "G002+G003")
SETTINGS = {
    "epochs": 4,
    "ae_epochs": 2,
    "epoch_iterations": 5,
    "batch_size": 16,
    "hidden": 8,
    "layers": 3,
    "latent": 6,
    "ae_hidden": 16,
    "inner_iterations": 2,
    "lr": 1e-3,
    "fewest_validation_cells": 2,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cellot")
    data = standard_h5ad(
        folder / "data.h5ad", perturbations=LABELS, contexts=("A", "B"), cells=20, controls=30
    )
    rng = np.random.default_rng(1)
    lines = ["gene\t" + "\t".join(f"f{i}" for i in range(4))]
    lines += [f"G{i:03d}\t" + "\t".join(f"{v:.4f}" for v in rng.standard_normal(4)) for i in range(12)]
    (folder / "features.tsv").write_text("\n".join(lines) + "\n")
    rows = {(c, label): ("test" if label in TEST else "train", "") for c in "AB" for label in LABELS}
    rows["B", "G004"] = ("test", "")
    return data, Split(rows, {"scheme": "by hand"}), folder


def train(files, out, *, data=None, seed=3, device="cpu", features=False, **settings):
    pytest.importorskip("torch", reason="torch is not installed")
    from vcbench.baselines.deep_train import train_deep
    from vcbench.baselines.run_folder import load_run

    path, split, folder = files
    train_deep(
        "cellot",
        data or path,
        split,
        folder / out,
        settings={**SETTINGS, **settings},
        features=str(folder / "features.tsv") if features else None,
        seed=seed,
        device=device,
    )
    return load_run(folder / out)


@pytest.fixture(scope="module")
def run(files):
    return train(files, "run")


def weights_of(run):
    from safetensors.numpy import load_file

    return load_file(run.folder / "checkpoints" / "best" / "weights.safetensors")


def test_every_kind_of_row(run):
    controls = {**run.control_means, "new": run.control_means["A"] + 1.0}
    keys = [
        ("A", "G000"),
        ("B", "G004"),
        ("A", "G000+G004"),
        ("A", "G003"),
        ("new", "G000"),
        ("A", "control"),
    ]
    found = run.model.predict(keys, controls)
    assert found.status == ("predicted",) * 3 + ("fallback", "predicted", "predicted")
    assert found.reason[2] == "sum of the displacements of G000, G004"
    assert found.reason[3] == "G003 was not trained; pooled map of all perturbations"
    assert (found.profiles >= 0).all()
    np.testing.assert_array_equal(found.profiles[5], controls["A"])
    # A context without stored cells gets the mean effect over those with some.
    both = run.model.predict([("A", "G000"), ("B", "G000")], controls).profiles
    effect = np.mean([both[0] - controls["A"], both[1] - controls["B"]], axis=0)
    uncut = (both > 0).all(axis=0)
    assert uncut.sum() > 30
    np.testing.assert_allclose((found.profiles[4] - controls["new"])[uncut], effect[uncut], atol=1e-6)
    assert np.abs(found.profiles[0] - found.profiles[3]).max() > 1e-5


def test_own_cells_are_the_transported_controls(files, run, tmp_path):
    ad = pytest.importorskip("anndata", reason="anndata is not installed")
    from vcbench.data_specs.cli_support import run as command
    from vcbench.evaluator.cli import cli

    out = tmp_path / "cells.h5ad"
    assert command(cli, ["predict", str(run.folder), "--cells", "30", "-o", str(out)]) == 0
    cells = ad.read_h5ad(out)
    assert cells.uns["vcbench"]["matrix"]["kind"] == "log1p" and cells.uns["vcbench"]["rows"] == "cell"
    group = cells[(cells.obs["context"] == "B") & (cells.obs["perturbation"] == "G004")].X.toarray()
    assert len(group) == 30 and (group >= 0).all()
    card = (run.folder / "card.md").read_text()
    assert "`predict --cells` writes the model's own cells (log1p)" in card
    # All 30 control cells once: their mean is the mean profile where no gene was cut at 0.
    profile = run.model.predict([("B", "G004")], run.control_means).profiles[0]
    uncut = (group > 0).all(axis=0)
    if uncut.any():
        np.testing.assert_allclose(group.mean(axis=0)[uncut], profile[uncut], atol=1e-4)
    entry = tmp_path / "entry.h5ad"
    arguments = ["pack", str(out), "--edition", "core", "-o", str(entry)]
    assert command(cli, arguments) == 0
    assert command(cli, ["validate", str(entry), "--edition", "core"]) == 0


def test_poisoned_test_rows_change_nothing(files, run):
    ad = pytest.importorskip("anndata", reason="anndata is not installed")
    data, split, folder = files
    poisoned = ad.read_h5ad(data)
    keys = list(zip(poisoned.obs["context"], poisoned.obs["perturbation"], strict=True))
    rows = np.flatnonzero([key in set(split.keys("test")) for key in keys])
    x = poisoned.X.tolil()
    x[rows] = np.random.default_rng(0).poisson(50.0, (len(rows), x.shape[1]))
    poisoned.X = x.tocsr().astype(np.float32)
    poisoned.write_h5ad(folder / "poisoned.h5ad")
    other = train(files, "poisoned", data=folder / "poisoned.h5ad")
    mine, clean = weights_of(other), weights_of(run)
    assert mine.keys() == clean.keys()
    for name in clean:
        np.testing.assert_array_equal(mine[name], clean[name], err_msg=name)
    np.testing.assert_array_equal(other.model.shifts, run.model.shifts)


@pytest.mark.parametrize("options", [{"embedding": "pca"}, {"embedding": "genes"}, {"precision": "float64"}])
def test_other_spaces(files, options):
    found = train(files, f"space-{next(iter(options.values()))}", **options, epochs=3, ae_epochs=1)
    prediction = found.model.predict([("A", "G000")], found.control_means)
    assert np.isfinite(prediction.profiles).all()
    if options.get("embedding") == "genes":
        x = np.maximum(np.random.default_rng(0).standard_normal((5, 40)), 0.0)
        import scipy.sparse as sp

        moved = found.model.cells(("A", "G000"), sp.csr_array(x), rng=None)
        assert moved.shape == (5, 40)
        assert not np.allclose(moved, x)


def test_averaged_and_conditional_maps(files):
    found = train(files, "averaged", features=True)
    keys = [("A", "G003"), ("A", "G011"), ("A", "G020"), ("A", "G003+G011")]
    answer = found.model.predict(keys, found.control_means)
    assert answer.status == ("predicted", "predicted", "fallback", "predicted")
    assert answer.reason[0].startswith("average of ") and "no features for G020" in answer.reason[2]
    assert any("averaged maps (U1" in note and "pooled map (U0)" in note for note in found.model.notes)
    conditional = train(
        files, "conditional", features=True, unseen="conditional", conditional_cells=32, conditional_dims=3
    )
    answer = conditional.model.predict(keys, conditional.control_means)
    assert answer.reason[0] == "conditional map at the features of G003"
    assert answer.status == ("predicted", "predicted", "fallback", "predicted")
    assert np.abs(answer.profiles[0] - answer.profiles[1]).max() > 0
    with pytest.raises(ModelError, match="give --features FILE"):
        train(files, "bare", unseen="averaged")


def test_scgen_shifts_codes(files):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    found = train(files, "scgen", transport="scgen", epochs=2)
    net, model = found.model.module, found.model
    codes = torch.as_tensor(model.codes["A"])
    with torch.no_grad():
        shift = torch.as_tensor(model.shifts[model.labels.index("G000")], dtype=codes.dtype)
        expected = (net.decode(codes + shift) - net.decode(codes)).double().mean(dim=0).numpy()
    got = model.predict([("A", "G000")], found.control_means).profiles[0] - found.control_means["A"]
    np.testing.assert_allclose(got, np.maximum(expected, -found.control_means["A"]), atol=1e-6)
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    assert all("valid_reconstruction" in line for line in lines)


def test_maps_that_are_done_are_left_out(files):
    found = train(files, "patient", epochs=40, ae_epochs=1, patience=1, lr=1e-2)
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    values = [line["valid_mmd"] for line in lines if "valid_mmd" in line]
    assert len(lines) < 40, "no map stopped"
    assert all(b <= a for a, b in pairwise(values))


def test_upstream_preset(files):
    found = train(files, "upstream", preset="upstream")
    assert found.settings["init"] == "upstream" and found.settings["mmd_scale"] == "absolute"
    assert float(found.model.module.scale) == 1.0
    status = found.model.predict([("A", "G000"), ("A", "G000+G004")], found.control_means).status
    assert status == ("predicted", "fallback")


def test_settings_that_do_not_fit():
    from vcbench.baselines.cellot.config import CellotConfig

    with pytest.raises(UsageError) as caught:
        CellotConfig(layers=0, accumulate=2, validation="perturbations", precision="bf16", ae_dropout=1.0)
    for text in ("layers", "accumulate=1", "cells or none", "closed form", "ae_dropout"):
        assert text in str(caught.value)


def test_the_model_imports_and_explains_without_torch():
    import subprocess

    code = (
        "import sys; from vcbench.baselines.registry import explain; d = explain('cellot'); "
        "assert 'upstream' in d['presets'], d; print([m for m in ('torch', 'scanpy', 'anndata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.gpu
def test_training_on_cuda(files):
    def train_on(device):
        train(files, f"on-{device}", device=device)
        return files[-1] / f"on-{device}"

    check_training_on_cuda(train_on, [("A", "G001"), ("B", "G000"), ("A", "G000+G001")])
