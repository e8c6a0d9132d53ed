"""Train a deep model into a run folder, on one process or several; estimate it first; go on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data_specs.atomic import write_text
from ..data_specs.hashing import file_sha256
from ..data_specs.remote import input_path, recorded_path
from ..data_specs.split_file import Split, read_split
from .base import TrainingData
from .card import card_text
from .data import load_training_data
from .deep import DeepModel, placement_of, require_torch
from .deep_data import load_cells
from .diagnosis import finite
from .features import FeatureSource, feature_source
from .registry import create
from .run_folder import BEST, CARD, RunRecord, start_run
from .settings import config_dict
from .train import LoadedData, TrainResult, check_folder, run_diagnosis, training_fit

if TYPE_CHECKING:
    from .training.distributed import Processes
    from .training.estimate import Estimate
    from .training.loop import FitResult
    from .training.protocol import Trainable


@dataclass(frozen=True)
class DeepTrainResult(TrainResult):
    """What training a deep model did. `select` is the validation metric that chose the weights, `best` its value."""

    steps: int = 0
    epochs: int = 0
    select: str = ""
    best: float = float("nan")
    best_step: int = 0
    stopped: str = ""
    device: str = "cpu"
    peak_mib: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """A flat dict for `--format json`."""
        return {
            **super().to_json(),
            "steps": self.steps,
            "epochs": self.epochs,
            "select": self.select,
            "best": self.best,
            "best_step": self.best_step,
            "stopped": self.stopped,
            "device": self.device,
            "peak_mib": dict(self.peak_mib or {}),
        }


@dataclass(frozen=True)
class _Prepared:
    """A model ready to train."""

    name: str
    model: DeepModel[Any]
    trainable: Trainable
    loaded: LoadedData
    features: Mapping[str, Any] | None
    processes: Processes
    seed: int
    load_s: float

    @property
    def identity(self) -> dict[str, Any]:
        """Facts that a resume must find unchanged."""
        split = self.loaded.split
        listed = "" if split is None else repr(sorted(split.rows.items()))
        return {
            "model": self.name,
            "data sha256": self.loaded.sha256,
            "split": hashlib.sha256(listed.encode()).hexdigest(),
            "features sha256": None if self.features is None else self.features.get("sha256"),
        }


def _prepare(
    name: str,
    path: Path,
    split: str | os.PathLike[str] | Split | None,
    settings: Mapping[str, Any] | None,
    features: str | FeatureSource | None,
    seed: int,
    device: str,
) -> _Prepared:
    from .training.distributed import choose_device, start_processes
    from .training.seeding import numpy_generator, torch_generators

    require_torch(name)
    start = time.perf_counter()
    source = feature_source(features) if isinstance(features, str) else features
    model = create(name, settings, features=source)
    chosen = split if split is None or isinstance(split, Split) else read_split(split)
    processes = start_processes(choose_device(device))
    _set_precision(model.config.tf32)
    cells = load_cells(
        path, chosen, space=model.space, validation=model.config.validation, columns=model.columns
    )
    data = cells.training_data if cells.space == "log1p" else load_training_data(path, chosen)
    with torch_generators(seed, "weights", device=processes.device):
        trainable = model.start(
            cells,
            placement_of(model.config, processes.device),
            rng=numpy_generator(seed, "prepare"),
            data=data,
        )
    return _Prepared(
        name=name,
        model=model,
        trainable=trainable,
        loaded=LoadedData(data, chosen, path, file_sha256(path)),
        features=None if source is None else source.record(),
        processes=processes,
        seed=seed,
        load_s=time.perf_counter() - start,
    )


def _set_precision(tf32: bool) -> None:
    import torch

    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def estimate_deep(
    name: str,
    path: str | os.PathLike[str],
    split: str | os.PathLike[str] | Split | None,
    *,
    settings: Mapping[str, Any] | None = None,
    features: str | FeatureSource | None = None,
    seed: int = 0,
    device: str = "auto",
) -> Estimate:
    """What training would take: parameters, memory and time, measured on a few real steps. Writes nothing.

    Raises as `train_deep`.
    """
    from .training.distributed import stop_processes
    from .training.estimate import estimate

    try:
        ready = _prepare(name, input_path(path), split, settings, features, seed, device)
        return estimate(
            ready.trainable, ready.model.config, seed=seed, processes=ready.processes, load_s=ready.load_s
        )
    finally:
        stop_processes()


def train_deep(
    name: str,
    path: str | os.PathLike[str],
    split: str | os.PathLike[str] | Split | None,
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    features: str | FeatureSource | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    force: bool = False,
    quiet: bool = True,
) -> DeepTrainResult | None:
    """Train a deep model and write its run folder; None in processes other than the main one.

    With `resume` an interrupted run goes on from its last checkpoint, or starts where there is none; settings, data,
    split, features, seed and number of processes must be the same.

    Raises
    ------
    UnknownName, UsageError
        No such model or setting, a value that does not fit, or a resume of another run.
    ModelError
        torch is missing, the data cannot support the model, or training diverged (the last good checkpoint stays).
    OutputError
        The folder exists (without `force` or `resume`), equals an input, or cannot be written.
    """
    require_torch(name)
    from .training.checkpoint import LAST, TRAINING, find_checkpoint
    from .training.distributed import stop_processes
    from .training.loop import fit

    folder, data_path = Path(out), input_path(path)
    last = find_checkpoint(folder / BEST.parent, LAST) if resume else None
    continues = last is not None
    if not continues:
        check_folder(folder, data_path, force or resume)
    try:
        ready = _prepare(name, data_path, split, settings, features, seed, device)
        ready.processes.require_same(
            {
                "settings": f"{ready.model.config} {seed}",
                "data, split or features": json.dumps(ready.identity, sort_keys=True),
                "the checkpoint to resume from": "" if last is None else file_sha256(last / TRAINING),
            }
        )
        if ready.processes.is_main and not continues:
            start_run(
                folder, ready.loaded.data, _record(ready), split=ready.loaded.split, force=force or resume
            )
        ready.processes.barrier()
        result = fit(
            ready.trainable,
            ready.model.config,
            seed=seed,
            folder=folder,
            processes=ready.processes,
            resume=continues,
            identity=ready.identity,
            write_best=ready.model.write,
            quiet=quiet,
        )
        return _finish(ready, result, folder) if ready.processes.is_main else None
    finally:
        stop_processes()


def _record(ready: _Prepared) -> RunRecord:
    return RunRecord(
        name=ready.name,
        seed=ready.seed,
        settings=config_dict(ready.model.config),
        data_file={"file": recorded_path(ready.loaded.path), "sha256": ready.loaded.sha256},
        features=ready.features,
        metrics=(),
        card="",
        dataset_id=str(ready.loaded.data.extras.get("dataset_id", "unknown")),
    )


def _finish(ready: _Prepared, result: FitResult, folder: Path) -> DeepTrainResult:
    """The card and the summary, from the best weights as `predict` reads them."""
    model = type(ready.model).load(folder / BEST, device=ready.processes.device.type)
    data: TrainingData = ready.loaded.data
    figures = training_fit(model, data)
    diagnosis = run_diagnosis(model, ready.loaded)
    peak = ", ".join(f"{where} {finite(value, 5)} MiB" for where, value in result.peak_mib.items())
    chosen = (
        f"the best {result.select} ({finite(result.best)})" if np.isfinite(result.best) else "the last step"
    )
    notes = (*data.notes, *model.notes)
    card = card_text(
        model,
        ready.loaded,
        {
            f"validation {result.select}": result.best,
            "training mse": figures["train_mse"],
            "training Pearson delta": figures["train_pearson_delta"],
        },
        diagnosis,
        [
            f"- weights of {chosen}, after {result.best_step:,} of {result.steps:,} optimizer steps "
            f"({result.epochs} epochs); stopped: {result.stopped}",
            f"- seed {ready.seed}, {ready.processes.size} process(es)",
            *(
                [f"- `predict --cells` writes the model's own cells ({model.space}), not emitted ones"]
                if model.has_cells
                else []
            ),
        ],
        f"{model.n_parameters:,} trained numbers, trained in {result.train_s:.3g} s on {ready.processes.device}, "
        f"peak memory: {peak}.",
        notes,
    )
    write_text(folder / CARD, card)
    return DeepTrainResult(
        run=folder,
        name=ready.name,
        n_train=len(data.keys),
        n_genes=len(data.genes),
        fit_s=round(result.train_s, 4),
        n_parameters=model.n_parameters,
        amplified=False,
        diagnosis=diagnosis,
        notes=notes,
        steps=result.steps,
        epochs=result.epochs,
        select=result.select,
        best=result.best,
        best_step=result.best_step,
        stopped=result.stopped,
        device=str(ready.processes.device),
        peak_mib=result.peak_mib,
    )
