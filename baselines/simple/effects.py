"""Training effects by context and perturbation, and the rule for effects that a context did not measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..base import Key


@dataclass(frozen=True)
class EffectTable:
    """Effects of training rows, float64, shape (n, G), with their keys and cells."""

    keys: tuple[Key, ...]
    effects: np.ndarray
    n_cells: np.ndarray

    @cached_property
    def _rows(self) -> dict[Key, int]:
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def _by_perturbation(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for i, (_, perturbation) in enumerate(self.keys):
            rows.setdefault(perturbation, []).append(i)
        return rows

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Distinct training perturbations, sorted."""
        return tuple(sorted(self._by_perturbation))

    @property
    def contexts(self) -> tuple[str, ...]:
        """Contexts with at least one training row, sorted."""
        return tuple(sorted({context for context, _ in self.keys}))

    def rows_of(self, perturbation: str) -> list[int]:
        """Rows of a perturbation in any context; empty when it was not trained."""
        return self._by_perturbation.get(perturbation, [])

    def rows_in(self, context: str) -> list[int]:
        """Rows of one context."""
        return [i for i, (place, _) in enumerate(self.keys) if place == context]

    def find(self, context: str, perturbation: str) -> tuple[np.ndarray, bool] | None:
        """The effect of a perturbation and whether this context measured it; None when it was never trained.

        A context that did not measure it gets the equal-weight mean over the contexts that did.
        """
        row = self._rows.get((context, perturbation))
        if row is not None:
            return self.effects[row], True
        rows = self.rows_of(perturbation)
        return (self.effects[rows].mean(axis=0), False) if rows else None

    def mean(self, *, weighting: str = "equal", rows: Sequence[int] | None = None) -> np.ndarray:
        """Mean effect of some rows (default all): `equal` counts every row once, `cell` by its cells."""
        chosen = list(range(len(self.keys))) if rows is None else list(rows)
        return mean_rows(self.effects[chosen], self.n_cells[chosen], weighting)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays that npz can hold without pickling."""
        contexts, perturbations = text_columns(self.keys)
        return {
            "contexts": contexts,
            "perturbations": perturbations,
            "effects": self.effects,
            "n_cells": self.n_cells,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> EffectTable:
        """The inverse of `to_arrays`."""
        keys = tuple(
            (str(c), str(p)) for c, p in zip(arrays["contexts"], arrays["perturbations"], strict=True)
        )
        return cls(keys, arrays["effects"], arrays["n_cells"])


def mean_rows(values: np.ndarray, n_cells: np.ndarray, weighting: str) -> np.ndarray:
    """Mean over rows, shape (G,): every row counts once (`equal`) or by its cells (`cell`)."""
    if weighting == "equal":
        return values.mean(axis=0)
    weights = n_cells / n_cells.sum()
    return weights @ values


def text_columns(keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and perturbations of keys as two text arrays."""
    return text_array([context for context, _ in keys]), text_array([name for _, name in keys])


def text_array(names: Sequence[str]) -> np.ndarray:
    """Names as a fixed-width text array, which npz stores without pickling."""
    return np.array(list(names), dtype=np.str_) if len(names) else np.empty(0, dtype="<U1")
