"""Run by the tests in other processes: train CellOT and die, without clean-up, in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys


def die_at(step: int) -> None:
    from vcbench.baselines.cellot.training import CellotTraining

    plain = CellotTraining.train_step

    def train_step(self, batch, optimizers, position):
        if position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, batch, optimizers, position)

    CellotTraining.train_step = train_step


if __name__ == "__main__":
    die_at(int(sys.argv[1]))
    from vcbench.baselines.training.__main__ import main

    sys.exit(main(sys.argv[2:]))
