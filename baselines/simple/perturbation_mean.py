"""The effect of the same perturbation in other contexts (simple-baselines section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ..base import BaselineInfo, TrainingData
from .common import Answer, EffectModel, require_rows
from .corrections import CorrectionConfig, check_factor
from .effects import text_array

LARGEST_CHOSEN_SHRINKAGE = 1.5


@dataclass(frozen=True)
class PerturbationMeanConfig(CorrectionConfig):
    """Settings of `perturbation-mean`.

    Attributes
    ----------
    tau
        Contexts weigh exp(-d / tau), d being the root mean squared difference of the control profiles; infinite
        tau (the default) weighs them equally.
    shrinkage
        Factor s on the mean effect, or `loco`: the least-squares s in [0, 1.5] of predicting each training row
        from the other contexts. 10 and more is refused.
    """

    tau: float = float("inf")
    shrinkage: float | Literal["loco"] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tau > 0:
            raise UsageError(f"tau must be positive (inf for equal weights), not {self.tau}.")
        if self.shrinkage != "loco":
            check_factor("shrinkage", self.shrinkage)


class PerturbationMean(EffectModel[PerturbationMeanConfig]):
    """Control mean of the context plus the mean effect of the perturbation over the training contexts that have it."""

    Config = PerturbationMeanConfig
    keeps_table = True
    info = BaselineInfo(
        name="perturbation-mean",
        title="Mean effect of the same perturbation over training contexts",
        paper="Adduri et al. 2025 (State); Wenkel et al. 2025 (TxPert)",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _fit(self, data: TrainingData, rng: np.random.Generator) -> None:
        require_rows(data, self.info.name)
        self.controls = {context: data.control_means[context] for context in self.table.contexts}
        self.mean_effect = self.table.mean()
        chosen = self.config.shrinkage
        self.shrinkage = self._leave_one_context_out() if chosen == "loco" else chosen

    @property
    def factor(self) -> float:
        return self.config.scale * self.shrinkage

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        rows = self.table.rows_of(perturbation)
        if not rows:
            reason = f"{perturbation} has no training row in any context; global mean effect"
            return Answer.fall_back(self.shrinkage * self.mean_effect, reason)
        return Answer(self.shrinkage * self._weighted(rows, control))

    def _weighted(self, rows: list[int], control: np.ndarray) -> np.ndarray:
        effects = self.table.effects[rows]
        if np.isinf(self.config.tau) or len(rows) == 1:
            return effects.mean(axis=0)
        sources = np.stack([self.controls[self.table.keys[row][0]] for row in rows])
        distances = np.sqrt(((sources - control) ** 2).mean(axis=1))
        # Only ratios matter, so the nearest context is the origin: exp never underflows for all of them.
        weights = np.exp(-(distances - distances.min()) / self.config.tau)
        return (weights / weights.sum()) @ effects

    def _leave_one_context_out(self) -> float:
        if len(self.table.contexts) < 2:
            raise ModelError(
                "shrinkage=loco needs training rows in at least two contexts; give a number instead."
            )
        products, squares = 0.0, 0.0
        for held_out in self.table.contexts:
            others = [i for i, (context, _) in enumerate(self.table.keys) if context != held_out]
            fallback = self.table.mean(rows=others)
            for row in self.table.rows_in(held_out):
                twins = [i for i in self.table.rows_of(self.table.keys[row][1]) if i in set(others)]
                guess = self._weighted(twins, self.controls[held_out]) if twins else fallback
                products += float(guess @ self.table.effects[row])
                squares += float(guess @ guess)
        best = 0.0 if squares == 0 else products / squares
        chosen = float(np.clip(best, 0.0, LARGEST_CHOSEN_SHRINKAGE))
        self.notes.append(f"Shrinkage s = {chosen:.4f}, chosen by leaving one context out.")
        return chosen

    def _arrays(self) -> dict[str, np.ndarray]:
        names = list(self.controls)
        return {
            "control_names": text_array(names),
            "controls": np.stack([self.controls[name] for name in names]),
            "shrinkage": np.array(self.shrinkage),
        }

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        names = (str(name) for name in arrays["control_names"])
        self.controls = dict(zip(names, arrays["controls"], strict=True))
        self.mean_effect = self.table.mean()
        self.shrinkage = float(arrays["shrinkage"])
