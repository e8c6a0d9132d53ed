"""Ridge and kernel ridge regression from target features to effects (simple-baselines section 6)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ..base import BaselineInfo
from .common import Answer
from .featured import FeaturedConfig, FeaturedModel

GRID = np.logspace(-3, 3, 13)
N_FOLDS = 5


@dataclass(frozen=True)
class RidgeConfig(FeaturedConfig):
    """Settings of `ridge`.

    Attributes
    ----------
    ridge
        λ, or `cv`: the best of 13 values from 0.001 to 1000 times trace(K) / n by 5-fold cross-validation over
        training perturbations.
    cv_metric
        What cross-validation optimises, averaged over held-out rows: `mse` of the effect, or its Pearson correlation
        (`pearson_delta`; rows without variance are left out). Ties go to the larger λ.
    effect_components
        Regress this many principal components of the centred effects instead of every gene; 0 uses every gene.
    """

    ridge: float | Literal["cv"] = "cv"
    cv_metric: Literal["mse", "pearson_delta"] = "mse"
    effect_components: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ridge != "cv" and not self.ridge > 0:
            raise UsageError(f"ridge must be positive or cv, not {self.ridge}.")
        if self.effect_components < 0:
            raise UsageError(f"effect_components must be 0 or more, not {self.effect_components}.")


@dataclass(frozen=True)
class KernelRidgeConfig(RidgeConfig):
    """Settings of `kernel-ridge`: those of `ridge`, and

    Attributes
    ----------
    kernel
        `linear`, `cosine`, or `rbf` with γ = 1 / (d · variance of the training features).
    """

    kernel: Literal["linear", "cosine", "rbf"] = "rbf"


RidgeT = TypeVar("RidgeT", bound=RidgeConfig)


class _RidgeBase(FeaturedModel[RidgeT]):
    """Cross-validation, effect components and answers; subclasses give the kernel and their own solver."""

    @abstractmethod
    def _kernel(self, left: np.ndarray, right: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _solve(self, targets: np.ndarray) -> None: ...

    @abstractmethod
    def _regress(self, features: np.ndarray) -> np.ndarray:
        """Predicted targets of one feature vector, shape (n_targets,)."""

    def _learn(self, rng: np.random.Generator) -> None:
        targets = self._targets()
        self._prepare()
        self.ridge = self._choose(targets, rng) if self.config.ridge == "cv" else float(self.config.ridge)
        self._solve(targets)

    def _prepare(self) -> None:
        """Learn what the kernel needs from `inputs`."""

    def _targets(self) -> np.ndarray:
        n_components = self.config.effect_components
        self.effect_basis = np.empty((0, self.centered.shape[1]))
        if not n_components:
            return self.centered
        rank = min(n_components, *self.centered.shape)
        self.effect_basis = np.linalg.svd(self.centered, full_matrices=False)[2][:rank]
        return self.centered @ self.effect_basis.T

    def _choose(self, targets: np.ndarray, rng: np.random.Generator) -> float:
        """The λ with the best mean score over held-out rows; folds hold out whole perturbations."""
        names = sorted(set(self.fitted_labels))
        if len(names) < 2:
            raise ModelError(
                "ridge=cv needs at least two training perturbations with features; give a number, for example "
                "--set ridge=1."
            )
        fold_of = dict(zip(rng.permutation(names), np.arange(len(names)) % N_FOLDS, strict=True))
        folds = np.array([fold_of[label] for label in self.fitted_labels])
        kernel = self._kernel(self.inputs, self.inputs)
        grid = GRID * float(np.trace(kernel)) / len(kernel)
        if not grid[0] > 0:
            raise ModelError(
                "all training features are zero after z-scoring; there is nothing to regress on."
            )
        centers = self.table.effects[self.fitted_rows] - self.centered
        scores = [[] for _ in grid]
        for fold in range(min(N_FOLDS, len(names))):
            held, kept = folds == fold, folds != fold
            # Fold means are refitted, so a held-out row has no say in the intercept that predicts it.
            offset = targets[kept].mean(axis=0)
            values, vectors = np.linalg.eigh(kernel[np.ix_(kept, kept)])
            rotated = vectors.T @ (targets[kept] - offset)
            across = kernel[np.ix_(held, kept)] @ vectors
            for i, ridge in enumerate(grid):
                guess = offset + across @ (rotated / (values + ridge)[:, None])
                scores[i] += list(self._row_scores(guess, targets[held], centers[held]))
        means = np.array([np.mean(s) if len(s) else -np.inf for s in scores])
        best = int(np.flatnonzero(means == means.max())[-1])
        self.notes.append(
            f"λ = {grid[best]:.4g} ({GRID[best]:.3g} x trace(K)/n) by {min(N_FOLDS, len(names))}-fold "
            f"cross-validation on {self.config.cv_metric}."
        )
        return float(grid[best])

    def _row_scores(self, guess: np.ndarray, truth: np.ndarray, centers: np.ndarray) -> np.ndarray:
        """Score of each held-out row, higher is better; correlations are of effects, with `centers` added back."""
        if self.config.cv_metric == "mse":
            return -((guess - truth) ** 2).mean(axis=1)
        if len(self.effect_basis):
            guess, truth = guess @ self.effect_basis, truth @ self.effect_basis
        g, t = guess + centers, truth + centers
        g, t = g - g.mean(axis=1, keepdims=True), t - t.mean(axis=1, keepdims=True)
        scale = np.linalg.norm(g, axis=1) * np.linalg.norm(t, axis=1)
        return (g * t).sum(axis=1)[scale > 0] / scale[scale > 0]

    def _answer(self, context: str, perturbation: str, control: np.ndarray) -> Answer:
        found = self._features_of(perturbation)
        if isinstance(found, Answer):
            return found
        features, reason = found
        shift = self._regress(features)
        if len(self.effect_basis):
            shift = shift @ self.effect_basis
        effect = self.context_mean(context) + shift
        return Answer.fall_back(effect, reason) if reason else Answer(effect)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "effect_basis": self.effect_basis}

    def _facts(self) -> dict[str, Any]:
        return {"ridge": self.ridge}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        super()._restore(arrays, facts)
        self.effect_basis, self.ridge = arrays["effect_basis"], float(facts["ridge"])


class Ridge(_RidgeBase[RidgeConfig]):
    """Effect = context mean + B' φ, with B = (Φ'Φ + λI)^-1 Φ' D, solved in feature space."""

    Config = RidgeConfig
    info = BaselineInfo(
        name="ridge",
        title="Ridge regression from target features to effects",
        paper="Hoerl, Kennard 1970",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _kernel(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left @ right.T

    def _solve(self, targets: np.ndarray) -> None:
        left, singular, right = np.linalg.svd(self.inputs, full_matrices=False)
        shrunk = (singular / (singular**2 + self.ridge))[:, None] * (left.T @ targets)
        self.weights = right.T @ shrunk

    def _regress(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "weights": self.weights}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        super()._restore(arrays, facts)
        self.weights = arrays["weights"]


class KernelRidge(_RidgeBase[KernelRidgeConfig]):
    """Effect = context mean + k(p)' (K + λI)^-1 D, solved in the dual."""

    Config = KernelRidgeConfig
    info = BaselineInfo(
        name="kernel-ridge",
        title="Kernel ridge regression (linear, cosine or RBF) from target features to effects",
        paper="Saunders, Gammerman, Vovk 1998",
        needs_gpu=False,
        unseen_targets=True,
        combinations=True,
        new_contexts=True,
    )

    def _prepare(self) -> None:
        variance = float(self.inputs.var())
        self.gamma = 1.0 / (self.inputs.shape[1] * variance) if variance > 0 else 1.0

    def _kernel(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if self.config.kernel == "linear":
            return left @ right.T
        if self.config.kernel == "cosine":
            return unit_rows(left) @ unit_rows(right).T
        squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
        return np.exp(-self.gamma * np.maximum(squared, 0.0))

    def _solve(self, targets: np.ndarray) -> None:
        kernel = self._kernel(self.inputs, self.inputs)
        self.dual = np.linalg.solve(kernel + self.ridge * np.eye(len(kernel)), targets)

    def _regress(self, features: np.ndarray) -> np.ndarray:
        return self._kernel(features[None, :], self.inputs)[0] @ self.dual

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "dual": self.dual, "inputs": self.inputs, "gamma": np.array(self.gamma)}

    def _restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        super()._restore(arrays, facts)
        self.dual, self.inputs, self.gamma = arrays["dual"], arrays["inputs"], float(arrays["gamma"])


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; a zero row stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
