"""Import the result JSON of the challenge platform as a ScoreCard, to stand beside local results in `compare`."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..data_specs.errors import InvalidFile
from ..data_specs.issues import make_issue
from .scorecard import MetricValue, ScoreCard, ScoreResult, write_scorecard
from .vcc2026.catalog import ENTRIES, SCORED
from .vcc2026.columns import PLATFORM_NAMES

EDITION = "vcc2026"
RAW_KEYS = ("{short}", "{short}_raw", "raw_{short}", "{name}")
NOTE = "imported from the platform: its anchors are not public, so its scores and local ones have other ends"


def read_platform_result(
    path: str | os.PathLike[str], *, name: str | None = None
) -> tuple[ScoreCard, ScoreResult]:
    """The ScoreCard of a result of the platform: `score_avg`, the six scores `score_pds` ..., and raw values.

    Raw values may be called `pds`, `pds_raw`, `raw_pds` or by the metric's name, at the top level or under `raw` or
    `metrics`; a metric without one is null with the reason. The platform counts no perturbations, so n is 0.

    Raises
    ------
    InvalidFile
        The file is no JSON object, or lacks `score_avg` or one of the six scores (E596).
    """
    table = _read_object(path)
    scores = {metric: _number(table, f"score_{PLATFORM_NAMES[metric]}", path) for metric in SCORED}
    average = _number(table, "score_avg", path)
    raw = {metric: _raw_value(table, metric) for metric in SCORED}
    metrics = {
        metric: MetricValue(
            value=raw[metric],
            n=0,
            n_total=0,
            better=ENTRIES[metric].better,
            perfect=ENTRIES[metric].perfect,
            reason=None if raw[metric] is not None else "the platform's result holds no raw value",
        )
        for metric in SCORED
    }
    facts = {
        key: table[key]
        for key in ("rank", "partition", "panel_id", "anchor_version", "status")
        if key in table
    }
    label = name or str(table.get("name") or table.get("entry") or Path(path).stem)
    card = ScoreCard(
        name=label,
        edition=EDITION,
        profile=EDITION,
        score=average,
        metrics=metrics,
        parameters={"platform": {**facts, "scores": scores}},
        notes=[NOTE],
    )
    rows = [
        {
            "context": "",
            "column": "platform",
            "metric": metric,
            "value": math.nan if raw[metric] is None else raw[metric],
            "score": scores[metric],
            "contribution": scores[metric] / len(SCORED),
        }
        for metric in SCORED
    ]
    rows.append({"context": "", "column": "platform", "metric": "avg_score", "score": average})
    empty = pd.DataFrame({"context": [], "perturbation": [], "n_cells_truth": [], "n_cells_pred": []})
    result = ScoreResult(
        per_perturbation=empty,
        metrics=metrics,
        score=average,
        notes=(NOTE,),
        tables={"score_columns": pd.DataFrame(rows)},
    )
    return card, result


def is_platform_result(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a JSON file with a `score_avg`."""
    file = Path(path)
    if not file.is_file():
        return False
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    inner = table.get("result") if isinstance(table, dict) else None
    return isinstance(table, dict) and (
        "score_avg" in table or (isinstance(inner, dict) and "score_avg" in inner)
    )


def import_platform_result(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, name: str | None = None, force: bool = False
) -> Path:
    """Write the ScoreCard folder of a result of the platform. Raises as `read_platform_result`, and `OutputError`."""
    card, result = read_platform_result(path, name=name)
    return write_scorecard(card, result, out, force=force)


def _read_object(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, str(error), "a JSON object") from error
    if isinstance(table, dict) and isinstance(table.get("result"), dict):
        table = {**table, **table["result"]}
    if not isinstance(table, dict):
        raise _broken(path, f"a JSON {type(table).__name__}", "an object with score_avg and the six scores")
    return table


def _number(table: Mapping[str, Any], key: str, path: str | os.PathLike[str]) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _broken(path, f"{key} = {value!r}", "a number")
    return float(value)


def _raw_value(table: Mapping[str, Any], metric: str) -> float | None:
    places = [table, *(table[key] for key in ("raw", "metrics") if isinstance(table.get(key), Mapping))]
    for place in places:
        for pattern in RAW_KEYS:
            value = place.get(pattern.format(short=PLATFORM_NAMES[metric], name=metric))
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                return float(value)
    return None


def _broken(path: str | os.PathLike[str], found: str, expected: str) -> InvalidFile:
    where = str(path)
    return InvalidFile(
        [make_issue("E596", where=where, found=found, expected=expected, file=shlex.quote(where))]
    )
