"""GEARS in the training loop: paired batches, the loss of a step's share, validation on mean profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..training.data import CellData, pair_controls
from ..training.device_matrix import DeviceMatrix
from ..training.distributed import sum_over_processes
from ..training.optimizers import adam
from ..training.protocol import Better, Logs, Part, Placement, SingleLoss
from ..training.selection import validation_set
from .config import GearsConfig
from .data import TrainingRows, Vocabulary
from .effects import effects_of
from .loss import autofocus_loss, cell_weights
from .model import GearsNetwork, trained_parameters


@dataclass(frozen=True)
class Batch:
    """One pass on the device: vocabulary rows, paired controls, targets, and what the loss needs of them."""

    members: Tensor
    controls: Tensor
    targets: Tensor
    control_means: Tensor
    retained: Tensor
    weights: Tensor


class GearsTraining(SingleLoss):
    """A GEARS network and its training cells.

    Validation metrics are `selection`'s, on the mean profile of each row: the control mean plus the effect, or with
    `paired_validation` the mean of one drawn control per validation cell plus the effect. `mse_top20_de` selects.
    """

    reduction = "share"
    select: tuple[str, Better] = ("mse_top20_de", "min")

    def __init__(
        self,
        network: GearsNetwork,
        cells: CellData,
        rows: TrainingRows,
        vocabulary: Vocabulary,
        placement: Placement,
        *,
        config: GearsConfig,
        rng: np.random.Generator,
    ):
        self.module = network.to(placement.device)
        network.reduce = sum_over_processes
        self.network, self.config, self.cells = network, config, cells
        self.training_rows, self.n_rows = rows, len(rows.rows)
        self.pairs = pair_controls(cells, rows.rows, rng)
        self._x = DeviceMatrix(cells.x, placement, where=config.data)
        device = placement.device
        self._members = torch.as_tensor(rows.members, device=device)
        self._retained = torch.as_tensor(rows.retained, device=device)
        self._n_retained = torch.as_tensor(rows.retained.sum(axis=1))
        contexts = cells.contexts
        means = np.stack([cells.control_means.get(c, np.zeros(len(cells.genes))) for c in contexts])
        self._control_means = torch.as_tensor(means, dtype=placement.dtype, device=device)
        self._prepare_validation(vocabulary, rng)

    def _prepare_validation(self, vocabulary: Vocabulary, rng: np.random.Generator) -> None:
        cells = self.cells
        listed = cells.validation_keys or cells.train_keys
        covered = [key for key in listed if vocabulary.members(key[1]) is not None]
        self._truth = validation_set(cells, keys=covered)
        self._validation_members = [vocabulary.members(key[1]) or [] for key in self._truth.keys]
        self._validation_base = self._truth.controls
        if self.config.paired_validation and len(self._truth.keys):
            held_out = not cells.validation_keys
            drawn = [
                pair_controls(cells, cells.rows_of(key, held_out=held_out), rng) for key in self._truth.keys
            ]
            self._validation_base = np.stack([cells.moments(rows)[0] for rows in drawn])

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"main": adam(trained_parameters(self.network), self.config)}

    def start_epoch(self, epoch: int, rng: np.random.Generator) -> None:
        if self.config.control_pairs == "epoch":
            self.pairs = pair_controls(self.cells, self.training_rows.rows, rng)

    def batch(self, part: Part) -> Batch:
        rows = self.training_rows
        own = torch.as_tensor(rows.conditions[part.rows])
        weights = cell_weights(own, torch.as_tensor(rows.conditions[part.whole]), self._n_retained)
        device = self._retained.device
        contexts = self.cells.context_codes[rows.rows[part.rows]]
        return Batch(
            members=self._members[torch.as_tensor(part.rows, device=device)],
            controls=self._x.rows(self.pairs[part.rows]),
            targets=self._x.rows(rows.rows[part.rows]),
            control_means=self._control_means[torch.as_tensor(contexts, device=device)],
            retained=self._retained[own.to(device)],
            weights=weights.to(device),
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Logs]:
        predicted, log_variance = self.network(batch.members, batch.controls)
        config = self.config
        terms = autofocus_loss(
            predicted,
            batch.targets,
            batch.control_means,
            batch.retained,
            batch.weights,
            direction=config.direction,
            direction_lambda=config.direction_lambda,
            log_variance=log_variance,
            uncertainty_reg=config.uncertainty_reg,
        )
        logs: Logs = {} if config.direction == "none" else {"fit": terms.fit, "direction": terms.direction}
        return terms.total, logs

    def validate(self) -> dict[str, float]:
        if not self._truth.keys:
            return {}
        shifts, _ = effects_of(self.network, self._validation_members)
        return self._truth.scores(self._validation_base + shifts.double().cpu().numpy())
