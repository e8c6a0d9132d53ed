"""Transfer regression between two contexts (simple-baselines section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ..base import BaselineInfo, TrainingData
from .common import Answer, EffectModel
from .corrections import CorrectionConfig
from .effects import text_array


@dataclass(frozen=True)
class TransferConfig(CorrectionConfig):
    """Settings of `transfer`.

    Attributes
    ----------
    source, target
        The contexts to learn from and to predict. Empty: with exactly two training contexts, the one with more
        training perturbations is the source.
    n_components
        Principal components of the effects of each side; fewer when there are fewer rows.
    ridge
        λ of the regression of target scores on source scores; its intercept is not penalised.
    """

    source: str = ""
    target: str = ""
    n_components: int = 30
    ridge: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_components < 1 or self.ridge < 0:
            raise UsageError("n_components must be at least 1 and ridge at least 0.")


class Transfer(EffectModel[TransferConfig]):
    """Effects of a perturbation in one context, predicted from its measured effect in another."""

    Config = TransferConfig
    info = BaselineInfo(
        name="transfer",
        title="Ridge regression from one context's effect components to another's",
        paper="Ahlmann-Eltze, Huber, Anders 2025",
        needs_gpu=False,
        unseen_targets=False,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        self.source, self.target = self._contexts()
        sources = {data.keys[i][1]: i for i in self.table.rows_in(self.source)}
        targets = {data.keys[i][1]: i for i in self.table.rows_in(self.target)}
        shared = sorted(set(sources) & set(targets))
        if len(shared) < 2:
            raise ModelError(
                f"transfer from {self.source!r} to {self.target!r} needs two shared training perturbations; "
                f"there are {len(shared)}."
            )
        self.labels = sorted(sources)
        source_effects = self.table.effects[[sources[label] for label in self.labels]]
        self.source_scores = _components(source_effects, self.config.n_components)[0]
        target_rows = self.table.effects[[targets[label] for label in sorted(targets)]]
        target_scores, self.components, self.center = _components(target_rows, self.config.n_components)
        x = self.source_scores[[self.labels.index(label) for label in shared]]
        y = target_scores[[sorted(targets).index(label) for label in shared]]
        x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
        gram = (x - x_mean).T @ (x - x_mean) + self.config.ridge * np.eye(x.shape[1])
        self.weights = np.linalg.lstsq(gram, (x - x_mean).T @ (y - y_mean), rcond=None)[0]
        self.offset = y_mean - x_mean @ self.weights
        self.notes.append(
            f"From {self.source} to {self.target}: {len(shared)} shared perturbations, {x.shape[1]} and "
            f"{y.shape[1]} components."
        )

    def _contexts(self) -> tuple[str, str]:
        known = self.table.contexts
        source, target = self.config.source, self.config.target
        if not source and not target and len(known) == 2:
            ranked = sorted(known, key=lambda c: (-len(self.table.rows_in(c)), c))
            return ranked[0], ranked[1]
        if source not in known or target not in known or source == target:
            raise ModelError(
                f"transfer needs two different training contexts as source and target, got {source!r} and {target!r}; "
                f"training contexts: {', '.join(known)}."
            )
        return source, target

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        if perturbation not in self.labels:
            return Answer.refuse(f"{perturbation} was not measured in the source context {self.source!r}")
        scores = self.source_scores[self.labels.index(perturbation)] @ self.weights + self.offset
        effect = self.center + scores @ self.components
        if context == self.target:
            return Answer(effect)
        return Answer.fall_back(effect, f"effect predicted for context {self.target!r}")

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "labels": text_array(self.labels),
            "source_scores": self.source_scores,
            "components": self.components,
            "center": self.center,
            "weights": self.weights,
            "offset": self.offset,
        }

    def _facts(self) -> dict[str, Any]:
        return {"source": self.source, "target": self.target}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.source, self.target = facts["source"], facts["target"]
        self.labels = [str(label) for label in arrays["labels"]]
        self.source_scores, self.components = arrays["source_scores"], arrays["components"]
        self.center, self.weights, self.offset = arrays["center"], arrays["weights"], arrays["offset"]


def _components(effects: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n, k), components (k, G) and centre (G,) of the effects; k at most n - 1."""
    center = effects.mean(axis=0)
    rank = max(1, min(n_components, len(effects) - 1, effects.shape[1]))
    left, singular, right = np.linalg.svd(effects - center, full_matrices=False)
    return left[:, :rank] * singular[:rank], right[:rank], center
