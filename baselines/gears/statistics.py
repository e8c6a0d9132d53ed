"""Weighted batch statistics: moments of rows that stand for several cells, over one or several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]


def alone(value: Tensor) -> Tensor:
    """The sum over the only process there is."""
    return value


@dataclass(frozen=True)
class Moments:
    """Mean and biased variance of each column, and the weight of all rows."""

    mean: Any
    variance: Any
    n: Any = None


def moments_of(x: Tensor, weights: Tensor | None = None, *, reduce: Reduce = alone) -> Moments:
    """Weighted moments of the columns of `x`, shape (N, F). `reduce` sums over processes, with gradient.

    Without weights every row counts once and the rows are taken as the same on every process.
    """
    if weights is None:
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        return Moments(mean, variance, torch.tensor(float(len(x)), dtype=x.dtype, device=x.device))
    n = reduce(weights.sum().detach())
    share = weights / n
    mean = reduce(share @ x)
    return Moments(mean, reduce(share @ (x - mean) ** 2), n)


def batch_normed(x: Tensor, moments: Moments, norm: nn.BatchNorm1d, shift: Tensor) -> Tensor:
    """`x` normalised with the moments, scaled by the layer's weight and moved by `shift`."""
    scale = norm.weight * torch.rsqrt(moments.variance + norm.eps)
    return (x - moments.mean) * scale + shift
