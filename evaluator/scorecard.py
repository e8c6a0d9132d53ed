"""The versioned result of scoring one prediction: read and written as JSON, with two CSV tables beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..data_specs.atomic import atomic_folder
from ..data_specs.errors import UsageError
from .uncertainty.bootstrap import Interval

if TYPE_CHECKING:
    import pandas as pd

    from ..data_specs.issues import Issue

SCORECARD_VERSION = 3
Better = Literal["higher", "lower", "none"]


class MetricValue(BaseModel):
    """One aggregated metric.

    `value` is the mean over perturbations (null with `reason` when it cannot be computed), `n` of `n_total`
    perturbations entered it; `cell_weighted` weights each perturbation by its truth cells. `low` and `high` bound the
    mean over the population of perturbations with confidence `level`, by `interval_method`; null with `interval_reason`
    where there is no interval.
    """

    model_config = ConfigDict(extra="forbid")
    value: float | None
    n: int
    n_total: int
    better: Better
    perfect: float | None = None
    cell_weighted: float | None = None
    std: float | None = None
    reason: str | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    interval_method: str | None = None
    interval_reason: str | None = None


class Provenance(BaseModel):
    """What made an entry: the model with its settings and seeds, the commit of its code, the command that scored it."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    commit: str | None = None
    command: str | None = None
    seeds: dict[str, int] = Field(default_factory=dict)


class ScoreCard(BaseModel):
    """Everything a reader needs to trust and repeat one scoring run.

    Old versions stay readable: a field added later has a default. Version 2 added the intervals, 3 the
    provenance.
    """

    model_config = ConfigDict(extra="forbid")
    scorecard_version: int = SCORECARD_VERSION
    name: str
    edition: str
    profile: str
    score: float | None = None
    score_reason: str | None = None
    score_interval: Interval | None = None
    metrics: dict[str, MetricValue]
    strata: dict[str, dict[str, MetricValue]] = Field(default_factory=dict)
    issues: list[dict[str, str]] = Field(default_factory=list)
    refused: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    timings_s: dict[str, float] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    provenance: Provenance = Field(default_factory=Provenance)


@dataclass(frozen=True)
class ScoreResult:
    """What a pipeline returns.

    `per_perturbation` has columns `context`, `perturbation`, `n_cells_truth`, `n_cells_pred`, then one column per
    metric (NaN = null), then descriptive columns (`stratum`, `effect_tier`, ...). `strata` maps
    `"<axis>=<value>"` to aggregated metrics over that subset. `issues` are warnings and notes about how the
    files fit together.
    """

    per_perturbation: pd.DataFrame
    metrics: Mapping[str, MetricValue]
    strata: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    score: float | None = None
    score_reason: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    issues: tuple[Issue, ...] = ()
    score_interval: Interval | None = None


def finite_or_none(value: float) -> float | None:
    """`value` as a Python float, or None when it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


def write_scorecard(
    card: ScoreCard, result: ScoreResult, folder: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Write `scorecard.json`, `per_perturbation.csv`, `aggregate.csv` and the pipeline's tables as one folder.

    The folder appears whole or not at all. Raises `OutputError`.
    """
    import pandas as pd

    with atomic_folder(folder, force=force) as part:
        (part / "scorecard.json").write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        result.per_perturbation.to_csv(part / "per_perturbation.csv", index=False)
        rows = [
            {"subset": "all", "metric": name, **value.model_dump()} for name, value in card.metrics.items()
        ]
        for subset, values in card.strata.items():
            rows += [
                {"subset": subset, "metric": name, **value.model_dump()} for name, value in values.items()
            ]
        pd.DataFrame(rows).to_csv(part / "aggregate.csv", index=False)
        for name, table in result.tables.items():
            table.to_csv(part / f"{name}.csv", index=False)
    return Path(folder)


def read_scorecard(path: str | os.PathLike[str]) -> ScoreCard:
    """The ScoreCard in a folder or JSON file. Raises `UsageError` when it is missing, broken or too new."""
    file = Path(path)
    if file.is_dir():
        file = file / "scorecard.json"
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{file}: not a readable ScoreCard ({error}).") from error
    version = table.get("scorecard_version") if isinstance(table, dict) else None
    if not isinstance(version, int) or version > SCORECARD_VERSION:
        raise UsageError(
            f"{file}: ScoreCard version {version!r}; this vcbench reads up to {SCORECARD_VERSION}."
        )
    try:
        return ScoreCard.model_validate(table)
    except ValueError as error:
        raise UsageError(f"{file}: not a valid ScoreCard:\n{error}") from error
