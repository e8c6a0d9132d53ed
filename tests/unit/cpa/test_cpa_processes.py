"""CPA killed and resumed, and on two processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.split_file import Split, write_split

pytest.importorskip("torch", reason="torch is not installed")

ONE_NODE = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TWO_NODES = (str(Path(__file__).parents[2] / "two_nodes.py"),)
SCRIPT = str(Path(__file__).parent / "run_cpa.py")
LABELS = ("G000", "G001", "G002", "G003", "G000+G001")
SMALL = {
    "n_latent": 6,
    "n_hidden_encoder": 10,
    "n_hidden_decoder": 9,
    "n_hidden_adv": 7,
    "n_samples": 60,
    "validation_samples": 40,
    "n_epochs_adv_warmup": 2,
    "patience": 0,
}


def start(*arguments, launcher: Sequence[str] = (), threads: int = 1):
    command = [sys.executable, *launcher, SCRIPT, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def options(data: Path, split: Path, **settings) -> list[str]:
    sets = [text for name, value in {**SMALL, **settings}.items() for text in ("--set", f"{name}={value}")]
    return ["cpa", str(data), "--split", str(split), "--device", "cpu", "--quiet", "--seed", "4", *sets]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpa")
    rng = np.random.default_rng(0)
    n = 2 * (30 + 20 * len(LABELS))
    batches = np.array(["one", "two"])[rng.integers(0, 2, n)].tolist()
    data = standard_h5ad(
        folder / "data.h5ad",
        perturbations=LABELS,
        contexts=("K562", "RPE1"),
        cells=20,
        controls=30,
        obs={"batch": batches},
    )
    rows = {(context, label): ("train", "") for context in ("K562", "RPE1") for label in LABELS}
    write_split(Split({**rows, ("RPE1", "G003"): ("test", "")}, {}), folder / "split.csv")
    return data, folder / "split.csv"


def test_a_killed_training_resumes_to_the_same_bits(files, tmp_path):
    """With dropout, mixup, a covariate, phases that count the steps of all optimizers, and another thread count."""
    settings = {
        "epochs": 5,
        "batch_size": 32,
        "checkpoint_every": 2,
        "validate_every": 2,
        "covariates": "batch",
        "batch_key": "batch",
        "mixup_alpha": 0.3,
        "n_steps_pretrain_ae": 12,
        "n_steps_adv_warmup": 20,
        "count_steps": "optimizer",
        "dropout_rate_encoder": 0.2,
    }
    chosen = options(*files, **settings)
    done = start(*chosen, "-o", tmp_path / "whole")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    step = random.Random().randrange(1, json.loads(lines[-1])["step"])
    killed = start("die-at", step, *chosen, "-o", tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "killed" / "card.md").exists()
    done = start(*chosen, "-o", tmp_path / "killed", "--resume", threads=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("best", "last"):
        file = Path("checkpoints") / name / "weights.safetensors"
        whole, again = (tmp_path / "whole" / file).read_bytes(), (tmp_path / "killed" / file).read_bytes()
        assert whole == again, f"killed at step {step}"


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup_alpha": 0.4, "adv_steps": 0, "use_batch_norm_decoder": "true"},
        pytest.param({"recon_loss": "gauss", "clip": "norm", "adv_loss": "focal"}, marks=pytest.mark.slow),
        pytest.param(
            {"recon_loss": "zinb", "adv_steps": 2, "n_epochs_pretrain_ae": 0}, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize(
    "launcher", [ONE_NODE, pytest.param(TWO_NODES, marks=pytest.mark.slow)], ids=["one-node", "two-nodes"]
)
def test_two_processes_equal_one_with_the_doubled_batch(files, tmp_path, changes, launcher):
    """Batch statistics, class weights, mixing partners and second derivatives run over both processes."""
    settings = {
        "steps": 20,
        "precision": "float64",
        "validation": "none",
        "n_epochs_pretrain_ae": 1,
        "dropout_rate_encoder": 0.0,
        "dropout_rate_adv": 0.0,
        **changes,
    }
    profiles = []
    for name, chosen, batch in (("one", (), 24), ("two", launcher, 12)):
        done = start(*options(*files, **settings, batch_size=batch), "-o", tmp_path / name, launcher=chosen)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(tmp_path / name)
        keys = [("K562", "G000"), ("RPE1", "G003"), ("K562", "G001+G002")]
        profiles.append(run.model.predict(keys, run.control_means).profiles)
        weights = {key: value.double().numpy() for key, value in run.model.module.state_dict().items()}
        if name == "one":
            first = weights
    for key, value in weights.items():
        # Biases in front of a batch norm have no gradient but rounding, which Adam turns into steps.
        if not key.endswith((".0.bias", "running_mean")):
            np.testing.assert_allclose(value, first[key], rtol=0, atol=1e-7, err_msg=key)
    # Sampled counts: a draw may jump by one where a rate differs in its last digits.
    np.testing.assert_allclose(profiles[1], profiles[0], rtol=0, atol=1e-3)
    assert np.abs(profiles[0][0] - profiles[0][2]).max() > 1e-3
