"""CellOT in the training loop: first the autoencoder, then all maps (and the conditional one) together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data_specs.labels import CONTROL
from ..training.data import CellData
from ..training.device_matrix import DeviceMatrix
from ..training.distributed import broadcast_module, n_processes
from ..training.optimizers import adam
from ..training.protocol import Better, Logs, Part, Placement, Position, Stepper, Trainable
from .autoencoder import Autoencoder, reconstruction_loss
from .conditional import UNSET
from .config import CellotConfig
from .module import CellotModule
from .sampling import PairSampler, evenly
from .validation import ConditionalValidation, MapValidation

BETAS = (0.5, 0.9)
ENCODED_CELLS = 4096
# Below this share of maps still in training, the others are left out of the arithmetic.
WORTH_DROPPING = 0.75


@dataclass(frozen=True)
class Batch:
    """Rows of `CellData` of one iteration of this process.

    `cells` of the autoencoder, shape (n,); or `sources`, one (P, n) per step of g and one for f, and `targets`, (P, n);
    `conditional` likewise with the map of each row first. `n_whole` rows make the step over all processes.
    """

    n_whole: int
    cells: Tensor | None = None
    sources: tuple[Tensor, ...] = ()
    targets: Tensor | None = None
    conditional: tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor, int] | None = None


@dataclass(frozen=True)
class Summary:
    """What prediction needs beside weights.

    `codes` are scaled codes of at most `effect_cells` evenly spaced control cells of each context, float32 (n, d);
    `shifts` the mean code of each map's training cells minus that of its controls, context by context, float64 (P, d);
    `comparisons` the validation MMD and distance of means of simpler predictions, empty without validation.
    """

    codes: dict[str, np.ndarray]
    shifts: np.ndarray
    comparisons: dict[str, tuple[float, float]]


class CellotTraining(Trainable):
    """A `CellotModule` and the cells that it learns from. `mmd` selects: the mean over maps of their best MMD so far.

    `contexts` are the features of each map's perturbation, float (P - 1, k), with a conditional map.
    """

    select: tuple[str, Better] = ("mmd", "min")

    def __init__(
        self,
        module: CellotModule,
        cells: CellData,
        labels: Sequence[str],
        placement: Placement,
        *,
        config: CellotConfig,
        contexts: np.ndarray | None = None,
        rng: np.random.Generator,
    ):
        self.module = self.net = module.to(placement.device)
        self.cells, self.config, self.placement = cells, config, placement
        self.labels = tuple(labels)
        self.n_rows = config.epoch_iterations * config.batch_size * n_processes()
        if config.transport == "scgen":
            self.select = ("reconstruction", "min")
        self._x = DeviceMatrix(cells.x, placement, where=config.data)
        self.sampler = PairSampler(cells, self.labels, placement.device, pairs=config.context_pairs)
        self._train_rows = torch.as_tensor(
            np.sort(np.concatenate([cells.train_rows, cells.control_rows])), device=placement.device
        )
        if config.ae_center and config.embedding == "autoencoder":
            mean, _ = cells.moments(self._train_rows.cpu().numpy())
            module.center.copy_(torch.as_tensor(mean))
        self._held_out = np.flatnonzero(cells.held_out)
        self._contexts = (
            None
            if contexts is None
            else torch.as_tensor(contexts, dtype=placement.dtype, device=placement.device)
        )
        self._conditional_maps, self._unseen_maps = self._hold_out_maps(rng)
        self._validation_seed = int(rng.integers(2**31))
        self._generator = torch.Generator(device=placement.device)
        self._epoch_key, self._epoch = 0, 0
        self._best_embedding: dict[str, Tensor] | None = None
        self._best_reconstruction = float("inf")
        self._embedding_optimizer: torch.optim.Optimizer | None = None
        self.codes: Tensor | None = None
        self.validation: MapValidation | None = None
        self._conditional_validation: ConditionalValidation | None = None
        self._active: Tensor | None = None
        # MMD and distance of means of each map when its best weights were kept.
        self._kept = torch.full((2, module.n_maps), float("nan"), dtype=torch.float64)
        self._fixed: Summary | None = None

    def _hold_out_maps(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Maps with features that train the conditional one, and those that validate it."""
        device = self.placement.device
        if self._contexts is None:
            return torch.empty(0, dtype=torch.int64, device=device), torch.empty(
                0, dtype=torch.int64, device=device
            )
        known = np.flatnonzero(torch.isfinite(self._contexts).all(dim=1).cpu().numpy())
        n_out = int(self.config.conditional_held_out * len(known))
        out = np.sort(rng.permutation(known)[:n_out])
        return (
            torch.as_tensor(np.setdiff1d(known, out), device=device),
            torch.as_tensor(out, device=device),
        )

    # --- epochs -----------------------------------------------------------------------------------------------------

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Rows are places in a batch: cells are drawn with replacement for each place (`batch`)."""
        return np.arange(self.n_rows, dtype=np.int64)

    def start_epoch(self, epoch: int, rng: np.random.Generator) -> None:
        self._epoch, self._epoch_key = epoch, int(rng.integers(2**63))
        # The main process alone validates: it holds the best maps and knows which ones are done.
        broadcast_module(self.net)
        config = self.config
        if epoch < config.embedding_epochs:
            if config.ae_halve_every and self._embedding_optimizer is not None:
                halvings = epoch * config.epoch_iterations // config.ae_halve_every
                for group in self._embedding_optimizer.param_groups:
                    group["initial_lr"] = config.ae_lr * 0.5**halvings
            return
        if self.codes is None:
            self._enter_maps()
        running = self.net.duel.healthy.clone()
        if config.patience:
            running &= self.net.stale < config.patience
        n = int(running.sum())
        self._active = None if n > WORTH_DROPPING * len(running) else running.nonzero()[:, 0]

    def _enter_maps(self) -> None:
        """Fix the space of the maps: the best autoencoder, the scale of its codes, the codes of all cells."""
        net = self.net
        if not bool(net.ready):
            if self._best_embedding is not None:
                net.embedding.load_state_dict(self._best_embedding)
                self._best_embedding = None
            broadcast_module(net)
            if self.config.scale_codes:
                net.scale.fill_(self._code_scale())
            net.ready.fill_(True)
        self.codes = self.encoded()
        generator = torch.Generator().manual_seed(self._validation_seed)
        self.validation = MapValidation.build(
            self.cells, self.sampler, self.codes, self.config, generator=generator
        )
        if net.conditional is not None and len(self._unseen_maps) and self.validation is not None:
            self._conditional_validation = ConditionalValidation.build(
                self.sampler, self.codes, self._unseen_maps, self.config, generator=generator
            )

    def _code_scale(self) -> float:
        codes = self._encode(self.cells.control_rows).double()
        variance = codes.var(dim=0).mean() if len(codes) > 1 else codes.new_ones(())
        return float(variance) ** -0.5 if float(variance) > 0 else 1.0

    def encoded(self) -> Tensor:
        """Scaled codes of all cells, (n_cells, d), by the present embedding."""
        return self._encode(np.arange(len(self.cells.codes)))

    @torch.no_grad()
    def _encode(self, rows: np.ndarray) -> Tensor:
        was_training = self.net.training
        self.net.eval()
        parts = [
            self.net.encode(self._x.rows(rows[start : start + ENCODED_CELLS]))
            for start in range(0, len(rows), ENCODED_CELLS)
        ]
        self.net.train(was_training)
        return torch.cat(parts)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        config, net = self.config, self.net
        found: dict[str, torch.optim.Optimizer] = {}
        if config.embedding_epochs and isinstance(net.embedding, Autoencoder):
            self._embedding_optimizer = found["embedding"] = torch.optim.Adam(
                net.embedding.parameters(),
                lr=config.ae_lr,
                weight_decay=config.ae_weight_decay,
                fused=True if config.fused else None,
            )
        found |= {
            "g": adam(net.duel.g.parameters(), config, betas=BETAS),
            "f": adam(net.duel.f.parameters(), config, betas=BETAS),
        }
        if net.conditional is not None:
            found["conditional_g"] = adam(net.conditional.g.parameters(), config, betas=BETAS)
            found["conditional_f"] = adam(net.conditional.f.parameters(), config, betas=BETAS)
        return found

    # --- steps ------------------------------------------------------------------------------------------------------

    def batch(self, part: Part) -> Batch:
        n_whole = len(part.whole)
        # Places are in order, so the first one tells the step within the epoch; every process draws the whole batch.
        step = int(part.whole[0]) // n_whole
        first, last = int(part.rows[0] - part.whole[0]), int(part.rows[-1] - part.whole[0]) + 1
        seed = np.random.SeedSequence([self._epoch_key, step]).generate_state(1, np.uint64)[0] >> 1
        self._generator.manual_seed(int(seed))
        if self.codes is None:
            drawn = self._uniform(n_whole)[first:last]
            n = len(self._train_rows)
            return Batch(n_whole, cells=self._train_rows[(drawn * n).long().clamp(max=n - 1)])
        sampler, n_maps = self.sampler, self.sampler.n_maps
        context = sampler.one_context(self._uniform(n_maps))

        def numbers() -> Tensor:
            return self._uniform(n_maps, n_whole, 2)[:, first:last]

        targets = sampler.targets(numbers(), context)
        sources = tuple(sampler.sources(numbers(), context) for _ in range(self.config.inner_iterations + 1))
        share = (first / n_whole, last / n_whole)
        return Batch(n_whole, None, sources, targets, self._conditional_rows(share))

    def _uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1), float64 so that every cell of a large pool can be drawn."""
        return torch.rand(
            *shape, generator=self._generator, device=self.placement.device, dtype=torch.float64
        )

    def _conditional_rows(self, share: tuple[float, float]) -> Any:
        if self.net.conditional is None or not len(self._conditional_maps):
            return None
        config, n = self.config, self.config.conditional_cells
        own = slice(int(share[0] * n), int(share[1] * n))
        maps = self._conditional_maps[(self._uniform(n) * len(self._conditional_maps)).long()][own]
        kept = (self._uniform(n) >= config.conditional_dropout)[own]
        sampler = self.sampler.of_maps(maps)
        context = sampler.one_context(self._uniform(n)[own])

        def numbers() -> Tensor:
            return self._uniform(n, 1, 2)[own]

        targets = sampler.targets(numbers(), context)[:, 0]
        sources = tuple(sampler.sources(numbers(), context)[:, 0] for _ in range(config.inner_iterations + 1))
        return maps, sources, targets, kept, n

    def train_step(self, batch: Batch, optimizers: Stepper, position: Position) -> Logs:
        if batch.cells is not None:
            x = self._x.rows(batch.cells.cpu().numpy()) - self.net.center
            codes = self.net.embedding.encode(x)
            rows = reconstruction_loss(x, self.net.embedding.decode(codes), codes, self.config.ae_beta)
            loss = rows.sum() / batch.n_whole
            optimizers.update("embedding", loss)
            return {"loss": loss.detach()}
        logs = self._map_step(batch, optimizers)
        return logs | self._conditional_step(batch, optimizers)

    def _map_step(self, batch: Batch, optimizers: Stepper) -> Logs:
        assert self.codes is not None and batch.targets is not None
        active, duel = self._active, self.net.duel
        if active is not None and not len(active):
            return {"loss": 0.0}

        def cells(rows: Tensor) -> Tensor:
            assert self.codes is not None
            return self.codes[rows if active is None else rows[active]]

        loss_g = torch.zeros(())
        for rows in batch.sources[:-1]:
            loss_g = duel.step_g(
                cells(rows), batch.n_whole, lambda loss: optimizers.update("g", loss), active=active
            )
        loss_f = duel.step_f(
            cells(batch.sources[-1]),
            cells(batch.targets),
            batch.n_whole,
            lambda loss: optimizers.update("f", loss),
            active=active,
        )
        healthy = duel.healthy if active is None else duel.healthy[active]
        means = [
            torch.where(healthy, loss, 0.0).sum() / healthy.sum().clamp(min=1) for loss in (loss_g, loss_f)
        ]
        return {"loss": means[0], "loss_f": means[1]}

    def _conditional_step(self, batch: Batch, optimizers: Stepper) -> Logs:
        nets = self.net.conditional
        if nets is None or batch.conditional is None or self.codes is None or self._contexts is None:
            return {}
        maps, sources, targets, kept, n = batch.conditional
        context = self._contexts[maps] * kept[:, None]
        loss_g = torch.zeros(())
        for rows in sources[:-1]:
            loss_g = nets.loss_g(self.codes[rows], context, n)
            optimizers.update("conditional_g", loss_g)
        loss_f = nets.loss_f(self.codes[sources[-1]], self.codes[targets], context, n)
        optimizers.update("conditional_f", loss_f)
        nets.f.net.project()
        return {"conditional_loss": loss_g.detach(), "conditional_loss_f": loss_f.detach()}

    # --- validation -------------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        if self.codes is None:
            return self._validate_embedding()
        net = self.net
        if self.validation is None:
            everything = torch.ones_like(net.duel.healthy)
            net.keep(everything & net.duel.healthy, net.best_value)
            if net.conditional is not None:
                net.conditional.best.load_state_dict(net.conditional.g.state_dict())
            return {}
        found = self.validation.measure(net.duel.g.weights())
        judged = self.validation.grouped(found.mmd)
        better = (judged < net.best_value) & net.duel.healthy
        net.keep(better, judged)
        own = torch.stack([found.mmd, found.l2]).cpu()
        self._kept = torch.where(better.cpu(), own, self._kept)
        net.stale.copy_(torch.where(better, 0, net.stale + 1))
        kept = net.best_value[net.best_value < UNSET].tolist()
        values = {
            "mmd_now": float(found.mmd.nanmean()),
            "l2_means_now": float(found.l2.nanmean()),
        }
        if net.conditional is not None and self._conditional_validation is not None:
            assert self._contexts is not None
            mmd, l2 = self._conditional_validation.measure(
                net.conditional.g, self._contexts[self._unseen_maps]
            )
            net.conditional.keep(mmd)
            kept.append(float(net.conditional.best_value))
            values |= {"conditional_mmd_now": mmd, "conditional_l2_means_now": l2}
        elif net.conditional is not None:
            net.conditional.best.load_state_dict(net.conditional.g.state_dict())
        return {"mmd": float(np.mean(kept)) if kept else float("nan"), **values}

    def _validate_embedding(self) -> dict[str, float]:
        net = self.net
        if not len(self._held_out):
            return {}
        total = 0.0
        for start in range(0, len(self._held_out), ENCODED_CELLS):
            x = self._x.rows(self._held_out[start : start + ENCODED_CELLS]) - net.center
            codes = net.embedding.encode(x)
            total += float(
                reconstruction_loss(x, net.embedding.decode(codes), codes, self.config.ae_beta).sum()
            )
        value = total / len(self._held_out)
        if value < self._best_reconstruction:
            self._best_reconstruction = value
            state = net.embedding.state_dict()
            self._best_embedding = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        # Other values would count as validations of the maps, which have not begun.
        return {"reconstruction": value} if self.config.transport == "scgen" else {}

    def state(self) -> dict[str, Any]:
        return {
            "embedding": self._best_embedding,
            "reconstruction": self._best_reconstruction,
            "kept": self._kept,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._best_embedding = state["embedding"]
        self._best_reconstruction = state["reconstruction"]
        self._kept = state["kept"]

    # --- what prediction needs --------------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Codes and shifts by the present weights; computed once when the space of the maps is fixed."""
        if self._fixed is not None:
            return self._fixed
        codes, shifts = self._control_codes(), self._code_shifts()
        if self.codes is None:
            return Summary(codes, shifts, {})
        found = {}
        if self.validation is not None:
            found = self.validation.comparisons(torch.as_tensor(shifts, device=self.codes.device))
        self._fixed = Summary(codes, shifts, found)
        return self._fixed

    def kept_distances(self) -> tuple[float, float]:
        """Mean MMD and distance of means over perturbations of the maps that were kept; NaN before a validation."""
        mmd, l2 = self._kept[:, :-1].nanmean(dim=1).tolist()
        return mmd, l2

    def _control_codes(self) -> dict[str, np.ndarray]:
        out = {}
        for context in self.cells.contexts:
            if (context, CONTROL) in self.cells.position:
                rows = evenly(self.cells.rows_of((context, CONTROL)), self.config.effect_cells)
                out[context] = self._encode(rows).float().cpu().numpy()
        return out

    def _code_shifts(self) -> np.ndarray:
        codes = (self.encoded() if self.codes is None else self.codes).double().cpu().numpy()
        contexts = [c for c in self.cells.contexts if (c, CONTROL) in self.cells.position]
        controls = np.stack([codes[self.cells.rows_of((c, CONTROL))].mean(axis=0) for c in contexts])
        sums = np.zeros((self.sampler.n_maps, codes.shape[1]))
        for p, label in enumerate(self.labels):
            for k, context in enumerate(contexts):
                if self.sampler.sizes[p, k]:
                    own = codes[self.cells.rows_of((context, label))]
                    sums[p] += own.sum(axis=0) - len(own) * controls[k]
        sums[-1] = sums[:-1].sum(axis=0)
        return sums / self.sampler.n_targets[:, None]
