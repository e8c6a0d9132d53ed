"""The conditional map (experimental): potentials that are convex in the cell and read features of the perturbation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import CellotConfig
from .icnn import LEAK, SMALL

# A best value before there is one; checkpoints hold finite numbers only.
UNSET = 1e300


class PartiallyConvex(nn.Module):
    """ψ(x, c), convex in x for kernels `wz` of at least 0, with a context in every row; CondOT's network and keys.

    u_l = σ(w u_{l-1}), u_0 = c; z_1 = σ(wx(x∘wxu u_1) + wu u_1)²; z_l = σ(wz(z_{l-1}∘sp(wzu u_l)) + wx(x∘wxu u_l) +
    wu u_l); ψ = wz(z_L∘sp(wzu u_L)) + wx(x∘wxu u_L) + wu u_L; sp is softplus.
    """

    def __init__(self, dim: int, context: int, hidden: Sequence[int], *, dtype: torch.dtype = torch.float32):
        super().__init__()

        def layers(sizes: Sequence[tuple[int, int]], *, bias: bool) -> Any:
            return nn.ModuleList([nn.Linear(i, o, bias=bias, dtype=dtype) for i, o in sizes])

        after = [*hidden[1:], 1]
        contexts = [*hidden, hidden[-1]]
        self.w = layers(list(zip([context, *hidden[:-1]], hidden, strict=True)), bias=True)
        self.wz = layers(list(zip(hidden, after, strict=True)), bias=False)
        self.wzu = layers(list(zip(contexts[1:], hidden, strict=True)), bias=True)
        self.wx = layers([(dim, o) for o in (*hidden, 1)], bias=True)
        self.wxu = layers([(u, dim) for u in contexts], bias=True)
        self.wu = layers(list(zip(contexts, [*hidden, 1], strict=True)), bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """ψ of rows (n, d) with contexts (n, k), shape (n,)."""
        u, states = context, []
        for layer in self.w:
            u = functional.leaky_relu(layer(u), LEAK)
            states.append(u)
        states.append(states[-1])
        z = self._input(0, x, states[0])
        z = functional.leaky_relu(z, LEAK).square()
        for level in range(1, len(self.w)):
            gate = functional.softplus(self.wzu[level - 1](states[level]))
            z = self.wz[level - 1](z * gate) + self._input(level, x, states[level])
            z = functional.leaky_relu(z, LEAK)
        gate = functional.softplus(self.wzu[-1](states[-1]))
        return (self.wz[-1](z * gate) + self._input(len(self.w), x, states[-1])).squeeze(1)

    def _input(self, level: int, x: Tensor, state: Tensor) -> Tensor:
        return self.wx[level](x * self.wxu[level](state)) + self.wu[level](state)

    def penalty(self) -> Tensor:
        """Σ ‖max(-wz, 0)‖ (Frobenius, not squared)."""
        return torch.stack([layer.weight.neg().relu().norm() for layer in self.wz]).sum()

    @torch.no_grad()
    def project(self) -> None:
        """Set negative kernels to 0."""
        for layer in self.wz:
            layer.weight.clamp_(min=0.0)


class ConditionalPotential(nn.Module):
    """φ(x, c) = softplus(a·c + a_0)/2·|x|² + ψ(x, c); starts with ∇φ = x to about a percent, for every context."""

    def __init__(self, dim: int, context: int, hidden: Sequence[int], *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.curvature = nn.Linear(context, 1, dtype=dtype)
        self.net = PartiallyConvex(dim, context, hidden, dtype=dtype)
        with torch.no_grad():
            self.curvature.weight.zero_()
            self.curvature.bias.fill_(math.log(math.e - 1.0))
            self.net.project()
            self.net.wz[-1].weight.uniform_(0.0, SMALL)
            self.net.wx[-1].weight.zero_()
            self.net.wu[-1].weight.zero_()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """φ of rows (n, d) with contexts (n, k), shape (n,)."""
        factor = functional.softplus(self.curvature(context)).squeeze(1)
        return 0.5 * factor * (x * x).sum(dim=1) + self.net(x, context)

    def transport(self, x: Tensor, context: Tensor, *, create_graph: bool = False) -> Tensor:
        """∇φ in x, shape (n, d); with `create_graph` differentiable in the weights."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(self(at, context).sum(), at, create_graph=create_graph)
        return found


class ConditionalNets(nn.Module):
    """f and g of the conditional map, and g at its best validation."""

    best_value: Tensor

    def __init__(self, config: CellotConfig, dim: int, context: int, *, dtype: torch.dtype):
        super().__init__()
        hidden = [config.hidden] * config.layers
        self.fnorm_penalty = config.fnorm_penalty
        self.f, self.g, self.best = (
            ConditionalPotential(dim, context, hidden, dtype=dtype) for _ in range(3)
        )
        self.best.requires_grad_(False)
        self.best.load_state_dict(self.g.state_dict())
        self.register_buffer("best_value", torch.full((), UNSET, dtype=torch.float64))

    def loss_g(self, x: Tensor, context: Tensor, n_whole: int) -> Tensor:
        """The share of the loss of g, penalty included, of these of the step's `n_whole` rows."""
        moved = self.g.transport(x, context, create_graph=True)
        fit = (self.f(moved, context) - (x * moved).sum(dim=1)).sum() / n_whole
        return fit + self.fnorm_penalty * (len(x) / n_whole) * self.g.net.penalty()

    def loss_f(self, x: Tensor, y: Tensor, context: Tensor, n_whole: int) -> Tensor:
        """The share of the loss of f of these rows."""
        moved = self.g.transport(x, context)
        return (self.f(y, context) - self.f(moved, context)).sum() / n_whole

    @torch.no_grad()
    def keep(self, value: float) -> None:
        """Take g as the best so far when `value` is lower than before."""
        if value < float(self.best_value):
            self.best_value.fill_(value)
            self.best.load_state_dict(self.g.state_dict())
