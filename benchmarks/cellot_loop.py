"""The peer of the CellOT benchmarks: the published algorithm in plain torch modules, one map after the other.

Upstream is no package that could be installed beside us; its networks, losses, optimizers and order of steps are
written here as it has them, map gradients with a graph of their own, without its data loaders (a fifth of its time).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Potential(nn.Module):
    """One input-convex network with upstream's initial weights."""

    def __init__(self, dim: int, hidden: tuple[int, ...] = (64,) * 4):
        super().__init__()
        outs = [*hidden[1:], 1]
        self.W = nn.ModuleList([nn.Linear(i, o, bias=False) for i, o in zip(hidden, outs, strict=True)])
        self.A = nn.ModuleList([nn.Linear(dim, o) for o in (*hidden, 1)])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.0, 0.1)
        for layer in self.A:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        z = functional.leaky_relu(self.A[0](x), 0.2)
        z = z * z
        for w, a in zip(list(self.W)[:-1], list(self.A)[1:-1], strict=True):
            z = functional.leaky_relu(w(z) + a(x), 0.2)
        return self.W[-1](z) + self.A[-1](x)

    def transport(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(self(x).sum(), x, create_graph=True)[0]

    def penalty(self) -> Tensor:
        return sum((functional.relu(-layer.weight).norm() for layer in self.W), torch.zeros(()))


class Loop:
    """Training of one map with upstream's settings."""

    def __init__(self, source: Tensor, target: Tensor, *, batch_size: int = 256, inner: int = 10):
        self.source, self.target, self.batch_size, self.inner = source, target, batch_size, inner
        self.f, self.g = Potential(source.shape[1]), Potential(source.shape[1])
        self.optimizers = [
            torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9)) for net in (self.f, self.g)
        ]

    def iteration(self) -> None:
        """One outer iteration."""
        optimizer_f, optimizer_g = self.optimizers
        y = self._batch(self.target)
        for _ in range(self.inner):
            x = self._batch(self.source)
            optimizer_g.zero_grad()
            moved = self.g.transport(x)
            loss = (self.f(moved) - (x * moved).sum(dim=1, keepdim=True)).mean() + self.g.penalty()
            loss.backward()
            optimizer_g.step()
        x = self._batch(self.source)
        optimizer_f.zero_grad()
        moved = self.g.transport(x)
        (self.f(y) - self.f(moved)).mean().backward()
        optimizer_f.step()
        with torch.no_grad():
            for layer in self.f.W:
                layer.weight.clamp_(min=0.0)

    def _batch(self, cells: Tensor) -> Tensor:
        return cells[torch.randint(len(cells), (self.batch_size,))]
