"""The training loop of every deep model: steps, validation and checkpoints, in that order, resumable at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...data_specs.errors import ModelError, UsageError
from ..settings import config_dict
from .checkpoint import BEST, LAST, find_checkpoint, load_into, load_training, not_finite, save_checkpoint
from .config import TrainingConfig
from .distributed import Processes, broadcast_module, sum_over_processes
from .metrics_log import MetricsLog
from .optimizers import NotFinite, Optimizers, rate_factor
from .progress import Progress, peak_mib
from .protocol import Better, Part, Position, Trainable
from .sampler import BatchPlan
from .seeding import generator_states, numpy_generator, set_generator_states, torch_generators

STATE_VERSION = 2


@dataclass
class LoopState:
    """Where training stands between two steps. `best` is NaN before the first validation that has a value."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    best: float = float("nan")
    best_step: int = -1
    without_better: int = 0
    elapsed_s: float = 0.0
    finished: str = ""


@dataclass(frozen=True)
class FitResult:
    """How training ended.

    `stopped` says why; `best` is the best value of `select` (NaN without validation) at `best_step` steps;
    `peak_mib` holds `host` and, on CUDA, `device`.
    """

    steps: int
    epochs: int
    select: str
    best: float
    best_step: int
    stopped: str
    train_s: float
    peak_mib: Mapping[str, float] = field(default_factory=dict)


def batch_plan(model: Trainable, config: TrainingConfig, processes: Processes) -> BatchPlan:
    """The batches of a run."""
    return BatchPlan(
        model.n_rows, config.batch_size, config.accumulate, processes.size, drop_last=config.drop_last
    )


def total_steps(plan: BatchPlan, config: TrainingConfig) -> int:
    """Optimizer steps of a whole run without early stopping."""
    steps = plan.n_steps * config.epochs
    return min(steps, config.steps) if config.steps else steps


