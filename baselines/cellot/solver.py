"""The min-max game of CellOT for many maps at once: per-cell losses, and the steps of g and f."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..training.distributed import any_process
from .icnn import StackedIcnn, Weights, potential, potential_and_transport, transport

Update = Callable[[Tensor], None]


def g_terms(f: Weights, g: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(∇g(x)) - <x, ∇g(x)> of each source cell, and a surrogate with the same gradient in g; both (P, B).

    d f(T)/dg = ∇f(T)·dT/dg, so <∇f(T) - x, T> with its first factor held needs no graph through f.
    """
    moved = transport(g, x)
    with torch.no_grad():
        value, push = potential_and_transport(f, moved)
        loss = value - (x * moved).sum(dim=2)
        push = push - x
    return loss, (push * moved).sum(dim=2)


def f_terms(f: Weights, g: Weights, x: Tensor, y: Tensor) -> Tensor:
    """f(y) - f(∇g(x)) of each pair of target and source cells, (P, B); its gradient reaches f alone."""
    with torch.no_grad():
        moved = transport(g, x)
    return potential(f, y) - potential(f, moved)


@torch.no_grad()
def w2_terms(f: Weights, g: Weights, x: Tensor, y: Tensor) -> Tensor:
    """f(T) - <x,T> - f(y) + |x|²/2 + |y|²/2, (P, B); its mean estimates half the squared Wasserstein-2 distance."""
    moved = transport(g, x)
    gain = potential(f, moved) - (x * moved).sum(dim=2) - potential(f, y)
    return gain + 0.5 * (x * x).sum(dim=2) + 0.5 * (y * y).sum(dim=2)


class Duel(nn.Module):
    """Potentials f (target side) and g (source side, the predictor) of P maps, and their training steps.

    `healthy`, bool (P,), is False for maps whose loss became NaN or infinite: they stop learning, the others go on.
    """

    healthy: Tensor

    def __init__(self, f: StackedIcnn, g: StackedIcnn, *, fnorm_penalty: float = 1.0):
        super().__init__()
        self.f, self.g, self.fnorm_penalty = f, g, fnorm_penalty
        self.register_buffer("healthy", torch.ones(f.n_maps, dtype=torch.bool))
        for parameter in self.parameters():
            parameter.register_hook(self._keep_healthy)

    def _keep_healthy(self, gradient: Tensor) -> Tensor:
        # A NaN in one map's slice must not reach its weights; other slices never see it.
        return torch.where(self.healthy.view(-1, *[1] * (gradient.dim() - 1)), gradient, 0.0)

    def step_g(self, x: Tensor, n_whole: int, update: Update, *, active: Tensor | None = None) -> Tensor:
        """One step of g on source cells (P or len(active), B, d); the share of loss_g of these cells, (P,) likewise.

        `n_whole` cells per map make the step, of which these are a part. `active` are the maps that take part.
        """
        loss, surrogate = g_terms(
            _rows(self.f.weights().detached(), active), _rows(self.g.weights(), active), x
        )
        share = x.shape[1] / n_whole
        penalty = self.g.penalty() if active is None else self.g.penalty()[active]
        fit = loss.sum(dim=1) / n_whole
        whole = surrogate.sum(dim=1) / n_whole + self.fnorm_penalty * share * penalty
        update(self._total(whole, fit, active))
        self.g.project_curvature()
        return fit.detach()

    def step_f(
        self, x: Tensor, y: Tensor, n_whole: int, update: Update, *, active: Tensor | None = None
    ) -> Tensor:
        """One step of f on source and target cells, and its projection; the share of loss_f, as `step_g`."""
        rows = f_terms(_rows(self.f.weights(), active), _rows(self.g.weights().detached(), active), x, y)
        fit = rows.sum(dim=1) / n_whole
        update(self._total(fit, fit, active))
        self.f.project()
        return fit.detach()

    def _total(self, loss: Tensor, fit: Tensor, active: Tensor | None) -> Tensor:
        bad = any_process(~(torch.isfinite(loss.detach()) & torch.isfinite(fit.detach())))
        if active is None:
            self.healthy &= ~bad
        else:
            self.healthy[active] = self.healthy[active] & ~bad
        return torch.where(bad, 0.0, loss).sum()


def _rows(weights: Weights, active: Tensor | None) -> Weights:
    return weights if active is None else weights.rows(active)
