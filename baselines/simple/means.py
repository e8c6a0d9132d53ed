"""No change, the mean of training perturbations, and the context mean (simple-baselines sections 1 to 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..base import BaselineInfo, TrainingData
from .common import Answer, ConfigT, EffectModel, require_rows
from .corrections import CorrectionConfig
from .effects import text_array


class NoChange(EffectModel[CorrectionConfig]):
    """Every perturbation leaves the control mean as it is."""

    info = BaselineInfo(
        name="no-change",
        title="Control mean: no perturbation changes anything",
        paper="Ahlmann-Eltze, Huber, Anders 2025",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        return None

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        return Answer(np.zeros(len(self.genes)))


@dataclass(frozen=True)
class MeanConfig(CorrectionConfig):
    """Settings of `mean`.

    Attributes
    ----------
    weighting
        `equal`: every training (context, perturbation) counts once; `cell`: by its number of cells.
    form
        `delta`: control mean of the context plus the mean effect over all training rows. `absolute`: mean profile
        of the training rows of the same context; a context without training rows falls back to `delta`.
    """

    weighting: Literal["equal", "cell"] = "equal"
    form: Literal["absolute", "delta"] = "delta"


class _ContextMeans(EffectModel[ConfigT]):
    """Mean effect overall, and mean effect of each training context."""

    def _learn(self, weighting: str) -> None:
        self.overall = self.table.mean(weighting=weighting)
        self.by_context = {
            context: self.table.mean(weighting=weighting, rows=self.table.rows_in(context))
            for context in self.table.contexts
        }

    def _own_context(self, context: str) -> Answer:
        if context in self.by_context:
            return Answer(self.by_context[context])
        return Answer.fall_back(
            self.overall, f"context {context!r} has no training perturbation; mean effect of the others"
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        names = list(self.by_context)
        means = np.stack([self.by_context[name] for name in names])
        return {"overall": self.overall, "context_names": text_array(names), "context_means": means}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.overall = arrays["overall"]
        names = (str(name) for name in arrays["context_names"])
        self.by_context = dict(zip(names, arrays["context_means"], strict=True))


class Mean(_ContextMeans[MeanConfig]):
    """The mean of the training perturbations, the same for every request."""

    Config = MeanConfig
    info = BaselineInfo(
        name="mean",
        title="Mean of training perturbations, equal or cell weights",
        paper="Kernfeld et al. 2023; Viñas Torné et al. 2025 (Systema)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        self._learn(self.config.weighting)

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        return Answer(self.overall) if self.config.form == "delta" else self._own_context(context)


class ContextMean(_ContextMeans[CorrectionConfig]):
    """Mean over all perturbed training cells of the same context, whatever the perturbation."""

    info = BaselineInfo(
        name="context-mean",
        title="Mean of the perturbed training cells of the same context",
        paper="Adduri et al. 2025 (State)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        self._learn("cell")

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        return self._own_context(context)
