"""The diagnosis every model card carries: how alike the predictions are, how far from the mean and from no change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .base import Prediction


@dataclass(frozen=True)
class Diagnosis:
    """Numbers about the rows a model predicted; None where there is nothing to compute them from.

    `effect_correlation` is the mean Pearson correlation of all pairs of predicted effects (1: the model says the same
    for every perturbation); distances are mean Euclidean distances of the profiles in log1p space.
    """

    n_rows: int
    n_refused: int
    effect_correlation: float | None
    distance_to_mean: float | None
    distance_to_no_change: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as a flat dict."""
        return asdict(self)


def diagnose(
    prediction: Prediction, control_means: Mapping[str, np.ndarray], mean_effect: np.ndarray
) -> Diagnosis:
    """Diagnosis of a prediction against the mean baseline (`mean_effect`, shape (G,)) and no change."""
    rows = [i for i, status in enumerate(prediction.status) if status != "refused"]
    n_refused = len(prediction.status) - len(rows)
    if not rows:
        return Diagnosis(0, n_refused, None, None, None)
    controls = np.stack([control_means[prediction.keys[i][0]] for i in rows])
    effects = prediction.profiles[rows] - controls
    return Diagnosis(
        len(rows),
        n_refused,
        _mean_pair_correlation(effects),
        float(np.linalg.norm(effects - mean_effect, axis=1).mean()),
        float(np.linalg.norm(effects, axis=1).mean()),
    )


def _mean_pair_correlation(effects: np.ndarray) -> float | None:
    centered = effects - effects.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centered, axis=1)
    varied = lengths > 1e-12 * np.abs(effects).max(axis=1)
    n = int(varied.sum())
    if n < 2:
        return None
    # The squared length of the sum of n unit vectors is n plus twice the sum of their pairwise products.
    total = (centered[varied] / lengths[varied, None]).sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process in MiB, None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def finite(value: float | None, digits: int = 4) -> str:
    """A number for a card, `n/a` when there is none."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
