"""The protocol of every model: fit, predict, save, load. Predictions are absolute mean profiles, each with a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from ..data_specs.errors import ShapeError

Status = Literal["predicted", "fallback", "refused"]
Key = tuple[str, str]


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


class CellStatistics(Protocol):
    """Statistics that need the training cells themselves, computed while streaming them."""

    def gene_correlations(self, columns: np.ndarray) -> np.ndarray:
        """Pearson correlation over training cells of the genes in `columns` with all genes.

        float64, shape (len(columns), G), log1p space; a pair with a constant gene is 0.
        """
        ...


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
    sampling_variance
        Variance of the mean of each row's effect: s²/n of its cells plus s²/n of its controls, float64, shape
        (n, G). None when cells were not seen; NaN where a group has fewer than two cells.
    cells
        Streaming access to the training cells, None when there are none.
    notes
        What was decided while loading, one sentence each.
    """

    genes: np.ndarray
    control_means: Mapping[str, np.ndarray]
    keys: tuple[Key, ...]
    means: np.ndarray
    n_cells: np.ndarray
    target_sum: float
    extras: Mapping[str, Any] = field(default_factory=dict)
    sampling_variance: np.ndarray | None = None
    cells: CellStatistics | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.means.shape != (len(self.keys), len(self.genes)):
            raise ShapeError(
                f"means is {self.means.shape} for {len(self.keys)} rows and {len(self.genes)} genes"
            )
        for context, profile in self.control_means.items():
            if profile.shape != (len(self.genes),):
                raise ShapeError(
                    f"the control mean of {context!r} is {profile.shape}, not ({len(self.genes)},)"
                )

    @property
    def effects(self) -> np.ndarray:
        """Mean minus the control mean of the row's context, float64, shape (n, G)."""
        if not self.keys:
            return np.empty((0, len(self.genes)))
        return self.means - np.stack([self.control_means[context] for context, _ in self.keys])

    def ordered(self) -> TrainingData:
        """The same rows sorted by key, so that fits do not depend on the order of rows."""
        order = sorted(range(len(self.keys)), key=lambda i: self.keys[i])
        variance = self.sampling_variance
        return replace(
            self,
            control_means={context: self.control_means[context] for context in sorted(self.control_means)},
            keys=tuple(self.keys[i] for i in order),
            means=self.means[order],
            n_cells=np.asarray(self.n_cells)[order],
            sampling_variance=None if variance is None else variance[order],
        )


@dataclass(frozen=True)
class Prediction:
    """Profiles for requested rows.

    `profiles` is float64, shape (n, G), in the training space; the row of a refusal is NaN and is left out of
    every file. `status` and `reason` say per row what happened; `reason` is empty for plain predictions.
    """

    keys: tuple[Key, ...]
    profiles: np.ndarray
    status: tuple[Status, ...]
    reason: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Rows per status, all three statuses listed."""
        return {name: self.status.count(name) for name in ("predicted", "fallback", "refused")}


@runtime_checkable
class Baseline(Protocol):
    """A model. Every random draw comes from `rng`; a model that draws nothing ignores it."""

    info: BaselineInfo

    def fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        """Learn from the training rows. Raises `ModelError` when they cannot support the model."""
        ...

    def predict(self, keys: Sequence[Key], control_means: Mapping[str, np.ndarray]) -> Prediction:
        """Profiles for (context, perturbation) rows, from the control mean of each context."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything `load` needs as npz or TOML into an existing folder. Never a pickle."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """The model that `save` wrote."""
        ...
