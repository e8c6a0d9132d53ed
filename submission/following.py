"""Work on blocks of rows in a thread of its own, in order, while the next blocks are made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import scipy.sparse as sp

OnBlock = Callable[[sp.csr_array, int], Any]


class Following:
    """Calls `work` with every block given to `at`, one after the other. Use as a context manager.

    At most `waiting` blocks wait for the thread; with 0 there is none, and `at` does the work itself. The block ends
    when all work is done; an error of `work` is raised there, or by the next `at`.
    """

    def __init__(self, work: OnBlock, *, waiting: int):
        self._work = work
        self._error: BaseException | None = None
        self._blocks: queue.Queue[tuple[sp.csr_array, int] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True) if waiting else None

    def __enter__(self) -> Following:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._blocks.put(None)
            self._thread.join()
        if kind is None:
            self._raise()

    def at(self, rows: sp.csr_array, start: int) -> None:
        """Hand over rows, the first of them row `start`; they must not change afterwards."""
        if self._thread is None:
            self._work(rows, start)
            return
        self._raise()
        self._blocks.put((rows, start))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        while (block := self._blocks.get()) is not None:
            if self._error is None:
                try:
                    self._work(*block)
                except BaseException as error:
                    self._error = error
