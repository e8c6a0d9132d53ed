"""Checkpoints: whole or not at all, finite, and nothing in them is executed."""

import json
import os
import pickle
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="deep models need the extra vcbench[train]")

import torch
from vcbench.baselines.training import checkpoint
from vcbench.baselines.training.checkpoint import (
    find_checkpoint,
    load_into,
    load_training,
    load_weights,
    save_checkpoint,
)
from vcbench.data_specs.errors import ModelError, OutputError


def save(root, value):
    weights = {"w": torch.full((3,), float(value)), "n": torch.tensor(value)}
    more = lambda folder: (folder / "facts.json").write_text(json.dumps(value))  # noqa: E731
    return save_checkpoint(root, "last", weights=weights, training={"value": value}, write_more=more)


def stored(root):
    """The value of the checkpoint, checked to be the same in all of its files."""
    folder = find_checkpoint(root, "last")
    weights = load_weights(folder)
    values = {int(weights["n"]), int(weights["w"][2]), load_training(folder)["value"]}
    values.add(json.loads((folder / "facts.json").read_text()))
    assert len(values) == 1
    return values.pop()


def killed_at(call: int, root: Path) -> bool:
    """Save value 2 in a child that is killed before its `call`-th change of the disk; whether that happened."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    left = [call]

    def dying(function):
        def wrapped(*args, **options):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return wrapped

    for name in ("rename", "mkdir", "write_bytes", "write_text"):
        setattr(Path, name, dying(getattr(Path, name)))
    checkpoint._sync = dying(checkpoint._sync)
    checkpoint.shutil.rmtree = dying(checkpoint.shutil.rmtree)
    try:
        save(root, 2)
    finally:
        os._exit(0)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(checkpoint, "_exchange", lambda left, right: False)
    seen, call = [], 0
    while True:
        root = tmp_path / str(call)
        save(root, 1)
        if not killed_at(call, root):
            assert stored(root) == 2
            break
        seen.append(stored(root))
        # The next save cleans up and works.
        save(root, 3)
        assert stored(root) == 3 and sorted(p.name for p in root.iterdir()) == ["last"]
        call += 1
    assert call >= 8 and seen == sorted(seen) and {1, 2} == set(seen)


def test_weights_that_are_not_finite_are_refused_and_the_old_ones_stay(tmp_path):
    save(tmp_path, 1)
    bad = {"good": torch.ones(2), "bad": torch.tensor([1.0, float("inf")])}
    with pytest.raises(ModelError, match=r"1 of 2 weights are not finite \(first: bad\); not saved"):
        save_checkpoint(tmp_path, "last", weights=bad)
    assert stored(tmp_path) == 1


def test_a_folder_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"the disk is full\); the checkpoint before stays"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert stored(tmp_path) == 1


class Touch:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_malicious_training_state_is_refused_without_running(tmp_path, kind):
    folder = save(tmp_path, 1)
    proof = tmp_path / "executed"
    if kind == "pickle":
        (folder / "training.pt").write_bytes(pickle.dumps({"value": Touch(proof)}, protocol=2))
    else:
        torch.save({"value": Touch(proof)}, folder / "training.pt")
    with pytest.raises(ModelError, match="not a training state that vcbench wrote"):
        load_training(folder)
    assert not proof.exists()


def test_broken_files_are_refused(tmp_path):
    folder = save(tmp_path, 1)
    whole = (folder / "training.pt").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"not a checkpoint"):
        (folder / "training.pt").write_bytes(broken)
        with pytest.raises(ModelError, match="not a training state"):
            load_training(folder)
    torch.save([1, 2], folder / "training.pt")
    with pytest.raises(ModelError, match="a list"):
        load_training(folder)
    whole = (folder / "weights.safetensors").read_bytes()
    for broken in (b"", whole[:20], whole[:-4]):
        (folder / "weights.safetensors").write_bytes(broken)
        with pytest.raises(ModelError, match="not readable weights"):
            load_weights(folder)
    (folder / "weights.safetensors").write_bytes(whole[:-4] + b"\x00\x00\x80\x7f")
    with pytest.raises(ModelError, match="weights are not finite"):
        load_weights(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="not readable weights"):
        load_weights(folder)


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path, "best", weights=torch.nn.Linear(3, 2).state_dict())
    with pytest.raises(ModelError, match="weights of another model"):
        load_into(torch.nn.Linear(2, 2), folder)
    assert find_checkpoint(tmp_path, "last") is None
