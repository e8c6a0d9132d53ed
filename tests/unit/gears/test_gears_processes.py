"""GEARS: two processes equal one with the doubled batch; a killed training ends with the same bits."""

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


KILLER = Path(__file__).parents[1] / "training" / "run_mock.py"
PATH = os.pathsep.join([str(KILLER.parent), str(Path(__file__).parents[2])])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


def arguments(folder, *settings):
    """The words of `train gears` on a small file in `folder`."""
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=20, controls=30)
    write_split(Split({("K562", label): ("train", "") for label in LABELS}, {}), folder / "split.csv")
    genes = [f"G{i:03d}" for i in range(40)]
    rng = np.random.default_rng(2)
    terms = [f"T{i}\t-\t" + "\t".join(sorted(rng.choice(genes, 12, replace=False))) for i in range(12)]
    (folder / "go.gmt").write_text("\n".join([*terms, "all\t-\t" + "\t".join(genes)]) + "\n")
    words = [
        "gears",
        str(data),
        "--split",
        str(folder / "split.csv"),
        "--features",
        f"go:{folder / 'go.gmt'}",
    ]
    words += ["--device", "cpu", "--seed", "4"]
    for setting in ("hidden_size=8", *settings):
        words += ["--set", setting]
    return words


def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    common = arguments(tmp_path, "epochs=4", "batch_size=8", "checkpoint_every=3", "control_pairs=epoch")
    start = [sys.executable, str(KILLER)]

    def train(*words):
        return subprocess.run([*start, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)

    done = train(*common, "-o", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr[-2000:]
    step = random.Random().randrange(1, 60)
    killed = train("die-at", str(step), *common, "-o", str(tmp_path / "killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    again = train(*common, "-o", str(tmp_path / "killed"), "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    for name in ("best", "last"):
        file = Path("checkpoints") / name / "weights.safetensors"
        whole, resumed = (tmp_path / "whole" / file).read_bytes(), (tmp_path / "killed" / file).read_bytes()
        assert whole == resumed, f"killed at step {step}"


@pytest.mark.parametrize("launcher", [ONE_NODE, TWO_NODES], ids=["one-node", "two-nodes"])
@pytest.mark.parametrize("uncertainty", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, uncertainty, launcher):
    common = arguments(
        tmp_path, "steps=20", "precision=float64", "validation=none", f"uncertainty={uncertainty}"
    )
    torchrun = [sys.executable, *launcher]
    effects = []
    for name, start, batch in (("one", [sys.executable], 8), ("two", torchrun, 4)):
        out = tmp_path / name
        command = [
            *start,
            "-m",
            "vcbench.baselines.training",
            *common,
            "--set",
            f"batch_size={batch}",
            "-o",
            str(out),
        ]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        run = load_run(out)
        keys = [("K562", label) for label in ("G000", "G003+G017", "G001+G002+G020")]
        effects.append(run.model.predict(keys, run.control_means).profiles)
    np.testing.assert_allclose(effects[1], effects[0], rtol=0, atol=1e-6)
    assert np.abs(effects[0] - effects[0].mean(axis=0)).max() > 1e-3
