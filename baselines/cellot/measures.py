"""Distances between samples of many maps at once, on the device: MMD with a median scale, and means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TRAINING_GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)
EVALUATION_GAMMAS = tuple(float(g) for g in torch.logspace(1, -3, 50, dtype=torch.float64).tolist())


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    x_used: Tensor | None = None,
    y_used: Tensor | None = None,
    scale: Tensor | None = None,
    gammas: Sequence[float] = TRAINING_GAMMAS,
) -> Tensor:
    """Mean over gammas of mean K(x,x) + mean K(y,y) - 2 mean K(x,y), shape (P,): biased, diagonals included.

    K = exp(-gamma |a - b|² / scale²) of samples (P, n, d) and (P, m, d); `scale` (P,) is 1 by default. `x_used` (P, n)
    and `y_used` (P, m) mark the rows that count (padding is False).
    """
    first = _weights(x, x_used)
    second = _weights(y, y_used)
    factor = x.new_ones(len(x)) if scale is None else scale
    out = x.new_zeros(len(x))
    for a, b, left, right, sign in (
        (x, x, first, first, 1.0),
        (y, y, second, second, 1.0),
        (x, y, first, second, -2.0),
    ):
        squares = squared_distances(a, b) / factor[:, None, None] ** 2
        kernels = torch.zeros_like(squares)
        for gamma in gammas:
            kernels += torch.exp(-gamma * squares)
        out += sign * torch.einsum("pi,pij,pj->p", left, kernels, right)
    return out / len(gammas)


def _weights(x: Tensor, used: Tensor | None) -> Tensor:
    counted = x.new_ones(x.shape[:2]) if used is None else used.to(x.dtype)
    return counted / counted.sum(dim=1, keepdim=True)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|a - b|² of all pairs, shape (P, n, m), never negative."""
    inner = torch.bmm(x, y.mT)
    sizes = (x * x).sum(dim=2)[:, :, None] + (y * y).sum(dim=2)[:, None, :]
    return (sizes - 2.0 * inner).clamp_(min=0.0)


def median_distance(y: Tensor, used: Tensor | None = None) -> Tensor:
    """Median Euclidean distance of the pairs of used rows, shape (P,); 1 with fewer than two distinct rows."""
    n = y.shape[1]
    kept = y.new_ones(y.shape[:2], dtype=torch.bool) if used is None else used
    left, right = torch.triu_indices(n, n, 1, device=y.device)
    out = []
    for own, rows in zip(y, kept, strict=True):
        pairs = rows[left] & rows[right]
        distances = squared_distances(own[None], own[None])[0][left, right][pairs].sqrt()
        median = distances.median() if len(distances) else y.new_zeros(())
        out.append(torch.where(median > 0, median, torch.ones_like(median)))
    return torch.stack(out)


def masked_mean(x: Tensor, used: Tensor | None = None) -> Tensor:
    """Mean of the used rows, shape (P, d)."""
    return torch.einsum("pi,pid->pd", _weights(x, used), x)
