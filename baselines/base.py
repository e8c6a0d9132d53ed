"""The protocol of every model: fit, predict, save, load. Predictions are absolute mean profiles with a status per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..data_specs.errors import ShapeError

Status = Literal["predicted", "fallback", "refused"]


@dataclass(frozen=True)
class BaselineInfo:
    """What a reader wants to know before training a model."""

    name: str
    title: str
    paper: str
    needs_gpu: bool
    unseen_targets: bool
    combinations: bool
    new_contexts: bool


@dataclass(frozen=True)
class TrainingData:
    """Pseudobulk of the training rows of one dataset. Test and validation rows never enter it.

    Attributes
    ----------
    genes
        Gene symbols, shape (G,).
    control_means
        Mean log1p profile of the control cells of each context, each float64, shape (G,).
    keys
        (context, canonical perturbation) of every training row, length n. Control is not among them.
    means
        Mean log1p profile of each row, float64, shape (n, G).
    n_cells
        Training cells of each row, int64, shape (n,).
    target_sum
        The total every cell was scaled to before ln(1 + x).
    """

    genes: np.ndarray
    control_means: Mapping[str, np.ndarray]
    keys: tuple[tuple[str, str], ...]
    means: np.ndarray
    n_cells: np.ndarray
    target_sum: float
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.means.shape != (len(self.keys), len(self.genes)):
            raise ShapeError(
                f"means is {self.means.shape} for {len(self.keys)} rows and {len(self.genes)} genes"
            )

    @property
    def effects(self) -> np.ndarray:
        """Mean minus the control mean of the row's context, float64, shape (n, G)."""
        return self.means - np.stack([self.control_means[context] for context, _ in self.keys])


@dataclass(frozen=True)
class Prediction:
    """Profiles for requested rows.

    `profiles` is float64, shape (n, G), in the training space; the row of a refusal is NaN and is left out of
    every file. `status` and `reason` say per row what happened; `reason` is empty for plain predictions.
    """

    keys: tuple[tuple[str, str], ...]
    profiles: np.ndarray
    status: tuple[Status, ...]
    reason: tuple[str, ...]


@runtime_checkable
class Baseline(Protocol):
    """A model. Every random draw comes from `rng`; a model that draws nothing ignores it."""

    info: BaselineInfo

    def fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        """Learn from the training rows. Raises `ModelError` when they cannot support the model."""
        ...

    def predict(self, keys: Sequence[tuple[str, str]], control_means: Mapping[str, np.ndarray]) -> Prediction:
        """Profiles for (context, perturbation) rows, from the control mean of each context."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything `load` needs as npz or TOML into an existing folder. Never a pickle."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """The model that `save` wrote."""
        ...
