"""Compilation of kernels, cached between processes wherever the system lets it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

Function = Callable[..., Any]


def compiled(*, parallel: bool = False) -> Callable[[Function], Function]:
    """numba's `njit` with its cache beside the source, or in the user's cache folder where the package is read-only.

    Where neither can be written, each process compiles anew: slower to start, never a failure.
    """

    def compile_lazily(function: Function) -> Function:
        try:
            return njit(cache=True, parallel=parallel)(function)
        except RuntimeError:
            return njit(parallel=parallel)(function)

    return compile_lazily
