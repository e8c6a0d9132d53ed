"""Training of stacked CellOT maps on arrays, with the solver of the baseline: what the CellOT benchmarks measure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from vcbench.baselines.cellot.config import CellotConfig
from vcbench.baselines.cellot.icnn import StackedIcnn, transport
from vcbench.baselines.cellot.solver import Duel


class Stack:
    """P maps between samples of equal size, source and target (P, n, d)."""

    def __init__(self, source: Tensor, target: Tensor, config: CellotConfig):
        self.source, self.target, self.config = source, target, config
        n_maps, _, dim = source.shape
        hidden = [config.hidden] * config.layers
        nets = [StackedIcnn(n_maps, dim, hidden, init=config.init).to(source.device) for _ in range(2)]
        self.duel = Duel(*nets, fnorm_penalty=config.fnorm_penalty).to(source.device)
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), lr=config.lr, betas=(0.5, 0.9), fused=True)
            for name, net in zip("fg", nets, strict=True)
        }

    def iteration(self) -> None:
        """One outer iteration of every map."""
        n = self.config.batch_size
        y = self._batch(self.target)
        for _ in range(self.config.inner_iterations):
            self.duel.step_g(self._batch(self.source), n, lambda loss: self._update("g", loss))
        self.duel.step_f(self._batch(self.source), y, n, lambda loss: self._update("f", loss))

    def _update(self, name: str, loss: Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def _batch(self, cells: Tensor) -> Tensor:
        n_maps, n_cells, dim = cells.shape
        rows = torch.randint(n_cells, (n_maps, self.config.batch_size), device=cells.device)
        return cells.gather(1, rows[:, :, None].expand(-1, -1, dim))

    def move(self, x: Tensor) -> Tensor:
        """∇g of points (P, n, d)."""
        with torch.no_grad():
            return transport(self.duel.g.weights(), x)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Samples of several maps as (P, n, d)."""
    return torch.stack(list(parts))
