"""What a model supplies to the training loop. Needs torch, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

Better = Literal["max", "min"]
Logs = dict[str, "torch.Tensor | float"]


@dataclass(frozen=True)
class Placement:
    """Where and in which type to put parameters and data."""

    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Part:
    """The rows of one forward pass of this process, and of the whole optimizer step it belongs to.

    `rows` and `whole` are int64 indices below the model's `n_rows`; `whole` joins all passes of all processes, so
    normalisers that depend on the composition of the batch need no communication.
    """

    rows: np.ndarray
    whole: np.ndarray

    @property
    def share(self) -> float:
        """Fraction of the step's rows that this pass has; the shares of a step add up to 1."""
        return len(self.rows) / len(self.whole)


@dataclass(frozen=True)
class Position:
    """Where training stands. Steps and epochs count from 0; `share` is that of the current `Part`.

    `step_in_epoch` counts the epoch's optimizer steps from 0.

    `first_pass` and `last_pass` tell whether this is the step's first and last forward pass (both, without
    accumulation).
    """

    step: int
    epoch: int
    share: float = 1.0
    first_pass: bool = True
    last_pass: bool = True
    step_in_epoch: int = 0


class Stepper(Protocol):
    """The optimizers of a model, as `train_step` sees them."""

    def update(self, name: str | Sequence[str], loss: torch.Tensor) -> None:
        """Add the gradient of `loss`, this pass's share of the step's loss, to the parameters of optimizer `name`.

        Several names share one backward pass. On the step's last pass: for each optimizer, sums gradients over
        processes, clips, steps and clears them.
        """
        ...


class Trainable(ABC):
    """A model during training, its data included. `module` holds every trained tensor.

    Subclasses set `module`, `n_rows` (training cells) and `select`: the validation metric that chooses the best
    weights and its better direction. Random draws inside the forward pass come from torch's default generators,
    which the loop seeds and restores.
    """

    module: nn.Module
    n_rows: int
    select: tuple[str, Better]

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Optimizers by name, built once, on the module's parameters. Together they hold each parameter once."""

    @abstractmethod
    def batch(self, part: Part) -> Any:
        """The data of one forward pass, on the device."""

    @abstractmethod
    def train_step(self, batch: Any, optimizers: Stepper, position: Position) -> Logs:
        """One forward pass and its updates through `optimizers.update`.

        Returns shares of the step's logged values: they are added over passes and processes. `loss` is required.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Validation metrics by name; empty without validation.

        Called without gradients and with `module` in evaluation mode, in the main process alone.
        """

    def order(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch in training order, int64. `rng` is the same for the same (seed, epoch)."""
        return rng.permutation(self.n_rows)

    def start_epoch(self, epoch: int, rng: np.random.Generator) -> None:
        """Called before the first batch of an epoch and after a resume inside it; the same `rng` both times.

        For draws that hold for an epoch. Must not depend on what an earlier call left behind.
        """
        return

    def state(self) -> dict[str, Any]:
        """What must survive a kill beside module, optimizers and generators: tensors, numbers, text, lists, dicts."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        return


class SingleLoss(Trainable):
    """A model with one optimizer and one loss.

    `loss(batch)` returns a scalar, or a scalar and values to log. With `reduction = "mean"` it is a mean over the
    rows of the pass; with `"share"` it is already normalised over `Part.whole`, so that shares add up.
    """

    reduction: Literal["mean", "share"] = "mean"

    @abstractmethod
    def loss(self, batch: Any) -> torch.Tensor | tuple[torch.Tensor, Logs]: ...

    def train_step(self, batch: Any, optimizers: Stepper, position: Position) -> Logs:
        found = self.loss(batch)
        loss, logs = found if isinstance(found, tuple) else (found, {})
        factor = position.share if self.reduction == "mean" else 1.0
        scaled = loss * factor
        optimizers.update("main", scaled)
        return {"loss": scaled.detach(), **{name: value * factor for name, value in logs.items()}}
