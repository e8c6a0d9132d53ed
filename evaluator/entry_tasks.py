"""Whole entries as tasks for the workers of an executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ..data_specs.errors import InvalidFile, MetricError
from ..data_specs.remote import absolute_text, input_path, is_path_like
from .truth_files import listed_truths

if TYPE_CHECKING:
    from ..data_specs.h5ad import H5ad
    from .executors import Executor
    from .pipelines import Progress
    from .scoring import Scored
    from .uncertainty.cell_noise import Draw

TASKS_PER_WORKER = 3
# Arguments of `Scorer` that stay in the process that asks.
NOT_SENT = ("self", "progress", "keep_truth", "executor")


@dataclass(frozen=True)
class EntryTask:
    """One entry for a worker: the path of its file, the arguments of `Scorer`, what made it, and who asked."""

    pred: str
    arguments: dict[str, Any]
    provenance: dict[str, str]
    command: str | None


def sent_arguments(arguments: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """Arguments of `Scorer` for a worker, which may run in another folder: paths are absolute."""
    out = {key: value for key, value in arguments.items() if key not in NOT_SENT}
    out["truth"] = [(context, absolute(item)) for context, item in listed_truths(out["truth"])]
    out["split"], out["tmp"] = absolute(out["split"]), absolute(out["tmp"])
    out["references"] = {
        name: absolute(item) if is_path_like(item) and input_path(item).exists() else item
        for name, item in (out["references"] or {}).items()
    }
    return out | {"threads": threads}


def absolute(item: Any) -> Any:
    """A path as absolute text; anything else as it is."""
    return absolute_text(item) if is_path_like(item) else item


def score_task(task: EntryTask) -> Scored | InvalidFile | MetricError:
    """Score the entry of a task in this process, as `Scorer.score` does; its error is returned, not raised."""
    from .scoring import Scorer

    with Scorer(**task.arguments, keep_truth=False) as scorer:
        try:
            return scorer.score(task.pred, provenance=task.provenance, command=task.command)
        except (InvalidFile, MetricError) as error:
            return error


@dataclass(frozen=True)
class DrawsTask:
    """Some draws of the cells of an entry for a worker: the entry's h5ad, the arguments of `Scorer`, their numbers."""

    pred: str
    arguments: dict[str, Any]
    numbers: tuple[int, ...]


def divided_draws(
    executor: Executor, pred: H5ad, arguments: dict[str, Any], n_draws: int, progress: Progress
) -> list[Draw | None]:
    """`Scorer.draws` of all draws by the workers of an executor, in several tasks each: a lost one costs little."""
    n_tasks = min(n_draws, TASKS_PER_WORKER * executor.n_workers)
    bounds = [n_draws * i // n_tasks for i in range(n_tasks + 1)]
    path, plain = str(pred.opened_path), arguments | {"cell_resamples": 0}
    tasks = [DrawsTask(path, plain, tuple(range(low, high))) for low, high in pairwise(bounds)]
    files = [path, *(item for _, item in arguments["truth"])]
    parts = executor.map(
        score_draws_task, tasks, done=lambda n, of: progress(n, of, "drawing the cells anew"), files=files
    )
    return [draw for part in parts for draw in part]


def score_draws_task(task: DrawsTask) -> list[Draw | None]:
    """The scored draws of a task, in order."""
    from .scoring import Scorer

    with Scorer(**task.arguments, keep_truth=False) as scorer:
        return scorer.draws(task.pred, task.numbers)
