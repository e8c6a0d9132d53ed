"""Kill -9 in the middle of training, and two processes against one."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="deep models need the extra vcbench[train]")

import torch
from builders import standard_h5ad
from mock_model import MockModel
from vcbench.baselines import registry
from vcbench.baselines.training.__main__ import main
from vcbench.baselines.training.config import TrainingConfig
from vcbench.baselines.training.distributed import Processes
from vcbench.baselines.training.loop import fit

ONE_NODE = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TWO_NODES = (str(Path(__file__).parents[2] / "two_nodes.py"),)
SCRIPT = str(Path(__file__).parent / "run_mock.py")
PATH = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}


def start(*arguments, launcher=()):
    command = [sys.executable, *launcher, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.DEEP, "mock", ("mock_deep:MockDeep", "Embedding times decoder"))
    return standard_h5ad(tmp_path / "data.h5ad", cells=16, controls=30)


def test_a_killed_training_resumes_to_the_same_bits(data, tmp_path):
    options = [
        "mock",
        str(data),
        "--device",
        "cpu",
        "--set",
        "checkpoint_every=2",
        "--set",
        "epochs=9",
        "--quiet",
    ]
    whole = start(*options, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    step = random.Random().randrange(1, json.loads(lines[-1])["step"])
    killed = start("die-at", step, *options, "-o", tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "card.md").exists()
    assert main([*options, "-o", str(tmp_path / "killed"), "--resume"]) == 0
    for name in ("best", "last"):
        file = Path("checkpoints") / name / "weights.safetensors"
        whole, again = (tmp_path / "whole" / file).read_bytes(), (tmp_path / "killed" / file).read_bytes()
        assert whole == again, f"killed at step {step}"
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and len(steps) == 9


@pytest.mark.parametrize("launcher", [ONE_NODE, TWO_NODES], ids=["one-node", "two-nodes"])
def test_two_processes_equal_one_with_the_doubled_batch(data, tmp_path, launcher):
    done = start("two-processes", tmp_path / "two", data, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    config = TrainingConfig(
        epochs=5, steps=20, batch_size=12, lr=0.01, precision="float64", clip="norm", clip_at=0.5
    )
    torch.manual_seed(0)
    model = MockModel(config, norm=True)
    result = fit(model, config, seed=3, folder=tmp_path / "one", processes=Processes(torch.device("cpu")))
    assert result.steps == 20
    model.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(two["outputs"], model.module(model.x), rtol=0, atol=1e-6)
    for name, value in model.module.state_dict().items():
        # The bias before batch norm has no gradient but rounding, which Adam turns into steps.
        if name not in ("0.bias", "1.running_mean"):
            torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-9)
    lines = [(tmp_path / folder / "metrics.jsonl").read_text().splitlines() for folder in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 5
    for one, other in zip(*lines, strict=True):
        assert json.loads(one)["loss"] == pytest.approx(json.loads(other)["loss"], rel=1e-9)
    # The command, in the same two processes: one summary, one run folder; a simple model is refused.
    printed = json.loads(done.stdout)
    assert (
        printed["model"] == "mock" and "2 process(es)" in (tmp_path / "two" / "run" / "card.md").read_text()
    )
    assert (
        main(
            [
                "mock",
                str(data),
                "--device",
                "cpu",
                "--set",
                "epochs=2",
                "--quiet",
                "-o",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    left, right = (
        json.loads((tmp_path / f / "metrics.jsonl").read_text().splitlines()[-1]) for f in ("run", "two/run")
    )
    assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
    assert "fitted in one process" in done.stderr


def test_a_lost_node_ends_the_training_which_resumes_to_the_same_bits(data, tmp_path):
    words = ["mock", data, "--device", "cpu", "--set", "checkpoint_every=2", "--set", "epochs=9", "--quiet"]
    whole = start(*words, "-o", tmp_path / "whole", launcher=TWO_NODES)
    assert whole.returncode == 0, whole.stderr[-2000:]
    lost = start("die-at", "7:1", *words, "-o", tmp_path / "lost", launcher=TWO_NODES)
    assert lost.returncode != 0 and not (tmp_path / "lost" / "card.md").exists()
    assert (tmp_path / "lost" / "checkpoints" / "last").is_dir()
    again = start(*words, "-o", tmp_path / "lost", "--resume", launcher=TWO_NODES)
    assert again.returncode == 0, again.stderr[-2000:]
    for name in ("best", "last"):
        file = Path("checkpoints") / name / "weights.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "lost" / file).read_bytes()


def test_nodes_that_differ_are_refused(data, tmp_path):
    standard_h5ad(tmp_path / "data0.h5ad", cells=16, controls=30)
    standard_h5ad(tmp_path / "data1.h5ad", cells=16, controls=30, seed=1)
    more = ["--device", "cpu", "--set", "epochs=2", "--quiet"]
    done = start("mock", tmp_path / "data{node}.h5ad", *more, "-o", tmp_path / "other", launcher=TWO_NODES)
    assert done.returncode != 0 and "differ in: data, split or features" in done.stderr
    assert not (tmp_path / "other").exists()
    one = start("mock", data, *more, "-o", tmp_path / "disk0", launcher=TWO_NODES)
    assert one.returncode == 0, one.stderr[-2000:]
    (tmp_path / "disk0" / "card.md").unlink()
    again = start("mock", data, *more, "-o", tmp_path / "disk{node}", "--resume", launcher=TWO_NODES)
    assert again.returncode != 0 and "differ in: the checkpoint to resume from" in again.stderr
