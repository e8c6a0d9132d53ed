"""How aggregated metrics become scores: terms relative to a baseline, and their mean."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import first_of, make_issue
from ...data_specs.remote import input_path

PUBLISHED = "published"


@dataclass(frozen=True)
class Term:
    """One metric against its baseline: 0 is the baseline, 1 perfect. `clipped` is `raw` with NaN and negatives as 0."""

    metric: str
    user: float
    baseline: float
    raw: float

    @property
    def clipped(self) -> float:
        return 0.0 if math.isnan(self.raw) else max(self.raw, 0.0)


def from_baseline(
    user: Mapping[str, float], baseline: Mapping[str, float], best: Mapping[str, float | None]
) -> list[Term]:
    """Terms of all metrics of `user` that have a best value, those whose best is 0 first, each in given order.

    Best 0: 1 - user / baseline. Best 1: (user - baseline) / (1 - baseline). A baseline that is already perfect
    leaves an infinite or undefined `raw`, whose clipped value is 0 or infinite as in cell-eval.

    Raises
    ------
    KeyError
        `baseline` lacks a metric that has a best value.
    """
    terms = []
    for goal in (0.0, 1.0):
        for name, value in user.items():
            if best[name] == goal:
                terms.append(Term(name, value, baseline[name], _term(value, baseline[name], goal)))
    return terms


def _term(user: float, base: float, goal: float) -> float:
    top, bottom = (base - user, base) if goal == 0.0 else (user - base, 1.0 - base)
    if bottom == 0.0:
        return math.nan if top == 0.0 or math.isnan(top) else math.copysign(math.inf, top)
    return 1.0 - user / base if goal == 0.0 else top / bottom


def average(terms: Sequence[Term]) -> float:
    """The mean of the clipped terms (`avg_score`); NaN without terms."""
    return sum(term.clipped for term in terms) / len(terms) if terms else math.nan


def read_aggregate(
    path: str | os.PathLike[str], metrics: Sequence[str], *, edition_id: str
) -> dict[str, float]:
    """The row `mean` of an `agg_results.csv` for the given metrics; an empty field is NaN.

    Raises
    ------
    InvalidFile
        The file cannot be read, lacks the column `statistic`, the row `mean` or a metric, or holds text (E578).
    """
    file = input_path(path)
    try:
        with file.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unusable(file, str(error), "a CSV file", edition_id) from error
    header = list(rows[0]) if rows else []
    mean = [row for row in rows if row.get("statistic") == "mean"]
    if not mean:
        raise _unusable(
            file, f"columns {first_of(header)}", "a column `statistic` and a row `mean`", edition_id
        )
    missing = [name for name in metrics if name not in header]
    if missing:
        raise _unusable(file, f"no column {first_of(missing)}", "every scored metric", edition_id)
    try:
        return {name: float(mean[0][name] or math.nan) for name in metrics}
    except ValueError as error:
        raise _unusable(file, str(error), "numbers", edition_id) from error


def _unusable(file: Path, found: str, expected: str, edition_id: str) -> InvalidFile:
    where = f"{file.name}:mean"
    return InvalidFile([make_issue("E578", where=where, found=found, expected=expected, edition=edition_id)])
