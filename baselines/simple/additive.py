"""Combinations from their parts: the additive model and the matching mean (simple-baselines section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data_specs.errors import ModelError
from ...data_specs.labels import split_label
from ..base import BaselineInfo, TrainingData
from .common import Answer, EffectModel, elsewhere, require_rows
from .corrections import REFUSED_FROM, CorrectionConfig


@dataclass(frozen=True)
class AdditiveConfig(CorrectionConfig):
    """Settings of `additive`.

    Attributes
    ----------
    missing
        What a part without a training single becomes: `strict` refuses the row, `mean-delta` takes the equal-weight
        mean of all training effects for each missing part.
    scaled
        Multiply sums by one slope, fitted through the origin on the training combinations whose parts are all seen.
    """

    missing: Literal["strict", "mean-delta"] = "strict"
    scaled: bool = False


class Additive(EffectModel[AdditiveConfig]):
    """Control mean plus the sum of the single effects of the parts.

    A part measured in other contexts only lends their mean effect. Combinations of any size add.
    """

    Config = AdditiveConfig
    keeps_table = True
    info = BaselineInfo(
        name="additive",
        title="Sum of the single effects",
        paper="Ahlmann-Eltze, Huber, Anders 2025",
        needs_gpu=False,
        unseen_targets=False,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        self.mean_effect = self.table.mean()
        self.slope = self._fit_slope() if self.config.scaled else 1.0
        if self.slope >= REFUSED_FROM or self.slope < 0:
            raise ModelError(
                f"the fitted slope {self.slope:.3g} is outside 0 to {REFUSED_FROM:g}; use scaled=false."
            )

    @property
    def factor(self) -> float:
        return self.config.scale * self.slope

    def _fit_slope(self) -> float:
        products, squares, n = 0.0, 0.0, 0
        for (context, perturbation), observed in zip(self.table.keys, self.table.effects, strict=True):
            parts = split_label(perturbation)
            found = [self.table.find(context, part) for part in parts]
            if len(parts) < 2 or any(item is None for item in found):
                continue
            total = np.sum([item[0] for item in found if item is not None], axis=0)
            products, squares, n = products + float(total @ observed), squares + float(total @ total), n + 1
        if n == 0 or squares == 0:
            raise ModelError("scaled=true needs a training combination whose parts are all training singles.")
        self.notes.append(f"Additive slope {products / squares:.4f} from {n} training combination(s).")
        return products / squares

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        parts = split_label(perturbation)
        total = np.zeros(len(self.genes))
        missing, borrowed = [], []
        for part in parts:
            found = self.table.find(context, part)
            if found is None:
                missing.append(part)
                total += self.mean_effect
                continue
            total += found[0]
            if not found[1]:
                borrowed.append(part)
        if missing and self.config.missing == "strict":
            return Answer.refuse(f"no training single of {', '.join(missing)}")
        if len(parts) > 1:
            total = total * self.slope
        if missing:
            return Answer.fall_back(
                total, f"no training single of {', '.join(missing)}; mean training effect instead"
            )
        return Answer(total, reason=elsewhere(borrowed))

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"mean_effect": self.mean_effect, "slope": np.array(self.slope)}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.mean_effect, self.slope = arrays["mean_effect"], float(arrays["slope"])


class MatchingMean(EffectModel[CorrectionConfig]):
    """The average of the parts' mean profiles.

    A part without a training single counts as the cell-weighted mean of the perturbed training cells of the
    context (of all contexts where this one has none).
    """

    keeps_table = True
    info = BaselineInfo(
        name="matching-mean",
        title="Average of the parts' profiles",
        paper="Viñas Torné et al. 2025 (Systema)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        effects, missing, borrowed = [], [], []
        for part in split_label(perturbation):
            found = self.table.find(context, part)
            if found is None:
                missing.append(part)
                effects.append(self._perturbed_mean(context))
                continue
            effects.append(found[0])
            if not found[1]:
                borrowed.append(part)
        effect = np.mean(effects, axis=0)
        if missing:
            return Answer.fall_back(
                effect, f"no training single of {', '.join(missing)}; mean of perturbed cells instead"
            )
        return Answer(effect, reason=elsewhere(borrowed))

    def _perturbed_mean(self, context: str) -> np.ndarray:
        rows = self.table.rows_in(context)
        return self.table.mean(weighting="cell", rows=rows or None)
