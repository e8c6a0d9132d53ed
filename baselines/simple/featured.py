"""What models on target features share: default features, z-scoring, missing features, context means."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ..base import TrainingData
from ..features import FeatureTable, standardized
from .common import Answer, EffectModel, require_rows
from .corrections import CorrectionConfig
from .effects import text_array
from .embeddings import gene_scores


@dataclass(frozen=True)
class FeaturedConfig(CorrectionConfig):
    """Settings of every model on target features.

    Attributes
    ----------
    n_components
        Without --features a target's features are the K principal component scores of its own gene over the
        training conditions and control (as in `linear`), so its gene must be measured.
    missing
        What a requested target without features does: `refuse`, or `mean` (it counts as the average training target,
        which is zero after z-scoring; the row is a fallback).
    """

    n_components: int = 10
    missing: Literal["refuse", "mean"] = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_components < 1:
            raise UsageError(f"n_components must be at least 1, not {self.n_components}.")


FeaturedT = TypeVar("FeaturedT", bound=FeaturedConfig)


class FeaturedModel(EffectModel[FeaturedT]):
    """A model that learns from z-scored features of targets; combinations add.

    Training rows with a target without features are left out of the fit and counted in the notes. Effects are
    centred on the mean effect of their context; a new context gets the mean of these means.
    """

    Config = FeaturedConfig

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        raw = self._raw_features(data)
        labels = [label for _, label in data.keys]
        self.phi = standardized(raw, labels)
        found = [self.phi.label(label) for label in labels]
        self.fitted_rows = [i for i, (_, missing) in enumerate(found) if not missing]
        if not self.fitted_rows:
            raise ModelError(
                "every training perturbation has a target without features; nothing can be fitted."
            )
        self.notes.append(
            f"{len(self.fitted_rows)} of {len(labels)} training rows have features and are fitted."
        )
        self.fitted_labels = [labels[i] for i in self.fitted_rows]
        self.inputs = np.stack([found[i][0] for i in self.fitted_rows])
        self._center([data.keys[i][0] for i in self.fitted_rows])
        self._learn(rng)

    @abstractmethod
    def _learn(self, rng: np.random.Generator) -> None:
        """Learn from `inputs` (n, d), `centered` (n, G) and `fitted_labels`."""

    def _raw_features(self, data: TrainingData) -> FeatureTable:
        if self.features is not None:
            return self.features.table
        contexts = sorted({context for context, _ in data.keys})
        columns = np.vstack([data.means, *(data.control_means[c] for c in contexts)])
        scores, solver = gene_scores(columns, self.config.n_components)
        self.notes.append(
            f"No feature file: {scores.shape[1]} components of the training pseudobulk, {solver}."
        )
        return FeatureTable(self.genes, scores)

    def _center(self, contexts: list[str]) -> None:
        effects = self.table.effects[self.fitted_rows]
        self.context_means = {
            c: effects[[x == c for x in contexts]].mean(axis=0) for c in sorted(set(contexts))
        }
        self.centered = effects - np.stack([self.context_means[c] for c in contexts])

    def context_mean(self, context: str) -> np.ndarray:
        """Mean fitted effect of a context; of a new one, the equal-weight mean over contexts."""
        if context in self.context_means:
            return self.context_means[context]
        return np.mean(list(self.context_means.values()), axis=0)

    def _features_of(self, perturbation: str) -> tuple[np.ndarray, str] | Answer:
        """Summed features and the fallback reason ("" for none), or the refusal."""
        vector, missing = self.phi.label(perturbation)
        if not missing:
            return vector, ""
        names = ", ".join(missing)
        if self.config.missing == "refuse":
            return Answer.refuse(f"no features of {names}")
        return vector, f"no features of {names}; mean features instead"

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "feature_names": self.phi.names,
            "feature_values": self.phi.values,
            "mean_contexts": text_array(list(self.context_means)),
            "context_means": np.stack(list(self.context_means.values())),
        }

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.phi = FeatureTable(arrays["feature_names"], arrays["feature_values"])
        names = (str(name) for name in arrays["mean_contexts"])
        self.context_means = dict(zip(names, arrays["context_means"], strict=True))
