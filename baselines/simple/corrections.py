"""Cheap corrections that every simple model shares: target overwrite, shrinkage, denoising, strength."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...data_specs.errors import ModelError, UsageError
from ...data_specs.labels import targets_of
from ..base import TrainingData

AMPLIFIED_BELOW, AMPLIFIED_ABOVE, REFUSED_FROM = 0.25, 4.0, 10.0


@dataclass(frozen=True)
class CorrectionConfig:
    """Switches of the shared corrections; all off by default.

    Attributes
    ----------
    target_overwrite
        What the target's own entry becomes: `zero` (no expression), `median-residual` or `mean-fold` (control
        expression times the median or mean over measured training singles of perturbed / control expression
        of the target). Ratios are taken of exp(x) - 1, the linear scale; a gene silent in control stays silent.
    scale
        Factor on every predicted effect, at least 0 and below 10.
    reliability
        `james-stein` multiplies each training effect by max(0, 1 - noise / squared length), its noise being the
        summed variance of the two means it is the difference of.
    low_rank
        Predicted effects are projected on this many principal components of the training effects (centred);
        0 leaves them as they are.
    strength
        `control-expression` rescales each predicted effect to a length predicted from the control expression of
        its targets: ordinary least squares of log length on the summed log1p control expression.
    """

    target_overwrite: Literal["none", "zero", "median-residual", "mean-fold"] = "none"
    scale: float = 1.0
    reliability: Literal["none", "james-stein"] = "none"
    low_rank: int = 0
    strength: Literal["none", "control-expression"] = "none"

    def __post_init__(self) -> None:
        check_factor("scale", self.scale)
        if self.low_rank < 0:
            raise UsageError(f"low_rank must be 0 or more, not {self.low_rank}.")


def check_factor(name: str, factor: float) -> None:
    """Refuse a factor on effects that is negative, not finite, or 10 and more (it only games distance ranks)."""
    if not 0 <= factor < REFUSED_FROM:
        raise UsageError(f"{name} must be at least 0 and below {REFUSED_FROM:g}, not {factor:g}.")


def is_amplified(factor: float) -> bool:
    """True when a factor on effects must be flagged in the card: outside 0.25 to 4."""
    return not AMPLIFIED_BELOW <= factor <= AMPLIFIED_ABOVE


def reliabilities(data: TrainingData) -> np.ndarray:
    """James-Stein factor of each training effect, shape (n,), in [0, 1].

    Raises
    ------
    ModelError
        The data carry no sampling variance, or a row has fewer than two cells.
    """
    variance = data.sampling_variance
    if variance is None or not np.isfinite(variance).all():
        raise ModelError(
            "reliability=james-stein needs at least two cells in every training row and control."
        )
    squared = (data.effects**2).sum(axis=1)
    noise = variance.sum(axis=1)
    ratio = np.divide(noise, squared, out=np.ones_like(noise), where=squared > 0)
    return np.maximum(0.0, 1.0 - ratio)


def target_ratios(data: TrainingData) -> np.ndarray:
    """Perturbed over control expression of the target, linear scale, one per measured and expressed training single."""
    position = {gene: i for i, gene in enumerate(data.genes)}
    ratios = []
    for row, (context, perturbation) in enumerate(data.keys):
        targets = targets_of(perturbation)
        if len(targets) != 1 or targets[0] not in position:
            continue
        gene = position[targets[0]]
        before = np.expm1(data.control_means[context][gene])
        if before > 0:
            ratios.append(np.expm1(data.means[row, gene]) / before)
    return np.array(ratios)


@dataclass(frozen=True)
class Corrections:
    """Fitted corrections, applied to predicted effects and then to profiles."""

    config: CorrectionConfig
    genes: Mapping[str, int]
    fold: float | None
    center: np.ndarray
    components: np.ndarray
    strength: tuple[float, float] | None

    @classmethod
    def fit(cls, config: CorrectionConfig, data: TrainingData, effects: np.ndarray) -> Corrections:
        """Learn what the switched-on corrections need. Raises `ModelError` where the data cannot support one."""
        empty = np.empty((0, len(data.genes)))
        center, components = np.zeros(len(data.genes)), empty
        if config.low_rank:
            center = effects.mean(axis=0) if len(effects) else center
            components = _leading_components(effects - center, config.low_rank)
        return cls(
            config,
            {str(gene): i for i, gene in enumerate(data.genes)},
            _fold(config, data),
            center,
            components,
            _strength(config, data, effects),
        )

    def effect(self, effect: np.ndarray, perturbation: str, control: np.ndarray) -> np.ndarray:
        """The corrected effect, shape (G,): denoised, then given its length, then scaled."""
        if self.config.low_rank:
            shifted = effect - self.center
            effect = self.center + self.components.T @ (self.components @ shifted)
        if self.strength is not None:
            effect = self._with_strength(effect, perturbation, control)
        return effect if self.config.scale == 1.0 else effect * self.config.scale

    def _with_strength(self, effect: np.ndarray, perturbation: str, control: np.ndarray) -> np.ndarray:
        columns = [self.genes[t] for t in targets_of(perturbation) if t in self.genes]
        length = float(np.linalg.norm(effect))
        if self.strength is None or not columns or length == 0:
            return effect
        intercept, slope = self.strength
        return effect * (np.exp(intercept + slope * control[columns].sum()) / length)

    def profile(self, profile: np.ndarray, perturbation: str, control: np.ndarray) -> np.ndarray:
        """The profile with its measured targets overwritten; `profile` itself is not changed."""
        if self.config.target_overwrite == "none":
            return profile
        out = profile.copy()
        for target in targets_of(perturbation):
            column = self.genes.get(target)
            if column is not None:
                fold = 0.0 if self.fold is None else self.fold
                out[column] = np.log1p(fold * max(0.0, float(np.expm1(control[column]))))
        return out

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays that `from_arrays` reads, prefixed `correction_`."""
        strength = np.array(self.strength if self.strength is not None else (), dtype=np.float64)
        fold = np.array([] if self.fold is None else [self.fold], dtype=np.float64)
        return {
            "correction_fold": fold,
            "correction_center": self.center,
            "correction_components": self.components,
            "correction_strength": strength,
        }

    @classmethod
    def from_arrays(
        cls, config: CorrectionConfig, genes: np.ndarray, arrays: Mapping[str, np.ndarray]
    ) -> Corrections:
        """The inverse of `to_arrays`."""
        fold, strength = arrays["correction_fold"], arrays["correction_strength"]
        return cls(
            config,
            {str(gene): i for i, gene in enumerate(genes)},
            float(fold[0]) if len(fold) else None,
            arrays["correction_center"],
            arrays["correction_components"],
            (float(strength[0]), float(strength[1])) if len(strength) else None,
        )


