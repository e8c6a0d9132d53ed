"""The metrics of cell-eval on mean profiles; float64 results over values in the precision of the data."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..kernels.distances import effect_sums
from .panel import Panel

Space = Literal["mean", "effect"]


def _pair(panel: Panel, space: Space) -> tuple[np.ndarray, np.ndarray]:
    sides = (panel.pred.measured, panel.truth.measured)
    pred, truth = (side.bulk[:-1] if space == "mean" else side.effects for side in sides)
    return pred, truth


def squared_error(panel: Panel, space: Space) -> np.ma.MaskedArray:
    """Mean over genes of the squared difference of means (or of effects)."""
    pred, truth = _pair(panel, space)
    return _full(np.square((pred - truth).astype(np.float64)).mean(axis=1))


def absolute_error(panel: Panel, space: Space) -> np.ma.MaskedArray:
    """Mean over genes of the absolute difference of means (or of effects)."""
    pred, truth = _pair(panel, space)
    return _full(np.abs((pred - truth).astype(np.float64)).mean(axis=1))


def pearson_delta(panel: Panel) -> np.ma.MaskedArray:
    """Pearson correlation over genes between predicted and true effects; NaN where one of them is constant."""
    pred, truth = _pair(panel, "effect")
    return _full(np.array([pearson(p, t) for p, t in zip(pred, truth, strict=True)]))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation in float64; NaN for fewer than two values or a constant side."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    a, b = x - x.mean(), y - y.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


def discrimination(panel: Panel, distance: Literal["l1", "l2", "cosine"]) -> np.ma.MaskedArray:
    """1 - r / N, r the rank (0 = closest) of the own true effect among all true effects, seen from the predicted one.

    The gene a target is named after is left out of its distances. Equal distances keep the order of the
    targets. A zero effect has cosine distance 1 to everything.
    """
    pred, truth = (array.astype(np.float64) for array in _pair(panel, "effect"))
    sums = effect_sums(pred, truth, panel.own_gene)
    if distance == "l1":
        distances = sums.absolute
    elif distance == "l2":
        distances = np.sqrt(sums.squared)
    else:
        scale = sums.pred_norm[:, None] * sums.truth_norm
        cosine = np.divide(sums.product, scale, out=np.zeros_like(scale), where=scale > 0)
        distances = 1.0 - cosine
    n = panel.n_targets
    own = np.diagonal(distances)[:, None]
    earlier = np.tri(n, k=-1, dtype=bool)
    rank = (distances < own).sum(axis=1) + ((distances == own) & earlier).sum(axis=1)
    return _full(1.0 - rank / n)


def _full(values: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(np.asarray(values, dtype=np.float64), mask=False)
