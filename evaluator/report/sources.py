"""Files beside the ScoreCards that a report shows: training curves of run folders, and probe reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...data_specs.errors import UsageError

METRICS = "metrics.jsonl"
ROW_KEYS = {"probe", "metric", "before", "after", "change", "expected", "as_expected"}
FINDING_KEYS = {"name", "evidence"}
PROBE_KEYS = {"probes_version", "entry", "edition", "rows", "marks", "flags", "probes"}


@dataclass(frozen=True)
class Curve:
    """Training of one run: one row per epoch, numbers only."""

    name: str
    table: pd.DataFrame


def read_curves(runs: Mapping[str, Path]) -> list[Curve]:
    """The training curves of run folders by name. Raises `UsageError` where there is none or a line is no JSON."""
    out = []
    for name, folder in runs.items():
        file = folder / METRICS if folder.is_dir() else folder
        try:
            lines = [
                json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"{file}: no training curve can be read ({error}).") from error
        if not all(isinstance(line, dict) for line in lines):
            raise UsageError(f"{file}: every line must be one JSON object.")
        table = pd.DataFrame(lines)
        numbers = table.select_dtypes("number")
        if not len(numbers.columns):
            raise UsageError(f"{file}: holds no number.")
        if "epoch" not in numbers:
            numbers = numbers.assign(epoch=np.arange(len(numbers)))
        out.append(Curve(name, numbers))
    return out


def _has_keys(items: Any, keys: set[str]) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) and set(item) >= keys for item in items)


def read_probes(files: tuple[Path, ...], *, edition: str) -> list[dict[str, Any]]:
    """The reports that `vcbench probe -o` wrote. Raises `UsageError` for other files and other editions."""
    out = []
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"{file}: no probe report can be read ({error}).") from error
        if not (isinstance(found, dict) and set(found) >= PROBE_KEYS):
            raise UsageError(f"{file}: not a report of `vcbench probe ENTRY ... -o FILE`.")
        listed = {"rows": ROW_KEYS, "marks": FINDING_KEYS, "flags": FINDING_KEYS}
        if not all(_has_keys(found[name], keys) for name, keys in listed.items()):
            raise UsageError(f"{file}: its rows, marks or flags are not those of a probe report.")
        if found["edition"] != edition:
            raise UsageError(
                f"{file}: a probe of edition {found['edition']}, the ScoreCards are of {edition}."
            )
        out.append(found)
    return out
