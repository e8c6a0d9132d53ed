"""Executors and tasks for their tests: tasks must be found by name in other processes."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

from vcbench.data_specs.errors import InvalidFile, MetricError
from vcbench.data_specs.issues import Issue


class Here:
    """An executor that runs its tasks in this process, through pickles."""

    def __init__(self, n_workers, threads=1):
        self.n_workers, self.threads, self.seen, self.files = n_workers, threads, [], []

    def map(self, function, tasks, *, done=None, files=()):
        self.seen += tasks
        self.files += files
        out = []
        for i, task in enumerate(tasks):
            out.append(pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(task))))))
            if done is not None:
                done(i + 1, len(tasks))
        return out


def square(task: int) -> int:
    return task * task


def double(task: int) -> int:
    return 2 * task


def fails(task: int | Issue) -> int:
    if isinstance(task, Issue):
        raise InvalidFile([task])
    if task:
        raise MetricError(f"task {task} has no value")
    return 0


def dies_once(task: tuple[int, Path | None]) -> int:
    """Ten times the number; where a path is given, the first process to come by kills itself."""
    number, path = task
    if path is not None and not path.exists():
        path.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def always_dies(path: Path) -> None:
    with path.open("a") as handle:
        handle.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
