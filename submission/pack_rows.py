"""Rows on their way into an entry: read from files in the wanted gene order, or emitted, and brought to one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from ..data_specs.h5ad_columns import Labels
from ..data_specs.h5ad_write import write_h5ad_stream
from ..data_specs.normalize import lognormalize
from ..data_specs.sources import Source
from ..evaluator.checks.value_scan import ValueScan, ValueScanner
from .control_pool import ControlPool
from .emission import EmissionReport, GroupEmission, Mode, Space, amplify, group_seed
from .following import Following

MAX_POOL_CELLS = 4096
# Scans and reorderings take several copies of a block.
PACK_BLOCK_BYTES = 16 * 2**20
Progress = Callable[[int, int], None]


class Rows(Protocol):
    """Some rows of the entry. `perturbation` and `context` are object arrays of text, one per row."""

    @property
    def perturbation(self) -> np.ndarray: ...
    @property
    def context(self) -> np.ndarray: ...

    def blocks(self) -> Iterator[sp.csr_array]:
        """The values in output gene order, block by block."""
        ...


@dataclass(frozen=True)
class FileRows:
    """The rows at `positions` (rising) of a file; `order` is the output position of each of its genes."""

    source: Source
    positions: np.ndarray
    order: np.ndarray
    perturbation: np.ndarray
    context: np.ndarray
    block_bytes: int = PACK_BLOCK_BYTES

    def blocks(self) -> Iterator[sp.csr_array]:
        in_order = bool((self.order == np.arange(len(self.order))).all())
        for block in self.source.row_blocks(max_bytes=self.block_bytes):
            low, high = np.searchsorted(self.positions, (block.start, block.stop))
            if low == high:
                continue
            rows: Any = block.matrix
            if high - low < block.stop - block.start:
                rows = rows[self.positions[low:high] - block.start]
            if in_order:
                yield rows
                continue
            indices = self.order[rows.indices].astype(np.int32)
            placed = sp.csr_array((rows.data, indices, rows.indptr), shape=rows.shape)
            placed.sort_indices()
            yield placed


@dataclass(frozen=True)
class Group:
    """One (context, perturbation) to emit: its profile in output gene order and its number of cells."""

    context: str
    perturbation: str
    profile: np.ndarray
    n_cells: int


class Pools:
    """The control cells of each context, read when asked for; only the last one is kept."""

    def __init__(self, make: Callable[[str], ControlPool | None]):
        self._make = make
        self._last: tuple[str, ControlPool | None] | None = None

    def get(self, context: str) -> ControlPool | None:
        """The pool of a context; None where emission goes without control cells."""
        if self._last is None or self._last[0] != context:
            self._last = None
            self._last = (context, self._make(context))
        return self._last[1]


@dataclass
class EmittedRows:
    """Cells of the groups, one group after the other; `reports` fill as the blocks are drawn.

    `pools` gives the control cells of a context; groups of one context stand together, so one pool at a time is held.
    """

    groups: Sequence[Group]
    pools: Pools
    mode: Mode
    space: Space
    seed: int
    target_sum: float
    effect_scale: float = 1.0
    progress: Progress | None = None
    reports: list[EmissionReport] = field(default_factory=list)

    @property
    def perturbation(self) -> np.ndarray:
        return np.repeat(
            np.array([g.perturbation for g in self.groups], dtype=object), [g.n_cells for g in self.groups]
        )

    @property
    def context(self) -> np.ndarray:
        return np.repeat(
            np.array([g.context for g in self.groups], dtype=object), [g.n_cells for g in self.groups]
        )

    def blocks(self) -> Iterator[sp.csr_array]:
        self.reports = []
        for done, group in enumerate(self.groups):
            pool = self.pools.get(group.context)
            profile = group.profile
            if self.effect_scale != 1.0 and pool is not None:
                profile, _ = amplify(profile, pool.log_mean, self.effect_scale)
            emission = GroupEmission(
                profile,
                pool,
                n_cells=group.n_cells,
                mode=self.mode,
                rng_seed=self.seed,
                context=group.context,
                perturbation=group.perturbation,
                space=self.space,
                target_sum=self.target_sum,
            )
            yield from emission.blocks()
            self.reports.append(emission.report())
            if self.progress is not None:
                self.progress(done + 1, len(self.groups))


@dataclass(frozen=True)
class Normalised:
    """Rows of counts as ln(1 + x * target / total), the way the official 2025 tool computes them.

    Totals are rounded to float32, and division and logarithm happen in float32; an empty row stays empty.
    """

    rows: Rows
    target: float

    @property
    def perturbation(self) -> np.ndarray:
        return self.rows.perturbation

    @property
    def context(self) -> np.ndarray:
        return self.rows.context

    def blocks(self) -> Iterator[sp.csr_array]:
        for block in self.rows.blocks():
            totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel().astype(np.float32)
            divisor = np.where(totals > 0, totals / np.float32(self.target), np.float32(1))
            data = block.data.astype(np.float32) / np.repeat(divisor, np.diff(block.indptr))
            yield sp.csr_array((np.log1p(data), block.indices, block.indptr), shape=block.shape)


@dataclass(frozen=True)
class Logged:
    """Rows of counts brought to the target sum of log1p rows that they join; float64."""

    rows: Rows
    target_sum: float

    @property
    def perturbation(self) -> np.ndarray:
        return self.rows.perturbation

    @property
    def context(self) -> np.ndarray:
        return self.rows.context

    def blocks(self) -> Iterator[sp.csr_array]:
        for block in self.rows.blocks():
            yield lognormalize(block, self.target_sum)


def row_sums(parts: Sequence[Rows]) -> np.ndarray:
    """The total of every row of counts, float64, in order."""
    sums = [np.asarray(b.sum(axis=1, dtype=np.float64)).ravel() for part in parts for b in part.blocks()]
    return np.concatenate(sums) if sums else np.empty(0)


def control_pool(rows: FileRows, context: str, *, target_sum: float, kind: Any, seed: int) -> ControlPool:
    """The pool of one context: all of its control cells, or a seeded draw of 4,096 of them."""
    positions = rows.positions
    if len(positions) > MAX_POOL_CELLS:
        draw = np.random.Generator(np.random.PCG64(group_seed(seed, context, "\0control pool")))
        positions = np.sort(draw.permutation(positions)[:MAX_POOL_CELLS])
    blank = np.full(len(positions), "", dtype=object)
    chosen = FileRows(rows.source, positions, rows.order, blank, blank, rows.block_bytes)
    matrix = sp.csr_array(sp.vstack(list(chosen.blocks()), format="csr"))
    return ControlPool(matrix, target_sum, kind)


def write_rows(
    path: Path,
    parts: Sequence[Rows],
    *,
    genes: Sequence[str],
    obs: dict[str, np.ndarray],
    uns: dict[str, Any],
    cap: float | None = None,
    threads: int = 1,
    durable: bool = True,
) -> tuple[dict[str, int], ValueScan]:
    """Write the rows of all parts, CSR float32.

    Parameters
    ----------
    cap
        As that of `scan_values`.
    threads
        With more than one, the rows are looked at in a thread of their own.
    durable
        As that of `write_h5ad_stream`.

    Returns
    -------
    `n_rows` and `n_stored`; and what a pass over the values of the written file would find.
    """
    columns = {name: Labels.from_values(values) for name, values in obs.items()}
    n_rows = sum(len(part.perturbation) for part in parts)
    scanner = ValueScanner(n_rows, len(genes), np.dtype(np.float32), cap=cap)
    with (
        write_h5ad_stream(path, genes=genes, obs=columns, uns=uns, durable=durable) as writer,
        Following(scanner.add, waiting=2 if threads > 1 else 0) as look,
    ):
        for part in parts:
            for block in part.blocks():
                start = writer.n_rows
                look.at(writer.append(sp.csr_array(block, dtype=np.float32)), start)
    return {"n_rows": writer.n_rows, "n_stored": writer.n_stored}, scanner.scan
