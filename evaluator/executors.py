"""Where the parts of a scoring run are computed: in worker processes of this machine, or of a Dask cluster.

A part is a picklable task with the paths of its files; its result is plain arrays. Executors only run tasks, so results
do not depend on them. A worker that dies costs time: its tasks run again, at most `MOST_TRIES` times.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..data_specs.errors import UsageError, WorkersLost
from ..data_specs.remote import is_remote
from .kernels.idle import let_idle_threads_sleep

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST_TRIES = 4
LOCAL, PROCESSES, DASK = "local", "processes", "dask://"
FORMS = "local, processes, processes:N or dask://HOST:PORT"


class Executor(Protocol):
    """Runs tasks on `n_workers` workers of `threads` threads each."""

    n_workers: int
    threads: int

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        done: Callable[[int, int], None] | None = None,
        files: Sequence[str | os.PathLike[str]] = (),
    ) -> list[Result]:
        """`function(task)` of every task, in order; `done(finished, all)` is called as they end.

        `files` are what the tasks open: absolute local paths, or URLs, which any worker can open.

        Raises
        ------
        UsageError
            A worker does not see one of the local files.
        WorkersLost
            A task whose worker died `MOST_TRIES` times.
        """
        ...


@contextmanager
def open_executor(text: str, *, threads: int | None = None) -> Iterator[Executor | None]:
    """The executor that a text names; None for `local`, where nothing is sent away.

    Parameters
    ----------
    text
        `local`; `processes` (one per CPU) or `processes:N` on this machine; `dask://HOST:PORT` of a scheduler.
    threads
        Threads of every worker; None: the CPUs of this machine shared among its processes, one on Dask workers.

    Raises
    ------
    UsageError
        Another text, no `distributed`, no scheduler at this address, or workers with another version of vcbench.
    """
    if text == LOCAL:
        yield None
    elif text == PROCESSES or text.startswith(f"{PROCESSES}:"):
        with _Processes(_number(text), threads) as found:
            yield found
    elif text.startswith(DASK):
        with _Dask(text.removeprefix(DASK), threads) as found:
            yield found
    else:
        raise UsageError(f"--executor {text!r}: give {FORMS}.")


def _number(text: str) -> int:
    _, _, number = text.partition(":")
    if text == PROCESSES:
        return cpus()
    if not number.isdecimal() or int(number) < 1:
        raise UsageError(f"--executor {text!r}: give {FORMS}.")
    return int(number)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Processes:
    """Spawned processes of this machine; they live until the block ends."""

    def __init__(self, n_workers: int, threads: int | None):
        self.n_workers = n_workers
        self.threads = threads or max(1, cpus() // n_workers)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.n_workers, mp_context=context, initializer=let_idle_threads_sleep
            )
        return self._pool

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        done: Callable[[int, int], None] | None = None,
        files: Sequence[str | os.PathLike[str]] = (),
    ) -> list[Result]:
        results: dict[int, Result] = {}
        for _ in range(MOST_TRIES):
            left = [i for i in range(len(tasks)) if i not in results]
            pool = self._started()
            futures = {}
            broken = False
            try:
                for i in left:
                    futures[pool.submit(function, tasks[i])] = i
            except BrokenProcessPool:
                broken = True
            broken |= _gathered(futures, results, len(tasks), done)
            if not broken:
                return [results[i] for i in range(len(tasks))]
            # One dead process takes the whole pool with it; what it had finished is kept.
            self._close()
        raise WorkersLost(
            f"{len(tasks) - len(results)} of {len(tasks)} parts lost their process {MOST_TRIES} times; "
            "is there enough memory? Lower --memory or the number of processes."
        )


def _gathered(
    futures: dict[Future[Result], int],
    results: dict[int, Result],
    n_tasks: int,
    done: Callable[[int, int], None] | None,
) -> bool:
    """Put what ends well into `results`; whether a process died. Raises the error of the first task that has one."""
    errors: dict[int, BaseException] = {}
    broken = False
    for future in as_completed(futures):
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            broken = True
        elif error is not None:
            errors[futures[future]] = error
        else:
            results[futures[future]] = future.result()
            if done is not None:
                done(len(results), n_tasks)
    if errors:
        raise errors[min(errors)]
    return broken


class _Dask:
    """The workers of a Dask scheduler, through its `concurrent.futures` interface."""

    def __init__(self, address: str, threads: int | None):
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError(
                '--executor dask://… needs Dask: pip install "vcbench[dask]", here and on the workers.'
            ) from error
        try:
            self._client: Any = Client(address, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(f"--executor dask://{address}: no scheduler answers ({error}).") from error
        try:
            self._client.wait_for_workers(1, timeout=60)
        except (OSError, TimeoutError) as error:
            self._client.close()
            raise UsageError(
                f"--executor dask://{address}: no scheduler with workers answers ({error})."
            ) from error
        self.n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        self.threads = threads or 1

    def __enter__(self) -> _Dask:
        other = sorted(set(self._client.run(_version).values()) - {_version()})
        if other:
            self._client.close()
            raise UsageError(f"the Dask workers have vcbench {', '.join(other)}, this is {_version()}.")
        self._client.run(let_idle_threads_sleep)
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        done: Callable[[int, int], None] | None = None,
        files: Sequence[str | os.PathLike[str]] = (),
    ) -> list[Result]:
        from distributed.scheduler import KilledWorker

        self._refuse_unseen(files)
        # Retries are for workers that the scheduler takes as failed; an error of the task itself is final.
        with self._client.get_executor(pure=False) as pool:
            futures = {pool.submit(function, task): i for i, task in enumerate(tasks)}
            results: dict[int, Result] = {}
            try:
                _gathered(futures, results, len(tasks), done)
            except KilledWorker as error:
                raise WorkersLost(f"a part lost its Dask worker too often: {error}") from error
        return [results[i] for i in range(len(tasks))]

    def _refuse_unseen(self, files: Sequence[str | os.PathLike[str]]) -> None:
        local = sorted({str(file) for file in files if not is_remote(file)})
        # A worker that dies while it is asked is no answer; its tasks go elsewhere.
        answers = self._client.run(_unseen, local, on_error="ignore") if local else {}
        for worker, unseen in sorted(answers.items()):
            if unseen:
                raise UsageError(
                    f"{unseen[0]}: worker {worker} does not see it. Workers open files themselves: give a URL or a "
                    "path of a shared disk (and --tmp there for a .vcc)."
                )


def _unseen(files: Sequence[str]) -> list[str]:
    return [file for file in files if not Path(file).exists()]


def _version() -> str:
    return version("vcbench")
