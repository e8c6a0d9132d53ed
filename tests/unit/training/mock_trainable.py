"""The torch half of `mock_deep`."""

from __future__ import annotations

import numpy as np
import torch
from vcbench.baselines.training.data import pair_controls
from vcbench.baselines.training.device_matrix import DeviceMatrix
from vcbench.baselines.training.optimizers import adam
from vcbench.baselines.training.protocol import SingleLoss
from vcbench.baselines.training.selection import validation_set


class MockTrainable(SingleLoss):
    """Perturbed cells against a control cell of the same context, drawn anew in each epoch."""

    select = ("mse", "min")

    def __init__(self, model, cells, placement, rng):
        self.model, self.cells = model, cells
        self.module = model.build().to(device=placement.device, dtype=placement.dtype)
        self.matrix = DeviceMatrix(cells.x, placement, where=model.config.data)
        self.n_rows = len(cells.train_rows)
        table = np.stack([model.hot(label) for _, label in cells.keys])
        self.hot = torch.tensor(
            table[cells.codes[cells.train_rows]], dtype=placement.dtype, device=placement.device
        )
        known = [k for k in cells.validation_keys or cells.train_keys if model.hot(k[1]).any()]
        self.validation = validation_set(cells, keys=known)

    def start_epoch(self, epoch, rng):
        self.controls = pair_controls(self.cells, self.cells.train_rows, rng)

    def optimizers(self):
        return {"main": adam(self.module.parameters(), self.model.config)}

    def batch(self, part):
        y = self.matrix.rows(self.cells.train_rows[part.rows])
        x = self.matrix.rows(self.controls[part.rows])
        return self.hot[torch.from_numpy(part.rows)], x, y

    def loss(self, batch):
        hot, x, y = batch
        return ((x + self.module(hot) - y) ** 2).mean()

    def validate(self):
        labels = [label for _, label in self.validation.keys]
        if not labels:
            return {}
        hot = torch.tensor(np.stack([self.model.hot(label) for label in labels])).to(self.hot)
        return self.validation.scores(self.validation.controls + self.module(hot).double().cpu().numpy())
