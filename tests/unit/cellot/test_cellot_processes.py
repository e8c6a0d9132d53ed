"""A killed run goes on to the same bits, in the autoencoder's epochs and in the maps'; two processes equal one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.split_file import Split, write_split

pytest.importorskip("torch", reason="torch is not installed")

LABELS = ("G000", "G001", "G002", "G003")
SETTINGS = {
    "epochs": 5,
    "ae_epochs": 2,
    "epoch_iterations": 4,
    "hidden": 8,
    "layers": 2,
    "latent": 5,
    "ae_hidden": 12,
    "ae_dropout": 0.2,
    "inner_iterations": 2,
    "fewest_validation_cells": 2,
    "patience": 1,
    "lr": 1e-3,
    "unseen": "conditional",
    "conditional_cells": 24,
    "conditional_dims": 2,
    "conditional_held_out": 0.3,
}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cellot")
    data = standard_h5ad(
        folder / "data.h5ad", perturbations=LABELS, contexts=("A", "B"), cells=20, controls=24
    )
    rows = {(c, p): ("test" if (c, p) == ("B", "G003") else "train", "") for c in "AB" for p in LABELS}
    write_split(Split(rows, {}), folder / "split.csv")
    rng = np.random.default_rng(0)
    lines = ["g\ta\tb\tc"]
    lines += [f"G{i:03d}\t" + "\t".join(f"{v:.3f}" for v in rng.standard_normal(3)) for i in range(9)]
    (folder / "features.tsv").write_text("\n".join(lines) + "\n")
    common = ["cellot", str(data), "--split", str(folder / "split.csv"), "--seed", "4", "--device", "cpu"]
    return [*common, "--features", str(folder / "features.tsv")]


def start(command, arguments, out, **settings):
    more = [part for name, value in {**SETTINGS, **settings}.items() for part in ("--set", f"{name}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, *arguments, *more, "-o", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def files_of(run):
    names = ("weights.safetensors", "constants.npz")
    return {
        f"{part}/{name}": run / "checkpoints" / part / name for part in ("best", "last") for name in names
    }


ONE_NODE = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TWO_NODES = (str(Path(__file__).parents[2] / "two_nodes.py"),)
TRAIN = ["-m", "vcbench.baselines.training"]


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done = start(TRAIN, arguments, out, batch_size=16, checkpoint_every=3)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.parametrize("step", [pytest.param(5, marks=pytest.mark.slow), 11])
def test_a_killed_run_ends_with_the_same_bits(arguments, uninterrupted, tmp_path, step):
    options = {"batch_size": 16, "checkpoint_every": 3}
    script = [str(Path(__file__).parent / "run_cellot.py"), str(step)]
    killed = start(script, arguments, tmp_path / "run", **options)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    done = start(TRAIN, [*arguments, "--resume"], tmp_path / "run", **options)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, file in files_of(tmp_path / "run").items():
        other = files_of(uninterrupted)[name]
        if other.exists() or file.exists():
            assert file.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize(
    "launcher", [ONE_NODE, pytest.param(TWO_NODES, marks=pytest.mark.slow)], ids=["one-node", "two-nodes"]
)
def test_two_processes_equal_one_with_the_doubled_batch(arguments, tmp_path, launcher):
    torchrun = [*launcher, *TRAIN]
    found = []
    for name, command, batch in (("one", TRAIN, 16), ("two", torchrun, 8)):
        # Dropout and the draw of its masks belong to a process.
        options = {"batch_size": batch, "precision": "float64", "ae_dropout": 0.0, "fnorm_penalty": 0.0}
        done = start(command, arguments, tmp_path / name, **options)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(tmp_path / name)
        keys = [("A", "G000"), ("B", "G003"), ("A", "G007"), ("A", "G001+G002")]
        found.append(run.model.predict(keys, run.control_means).profiles)
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-9)
    assert np.abs(found[0][0] - found[0][2]).max() > 1e-6
