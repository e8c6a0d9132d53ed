"""CPA in the loop: poisoned test rows, statuses, features, covariates, likelihoods, presets, weight files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from builders import standard_h5ad
from cuda_checks import check_training_on_cuda
from vcbench.data_specs.errors import ModelError, ShapeError, UsageError
from vcbench.data_specs.split_file import Split

LABELS = ("G000", "G001", "G002", "G003", "G000+G001", "G001+G002", "G002+G003")
TEST = ("G003", "G002+G003")
SETTINGS = {
    "epochs": 2,
    "n_latent": 6,
    "n_hidden_encoder": 10,
    "n_hidden_decoder": 9,
    "n_hidden_adv": 7,
    "batch_size": 16,
    "n_samples": 80,
    "validation_samples": 40,
    "validate_every": 1,
    "n_epochs_pretrain_ae": 0,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpa")
    rng = np.random.default_rng(5)
    n = 2 * (16 + 10 * len(LABELS))
    data = standard_h5ad(
        folder / "data.h5ad",
        perturbations=LABELS,
        contexts=("A", "B"),
        cells=10,
        controls=16,
        obs={"batch": np.array(["one", "two", "three"])[rng.integers(0, 3, n)].tolist()},
    )
    part = {label: "test" if label in TEST else "train" for label in LABELS} | {"G001+G002": "validation"}
    rows = {(context, label): (part[label], "") for context in ("A", "B") for label in LABELS}
    lines = ["gene\tx\ty\tz"]
    for i in range(20):
        if i != 1:
            lines.append(f"G{i:03d}\t" + "\t".join(f"{value:.4f}" for value in rng.normal(size=3)))
    (folder / "features.tsv").write_text("\n".join(lines) + "\n")
    return data, Split(rows, {"scheme": "by hand"}), folder


def train(files, out, *, data=None, split=None, seed=3, device="cpu", features=False, **settings):
    pytest.importorskip("torch", reason="torch is not installed")
    from vcbench.baselines.deep_train import train_deep
    from vcbench.baselines.run_folder import load_run

    path, own, folder = files
    train_deep(
        "cpa",
        data or path,
        split or own,
        folder / out,
        settings={**SETTINGS, **settings},
        features=str(folder / "features.tsv") if features else None,
        seed=seed,
        device=device,
    )
    return load_run(folder / out)


@pytest.fixture(scope="module")
def run(files):
    return train(files, "run", covariates="batch", batch_key="batch")


@pytest.fixture(scope="module")
def featured(files):
    return train(files, "featured", features=True, residual_rows="true")


def weights_of(run):
    from safetensors.numpy import load_file

    return load_file(run.folder / "checkpoints" / "best" / "weights.safetensors")


def test_the_run_predicts_trained_rows_and_marks_what_it_cannot_know(run):
    asked = ("G000", "G000+G001", "G001+G002+G000", "G003", "G000+G003", "control")
    found = run.model.predict([("A", label) for label in asked], run.control_means)
    assert found.status == ("predicted",) * 3 + ("fallback",) * 2 + ("predicted",)
    assert found.reason[3] == "G003 was not trained; mean training effect instead"
    control = run.control_means["A"]
    np.testing.assert_allclose(found.profiles[3] - control, run.mean_effect, atol=1e-12)
    np.testing.assert_array_equal(found.profiles[5], control)
    # Draws belong to the row alone: other requests and other orders change nothing.
    alone = run.model.predict([("A", "G000+G001")], run.control_means)
    np.testing.assert_array_equal(alone.profiles[0], found.profiles[1])
    card = (run.folder / "card.md").read_text()
    assert "covariates: context (2), batch (3)" in card and "own cells (counts)" in card


def test_a_new_context_gets_the_mean_effect_of_the_trained_ones(run):
    controls = {**run.control_means, "new": run.control_means["A"] + 1.0}
    keys = [("A", "G000"), ("B", "G000"), ("new", "G000")]
    found = run.model.predict(keys, controls)
    effects = [
        profile - controls[context] for profile, (context, _) in zip(found.profiles, keys, strict=True)
    ]
    np.testing.assert_allclose(effects[2], (effects[0] + effects[1]) / 2, atol=1e-12)
    assert found.reason[2] == "mean effect over the training contexts"
    cells = run.model.cells(("new", "G000"), run.model.pools["A"].x, rng=np.random.default_rng(0))
    assert np.array_equal(cells, np.round(cells)) and cells.shape == (16, 40) and cells.sum() > 0
    shifted = run.model.cells(("A", "G003"), run.model.pools["A"].x, rng=np.random.default_rng(0))
    assert np.isfinite(shifted).all() and shifted.sum() > 0


def test_profiles_are_means_of_logs_not_logs_of_means(run):
    from vcbench.baselines.cpa.counterfactual import log_scaled

    model, pool = run.model, run.model.pools["A"]
    vector = model.vectors([model.encodable("G000")[0]])[0]
    profile = model.counterfactuals.profiles("A", {"G000": vector}, n_samples=40_000)["G000"]
    rng = np.random.default_rng(1)
    n = len(pool)
    expected = model.counterfactual(("A", "G000"), pool.x, ["control"] * n)
    sampled = np.concatenate(
        [
            model.counterfactual(("A", "G000"), pool.x, ["control"] * n, output="sample", rng=rng)
            for _ in range(2000)
        ]
    )
    means = log_scaled(sampled, model.target_sum).mean(axis=0)
    np.testing.assert_allclose(profile, means, atol=0.03)
    of_the_mean = log_scaled(expected, model.target_sum).mean(axis=0)
    assert (of_the_mean - profile).max() > 0.05 and (of_the_mean - profile).mean() > 0.01


def test_counterfactual_and_reconstruction_are_separate(run, files):
    import anndata as ad

    model = run.model
    data = ad.read_h5ad(files[0])
    rows = np.flatnonzero((data.obs["perturbation"] == "G000") & (data.obs["context"] == "A"))
    x, batches = sp.csr_array(data.X[rows]), data.obs["batch"].astype(str).to_numpy()[rows]
    with pytest.raises(ModelError, match="start from control cells, not 'G000'"):
        model.counterfactual(("A", "G001"), x, ["G000"] * len(rows))
    found = model.reconstruct(x, [("A", "G000")] * len(rows), {"batch": batches.tolist()})
    np.testing.assert_allclose(found.sum(axis=1), np.asarray(x.sum(axis=1)).ravel(), rtol=1e-5)
    with pytest.raises(ModelError, match="trained with batch: give its value"):
        model.reconstruct(x, [("A", "G000")] * len(rows))
    with pytest.raises(ModelError, match="batch 'four' was not trained"):
        model.reconstruct(x, [("A", "G000")] * len(rows), {"batch": ["four"] * len(rows)})
    with pytest.raises(ModelError, match="G003 was not trained"):
        model.reconstruct(x, [("A", "G003")] * len(rows), {"batch": batches.tolist()})
    with pytest.raises(ShapeError):
        model.counterfactual(("A", "G001"), x, ["control"])


def test_distances_to_training_conditions(run, files):
    model = run.model
    with pytest.raises(ModelError, match="no training condition has more than 30 cells"):
        model.uncertainty([("A", "G000")])
    model.conditions = dict.fromkeys(model.conditions, 31)
    try:
        known, far = model.uncertainty([("A", "G000+G001"), ("B", "G000+G002")])
        assert known.cosine == pytest.approx(0, abs=1e-6) and known.euclidean == pytest.approx(0, abs=1e-6)
        assert known.nearest_euclidean == ("A", "G000+G001")
        assert far.euclidean > 0.1 and far.nearest_euclidean[0] == "B"
        with pytest.raises(ModelError, match="G003 was not trained"):
            model.uncertainty([("A", "G003")])
    finally:
        model.conditions = dict.fromkeys(model.conditions, 10)


def test_poisoned_test_rows_change_nothing(files, run):
    ad = pytest.importorskip("anndata", reason="anndata is not installed")
    data, _, folder = files
    poisoned = ad.read_h5ad(data)
    rows = np.flatnonzero(poisoned.obs["perturbation"].isin(TEST).to_numpy())
    x = poisoned.X.tolil()
    x[rows] = np.random.default_rng(0).poisson(50.0, (len(rows), 40))
    poisoned.X = x.tocsr().astype(np.float32)
    poisoned.write_h5ad(folder / "poisoned.h5ad")
    other = train(files, "poisoned", data=folder / "poisoned.h5ad", covariates="batch", batch_key="batch")
    mine, clean = weights_of(other), weights_of(run)
    assert mine.keys() == clean.keys()
    for name in clean:
        np.testing.assert_array_equal(mine[name], clean[name], err_msg=name)
    keys = [(context, label) for context in "AB" for label in LABELS]
    profiles = [r.model.predict(keys, r.control_means).profiles for r in (run, other)]
    np.testing.assert_array_equal(*profiles)
    logs = [(r.folder / "metrics.jsonl").read_text().splitlines() for r in (run, other)]
    kept = [
        [{k: v for k, v in json.loads(line).items() if k.startswith("valid_")} for line in log]
        for log in logs
    ]
    assert kept[0] == kept[1]


def test_features_reach_unseen_targets(featured):
    model = featured.model
    asked = ("G003", "G000+G003", "G001", "G000+G001", "NOPE")
    found = model.predict([("A", label) for label in asked], featured.control_means)
    assert found.status == ("predicted", "predicted", "fallback", "fallback", "fallback")
    assert found.reason[2] == "G001 has no features; mean training effect instead"
    assert np.abs(found.profiles[0] - featured.control_means["A"] - model.mean_effect).max() > 1e-3
    assert any(
        "2 training perturbation(s) with a target without features were left out" in n for n in model.notes
    )
    # Control stands outside the projection, padding is nothing.
    import torch

    vectors = model.network.pert_network.vectors(torch.tensor([0, 1, 2]))
    assert torch.equal(vectors[0], torch.zeros(6)) and torch.equal(
        vectors[1], model.network.pert_network.control
    )
    # Rows are found by name: the features of each are those of the file, standardised alike.
    table = model.feature_values
    assert table.shape == (len(model.table), 3) and not table[:2].any()
    trained = [model.table.position[name] for name in ("G000", "G002")]
    np.testing.assert_allclose(table[trained].mean(axis=0), 0, atol=1e-9)


def test_missing_features_can_be_the_mean_vector(files):
    run = train(files, "meaned", features=True, missing_features="mean", epochs=1)
    found = run.model.predict([("A", "G001"), ("A", "G000+NOPE"), ("A", "G001+NOPE")], run.control_means)
    assert found.status == ("predicted", "fallback", "fallback")
    assert found.reason[1] == "no features for NOPE; the mean vector instead"
    assert any("without features got the mean vector: G001" in note for note in run.model.notes)


def test_the_projection_is_trained_or_stays(files):
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def projection(**settings):
        model = train(files, f"proj{len(settings)}{settings['epochs']}", features=True, **settings).model
        return model.network.pert_network.pert_transformation.weight

    start, moved = projection(epochs=0), projection(epochs=2)
    frozen = projection(epochs=2, projection="frozen")
    assert torch.equal(start, frozen)
    assert (moved - start).abs().max() > 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"recon_loss": "zinb", "doser_type": "logsigm", "lr": 3e-3},
        {"recon_loss": "gauss", "doser_type": "mlp", "n_hidden_doser": 4},
        {"recon_loss": "nb", "doser_type": "sigm", "adv_steps": 0, "adv_loss": "focal", "mixup_alpha": 0.2},
    ],
)
def test_likelihoods_and_dose_responses_train(files, settings):
    name = settings["recon_loss"] + settings["doser_type"]
    run = train(files, name, **settings)
    found = run.model.predict([("A", "G000"), ("B", "G000+G001")], run.control_means)
    assert (
        np.isfinite(found.profiles).all() and np.abs(found.profiles[0] - run.control_means["A"]).max() > 1e-4
    )
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "adversary", "penalty", "valid_pearson_delta"} <= lines[-1].keys()
    assert lines[-1]["loss"] < lines[0]["loss"]
    cells = run.model.cells(("A", "G000"), run.model.pools["A"].x, rng=np.random.default_rng(0))
    assert cells.min() >= 0 and np.isfinite(cells).all()


def test_the_upstream_preset(files):
    run = train(files, "upstream", preset="upstream", epochs=2, n_layers_encoder=1, n_layers_decoder=1)
    assert run.settings["doser_type"] == "logsigm" and run.settings["projection"] == "frozen"
    model = run.model
    # Held-out singles have a row that was never trained; conditions of all cells are classes of the adversary.
    assert "G003" in model.table.position and not model.trained[model.table.position["G003"]]
    assert model.n_classes == len(LABELS) + 1
    found = model.predict([("A", "G003"), ("A", "NOPE")], run.control_means)
    assert found.status == ("predicted", "fallback")
    assert any(key.startswith("network.decoder.px_r_decoder") for key in weights_of(run))
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    value = last["valid_r2_mean"] + 0.5 * last["valid_r2_var"]
    assert last["valid_cpa_metric"] > value
    # The profile is the decoded mean itself, so no reconstruction error of the controls cancels.
    decoded = model.counterfactuals.profiles(
        "A", {"G003": model.vectors([model.encodable("G003")[0]])[0]}, n_samples=80
    )["G003"]
    np.testing.assert_allclose(found.profiles[0], decoded, atol=1e-12)


def test_upstream_weights_load(files, run, tmp_path):
    import torch
    from safetensors.torch import save_file
    from vcbench.baselines.cpa.weights import upstream_model

    upstream = train(files, "exported", preset="upstream", epochs=1, covariates="batch")
    network = upstream.model.network
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    started = train(
        files,
        "started",
        preset="upstream",
        epochs=0,
        covariates="batch",
        initial_weights=str(tmp_path / "model.safetensors"),
    )
    for key, value in started.model.network.state_dict().items():
        assert torch.equal(value, state[key]), key
    description = {
        "genes": [str(gene) for gene in upstream.model.genes],
        "pert_encoder": {name: i for i, name in enumerate(upstream.model.table.names)},
        "covars_encoder": {
            name: {value: i for i, value in enumerate(values)}
            for name, values in upstream.model.covariates.items()
        },
        "settings": {key: upstream.settings[key] for key in SETTINGS if key.startswith("n_")},
    }
    (tmp_path / "model.json").write_text(json.dumps(description))
    found = upstream_model(tmp_path / "model.safetensors", tmp_path / "model.json")
    x = torch.as_tensor(upstream.model.pools["A"].x.toarray())
    with torch.no_grad():
        assert torch.equal(found.network.basal(x), network.basal(x))
    assert found.table.names == upstream.model.table.names
    with pytest.raises(ModelError, match="tensors differ from the network"):
        train(
            files,
            "narrow",
            preset="upstream",
            n_latent=5,
            initial_weights=str(tmp_path / "model.safetensors"),
        )
    torch.save({"model_state_dict": {}, "attr": object()}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not a file of tensors"):
        train(files, "pickled", initial_weights=str(tmp_path / "model.pt"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ModelError, match="not an exported CPA description"):
        upstream_model(tmp_path / "model.safetensors", tmp_path / "broken.json")


def test_validation_rows_that_cannot_be_predicted_are_named(files):
    _, split, _ = files
    rows = {key: ("validation" if key[1] == "G003" else part, "") for key, (part, _) in split.rows.items()}
    some = train(files, "some", split=Split(rows, {}), epochs=1)
    assert any(
        "2 of 4 validation rows cannot be predicted (first: G003 was not trained)" in n
        for n in some.model.notes
    )
    none = {key: ("train" if key[1] == "G001+G002" else part, "") for key, (part, _) in rows.items()}
    run = train(files, "none", split=Split(none, {}), epochs=1)
    assert any("the last weights are kept" in note for note in run.model.notes)
    assert "weights of the last step" in (run.folder / "card.md").read_text()


def test_what_training_refuses(files, tmp_path):
    with pytest.raises(UsageError, match="no obs column 'plate'"):
        train(files, "plate", covariates="plate")
    logged = standard_h5ad(tmp_path / "log.h5ad", perturbations=LABELS, contexts=("A", "B"), kind="log1p")
    with pytest.raises(UsageError, match="the model reads raw counts"):
        train(files, "logged", data=logged)
    x = np.ones((2 * (20 + 12 * len(LABELS)), 40), dtype=np.float32)
    x[30] = 0
    empty = standard_h5ad(tmp_path / "empty.h5ad", perturbations=LABELS, contexts=("A", "B"), x=x)
    with pytest.raises(ModelError, match=r"1 training cells have no counts.*empty_cells=leave-out"):
        train(files, "empty", data=empty)
    kept = train(files, "emptied", data=empty, empty_cells="leave-out", epochs=0)
    assert any("1 training cells without counts were left out" in note for note in kept.model.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_latent": 0}, "n_latent must be at least 1"),
        ({"dropout_rate_adv": 1.0}, "dropout_rate_adv must lie from 0 to below 1"),
        ({"batch_key": "plate"}, "batch_key=plate is not among covariates"),
        ({"covariates": "a,a"}, "names each further column once"),
        ({"compile": "true"}, "second derivatives"),
        ({"precision": "bf16"}, "use precision=float32"),
        ({"doser_lr": 0.0}, "doser_lr must be positive"),
    ],
)
def test_unusable_settings(settings, message):
    from vcbench.baselines.cpa.baseline import Cpa

    with pytest.raises(UsageError, match=message):
        Cpa.resolve(settings)


def test_the_model_imports_and_explains_without_torch():
    code = (
        "import sys; from vcbench.baselines.registry import explain; d = explain('cpa'); "
        "assert 'upstream' in d['presets'], d; print([m for m in ('torch', 'scanpy', 'anndata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.gpu
def test_training_on_cuda(files):
    def train_on(device):
        train(files, f"on-{device}", device=device)
        return files[-1] / f"on-{device}"

    check_training_on_cuda(train_on, [("A", "G001"), ("A", "G000+G001")])
