"""Random forest from target features to effects (simple-baselines section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data_specs.errors import UsageError
from ..base import BaselineInfo
from .common import Answer
from .featured import FeaturedConfig, FeaturedModel


@dataclass(frozen=True)
class ForestConfig(FeaturedConfig):
    """Settings of `random-forest`; defaults are scikit-learn's.

    Attributes
    ----------
    n_trees
        Trees of the forest.
    max_features
        Features tried per split: `all`, or the square root of their number.
    min_leaf
        Training rows per leaf at least.
    """

    n_trees: int = 100
    max_features: Literal["all", "sqrt"] = "all"
    min_leaf: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_trees < 1 or self.min_leaf < 1:
            raise UsageError("n_trees and min_leaf must be at least 1.")


class RandomForest(FeaturedModel[ForestConfig]):
    """Multi-output forest on effects centred per context.

    Saved as features, effects, parameters and seed: `load` fits the same forest again with the scikit-learn that is
    installed; a different version than the recorded one is noted.
    """

    Config = ForestConfig
    info = BaselineInfo(
        name="random-forest",
        title="Random forest from target features to effects",
        paper="Csendes et al. 2025",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _learn(self, rng: np.random.Generator) -> None:
        self.seed = int(rng.integers(2**31))
        self._grow()

    def _grow(self) -> None:
        from sklearn.ensemble import RandomForestRegressor

        max_features: Any = 1.0 if self.config.max_features == "all" else "sqrt"
        self.forest = RandomForestRegressor(
            n_estimators=self.config.n_trees,
            max_features=max_features,
            min_samples_leaf=self.config.min_leaf,
            random_state=self.seed,
        )
        n_genes = self.centered.shape[1]
        self.forest.fit(self.inputs, self.centered if n_genes > 1 else self.centered[:, 0])

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        found = self._features_of(perturbation)
        if isinstance(found, Answer):
            return found
        features, reason = found
        effect = self.context_mean(context) + self.forest.predict(features[None, :]).reshape(-1)
        return Answer.fall_back(effect, reason) if reason else Answer(effect)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "inputs": self.inputs, "centered": self.centered}

    def _facts(self) -> dict[str, Any]:
        import sklearn

        return {"seed": self.seed, "scikit_learn": sklearn.__version__}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        import sklearn

        super()._restore(arrays, facts)
        if facts["scikit_learn"] != sklearn.__version__:
            self.notes.append(
                f"Fitted with scikit-learn {facts['scikit_learn']}, grown again with {sklearn.__version__}: "
                "trees may differ."
            )
        self.seed, self.inputs, self.centered = int(facts["seed"]), arrays["inputs"], arrays["centered"]
        self._grow()
