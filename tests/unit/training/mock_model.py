"""A 30-line trainable: a linear map from dense rows to dense rows, with optional dropout and batch norm."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from vcbench.baselines.training.config import TrainingConfig
from vcbench.baselines.training.distributed import BatchNorm1d
from vcbench.baselines.training.protocol import Part, SingleLoss


class MockModel(SingleLoss):
    """Learns y = x W from `n_rows` fixed rows; validates on the mean squared error over all of them."""

    select = ("mse", "min")

    def __init__(self, config: TrainingConfig, *, dropout=0.0, norm=False, dtype=torch.float64, n_rows=48):
        rng = np.random.default_rng(5)
        x = rng.standard_normal((n_rows, 6))
        y = x @ rng.standard_normal((6, 4)) + 0.1 * rng.standard_normal((n_rows, 4))
        self.x, self.y = torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype)
        self.config, self.n_rows = config, n_rows
        middle = BatchNorm1d(8) if norm else nn.Identity()
        self.module = nn.Sequential(nn.Linear(6, 8), middle, nn.Dropout(dropout), nn.Linear(8, 4)).to(dtype)

    def optimizers(self):
        return {"main": torch.optim.Adam(self.module.parameters(), lr=self.config.lr)}

    def batch(self, part: Part):
        rows = torch.from_numpy(part.rows)
        return self.x[rows], self.y[rows]

    def loss(self, batch):
        x, y = batch
        return ((self.module(x) - y) ** 2).mean()

    def validate(self):
        with torch.no_grad():
            return {"mse": float(((self.module(self.x) - self.y) ** 2).mean())}
