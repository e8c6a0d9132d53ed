"""Sums behind L1, Euclidean and cosine distances between all predicted and all true effects (numba)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import prange

from .jit import compiled


@dataclass(frozen=True)
class EffectSums:
    """Sums over genes without the gene `skip[p]`; float64. Row p, column j: prediction p against truth j.

    `absolute`, `squared`, `product`, `truth_norm` have shape (n_pred, n_truth), `pred_norm` (n_pred,).
    """

    absolute: np.ndarray
    squared: np.ndarray
    product: np.ndarray
    pred_norm: np.ndarray
    truth_norm: np.ndarray


def effect_sums(pred: np.ndarray, truth: np.ndarray, skip: np.ndarray) -> EffectSums:
    """All sums in one pass; genes are added in order, so results do not depend on threads.

    Parameters
    ----------
    pred, truth
        Effects, float64, shapes (n_pred, n_genes) and (n_truth, n_genes).
    skip
        Gene left out for each prediction, shape (n_pred,); -1 for none.
    """
    shape = (len(pred), len(truth))
    absolute, squared, product, truth_square = (np.empty(shape) for _ in range(4))
    _sums(
        np.ascontiguousarray(pred),
        np.ascontiguousarray(truth),
        np.asarray(skip, dtype=np.int64),
        absolute,
        squared,
        product,
        truth_square,
    )
    own = np.square(pred)
    rows = np.flatnonzero(skip >= 0)
    own[rows, skip[rows]] = 0.0
    return EffectSums(absolute, squared, product, np.sqrt(own.sum(axis=1)), np.sqrt(truth_square))


@compiled(parallel=True)
def _sums(pred, truth, skip, absolute, squared, product, truth_square):  # pragma: no cover - compiled
    n_genes = pred.shape[1]
    for p in prange(len(pred)):
        gap = skip[p]
        for j in range(len(truth)):
            total, square, dot, norm = 0.0, 0.0, 0.0, 0.0
            for gene in range(n_genes):
                if gene == gap:
                    continue
                x, y = pred[p, gene], truth[j, gene]
                difference = y - x
                total += abs(difference)
                square += difference * difference
                dot += x * y
                norm += y * y
            absolute[p, j], squared[p, j] = total, square
            product[p, j], truth_square[p, j] = dot, norm
