"""The optimizers of a model during training: accumulation, sums over processes, clipping, the learning rate, NaN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...data_specs.errors import ModelError
from .config import TrainingConfig
from .distributed import any_process, sum_gradients
from .protocol import Position


def adam(
    parameters: Iterable[nn.Parameter],
    config: TrainingConfig,
    *,
    decoupled: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with the config's rate and L2 penalty, or AdamW (`decoupled`); fused kernels when the config asks."""
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(
        list(parameters),
        lr=config.lr,
        betas=betas,
        eps=eps,
        weight_decay=config.weight_decay,
        fused=True if config.fused else None,
    )


def rate_factor(config: TrainingConfig, *, step: int, epoch: int, n_steps: int) -> float:
    """Factor on the learning rate at a step (counted from 0) of `n_steps` in all."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "step":
        return warm * config.schedule_factor ** (epoch // config.schedule_every)
    if config.schedule == "cosine":
        done = max(0, step - config.warmup) / max(1, n_steps - 1 - config.warmup)
        low = config.schedule_factor
        return warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    return warm


class Optimizers:
    """A model's optimizers by name; implements `protocol.Stepper`.

    On the CPU a non-finite gradient stops the step before the weights change; on CUDA the first such step is
    remembered without waiting for the device, and `check` raises.
    """

    def __init__(
        self, table: Mapping[str, torch.optim.Optimizer], config: TrainingConfig, device: torch.device
    ):
        self.table = dict(table)
        self.config = config
        self._parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"]]
            for name, optimizer in self.table.items()
        }
        for optimizer in self.table.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self._device = device
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self._position = Position(0, 0)

    def start_pass(self, position: Position, factor: float) -> None:
        """Tell where training stands, and set the learning rates to `factor` times their initial values."""
        self._position = position
        for optimizer in self.table.values():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @property
    def rate(self) -> float:
        """The learning rate of the first group of the first optimizer."""
        return float(next(iter(self.table.values())).param_groups[0]["lr"])

    def update(self, name: str | Sequence[str], loss: torch.Tensor, *, retain_graph: bool = False) -> None:
        """See `protocol.Stepper.update`. `retain_graph` keeps the graph for another loss of the same pass."""
        names = (name,) if isinstance(name, str) else tuple(name)
        trained = {key: [p for p in self._parameters[key] if p.requires_grad] for key in names}
        every = [p for parameters in trained.values() for p in parameters]
        loss.backward(inputs=every if len(self.table) > len(names) else None, retain_graph=retain_graph)
        self._bad = self._bad | ~torch.isfinite(loss.detach()).all()
        if not self._position.last_pass:
            return
        sum_gradients(every)
        for parameters in trained.values():
            self._clip(parameters)
        self._settle()
        for key in names:
            self.table[key].step()
            self.table[key].zero_grad(set_to_none=True)

    def _clip(self, parameters: Sequence[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return
        norm = nn.utils.get_total_norm(gradients)
        self._bad = self._bad | ~torch.isfinite(norm)
        if self.config.clip == "norm":
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_at, norm)
        elif self.config.clip == "value":
            nn.utils.clip_grad_value_(parameters, self.config.clip_at)

    def _settle(self) -> None:
        bad = any_process(self._bad)
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(
            first, torch.full_like(self._bad_step, self._position.step), self._bad_step
        )
        self._bad = torch.zeros_like(self._bad)
        if self._device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Raise `NotFinite` when a loss or gradient was not finite. Waits for the device."""
        step = int(self._bad_step)
        if step >= 0:
            raise NotFinite(step)

    def state(self) -> dict[str, Any]:
        """State dicts by name."""
        return {name: optimizer.state_dict() for name, optimizer in self.table.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        for name, optimizer in self.table.items():
            optimizer.load_state_dict(state[name])


class NotFinite(ModelError):
    """A loss or gradient became NaN or infinite. `step` counts from 0."""

    def __init__(self, step: int, kept: str = ""):
        self.step = step
        super().__init__(
            f"the loss or a gradient is not finite at step {step}.{' ' + kept if kept else ''} "
            "Lower the learning rate or clip gradients: --set lr=…, --set clip=norm."
        )