def autocast(config: TrainingConfig, device: torch.device) -> Any:
    """The context of a forward pass: bf16 autocast with `precision=bf16`, otherwise nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.precision == "bf16" else nullcontext()


def selection(model: Trainable, config: TrainingConfig) -> tuple[str, Better]:
    """The metric that chooses the best weights. A metric other than the model's own has the evaluator's direction."""
    if not config.select or config.select == model.select[0]:
        return model.select
    from ...evaluator.metrics.spec import find_metric

    better = find_metric(config.select)[0].better
    if better == "none":
        raise UsageError(f"select={config.select}: the metric has no better direction; choose another.")
    return config.select, "max" if better == "higher" else "min"


def fit(
    model: Trainable,
    config: TrainingConfig,
    *,
    seed: int,
    folder: Path,
    processes: Processes,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    write_best: Callable[[Path], None] | None = None,
    quiet: bool = True,
) -> FitResult:
    """Train a model, writing `folder`/checkpoints and `folder`/metrics.jsonl.

    Parameters
    ----------
    seed
        Root seed of the order of cells and of every draw in the forward pass.
    resume
        Continue from `checkpoints/last` where there is one: the final weights equal those of an uninterrupted run
        (bit for bit on the CPU, where the checkpoint's number of threads is used again: it decides the last digits).
    identity
        Facts that must be the same when resuming, beside config, seed and processes.
    write_best
        Writes what prediction needs beside the weights into the folder of each best checkpoint.

    Raises
    ------
    NotFinite
        A loss or gradient is NaN or infinite; the checkpoints before it stay.
    UsageError
        Resuming with other settings or data.
    ModelError
        A checkpoint cannot be read, or `select` is no validation metric of the model.
    """
    run = _Run(model, config, seed, folder, processes, identity or {}, write_best, quiet)
    threads = torch.get_num_threads()
    try:
        with torch_generators(seed, "training", processes.rank, device=processes.device):
            return run.train(resume)
    finally:
        torch.set_num_threads(threads)


class _Run:
    """One call of `fit`."""

    def __init__(
        self,
        model: Trainable,
        config: TrainingConfig,
        seed: int,
        folder: Path,
        processes: Processes,
        identity: Mapping[str, Any],
        write_best: Callable[[Path], None] | None,
        quiet: bool,
    ):
        self.model, self.config, self.seed, self.processes = model, config, seed, processes
        self.checkpoints = folder / "checkpoints"
        self.write_best = write_best
        self.plan = batch_plan(model, config, processes)
        self.n_steps = total_steps(self.plan, config)
        self.select, self.better = selection(model, config)
        self.optimizers = Optimizers(model.optimizers(), config, processes.device)
        self.state = LoopState()
        self.sums: dict[str, torch.Tensor] = {}
        self.log = MetricsLog(folder / "metrics.jsonl", enabled=processes.is_main)
        self.progress = Progress(self.n_steps, enabled=processes.is_main and not quiet)
        self.identity = json.dumps(
            {
                **{f"setting {name}": value for name, value in config_dict(config).items()},
                "seed": seed,
                "processes": processes.size,
                "training cells": model.n_rows,
                **identity,
            },
            sort_keys=True,
        )

    def train(self, resume: bool) -> FitResult:
        broadcast_module(self.model.module)
        last = find_checkpoint(self.checkpoints, LAST) if resume else None
        if last is not None:
            self._load(last)
        self.log.keep_until(self.state.step)
        if self.config.compile:
            self.model.module.compile()
        before = self.state.elapsed_s
        start = time.perf_counter()
        try:
            while not self.state.finished:
                self._epoch(lambda: before + time.perf_counter() - start)
        except NotFinite as error:
            raise NotFinite(error.step, self._kept()) from error
        finally:
            self.progress.close()
        s = self.state
        return FitResult(
            s.step,
            s.epoch,
            self.select,
            s.best,
            s.best_step,
            s.finished,
            s.elapsed_s,
            peak_mib(self.processes.device),
        )

    def _epoch(self, elapsed: Callable[[], float]) -> None:
        """Train to the end of the current epoch (or of the run), validate, save."""
        state, config, plan = self.state, self.config, self.plan
        if state.step < self.n_steps:
            order = self.model.order(state.epoch, numpy_generator(self.seed, "order", state.epoch))
            self._start_epoch()
            self.model.module.train()
            while state.step_in_epoch < plan.n_steps and state.step < self.n_steps:
                self._step(order, elapsed)
                state.elapsed_s = elapsed()
                due = config.checkpoint_every and state.step % config.checkpoint_every == 0
                if due and state.step_in_epoch < plan.n_steps and state.step < self.n_steps:
                    self._check()
                    self._save_last()
            self._check()
            state.epoch += 1
        is_end = state.step >= self.n_steps
        values = self._validate() if is_end or state.epoch % config.validate_every == 0 else {}
        self._judge(values, is_end)
        self._write_line(values, elapsed)
        state.step_in_epoch = 0
        self.sums = {}
        state.elapsed_s = elapsed()
        self._save_last()

    def _start_epoch(self) -> None:
        # A resume inside an epoch calls it a second time, so it must leave torch's generators alone.
        states = generator_states(self.processes.device)
        self.model.start_epoch(self.state.epoch, numpy_generator(self.seed, "epoch", self.state.epoch))
        set_generator_states(states, self.processes.device)

    def _step(self, order: Any, elapsed: Callable[[], float]) -> None:
        state, config = self.state, self.config
        passes = self.plan.passes(order, state.step_in_epoch, self.processes.rank)
        factor = rate_factor(config, step=state.step, epoch=state.epoch, n_steps=self.n_steps)
        for i, rows in enumerate(passes.own):
            part = Part(rows, passes.whole)
            position = Position(
                state.step, state.epoch, part.share, i == 0, i == len(passes.own) - 1, state.step_in_epoch
            )
            self.optimizers.start_pass(position, factor)
            with autocast(self.config, self.processes.device):
                logs = self.model.train_step(self.model.batch(part), self.optimizers, position)
            for name, value in logs.items():
                self._add(name, value)
        state.step += 1
        state.step_in_epoch += 1
        if self.progress.due(state.step):
            self.optimizers.check()
            speed = state.step * self.plan.cells_per_step / max(elapsed(), 1e-9)
            loss = float(self.sums["loss"]) / state.step_in_epoch * self.processes.size
            self.progress.show(state.step, state.epoch, loss, speed, peak_mib(self.processes.device))

    def _check(self) -> None:
        """Raise `NotFinite` unless all steps so far and the weights are finite."""
        self.optimizers.check()
        if not_finite(self.model.module.state_dict()):
            raise NotFinite(self.state.step - 1)

    def _add(self, name: str, value: torch.Tensor | float) -> None:
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.processes.device)
        self.sums[name] += value.detach() if isinstance(value, torch.Tensor) else value

    def _validate(self) -> dict[str, float]:
        values: dict[str, float] = {}
        if self.processes.is_main:
            self.model.module.eval()
            with torch.no_grad(), autocast(self.config, self.processes.device):
                values = self.model.validate()
            self.model.module.train()
        values = self.processes.broadcast(values)
        if values and self.select not in values:
            raise ModelError(
                f"select={self.select} is no validation metric; there are {', '.join(sorted(values))}."
            )
        return values

    def _judge(self, values: Mapping[str, float], is_end: bool) -> None:
        """Keep the weights when they are the best so far (or the only ones), and decide whether to stop."""
        state = self.state
        improved = False
        if values:
            value = values[self.select]
            gain = state.best - value if self.better == "min" else value - state.best
            improved = value == value and (state.best != state.best or gain > 0)
            state.best = value if improved else state.best
            state.without_better = 0 if improved else state.without_better + 1
        if self.config.patience and state.without_better >= self.config.patience:
            state.finished = f"no better {self.select} in {state.without_better} validations"
        elif is_end:
            state.finished = "all steps done"
        has_best = state.best == state.best
        if improved or (not has_best and (not values or state.finished)):
            self._save_best()
            state.best_step = state.step

    def _write_line(self, values: Mapping[str, float], elapsed: Callable[[], float]) -> None:
        state = self.state
        n = max(1, state.step_in_epoch)
        means = {name: float(sum_over_processes(self.sums[name])) / n for name in sorted(self.sums)}
        spent = max(elapsed(), 1e-9)
        self.log.append(
            {
                "step": state.step,
                "epoch": state.epoch,
                **means,
                "lr": self.optimizers.rate,
                **{f"valid_{name}": value for name, value in values.items()},
                "elapsed_s": round(spent, 3),
                "cells_per_s": round(state.step * self.plan.cells_per_step / spent, 1),
            }
        )

    def _save_best(self) -> None:
        if self.processes.is_main:
            save_checkpoint(
                self.checkpoints, BEST, weights=self.model.module.state_dict(), write_more=self.write_best
            )

    def _save_last(self) -> None:
        states = generator_states(self.processes.device)
        generators = {name: self.processes.gather(value) for name, value in states.items()}
        sums = {name: float(sum_over_processes(self.sums[name])) for name in sorted(self.sums)}
        if self.processes.is_main:
            training = {
                "version": STATE_VERSION,
                "identity": self.identity,
                "loop": asdict(self.state),
                "sums": sums,
                "optimizers": self.optimizers.state(),
                "generators": generators,
                "threads": torch.get_num_threads(),
                "model": self.model.state(),
            }
            save_checkpoint(self.checkpoints, LAST, weights=self.model.module.state_dict(), training=training)
        self.processes.barrier()

    def _load(self, last: Path) -> None:
        stored = load_training(last)
        try:
            if stored["version"] != STATE_VERSION:
                raise ModelError(
                    f"{last}: state version {stored['version']}; this vcbench reads {STATE_VERSION}."
                )
            self._check_identity(stored["identity"])
            load_into(self.model.module, last)
            self.optimizers.load_state(stored["optimizers"])
            self.state = replace(LoopState(), **stored["loop"])
            self.model.load_state(stored["model"])
            rank = self.processes.rank
            for name, value in stored["sums"].items():
                # The stored sum is over all processes; it is added up again when a line is written.
                self._add(name, value if rank == 0 else 0.0)
            own = {name: states[rank] for name, states in stored["generators"].items()}
            set_generator_states(own, self.processes.device)
            # Sums are split over threads, so another number of them ends in other last digits.
            torch.set_num_threads(stored["threads"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{last}: not a training state of this model ({error!r}).") from error

    def _check_identity(self, stored: str) -> None:
        then, now = json.loads(stored), json.loads(self.identity)
        changed = [
            f"{name} (was {then.get(name)!r}, is {now.get(name)!r})"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if changed:
            raise UsageError(f"--resume continues the same run only; changed: {', '.join(changed)}.")

    def _kept(self) -> str:
        kept = []
        for name in (LAST, BEST):
            if find_checkpoint(self.checkpoints, name) is not None:
                kept.append(f"checkpoints/{name}")
        return (
            f"The last good state stays in {' and '.join(kept)}."
            if kept
            else "No checkpoint was written yet."
        )
