"""Which cells a map pairs: control cells as sources, its perturbation's cells as targets, context by context."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from ...data_specs.labels import CONTROL
from ..training.data import CellData
from .config import ContextPairs


class PairSampler:
    """Rows of `CellData` for P maps, drawn with replacement. The last map takes the cells of all perturbations.

    Attributes
    ----------
    labels
        Perturbation of each map but the last.
    n_targets
        Training cells of each map, int64, shape (P,).
    """

    def __init__(self, cells: CellData, labels: Sequence[str], device: torch.device, *, pairs: ContextPairs):
        self.labels, self.pairs = tuple(labels), pairs
        contexts = [c for c in cells.contexts if (c, CONTROL) in cells.position]
        controls = [cells.rows_of((c, CONTROL)) for c in contexts]
        trained, none = set(cells.train_keys), np.empty(0, dtype=np.int64)
        groups: list[list[np.ndarray]] = [
            [cells.rows_of((c, label)) if (c, label) in trained else none for c in contexts]
            for label in self.labels
        ]
        groups.append([np.concatenate([own[k] for own in groups]) for k in range(len(contexts))])
        sizes = np.array([[len(rows) for rows in own] for own in groups], dtype=np.int64)
        self.sizes = sizes
        self.n_targets = sizes.sum(axis=1)
        flat = np.concatenate([rows for own in groups for rows in own])
        starts = np.cumsum(sizes.ravel()) - sizes.ravel()
        n_controls = np.array([len(rows) for rows in controls], dtype=np.int64)

        def send(values: np.ndarray) -> Tensor:
            return torch.as_tensor(values, device=device)

        self._targets, self._controls = send(flat), send(np.concatenate(controls))
        self._target_sizes, self._target_starts = send(sizes), send(starts.reshape(sizes.shape))
        self._control_sizes = send(n_controls).expand(len(groups), -1)
        self._control_starts = send(np.cumsum(n_controls) - n_controls).expand(len(groups), -1)
        present = sizes > 0
        source = sizes if pairs == "matched" else present * n_controls
        self._target_bounds, self._source_bounds = send(_bounds(sizes)), send(_bounds(source))
        self._even_bounds = send(_bounds(present.astype(np.int64)))

    @property
    def n_maps(self) -> int:
        """Maps, the pooled one included."""
        return len(self.n_targets)

    def of_maps(self, maps: Tensor) -> PairSampler:
        """The same cells with the given maps, int64 (n,), in place of all; an index may occur repeatedly."""
        out = copy(self)
        for name in ("_target_sizes", "_target_starts", "_control_sizes", "_control_starts"):
            setattr(out, name, getattr(self, name)[maps])
        for name in ("_target_bounds", "_source_bounds", "_even_bounds"):
            setattr(out, name, getattr(self, name)[maps])
        return out

    def one_context(self, uniform: Tensor) -> Tensor | None:
        """With `pairs=one` the context of each map in an iteration, int64 (P, 1), from numbers (P,) in [0, 1)."""
        return _pick(self._even_bounds, uniform[:, None]) if self.pairs == "one" else None

    def sources(self, uniform: Tensor, context: Tensor | None = None) -> Tensor:
        """Rows of control cells, int64 (P, n), from numbers (P, n, 2) in [0, 1)."""
        chosen = _pick(self._source_bounds, uniform[..., 0]) if context is None else context
        return self._row(self._controls, self._control_starts, self._control_sizes, chosen, uniform[..., 1])

    def targets(self, uniform: Tensor, context: Tensor | None = None) -> Tensor:
        """Rows of each map's training cells, int64 (P, n), from numbers (P, n, 2) in [0, 1)."""
        chosen = _pick(self._target_bounds, uniform[..., 0]) if context is None else context
        return self._row(self._targets, self._target_starts, self._target_sizes, chosen, uniform[..., 1])

    def _row(self, rows: Tensor, starts: Tensor, sizes: Tensor, context: Tensor, uniform: Tensor) -> Tensor:
        context = context.expand(uniform.shape)
        n = sizes.gather(1, context)
        inside = torch.minimum((uniform * n).long(), n - 1)
        return rows[starts.gather(1, context) + inside]


def _bounds(weights: np.ndarray) -> np.ndarray:
    """Upper bounds of each context's interval of [0, 1), infinite from the last one with weight on; float32."""
    bounds = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
    last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    bounds[np.arange(weights.shape[1])[None, :] >= last[:, None]] = np.inf
    return bounds.astype(np.float32)


def _pick(bounds: Tensor, uniform: Tensor) -> Tensor:
    """The first context whose bound is above the number, int64, same shape as `uniform` (P, n)."""
    if bounds.shape[1] == 1:
        return torch.zeros_like(uniform, dtype=torch.int64)
    return (uniform[..., None].float() >= bounds[:, None, :]).sum(dim=2)


def evenly(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the rows, evenly spaced, in order."""
    if len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(np.int64)]
