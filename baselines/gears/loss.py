"""The autofocus loss of GEARS with its direction and uncertainty terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import Direction


@dataclass(frozen=True)
class LossTerms:
    """Shares of one pass: `total` is differentiated; `fit` and `direction` are its parts, `direction` unweighted."""

    total: Tensor
    fit: Tensor
    direction: Tensor


def cell_weights(conditions: Tensor, whole: Tensor, n_retained: Tensor) -> Tensor:
    """Weight of each cell of a pass: 1 / (conditions of the step * cells of its condition * its retained genes).

    Parameters
    ----------
    conditions, whole
        Condition of each cell of the pass, int64, shape (B,), and of each cell of the whole step.
    n_retained
        Retained genes of each condition, shape (n_conditions,). A condition without any weighs 0.

    Returns
    -------
    float64, shape (B,).
    """
    cells = torch.bincount(whole, minlength=len(n_retained)).double()
    sizes = n_retained.double()
    weight = 1.0 / ((cells > 0).sum() * cells.clamp(min=1) * sizes.clamp(min=1))
    return torch.where(sizes > 0, weight, 0.0)[conditions]


def autofocus_loss(
    predicted: Tensor,
    target: Tensor,
    control_mean: Tensor,
    retained: Tensor,
    weights: Tensor,
    *,
    direction: Direction,
    direction_lambda: float,
    log_variance: Tensor | None = None,
    uncertainty_reg: float = 1.0,
) -> LossTerms:
    """The loss of a pass: fourth powers over retained genes, each condition of the step weighing the same.

    Sum over cells and genes of weight * retained * [(p - y)^4 (1 + reg e^-s) + lambda (f(y - c) - f(p - c))^2], with
    s the log-variance (its factor is left out without one) and f the sign, whose term has no gradient, or tanh.
    Accumulated in float32 or better.

    Parameters
    ----------
    predicted, target
        Expression, shape (B, G).
    control_mean
        Mean control expression, shape (G,) or (B, G).
    retained
        Genes that count for each cell, bool, shape (B, G).
    weights
        From `cell_weights`, shape (B,).
    """
    kind = torch.promote_types(predicted.dtype, torch.float32)
    predicted, target, control_mean = predicted.to(kind), target.to(kind), control_mean.to(kind)
    scale = retained * weights.to(kind).unsqueeze(-1)
    squared = (predicted - target) ** 2
    fourth = squared * squared
    if log_variance is not None:
        fourth = fourth * (1 + uncertainty_reg * torch.exp(-log_variance.to(kind)))
    fit = (fourth * scale).sum()
    if direction == "none":
        return LossTerms(fit, fit.detach(), torch.zeros_like(fit))
    shape = torch.tanh if direction == "tanh" else torch.sign
    gap = ((shape(target - control_mean) - shape(predicted - control_mean)) ** 2 * scale).sum()
    return LossTerms(fit + direction_lambda * gap, fit.detach(), gap.detach())
