"""The thread count of numba kernels, set for one block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

from ...data_specs.errors import UsageError

_MOST: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportPrivateImportUsage, reportAttributeAccessIssue]


@contextmanager
def numba_threads(threads: int | None) -> Iterator[int]:
    """Run the block with `threads` numba threads (None: the current number) and yield how many it gets.

    More threads than numba was started with are cut to that number. Raises `UsageError` below one.
    """
    before = numba.get_num_threads()
    if threads is None:
        yield before
        return
    if threads < 1:
        raise UsageError(f"{threads} threads; at least one is needed.")
    numba.set_num_threads(min(threads, _MOST))
    try:
        yield numba.get_num_threads()
    finally:
        numba.set_num_threads(before)
