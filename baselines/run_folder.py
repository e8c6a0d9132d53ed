"""Run folders: what `train` writes and `predict` reads. Written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.atomic import atomic_folder
from ..data_specs.code_version import code_commit
from ..data_specs.errors import ModelError
from ..data_specs.split_file import Split, read_split, write_split
from .base import TrainingData
from .registry import baseline_class, is_deep

CONFIG, INPUTS, CONTROLS, SPLIT = "config.toml", "inputs.json", "control_means.npz", "split.csv"
BEST = Path("checkpoints") / "best"
METRICS, CARD = "metrics.jsonl", "card.md"
RUN_VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """What goes into a run folder beside the model."""

    name: str
    seed: int
    settings: Mapping[str, Any]
    data_file: Mapping[str, Any]
    features: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    card: str
    dataset_id: str = "unknown"
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A trained model and what it was trained on. `device` is where a deep model predicts."""

    folder: Path
    name: str
    seed: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    genes: np.ndarray
    target_sum: float
    control_means: Mapping[str, np.ndarray]
    mean_effect: np.ndarray
    split: Split | None
    device: str = "cpu"

    @property
    def provenance(self) -> dict[str, str]:
        """What predictions carry in `uns` of this run: the model, and as JSON its settings, inputs, commit and seed."""
        inputs = {name: (self.inputs.get(name) or {}).get("sha256") for name in ("data", "split", "features")}
        record = {
            "model": self.name,
            "settings": {**dict(self.settings), "inputs": inputs},
            "commit": code_commit(),
            "seed": self.seed,
        }
        return {"model": self.name, "run": json.dumps(record, sort_keys=True)}

    @property
    def dataset_id(self) -> str:
        return str(self.inputs["dataset_id"])

    @property
    def train_keys(self) -> tuple[tuple[str, str], ...]:
        """(context, perturbation) of the training rows, sorted."""
        return tuple((context, label) for context, label in self.inputs["train_keys"])

    @cached_property
    def model(self) -> Any:
        """The fitted model. Raises `ModelError` when its genes are not those of the run."""
        where = {"device": self.device} if is_deep(self.name) else {}
        model = baseline_class(self.name).load(self.folder / BEST, **where)
        if genes_sha256(model.genes) != self.inputs["genes_sha256"]:
            raise ModelError(
                f"{self.folder}: the model was fitted on other genes than inputs.json lists "
                f"({len(model.genes):,} and {len(self.genes):,}); the folder was put together from two runs."
            )
        return model


def genes_sha256(genes: Any) -> str:
    """sha256 of the genes in order, joined by newlines."""
    return hashlib.sha256("\n".join(str(gene) for gene in genes).encode()).hexdigest()


def write_run(
    folder: str | os.PathLike[str],
    model: Any,
    data: TrainingData,
    record: RunRecord,
    *,
    split: Split | None,
    force: bool = False,
) -> Path:
    """Write a run folder. Raises `OutputError`."""
    with atomic_folder(folder, force=force) as part:
        best = part / BEST
        best.mkdir(parents=True)
        model.save(best)
        _write_inputs(part, data, record, split)
        lines = "".join(json.dumps(dict(line)) + "\n" for line in record.metrics)
        (part / METRICS).write_text(lines, encoding="utf-8")
        (part / CARD).write_text(record.card, encoding="utf-8")
    return Path(folder)


def start_run(
    folder: str | os.PathLike[str],
    data: TrainingData,
    record: RunRecord,
    *,
    split: Split | None,
    force: bool = False,
) -> Path:
    """Write a run folder without model, metrics and card, which training adds. Raises `OutputError`."""
    with atomic_folder(folder, force=force) as part:
        _write_inputs(part, data, record, split)
    return Path(folder)


def _write_inputs(part: Path, data: TrainingData, record: RunRecord, split: Split | None) -> None:
    config = {
        "run_version": RUN_VERSION,
        "vcbench_version": version("vcbench"),
        "model": record.name,
        "seed": record.seed,
        "settings": dict(record.settings),
    }
    (part / CONFIG).write_text(to_toml(config), encoding="utf-8")
    inputs = {
        "dataset_id": record.dataset_id,
        "data": dict(record.data_file),
        "features": record.features,
        "split": None if split is None else {"file": SPLIT, **dict(split.record)},
        "matrix": {"kind": "log1p", "target_sum": data.target_sum},
        "train_keys": [list(key) for key in sorted(data.keys)],
        "n_train_cells": int(np.sum(data.n_cells)),
        "genes_sha256": genes_sha256(data.genes),
        "genes": [str(gene) for gene in data.genes],
        **dict(record.extra),
    }
    (part / INPUTS).write_text(json.dumps(inputs, indent=1) + "\n", encoding="utf-8")
    contexts = sorted(data.control_means)
    np.savez_compressed(
        part / CONTROLS,
        contexts=np.array(contexts, dtype=np.str_),
        means=np.stack([data.control_means[context] for context in contexts]),
        mean_effect=data.ordered().effects.mean(axis=0),
    )
    if split is not None:
        write_split(split, part / SPLIT)


def load_run(folder: str | os.PathLike[str], *, device: str = "cpu") -> Run:
    """The run in a folder; `device` (`cpu`, `cuda` or `auto`) is where a deep model predicts.

    Raises
    ------
    ModelError
        The folder is not a run folder, is incomplete, or is of a newer version.
    """
    root = Path(folder)
    try:
        config = tomllib.loads((root / CONFIG).read_text(encoding="utf-8"))
        inputs = json.loads((root / INPUTS).read_text(encoding="utf-8"))
        with np.load(root / CONTROLS, allow_pickle=False) as stored:
            contexts, means, mean_effect = stored["contexts"], stored["means"], stored["mean_effect"]
        if config["run_version"] != RUN_VERSION:
            raise ModelError(
                f"{root}: run version {config['run_version']}; this vcbench reads {RUN_VERSION}."
            )
        return Run(
            folder=root,
            name=config["model"],
            seed=int(config["seed"]),
            settings=config["settings"],
            inputs=inputs,
            genes=np.array(inputs["genes"], dtype=object),
            target_sum=float(inputs["matrix"]["target_sum"]),
            control_means={str(c): row for c, row in zip(contexts, means, strict=True)},
            mean_effect=mean_effect,
            split=read_split(root / SPLIT) if (root / SPLIT).exists() else None,
            device=device,
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{root}: not a run folder that `vcbench train` wrote ({error}).") from error


def to_toml(table: Mapping[str, Any]) -> str:
    """Scalars and one level of tables as TOML text."""
    lines = [
        f"{key} = {_toml_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)
    ]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_toml_value(item)}" for name, item in value.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value))
