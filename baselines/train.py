"""Fit one baseline and write its run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.atomic import check_output
from ..data_specs.errors import OutputError
from ..data_specs.hashing import file_sha256
from ..data_specs.remote import input_path, recorded_path
from ..data_specs.split_file import Split, read_split
from .base import TrainingData
from .card import card_text
from .data import load_training_data
from .diagnosis import Diagnosis, diagnose, finite, peak_memory_mib
from .features import FeatureSource, feature_source
from .registry import create
from .run_folder import RunRecord, write_run
from .settings import config_dict


@dataclass(frozen=True)
class TrainResult:
    """What `train` did: the run folder, rows and genes it learned from, and its notes."""

    run: Path
    name: str
    n_train: int
    n_genes: int
    fit_s: float
    n_parameters: int
    amplified: bool
    diagnosis: Diagnosis
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A flat dict for `--format json`."""
        return {
            "run": str(self.run),
            "model": self.name,
            "n_train": self.n_train,
            "n_genes": self.n_genes,
            "fit_s": self.fit_s,
            "n_parameters": self.n_parameters,
            "amplified": self.amplified,
            "diagnosis": self.diagnosis.to_json(),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class LoadedData:
    """Training data with the identity of the file they came from, loaded once for many models."""

    data: TrainingData
    split: Split | None
    path: Path
    sha256: str


def load_data(path: str | os.PathLike[str], split: str | os.PathLike[str] | Split | None) -> LoadedData:
    """Training data of a standard file and a split (a path, a `Split`, or None for all rows). Raises `InvalidFile`."""
    chosen = split if split is None or isinstance(split, Split) else read_split(split)
    return LoadedData(load_training_data(path, chosen), chosen, input_path(path), file_sha256(path))


def train(
    name: str,
    loaded: LoadedData,
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    features: str | FeatureSource | None = None,
    seed: int = 0,
    force: bool = False,
) -> TrainResult:
    """Fit a baseline and write its run folder; the folder appears whole or not at all.

    Raises
    ------
    UnknownName, UsageError
        No such baseline or setting, or a value that does not fit.
    ModelError
        The data cannot support the model.
    OutputError
        The folder exists (without `force`), equals an input, or cannot be written.
    """
    check_folder(out, loaded.path, force)
    source = feature_source(features) if isinstance(features, str) else features
    model = create(name, settings, features=source)
    start = time.perf_counter()
    model.fit(loaded.data, np.random.default_rng(seed))
    fit_s = time.perf_counter() - start
    notes = (*loaded.data.notes, *model.notes)
    metrics = {"step": 1, "fit_s": round(fit_s, 4), **training_fit(model, loaded.data)}
    diagnosis = run_diagnosis(model, loaded)
    record = RunRecord(
        name=name,
        seed=seed,
        settings=config_dict(model.config),
        data_file={"file": recorded_path(loaded.path), "sha256": loaded.sha256},
        features=None if source is None else source.record(),
        metrics=(metrics,),
        card=card_text(
            model,
            loaded,
            {"training mse": metrics["train_mse"], "training Pearson delta": metrics["train_pearson_delta"]},
            diagnosis,
            [
                f"- amplified: {'true' if model.amplified else 'false'} "
                f"(factor {model.factor:.4g} on predicted effects)"
            ],
            f"{model.n_parameters:,} stored numbers, fitted in {fit_s:.3g} s, peak memory of the process "
            f"{finite(peak_memory_mib(), 5)} MiB, on the CPU.",
            notes,
        ),
        dataset_id=str(loaded.data.extras.get("dataset_id", "unknown")),
    )
    run = write_run(out, model, loaded.data, record, split=loaded.split, force=force)
    return TrainResult(
        run,
        name,
        len(loaded.data.keys),
        len(loaded.data.genes),
        round(fit_s, 4),
        model.n_parameters,
        model.amplified,
        diagnosis,
        notes,
    )


def check_folder(out: str | os.PathLike[str], data: Path, force: bool) -> None:
    """Raise `OutputError` unless `out` is new, or with `force` a run folder or an empty one."""
    target = Path(out)
    if target.is_dir() and not force:
        raise OutputError(f"{target}: exists already. Choose another --out or add --force.")
    if target.is_dir() and not (target / "config.toml").exists() and any(target.iterdir()):
        raise OutputError(f"{target}: is a folder that is no run; --force replaces run folders only.")
    if not target.is_dir():
        check_output(target, inputs=[data])


def training_fit(model: Any, data: TrainingData) -> dict[str, float | int | None]:
    """Mean squared error and Pearson delta over the training rows the model predicts."""
    prediction = model.predict(data.keys, data.control_means)
    rows = [i for i, status in enumerate(prediction.status) if status != "refused"]
    if not rows:
        return {"n_train_predicted": 0, "train_mse": None, "train_pearson_delta": None}
    controls = np.stack([data.control_means[data.keys[i][0]] for i in rows])
    guess, truth = prediction.profiles[rows] - controls, data.effects[rows]
    g, t = guess - guess.mean(axis=1, keepdims=True), truth - truth.mean(axis=1, keepdims=True)
    scale = np.linalg.norm(g, axis=1) * np.linalg.norm(t, axis=1)
    correlations = (g * t).sum(axis=1)[scale > 0] / scale[scale > 0]
    return {
        "n_train_predicted": len(rows),
        "train_mse": float(((guess - truth) ** 2).mean()),
        "train_pearson_delta": float(correlations.mean()) if len(correlations) else None,
    }


def run_diagnosis(model: Any, loaded: LoadedData) -> Diagnosis:
    """Over the split's test rows (names only) where there are any, otherwise over the training rows."""
    data = loaded.data
    tests = [] if loaded.split is None else loaded.split.keys("test")
    keys: Sequence[tuple[str, str]] = tests or data.keys
    return diagnose(
        model.predict(keys, data.control_means), data.control_means, data.ordered().effects.mean(axis=0)
    )
