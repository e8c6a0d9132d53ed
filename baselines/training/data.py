"""Cells of a training run as arrays: the training and validation rows of one file, nothing of its test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError, ShapeError
from ...data_specs.labels import CONTROL
from ...data_specs.normalize import to_log1p
from ...data_specs.standard import MatrixMeta
from ..base import Key, TrainingData

Space = Literal["log1p", "counts"]
VALID_CELL_SHARE = 10


@dataclass(frozen=True)
class CellData:
    """Cells that a model may see. Test rows are not in it.

    Attributes
    ----------
    x
        Expression, CSR float32, shape (n_cells, G), columns sorted within rows; `space` says on which scale.
    codes
        Index into `keys` of each cell, int64, shape (n_cells,).
    keys
        (context, canonical perturbation), sorted, control included; every key has at least one cell.
    train_keys, validation_keys
        Perturbed keys of the split; control belongs to neither, it always trains.
    held_out
        Training cells kept for validation (`validation=cells`), bool, shape (n_cells,); False for every other cell.
    genes
        Gene symbols, shape (G,).
    target_sum
        The total every cell was, or for counts would be, scaled to before ln(1 + x).
    notes
        What was decided while loading, one sentence each.
    """

    x: sp.csr_array
    codes: np.ndarray
    keys: tuple[Key, ...]
    train_keys: tuple[Key, ...]
    validation_keys: tuple[Key, ...]
    held_out: np.ndarray
    genes: np.ndarray
    target_sum: float
    space: Space = "log1p"
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n, n_genes = tuple(self.x.shape)  # type: ignore[arg-type]
        if len(self.codes) != n or len(self.held_out) != n or n_genes != len(self.genes):
            raise ShapeError(
                f"x is {n} x {n_genes} for {len(self.codes)} codes, {len(self.held_out)} flags and "
                f"{len(self.genes)} genes"
            )

    @cached_property
    def position(self) -> dict[Key, int]:
        """Code of each key."""
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def is_control(self) -> np.ndarray:
        """Which cells are control, bool, shape (n_cells,)."""
        return np.array([label == CONTROL for _, label in self.keys], dtype=bool)[self.codes]

    @cached_property
    def context_codes(self) -> np.ndarray:
        """Index into `contexts` of each cell, int64, shape (n_cells,)."""
        at = {context: i for i, context in enumerate(self.contexts)}
        return np.array([at[context] for context, _ in self.keys], dtype=np.int64)[self.codes]

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts, sorted."""
        return tuple(sorted({context for context, _ in self.keys}))

    @cached_property
    def train_rows(self) -> np.ndarray:
        """Rows of the cells of training perturbations that are not held out, int64, in file order."""
        return np.flatnonzero(self._of(self.train_keys) & ~self.held_out)

    @cached_property
    def control_rows(self) -> np.ndarray:
        """Rows of the control cells, int64, in file order."""
        return np.flatnonzero(self.is_control)

    def rows_of(self, key: Key, *, held_out: bool = False) -> np.ndarray:
        """Rows of a key's cells, int64: those that may train, or those held out."""
        return np.flatnonzero((self.codes == self.position[key]) & (self.held_out == held_out))

    def _of(self, keys: Sequence[Key]) -> np.ndarray:
        wanted = np.zeros(len(self.keys), dtype=bool)
        wanted[[self.position[key] for key in keys]] = True
        return wanted[self.codes]

    def moments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and unbiased variance over some rows, float64, shape (G,); NaN variance below two rows."""
        part = self.x[rows].astype(np.float64)
        n = len(rows)
        mean = np.asarray(part.sum(axis=0)).ravel() / n
        if n < 2:
            return mean, np.full(len(mean), np.nan)
        # Centred squares of the stored values, and of the zeros between them.
        centred = (part.data - mean[part.indices]) ** 2
        squares = np.bincount(part.indices, weights=centred, minlength=len(mean))
        n_stored = np.bincount(part.indices, minlength=len(mean))
        return mean, (squares + (n - n_stored) * mean**2) / (n - 1)

    @cached_property
    def control_moments(self) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
        """Mean, unbiased variance and number of the control cells of each context that has some."""
        found = {}
        for context in self.contexts:
            if (context, CONTROL) in self.position:
                rows = self.rows_of((context, CONTROL))
                found[context] = (*self.moments(rows), len(rows))
        return found

    @cached_property
    def control_means(self) -> dict[str, np.ndarray]:
        """Mean control profile of each context, float64, shape (G,)."""
        return {context: mean for context, (mean, _, _) in self.control_moments.items()}

    @cached_property
    def log1p(self) -> CellData:
        """The same cells in log1p space; a float32 copy of the values of counts."""
        if self.space == "log1p":
            return self
        x = to_log1p(self.x, MatrixMeta("counts", self.target_sum))
        values = sp.csr_array((x.data.astype(np.float32), self.x.indices, self.x.indptr), shape=self.x.shape)
        return replace(self, x=values, space="log1p")

    @cached_property
    def training_data(self) -> TrainingData:
        """Pseudobulk of the training rows that are not held out; log1p cells only."""
        if self.space != "log1p":
            raise ModelError("pseudobulk needs cells in log1p space.")
        rows = [self.rows_of(key) for key in self.train_keys]
        return TrainingData(
            genes=self.genes,
            control_means=self.control_means,
            keys=self.train_keys,
            means=np.stack([self.moments(own)[0] for own in rows]),
            n_cells=np.array([len(own) for own in rows], dtype=np.int64),
            target_sum=self.target_sum,
            extras=dict(self.extras),
            notes=self.notes,
        )


def pair_controls(cells: CellData, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One control cell of the same context for each of `rows`, drawn with replacement; a control pairs with itself.

    int64 rows, same shape. Raises `ModelError` for a context without control cells.
    """
    out = rows.copy()
    perturbed = ~cells.is_control[rows]
    contexts = cells.context_codes[rows]
    for code, context in enumerate(cells.contexts):
        wanted = np.flatnonzero(perturbed & (contexts == code))
        if not len(wanted):
            continue
        if (context, CONTROL) not in cells.position:
            raise ModelError(f"context {context!r} has no control cells to pair with.")
        pool = cells.rows_of((context, CONTROL))
        out[wanted] = pool[rng.integers(0, len(pool), len(wanted))]
    return out


def held_out_cells(names: Sequence[str], codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """A tenth (rounded down) of the cells of each wanted group: those whose names have the smallest hashes.

    bool, shape (n_cells,). `wanted` is bool over groups. Independent of the order of cells; no random draw.
    """
    chosen = np.zeros(len(codes), dtype=bool)
    candidates = np.flatnonzero(wanted[codes])
    hashes = [hashlib.blake2b(str(names[i]).encode(), digest_size=8).digest() for i in candidates.tolist()]
    keys = np.array([int.from_bytes(item, "big") for item in hashes], dtype=np.uint64)
    ranked = candidates[np.lexsort((keys, codes[candidates]))]
    _, sizes = np.unique(codes[ranked], return_counts=True)
    # Rank of each cell within its group, by hash.
    rank = np.arange(len(ranked)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen[ranked[rank < np.repeat(sizes // VALID_CELL_SHARE, sizes)]] = True
    return chosen
