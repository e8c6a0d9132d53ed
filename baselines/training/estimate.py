"""What a training run will take: parameters counted, time and memory measured on a few real steps."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .config import TrainingConfig
from .distributed import Processes
from .loop import autocast, batch_plan, total_steps
from .optimizers import Optimizers
from .progress import peak_mib
from .protocol import Part, Position, Trainable
from .seeding import numpy_generator, torch_generators

WARM_STEPS, FEWEST_STEPS, MOST_STEPS = 2, 3, 50


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run. `epoch_s` and `total_s` include validation, not loading the data (`load_s`).

    `step_s` is the median of the measured steps; `total_s` is without early stopping. `peak_mib` is the peak so far:
    `host` and, on CUDA, `device`.
    """

    n_parameters: int
    weights_mib: float
    optimizer_mib: float
    n_cells: int
    steps_per_epoch: int
    steps: int
    step_s: float
    cells_per_s: float
    validation_s: float
    epoch_s: float
    total_s: float
    load_s: float
    device: str
    peak_mib: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


def estimate(
    model: Trainable,
    config: TrainingConfig,
    *,
    seed: int,
    processes: Processes,
    load_s: float,
    budget_s: float = 10.0,
) -> Estimate:
    """Measure a few steps and one validation, and extrapolate. The model is trained a little: do not use it after.

    At least five steps are made, then as many as fit into `budget_s`, at most 50.
    """
    plan = batch_plan(model, config, processes)
    device = processes.device
    optimizers = Optimizers(model.optimizers(), config, device)
    with torch_generators(seed, "estimate", processes.rank, device=device):
        start = time.perf_counter()
        order = model.order(0, numpy_generator(seed, "order", 0))
        model.start_epoch(0, numpy_generator(seed, "epoch", 0))
        prepare_s = _elapsed(start, device)
        if config.compile:
            model.module.compile()
        model.module.train()
        measured: list[float] = []
        began = time.perf_counter()
        for step in range(WARM_STEPS + MOST_STEPS):
            start = time.perf_counter()
            passes = plan.passes(order, step % plan.n_steps, processes.rank)
            for i, rows in enumerate(passes.own):
                part = Part(rows, passes.whole)
                last = i == len(passes.own) - 1
                position = Position(step, 0, part.share, i == 0, last, step % plan.n_steps)
                optimizers.start_pass(position, 1.0)
                with autocast(config, device):
                    model.train_step(model.batch(part), optimizers, position)
            spent = _elapsed(start, device)
            if step >= WARM_STEPS:
                measured.append(spent)
            if len(measured) >= FEWEST_STEPS and time.perf_counter() - began > budget_s:
                break
        model.module.eval()
        start = time.perf_counter()
        with torch.no_grad(), autocast(config, device):
            model.validate()
        validation_s = _elapsed(start, device)
    step_s = statistics.median(measured)
    steps = total_steps(plan, config)
    n_epochs = -(-steps // plan.n_steps)
    n_validations = -(-n_epochs // config.validate_every)
    parameters = list(model.module.parameters())
    return Estimate(
        n_parameters=sum(p.numel() for p in parameters),
        weights_mib=round(sum(p.nbytes for p in model.module.state_dict().values()) / 2**20, 2),
        optimizer_mib=round(_optimizer_bytes(optimizers) / 2**20, 2),
        n_cells=model.n_rows,
        steps_per_epoch=plan.n_steps,
        steps=steps,
        step_s=step_s,
        cells_per_s=round(plan.cells_per_step / step_s, 1),
        validation_s=round(validation_s, 4),
        epoch_s=round(plan.n_steps * step_s + prepare_s + validation_s / config.validate_every, 3),
        total_s=round(steps * step_s + n_epochs * prepare_s + n_validations * validation_s, 3),
        load_s=round(load_s, 3),
        device=str(device),
        peak_mib=peak_mib(device),
    )


def _elapsed(start: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _optimizer_bytes(optimizers: Optimizers) -> int:
    states = (state for optimizer in optimizers.table.values() for state in optimizer.state.values())
    return sum(
        value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor)
    )
