"""CPA in the training loop: the autoencoder and its adversaries take turns."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..training.data import CellData
from ..training.device_matrix import DeviceMatrix, StoredEntries
from ..training.protocol import Better, Logs, Part, Placement, Position, Stepper, Trainable
from .adversary import Adversaries, Labels
from .config import CpaConfig
from .data import EncodedRows
from .likelihood import gaussian, negative_binomial, zero_inflated
from .network import CpaNetwork, GaussianDecoder, Mixing
from .schedule import mixing_alpha, phase_of

GENES_PER_REG_ADV = 5000


class CpaModule(nn.Module):
    """Everything that is trained: the network and its adversaries."""

    def __init__(self, network: CpaNetwork, adversaries: Adversaries):
        super().__init__()
        self.network, self.adversaries = network, adversaries


@dataclass(frozen=True)
class Batch:
    """One pass on the device; with `mixing`, `x` is mixed and `partners` has the partners' classes.

    `stored` are the entries of `x` that can be other than 0, where they are known.
    """

    x: Tensor
    slots: Tensor
    doses: Tensor
    labels: Labels
    mixing: Mixing | None = None
    partners: Labels | None = None
    stored: StoredEntries | None = None


class CpaTraining(Trainable):
    """A CPA network with its adversaries and training cells.

    `validate_with` gives the validation metrics; `select` names the one that chooses the weights.
    """

    def __init__(
        self,
        module: CpaModule,
        cells: CellData,
        encoded: EncodedRows,
        placement: Placement,
        *,
        config: CpaConfig,
        select: tuple[str, Better],
        validate_with: Callable[[], dict[str, float]],
        mix_seed: int,
    ):
        self.module = module.to(device=placement.device, dtype=placement.dtype)
        self.network, self.adversaries = module.network, module.adversaries
        self.config, self.encoded, self.n_rows = config, encoded, len(encoded)
        self.select, self._validate_with = select, validate_with
        self._x = DeviceMatrix(cells.x, placement, where=config.data)
        device = placement.device
        self._slots = torch.as_tensor(encoded.slots, device=device)
        self._doses = torch.as_tensor(encoded.doses, dtype=placement.dtype, device=device)
        self._conditions = torch.as_tensor(encoded.conditions, device=device)
        self._covariates = {
            name: torch.as_tensor(codes, device=device) for name, codes in encoded.covariates.items()
        }
        self._weights = np.asarray(self.adversaries.class_weights.double().cpu())
        self._reg_adv = config.reg_adv
        if config.scale_reg_adv:
            self._reg_adv *= cells.x.shape[1] / GENES_PER_REG_ADV  # type: ignore[index]
        self._mix_seed = mix_seed
        self._alpha = 0.0
        self._optimizer_steps = 0

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        config, network = self.config, self.network
        dosers = list(network.pert_network.dosers.parameters())
        apart = {id(p) for p in dosers}
        autoencoder = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
        groups = {
            "autoencoder": (autoencoder, config.lr, config.weight_decay),
            "doser": (dosers, config.doser_lr, config.doser_wd),
            "adversary": (list(self.adversaries.parameters()), config.adv_lr, config.adv_wd),
        }
        return {
            name: torch.optim.Adam(
                parameters, lr=rate, weight_decay=penalty, fused=True if config.fused else None
            )
            for name, (parameters, rate, penalty) in groups.items()
            if parameters
        }

    def start_epoch(self, epoch: int, rng: np.random.Generator) -> None:
        self._alpha = mixing_alpha(self.config, epoch)

    def state(self) -> dict[str, Any]:
        return {"optimizer_steps": self._optimizer_steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._optimizer_steps = int(state["optimizer_steps"])

    def batch(self, part: Part) -> Batch:
        (x, stored), rows = self._x.stored_rows(self.encoded.rows[part.rows]), part.rows
        labels = self._labels(rows, part.whole)
        if self._alpha == 0:
            return Batch(x, *self._slots_of(rows), labels, stored=stored)
        # Weight and permutation depend on the step's rows alone, so several processes mix as one would.
        rng = np.random.default_rng([self._mix_seed, zlib.crc32(np.ascontiguousarray(part.whole).tobytes())])
        weight = float(rng.beta(self._alpha, self._alpha))
        permuted = part.whole[rng.permutation(len(part.whole))]
        order = np.argsort(part.whole)
        partners = permuted[order[np.searchsorted(part.whole, rows, sorter=order)]]
        mixed = x.mul_(weight).add_(self._x.rows(self.encoded.rows[partners]), alpha=1 - weight)
        theirs = self._labels(partners, part.whole)
        slots, doses = self._slots_of(partners)
        mixing = Mixing(weight, slots, doses, theirs.covariates)
        return Batch(mixed, *self._slots_of(rows), labels, mixing, theirs)

    def _slots_of(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(rows, device=self._slots.device)
        return self._slots[at], self._doses[at]

    def _labels(self, rows: np.ndarray, whole: np.ndarray) -> Labels:
        at = torch.as_tensor(rows, device=self._slots.device)
        return Labels(
            self._conditions[at],
            {name: codes[at] for name, codes in self._covariates.items()},
            float(self._weights[self.encoded.conditions[whole]].sum()),
            len(whole),
        )

    def train_step(self, batch: Batch, optimizers: Stepper, position: Position) -> Logs:
        if batch.labels.n_whole < 2:
            # A single cell has no batch statistics.
            return {"loss": torch.zeros((), device=batch.x.device)}
        config = self.config
        phase = phase_of(config, position, self._optimizer_steps)
        adversarial = not self.adversaries.is_empty
        logs: Logs = {}
        with torch.set_grad_enabled(phase.autoencoder):
            latents = self.network.latents(
                batch.x, batch.slots, batch.doses, batch.labels.covariates, mixing=batch.mixing
            )
        basal = latents.basal.detach()
        if phase.autoencoder:
            reconstruction = (
                self.reconstruction(latents.total(), batch.x, batch.stored) / batch.labels.n_whole
            )
            loss = reconstruction
            if adversarial and not phase.pretraining:
                fooled = self._adversarial(self.adversaries.logits(latents.basal), batch)
                loss = reconstruction - phase.reg_share * self._reg_adv * fooled
                logs["adversary"] = fooled.detach()
            optimizers.update(("autoencoder", "doser"), loss)
            logs["loss"] = reconstruction.detach() * phase.autoencoder_every
        else:
            with torch.no_grad():
                self.network.advance_decoder(latents.total())
            logs["loss"] = torch.zeros_like(basal[0, 0]) if len(basal) else torch.zeros(())
        if phase.adversaries and adversarial:
            z = basal.requires_grad_(True)
            logits = self.adversaries.logits(z)
            terms = self._adversarial(logits, batch)
            penalty = self.adversaries.penalty(logits, z, batch.labels.n_whole)
            optimizers.update("adversary", terms + config.pen_adv * penalty)
            logs["adversary"] = terms.detach()
            logs["penalty"] = penalty.detach() * phase.adversary_every
        if position.last_pass:
            self._optimizer_steps += 2 * phase.autoencoder + phase.adversaries
        return logs

    def reconstruction(self, z: Tensor, x: Tensor, stored: StoredEntries | None = None) -> Tensor:
        """Negative log-likelihood of cells (n, G) given their latent states, summed over cells and genes.

        `stored`: see `Batch`.
        """
        decoder = self.network.decoder
        if isinstance(decoder, GaussianDecoder):
            mean, variance = decoder(z)
            return gaussian(mean, variance, x)
        logits, zeros = decoder.logits(z)
        if zeros is None:
            return negative_binomial(logits, self.network.px_r, x, stored)
        mu = x.sum(dim=1, keepdim=True) * torch.softmax(logits, dim=1)
        return zero_inflated(mu, self.network.px_r, zeros, x)

    def _adversarial(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        weight = 1.0 if batch.mixing is None else batch.mixing.weight
        return self.adversaries.loss(logits, batch.labels, partners=batch.partners, weight=weight)

    def validate(self) -> dict[str, float]:
        return self._validate_with()
