"""Rows of an opened source with their group codes: one side of a panel, read in blocks as often as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...data_specs.errors import ShapeError
from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES, RowBlock, row_windows
from ..kernels.blocks import row_chunks
from ..kernels.threads import numba_threads
from .kernels import row_sums

if TYPE_CHECKING:
    import scipy.sparse as sp

    from ..executors import Executor

CELL_TARGET_SUM = 1e6
OnRows = Callable[[int, int], None]


class RowSource(Protocol):
    """Anything that gives its rows in blocks: an opened file, an object in memory, or generated cells."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def n_obs(self) -> int: ...
    @property
    def n_vars(self) -> int: ...

    def row_blocks(
        self, *, max_bytes: int = ..., canonical: bool = True, wanted: np.ndarray | None = None
    ) -> Iterator[RowBlock]: ...


class ValueCheck:
    """The check that values are counts, put off to the pass that reads them.

    A pass that finds whole numbers and totals up to `max_cell_total` has proved it; any other calls `run`, which reads
    everything (once) and raises `InvalidFile` where something is wrong.
    """

    def __init__(self, max_cell_total: float, run: Callable[[], None]):
        self.max_cell_total, self._run, self._done = max_cell_total, run, False

    def run(self) -> None:
        if not self._done:
            self._run()
            self._done = True


@dataclass(frozen=True)
class Cells:
    """The rows of `source` whose group code is not negative; `groups` is int64, shape (n_obs,).

    `memory` is the caller's budget in bytes, `device` where rank sums are taken (`kernels.devices`); `on_rows` is
    called with (rows done, rows in all) while blocks are read;
    `check` is None when the values are known to be counts; `executor` measures them by its workers (`partial`).
    """

    source: RowSource
    groups: np.ndarray
    block_bytes: int = DEFAULT_BLOCK_BYTES
    memory: int | None = None
    on_rows: OnRows | None = None
    check: ValueCheck | None = None
    device: str = "cpu"
    executor: Executor | None = None

    def __post_init__(self) -> None:
        if len(self.groups) != self.source.n_obs:
            raise ShapeError(f"{len(self.groups):,} groups for {self.source.n_obs:,} rows")

    def blocks(self) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
        """(rows, group codes) in file order and dtype, canonical; blocks without a wanted row are left out."""
        for block in self.source.row_blocks(max_bytes=self.block_bytes, wanted=self.groups >= 0):
            codes = self.groups[block.start : block.stop]
            if (codes >= 0).any():
                yield block.matrix, codes
                if self.on_rows is not None:
                    self.on_rows(block.stop, self.source.n_obs)

    def with_groups(self, groups: np.ndarray) -> Cells:
        """The same source under other group codes."""
        return replace(self, groups=np.ascontiguousarray(groups, dtype=np.int64))


class HeldRows:
    """A source of canonical rows, in memory or mapped; its blocks are views, for readers that change nothing."""

    def __init__(self, rows: sp.csr_array, *, name: str):
        self.name, self.path, self.rows = name, Path(name), rows
        self.n_obs, self.n_vars = n_rows(rows), int(rows.shape[1])  # type: ignore[index]

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """The rows as CSR blocks; see `H5ad.row_blocks`."""
        import scipy.sparse as sp

        data, indices, indptr = self.rows.data, self.rows.indices, self.rows.indptr
        per_block = max(1, max_bytes // (data.itemsize + indices.itemsize))
        for start, stop in row_windows(np.diff(indptr), per_block):
            if wanted is None or wanted[start:stop].any():
                part = slice(int(indptr[start]), int(indptr[stop]))
                block = (data[part], indices[part], indptr[start : stop + 1] - indptr[start])
                yield RowBlock(start, sp.csr_array(block, shape=(stop - start, self.n_vars), copy=False))


def n_rows(rows: sp.csr_array) -> int:
    """The number of rows."""
    return len(rows.indptr) - 1


def totals_of(rows: sp.csr_array, threads: int | None = None) -> np.ndarray:
    """The float64 total of each row, shape (n_rows,), added in stored order."""
    out = np.empty(n_rows(rows))
    with numba_threads(threads) as n_threads:
        row_sums(rows.data, rows.indptr, row_chunks(rows.indptr, n_threads), out)
    return out


def cell_divisors(totals: np.ndarray) -> np.ndarray:
    """What divides the counts of each cell to bring it to one million; 1 for an empty cell."""
    divisors = totals / CELL_TARGET_SUM
    divisors[divisors == 0] = 1.0
    return divisors


def group_sizes(parts: Sequence[Cells], n_groups: int) -> np.ndarray:
    """Cells of each group, int64, shape (n_groups,)."""
    sizes = np.zeros(n_groups, dtype=np.int64)
    for part in parts:
        sizes += np.bincount(part.groups[part.groups >= 0], minlength=n_groups)
    return sizes
