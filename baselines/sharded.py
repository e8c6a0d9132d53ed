"""A panel predicted by several processes: each loads the run and predicts some of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..evaluator.executors import Executor
from .base import Key, Prediction
from .run_folder import Run, load_run


@dataclass(frozen=True)
class PredictTask:
    """Some rows of a panel, for a worker that can open the run folder by its path."""

    folder: Path
    device: str
    keys: tuple[Key, ...]
    control_means: dict[str, np.ndarray]
    threads: int


def predict_part(task: PredictTask) -> Prediction:
    """The profiles of a task's rows; errors as `Run` and its model raise them."""
    run = load_run(task.folder, device=task.device)
    _limit_torch(task.threads)
    return run.model.predict(task.keys, task.control_means)


def _limit_torch(threads: int) -> None:
    import sys

    # Simple models never load torch.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def predict_divided(
    run: Run, keys: Sequence[Key], control_means: Mapping[str, np.ndarray], executor: Executor
) -> Prediction:
    """`run.model.predict` by the workers of an executor, rows in order.

    Every row is predicted by itself, so the parts hold the numbers of the whole.
    """
    n_parts = max(1, min(executor.n_workers, len(keys)))
    bounds = np.linspace(0, len(keys), n_parts + 1).astype(int)
    tasks = [
        PredictTask(
            run.folder.absolute(), run.device, tuple(keys[low:high]), dict(control_means), executor.threads
        )
        for low, high in pairwise(bounds)
    ]
    parts = executor.map(predict_part, tasks, files=[run.folder.absolute()])
    return Prediction(
        tuple(key for part in parts for key in part.keys),
        np.concatenate([part.profiles for part in parts]),
        tuple(status for part in parts for status in part.status),
        tuple(reason for part in parts for reason in part.reason),
    )
