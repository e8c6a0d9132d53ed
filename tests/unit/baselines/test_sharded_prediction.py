"""A panel predicted by several processes is that of one, for every model."""

import numpy as np
import pytest
from builders import standard_h5ad
from executor_tasks import Here
from vcbench.baselines.predict import choose_keys, predict
from vcbench.baselines.registry import default_suite
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.cli_support import run as command
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli

LABELS = ("G000", "G001", "G002", "G003", "G004", "G005", "G000+G001", "G002+G003")
TEST = ("G005", "G002+G003", "G004")
DEEP = {
    "gears": {"epochs": 1, "hidden_size": 8, "batch_size": 16, "select": "pearson_delta"},
    "cpa": {"epochs": 2, "n_latent": 8, "n_hidden_encoder": 16, "n_hidden_decoder": 16, "batch_size": 32},
    "cellot": {
        "epochs": 2,
        "ae_epochs": 1,
        "epoch_iterations": 2,
        "hidden": 8,
        "layers": 2,
        "latent": 4,
        "ae_hidden": 8,
    },
    "scgpt": {"preset": "tiny", "epochs": 1},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=16, controls=40)
    split = Split(
        {("K562", label): ("test" if label in TEST else "train", "") for label in LABELS},
        {"scheme": "by hand"},
    )
    write_split(split, folder / "split.csv")
    lines = [f"T{k}\t-\t" + "\t".join(f"G{i:03d}" for i in range(40) if (i + k) % 3) for k in range(12)]
    (folder / "go.gmt").write_text("\n".join(lines) + "\n")
    return folder, data


def trained(files, name, settings, features, label):
    folder, data = files
    words = ["train", name, data, "--split", folder / "split.csv", "-o", folder / label]
    words += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words += ["--features", f"go:{folder / 'go.gmt'}"] if features else []
    assert command(cli, [str(word) for word in words]) == 0
    return load_run(folder / label)


def check(run, *, exact):
    keys = choose_keys(run, perturbations=None, everything=True, contexts=["K562"])
    whole = predict(run, keys).prediction
    for n_workers in (2, 3):
        here = Here(n_workers)
        parts = predict(run, keys, executor=here).prediction
        assert len(here.seen) == n_workers and len(keys) == len(LABELS)
        assert (parts.keys, parts.status, parts.reason) == (whole.keys, whole.status, whole.reason)
        if exact:
            np.testing.assert_array_equal(parts.profiles, whole.profiles)
        else:
            np.testing.assert_allclose(parts.profiles, whole.profiles, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", default_suite(features=True), ids=lambda model: model.label)
def test_simple_models(model, files):
    check(trained(files, model.name, model.settings, model.uses_features, model.label), exact=True)


@pytest.mark.parametrize("name", sorted(DEEP))
def test_deep_models(name, files):
    pytest.importorskip("torch", reason="torch is not installed")
    check(trained(files, name, DEEP[name], name == "gears", name), exact=False)


def test_command_with_two_processes(files, tmp_path):
    run = trained(files, "additive", {}, False, "additive-command")
    for name, executor in (("a", "local"), ("b", "processes:2")):
        words = [
            "predict",
            run.folder,
            "--all",
            "--executor",
            executor,
            "-o",
            tmp_path / f"{name}.h5ad",
            "--quiet",
        ]
        assert command(cli, [str(word) for word in words]) == 0
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()
