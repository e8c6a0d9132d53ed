"""Settings of a training run: one flat frozen dataclass that every deep model extends. Needs no torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...data_specs.errors import UnknownName, UsageError
from ..settings import build_config

Precision = Literal["float32", "bf16", "float64"]
Schedule = Literal["constant", "step", "cosine"]
ConfigT = TypeVar("ConfigT", bound="TrainingConfig")
DEFAULT_PRESET = "default"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that every deep model has; a model's own config adds its fields and may change the defaults.

    Attributes
    ----------
    preset
        `default`, or the name of a TOML file in the model's folder whose values replace the defaults.
    lr, weight_decay
        Learning rate and weight decay that the model's optimizers start from.
    batch_size
        Cells per forward pass and process. One optimizer step takes `batch_size * accumulate * processes` cells.
    epochs, steps
        Training ends after so many passes over the data, or so many optimizer steps when that is sooner (0: no
        limit of steps).
    accumulate
        Forward passes whose gradients are added before an optimizer step.
    schedule, schedule_factor, schedule_every, warmup
        `constant`; `step` multiplies the learning rate by `schedule_factor` after every `schedule_every` epochs;
        `cosine` falls to `schedule_factor` times the rate at the last step. `warmup` optimizer steps rise linearly.
    clip, clip_at
        Gradient clipping by the total norm, by `value` of each element, or `none`; and the limit.
    precision
        `float32`; `bf16`: autocast of the forward pass, weights stay float32; `float64`.
    compile, fused
        `torch.compile` of the module; fused optimizer kernels where the device has them.
    tf32
        TF32 matrix products on CUDA in float32.
    select
        Validation metric that chooses the best weights; empty: the model's own choice.
    patience
        Stop after so many validations without a better value of `select` (0: never).
    validate_every
        Epochs between validations. The last epoch is always validated.
    validation
        What validates: the split's validation `perturbations`, held-out `cells` of the training perturbations, or
        `none`. `auto`: perturbations where the split has them, otherwise cells.
    checkpoint_every
        Optimizer steps between checkpoints; 0: after each epoch.
    drop_last
        Leave out an incomplete last batch of an epoch (never the only one).
    data
        `device`: expression stays on the training device; `host`: each batch is copied to it; `auto`: the device
        when it has room.
    """

    preset: str = DEFAULT_PRESET
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 32
    epochs: int = 20
    steps: int = 0
    accumulate: int = 1
    schedule: Schedule = "constant"
    schedule_factor: float = 0.5
    schedule_every: int = 1
    warmup: int = 0
    clip: Literal["none", "norm", "value"] = "none"
    clip_at: float = 1.0
    precision: Precision = "float32"
    compile: bool = False
    fused: bool = False
    tf32: bool = False
    select: str = ""
    patience: int = 0
    validate_every: int = 1
    validation: Literal["auto", "perturbations", "cells", "none"] = "auto"
    checkpoint_every: int = 0
    drop_last: bool = True
    data: Literal["auto", "device", "host"] = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {words}, not {getattr(self, name)}"
            for name, ok, words in (
                ("lr", self.lr > 0, "positive"),
                ("weight_decay", self.weight_decay >= 0, "0 or more"),
                ("batch_size", self.batch_size >= 1, "at least 1"),
                ("epochs", self.epochs >= 0, "0 or more"),
                ("steps", self.steps >= 0, "0 or more"),
                ("accumulate", self.accumulate >= 1, "at least 1"),
                ("schedule_factor", 0 <= self.schedule_factor <= 1, "between 0 and 1"),
                ("schedule_every", self.schedule_every >= 1, "at least 1"),
                ("warmup", self.warmup >= 0, "0 or more"),
                ("clip_at", self.clip_at > 0, "positive"),
                ("patience", self.patience >= 0, "0 or more"),
                ("validate_every", self.validate_every >= 1, "at least 1"),
                ("checkpoint_every", self.checkpoint_every >= 0, "0 or more"),
            )
            if not ok
        ]
        if self.patience and self.validation == "none":
            problems.append("patience needs a validation; validation=none has none")
        if problems:
            raise UsageError("; ".join(problems) + ".")


def resolve_config(
    config_class: type[ConfigT],
    settings: Mapping[str, Any],
    *,
    model: str,
    presets: Path | None = None,
) -> ConfigT:
    """A config from defaults, then the preset's TOML (`presets`/NAME.toml), then `settings` (text or values).

    Raises
    ------
    UnknownName
        No such setting or preset; the message names the nearest.
    UsageError
        A value that does not convert, or that the config refuses.
    """
    chosen = str(settings.get("preset", DEFAULT_PRESET))
    values: dict[str, Any] = {}
    if chosen != DEFAULT_PRESET:
        known = [DEFAULT_PRESET, *preset_names(presets)]
        if presets is None or chosen not in known:
            raise UnknownName(f"preset of {model}", chosen, known, f"vcbench explain {model}")
        values = read_toml(presets / f"{chosen}.toml")
    return build_config(config_class, {**values, **settings}, model=model)


def preset_names(presets: Path | None) -> list[str]:
    """Names of the TOML presets of a folder, sorted."""
    return [] if presets is None else sorted(file.stem for file in presets.glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """The flat table of a TOML file of settings. Raises `UsageError` when it is not one."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file of settings ({error}).") from error
    nested = [key for key, value in table.items() if isinstance(value, (dict, list))]
    if nested:
        raise UsageError(f"{path}: settings are key = value lines; {', '.join(nested)} is not.")
    return table
