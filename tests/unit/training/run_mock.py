"""Run by the tests in other processes: train a mock model, die at a step, or train on several processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from vcbench.baselines import registry

MOCK_ENTRY = ("mock_deep:MockDeep", "Embedding times decoder")


def die_at(step: int, rank: str = "") -> None:
    """Kill this process (no clean-up runs) at the start of optimizer step `step`, whatever model trains.

    With a rank, only the process that has it.
    """
    from vcbench.baselines.training.optimizers import Optimizers

    plain = Optimizers.start_pass

    def start_pass(self, position, factor):
        if position.step == step and rank in ("", os.environ.get("RANK")):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, position, factor)

    Optimizers.start_pass = start_pass


def two_processes(out: Path, data: str) -> None:
    """Train the linear mock with batch norm on every process, save the main one's outputs, then run the command."""
    import torch
    from mock_model import MockModel
    from process_checks import check_batch_norm, check_gradient_sums
    from vcbench.baselines.training.config import TrainingConfig
    from vcbench.baselines.training.distributed import start_processes
    from vcbench.baselines.training.loop import fit

    processes = start_processes(torch.device("cpu"))
    config = TrainingConfig(
        epochs=5, steps=20, batch_size=6, lr=0.01, precision="float64", clip="norm", clip_at=0.5
    )
    torch.manual_seed(0)
    model = MockModel(config, norm=True)
    fit(model, config, seed=3, folder=out, processes=processes)
    check_batch_norm(processes)
    check_gradient_sums(processes)
    if processes.is_main:
        model.module.eval()
        torch.save(
            {"outputs": model.module(model.x).detach(), **model.module.state_dict()}, out / "result.pt"
        )
    from vcbench.baselines.training.__main__ import main

    options = ["--device", "cpu", "--set", "epochs=2", "--set", "batch_size=8", "--format", "json"]
    assert main(["mock", data, *options, "-o", str(out / "run")]) == 0
    assert main(["mean", data, "-o", str(out / "simple")]) == 2


if __name__ == "__main__":
    registry.DEEP["mock"] = MOCK_ENTRY
    if sys.argv[1] == "two-processes":
        two_processes(Path(sys.argv[2]), sys.argv[3])
    else:
        if sys.argv[1] == "die-at":
            step, _, rank = sys.argv[2].partition(":")
            die_at(int(step), rank)
            del sys.argv[1:3]
        from vcbench.baselines.training.__main__ import main

        sys.exit(main(sys.argv[1:]))
