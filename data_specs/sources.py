"""What every reader of annotated matrices offers: the interface that validation and scoring are written against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .h5ad import DEFAULT_BLOCK_BYTES, Labels, MatrixInfo, RowBlock

Axis = Literal["obs", "var"]


class Source(Protocol):
    """A read-only annotated matrix: a file (`H5ad`), an AnnData in memory (`MemorySource`) or several joined.

    Members mean what they mean in `H5ad`. Closing is the business of whoever opened it.
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def matrix(self) -> MatrixInfo: ...
    @property
    def n_obs(self) -> int: ...
    @property
    def n_vars(self) -> int: ...
    @property
    def genes(self) -> np.ndarray: ...
    @property
    def obs_names(self) -> np.ndarray: ...
    @property
    def obs_columns(self) -> tuple[str, ...]: ...
    @property
    def uns(self) -> dict[str, Any]: ...
    @property
    def vcbench(self) -> dict[str, Any]: ...

    def labels(self, column: str, *, axis: Axis = "obs") -> Labels: ...

    def values(self, column: str, *, axis: Axis = "obs") -> np.ndarray: ...

    def row_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, canonical: bool = True
    ) -> Iterator[RowBlock]: ...
