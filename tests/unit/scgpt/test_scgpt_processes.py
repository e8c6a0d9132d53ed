"""scGPT: two processes equal one with the doubled batch; a killed training ends with the same bits."""

from __future__ import annotations

import os
import random
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

ONE_NODE = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TWO_NODES = (str(Path(__file__).parents[2] / "two_nodes.py"),)
LABELS = ("G000", "G001", "G002", "G003", "G000+G001")
SETTINGS = {
    "steps": 12,
    "precision": "float64",
    "validation": "none",
    "d_model": 8,
    "nhead": 2,
    "nlayers": 2,
    "d_hid": 8,
    "max_seq_len": 20,
    "warmup": 0,
}


KILLER = Path(__file__).parents[1] / "training" / "run_mock.py"
PATH = os.pathsep.join([str(KILLER.parent), str(Path(__file__).parents[2])])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


def arguments(folder, **settings):
    """The words of `train scgpt` on a small file in `folder`."""
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=20, controls=30)
    write_split(Split({("K562", label): ("train", "") for label in LABELS}, {}), folder / "split.csv")
    words = ["scgpt", str(data), "--split", str(folder / "split.csv"), "--device", "cpu", "--seed", "4"]
    for name, value in {**SETTINGS, **settings}.items():
        words += ["--set", f"{name}={value}"]
    return words


def run_python(*words):
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr[-2000:]


def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    common = arguments(
        tmp_path,
        steps=0,
        epochs=3,
        batch_size=8,
        checkpoint_every=3,
        dropout=0.1,
        precision="float32",
        validation="cells",
    )
    code, told = run_python(str(KILLER), *common, "-o", str(tmp_path / "whole"))
    assert code == 0, told
    step = random.Random().randrange(1, 40)
    code, told = run_python(str(KILLER), "die-at", str(step), *common, "-o", str(tmp_path / "killed"))
    assert code == -signal.SIGKILL, told
    code, told = run_python(str(KILLER), *common, "-o", str(tmp_path / "killed"), "--resume")
    assert code == 0, told
    for name in ("best", "last"):
        file = Path("checkpoints") / name / "weights.safetensors"
        whole, resumed = (tmp_path / "whole" / file).read_bytes(), (tmp_path / "killed" / file).read_bytes()
        assert whole == resumed, f"killed at step {step}"


@pytest.mark.parametrize(
    "more",
    [
        {"variant": "legacy_bn", "include_zero_gene": "cell-wise"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"include_zero_gene": "batch-wise"}, marks=pytest.mark.slow),
        pytest.param({"variant": "legacy_bn", "max_seq_len": 6}, marks=pytest.mark.slow),
    ],
    ids=lambda more: "-".join(more) or "default",
)
@pytest.mark.parametrize(
    "launcher", [ONE_NODE, pytest.param(TWO_NODES, marks=pytest.mark.slow)], ids=["one-node", "two-nodes"]
)
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, more, launcher):
    common = arguments(tmp_path, **more)
    effects = []
    for name, start, batch in (("one", [], 8), ("two", launcher, 4)):
        out = tmp_path / name
        size = ["--set", f"batch_size={batch}", "-o", str(out)]
        code, told = run_python(*start, "-m", "vcbench.baselines.training", *common, *size)
        assert code == 0, told
        run = load_run(out)
        keys = [("K562", label) for label in ("G000", "G003+G017", "G001+G002+G020")]
        effects.append(run.model.predict(keys, run.control_means).profiles)
    np.testing.assert_allclose(effects[1], effects[0], rtol=0, atol=1e-6)
    assert np.abs(effects[0] - effects[0].mean(axis=0)).max() > 1e-3
