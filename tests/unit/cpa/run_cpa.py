"""Run by the tests in other processes: the training command, killed in the middle of a step where asked."""

from __future__ import annotations

import os
import signal
import sys


def die_at(step: int) -> None:
    """Kill this process (no clean-up runs) between the autoencoder's part of a step and its end."""
    from vcbench.baselines.cpa.training import CpaTraining

    plain = CpaTraining.train_step

    def train_step(self, batch, optimizers, position):
        found = plain(self, batch, optimizers, position)
        if position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    CpaTraining.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "die-at":
        die_at(int(sys.argv[2]))
        del sys.argv[1:3]
    from vcbench.baselines.training.__main__ import main

    sys.exit(main(sys.argv[1:]))
