"""Energy distance of every perturbation from the control, block against block with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .expression import pearson
from .panel import Panel, PanelSide
from .side import Side

HELD_BYTES = 2**29
TILE_ROWS = 512
# Below this many multiplications per tile, waking the BLAS threads costs more than they save.
_SMALL_TILE = 2e8


@dataclass(frozen=True)
class _Rows:
    """Some rows of a side: their numbers in the file, groups and values (CSR, log1p space)."""

    numbers: np.ndarray
    groups: np.ndarray
    values: sp.csr_array

    def of(self, group: int) -> _Rows:
        """The rows of one group."""
        at = np.flatnonzero(self.groups == group)
        return _Rows(self.numbers[at], self.groups[at], self.values[at])


def energy_distances(side: Side, *, held_bytes: int | None = None) -> np.ndarray:
    """Energy distance of every target from the control, float64, shape (n_targets,).

    2 mean d(X, C) - mean d(X, X) - mean d(C, C) over all pairs of cells (a cell with itself counts as 0), d
    Euclidean over all genes. Rows are held `held_bytes` at a time (None: 512 MiB, less under a
    memory budget) and meet the file streamed past them, so the
    file is read about 2 * stored bytes / held_bytes times.
    """
    from threadpoolctl import threadpool_limits

    if held_bytes is None:
        held_bytes = HELD_BYTES if side.memory is None else min(HELD_BYTES, side.memory // 6)
    sizes = side.sizes.astype(np.float64)
    tile = min(float(TILE_ROWS), sizes.max()) ** 2 * side.source.n_vars
    with threadpool_limits(limits=1 if tile < _SMALL_TILE else None, user_api="blas"):
        sums = _pair_sums(side, held_bytes)
    control = sizes[-1]
    cross = sums.to_control[:-1] / (sizes[:-1] * control)
    within = sums.within / sizes**2
    return 2.0 * cross - within[:-1] - within[-1]


@dataclass(frozen=True)
class _PairSums:
    """Sums of distances: `within` each group (ordered pairs) and from each group `to_control`, shape (n_groups,)."""

    within: np.ndarray
    to_control: np.ndarray


def _pair_sums(side: Side, held_bytes: int) -> _PairSums:
    n_groups = len(side.targets) + 1
    sums = _PairSums(np.zeros(n_groups), np.zeros(n_groups))
    for held in _held(side, held_bytes):
        for met in _streamed(side):
            for group in np.unique(met.groups):
                rows = met.of(int(group))
                sums.within[group] += _distance_sum(rows, held.of(int(group)))
                if group != side.control:
                    sums.to_control[group] += _distance_sum(rows, held.of(side.control))
    return sums


def _streamed(side: Side) -> Iterator[_Rows]:
    for start, values, groups in side.blocks():
        kept = np.flatnonzero(groups >= 0)
        yield _Rows(kept + start, groups[kept], values[kept])


def _held(side: Side, held_bytes: int) -> Iterator[_Rows]:
    """The chosen rows in file order, in parts of about `held_bytes`."""
    parts: list[_Rows] = []
    size = 0
    for rows in _streamed(side):
        parts.append(rows)
        size += rows.values.data.nbytes + rows.values.indices.nbytes
        if size >= held_bytes:
            yield _joined(parts)
            parts, size = [], 0
    if parts:
        yield _joined(parts)


def _joined(parts: list[_Rows]) -> _Rows:
    return _Rows(
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.groups for part in parts]),
        sp.csr_array(sp.vstack([part.values for part in parts])),
    )


def _distance_sum(x: _Rows, y: _Rows) -> float:
    """Sum of Euclidean distances over all pairs of rows, float64; a row with itself adds exactly 0."""
    total = 0.0
    for i in range(0, len(x.numbers), TILE_ROWS):
        a = x.values[i : i + TILE_ROWS].toarray().astype(np.float64)
        a_square = np.einsum("ij,ij->i", a, a)
        for j in range(0, len(y.numbers), TILE_ROWS):
            b = y.values[j : j + TILE_ROWS].toarray().astype(np.float64)
            square = a_square[:, None] - 2.0 * (a @ b.T) + np.einsum("ij,ij->i", b, b)
            same = x.numbers[i : i + TILE_ROWS, None] == y.numbers[j : j + TILE_ROWS]
            square[same] = 0.0
            total += float(np.sqrt(np.maximum(square, 0.0)).sum())
    return total


def pearson_edistance(panel: Panel) -> np.ma.MaskedArray:
    """Pearson over targets between energy distances of truth and prediction, each from its own control."""
    truth, pred = (_distances(side) for side in (panel.truth, panel.pred))
    return panel.everywhere(pearson(pred, truth))


def _distances(side: PanelSide) -> np.ndarray:
    if side.stored_distances is not None:
        return side.stored_distances
    if side.side is None:
        raise ValueError(f"the energy distances of {side.role} were not stored")
    return energy_distances(side.side)
