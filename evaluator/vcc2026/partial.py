"""Measurements of a side in parts that merge exactly: each part is some of the perturbations with the control cells.

Everything measured of a perturbation (sums, bulk, jackknife noise, rank sums, p-values) depends on its own cells and
on the control cells alone, and is added in the order of the file. So a part gives its perturbations the bits that the
whole gives them, and merging only puts rows together; parts of rows would add in another order. What it costs: every
part reads and ranks the control cells again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile, ShapeError
from ...data_specs.h5ad import H5ad
from ...data_specs.issues import sort_issues
from ...data_specs.joined_source import JoinedSource
from ..executors import Executor
from .bulks import Bulks
from .cells import Cells, ValueCheck
from .de import DETable


@dataclass(frozen=True)
class SourceFiles:
    """Where a worker finds a source: (context, path, place of X) of its files, and the column that joins several."""

    parts: tuple[tuple[str | None, Path, str], ...]
    context_column: str = ""

    def open(self, stack: ExitStack) -> H5ad | JoinedSource:
        """The source, open until the stack closes."""
        opened = [
            (context, stack.enter_context(H5ad(path, location=place))) for context, path, place in self.parts
        ]
        if not self.context_column:
            return opened[0][1]
        return JoinedSource(opened, context_column=self.context_column)


@dataclass(frozen=True)
class CellsTask:
    """Some rows of a source with their group codes, int32, shape (n_obs,), -1 for rows that do not take part."""

    files: SourceFiles
    groups: np.ndarray
    block_bytes: int
    memory: int | None
    device: str
    max_cell_total: float | None

    def cells(self, stack: ExitStack, threads: int) -> Cells:
        """The cells, whose values are checked by the pass that reads them where they were to be."""
        source = self.files.open(stack)
        check = None
        if self.max_cell_total is not None:
            check = ValueCheck(self.max_cell_total, lambda: self._check(source, threads))
        groups = self.groups.astype(np.int64)
        return Cells(source, groups, self.block_bytes, self.memory, check=check, device=self.device)

    def _check(self, source: Any, threads: int) -> None:
        from .panel import value_issues

        issues = value_issues(
            source,
            block_bytes=self.block_bytes,
            max_cell_total=self.max_cell_total or np.inf,
            threads=threads,
        )
        if issues:
            raise InvalidFile(sort_issues(issues))


@dataclass(frozen=True)
class GroupsTask:
    """One part: the arguments of `sides.measure_groups` for some groups.

    `control` has the control cells under code 0, when they stand in another file; `control_cells` and
    `control_mean_cpm` are their number and mean counts per million, shape (n_genes,).
    """

    cells: CellsTask
    n_groups: int
    n_genes: int
    need_de: bool
    threads: int
    control: CellsTask | None = None
    control_cells: int = 0
    control_mean_cpm: np.ndarray | None = None


def measure_part(task: GroupsTask) -> tuple[Bulks, DETable | None]:
    """Bulks and tests of the groups of one part, in any process that can open the files by their paths.

    Raises
    ------
    InvalidFile
        The part has values that are not counts.
    MetricError
        See `sides.measure_groups`.
    """
    from .sides import measure_groups

    with ExitStack() as stack:
        control = real = None
        if task.control is not None and task.control_mean_cpm is not None:
            control = task.control.cells(stack, task.threads)
            nothing = np.zeros((1, 0))
            real = Bulks(
                np.array([task.control_cells], dtype=np.int64),
                nothing,
                nothing,
                np.zeros(1),
                task.control_mean_cpm[None],
            )
        return measure_groups(
            task.cells.cells(stack, task.threads),
            task.n_groups,
            task.n_genes,
            need_de=task.need_de,
            control=control,
            real=real,
            threads=task.threads,
        )


def merge_parts(
    parts: Sequence[tuple[Bulks, DETable | None]], groups: Sequence[np.ndarray], n_groups: int
) -> tuple[Bulks, DETable | None]:
    """The whole from its parts: row i of a part is group `groups[part][i]` of the whole.

    The control, where parts have it, is the last group of each and the same in all of them.

    Raises
    ------
    ShapeError
        The parts do not hold every group, or were tested on different genes.
    """
    held = np.concatenate(groups)
    if len(set(held.tolist())) != n_groups or held.max(initial=-1) >= n_groups:
        raise ShapeError(f"the parts hold {len(set(held.tolist())):,} of {n_groups:,} groups")

    def joined(name: str) -> np.ndarray:
        first = getattr(parts[0][0], name)
        out = np.zeros((n_groups, *first.shape[1:]), dtype=first.dtype)
        for (bulks, _), rows in zip(parts, groups, strict=True):
            out[rows] = getattr(bulks, name)
        return out

    bulks = Bulks(*(joined(name) for name in ("n_cells", "sums", "bulk", "noise", "mean_cpm")))
    tables = [table for _, table in parts if table is not None]
    if not tables:
        return bulks, None
    if len(tables) < len(parts) or any((table.genes != tables[0].genes).any() for table in tables):
        raise ShapeError("the parts were tested on different genes")
    n_tested = max(
        int(rows[: len(table.p_value)].max()) + 1 for table, rows in zip(tables, groups, strict=True)
    )

    def rows_of(name: str) -> np.ndarray:
        out = np.empty((n_tested, len(tables[0].genes)))
        for table, rows in zip(tables, groups, strict=True):
            out[rows[: len(table.p_value)]] = getattr(table, name)
        return out

    return bulks, DETable(
        tables[0].genes, *(rows_of(name) for name in ("log2_fold_change", "p_value", "p_adj"))
    )


def divide(groups: np.ndarray, n_groups: int, n_parts: int) -> list[np.ndarray]:
    """The groups 0 to n_groups - 1 in at most `n_parts` parts of about equally many rows, each sorted.

    Groups that stand together in the file stay together, so that a part can leave out blocks of rows.
    """
    known = np.flatnonzero((groups >= 0) & (groups < n_groups))
    sizes = np.bincount(groups[known], minlength=n_groups)
    first = np.full(n_groups, len(groups), dtype=np.int64)
    np.minimum.at(first, groups[known], known)
    order = np.argsort(first, kind="stable")
    ends = np.cumsum(sizes[order] + 1)
    part = np.minimum((ends - 1) * n_parts // max(1, int(ends[-1]) if len(ends) else 1), n_parts - 1)
    return [np.sort(order[part == i]) for i in range(n_parts) if (part == i).any()]


def files_of(source: Any) -> SourceFiles | None:
    """How a worker can open a source; None for what is not in files."""
    if isinstance(source, H5ad):
        return SourceFiles(((None, source.opened_path, source.location),))
    if isinstance(source, JoinedSource):
        parts = [(context, files_of(part)) for context, part in source.parts]
        if all(files is not None for _, files in parts):
            listed = tuple((context, *files.parts[0][1:]) for context, files in parts if files is not None)
            return SourceFiles(listed, source.context_column)
    return None


def measure_divided(
    cells: Cells,
    n_groups: int,
    n_genes: int,
    executor: Executor,
    *,
    need_de: bool,
    control: Cells | None = None,
    real: Bulks | None = None,
    threads: int | None = None,
) -> tuple[Bulks, DETable | None] | None:
    """`sides.measure_groups` by the workers of an executor; None when the cells are not in files."""
    files = files_of(cells.source)
    other = None if control is None else files_of(control.source)
    if files is None or (control is not None and other is None):
        return None
    # With its own control the last group is part of every task.
    own_control = need_de and control is None
    n_divided = n_groups - 1 if own_control else n_groups
    n_threads = threads or executor.threads
    tasks, rows = [], []
    for chosen in divide(cells.groups, n_divided, executor.n_workers):
        kept = np.append(chosen, n_groups - 1) if own_control else chosen
        table = np.full(n_groups + 1, -1, dtype=np.int32)
        table[kept] = np.arange(len(kept))
        tasks.append(
            GroupsTask(
                _task_of(cells, files, table[cells.groups]),
                len(kept),
                n_genes,
                need_de,
                n_threads,
                None
                if control is None or other is None
                else _task_of(control, other, control.groups.astype(np.int32)),
                0 if real is None else int(real.n_cells[-1]),
                None if real is None or control is None else real.mean_cpm[-1],
            )
        )
        rows.append(kept)

    def done(finished: int, total: int) -> None:
        if cells.on_rows is not None:
            cells.on_rows(cells.source.n_obs * finished // total, cells.source.n_obs)

    opened = [path for found in (files, other) if found is not None for _, path, _ in found.parts]
    return merge_parts(executor.map(measure_part, tasks, done=done, files=opened), rows, n_groups)


def _task_of(cells: Cells, files: SourceFiles, groups: np.ndarray) -> CellsTask:
    limit = None if cells.check is None else cells.check.max_cell_total
    return CellsTask(files, groups, cells.block_bytes, cells.memory, cells.device, limit)