def _fold(config: CorrectionConfig, data: TrainingData) -> float | None:
    if config.target_overwrite in ("none", "zero"):
        return None
    ratios = target_ratios(data)
    if not len(ratios):
        raise ModelError(
            f"target_overwrite={config.target_overwrite} needs a training single whose target is a measured gene "
            "with control expression."
        )
    return float(np.median(ratios) if config.target_overwrite == "median-residual" else ratios.mean())


def _strength(
    config: CorrectionConfig, data: TrainingData, effects: np.ndarray
) -> tuple[float, float] | None:
    if config.strength == "none":
        return None
    position = {gene: i for i, gene in enumerate(data.genes)}
    levels, lengths = [], []
    for (context, perturbation), effect in zip(data.keys, effects, strict=True):
        columns = [position[t] for t in targets_of(perturbation) if t in position]
        length = float(np.linalg.norm(effect))
        if columns and length > 0:
            levels.append(float(data.control_means[context][columns].sum()))
            lengths.append(np.log(length))
    if len(levels) < 3 or np.ptp(levels) == 0:
        raise ModelError(
            "strength=control-expression needs three training perturbations with measured targets of different "
            f"control expression; there are {len(levels)}."
        )
    slope, intercept = np.polyfit(levels, lengths, 1)
    return float(intercept), float(slope)


def _leading_components(centered: np.ndarray, rank: int) -> np.ndarray:
    largest = min(centered.shape)
    if rank > largest:
        raise ModelError(f"low_rank={rank} is more than the {largest} components the training effects have.")
    return np.linalg.svd(centered, full_matrices=False)[2][:rank]
