"""The committed table of expected signs: edition x probe x metric, with the reason of each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any, Literal

from ...data_specs.errors import SpecError
from .diagnostics import Diagnostics

Sign = Literal["up", "down", "same"]
SIGNS = ("up", "down", "same", "none")
FILE = "expected.toml"
# Changes smaller than this are rounding of float32 files.
ROUNDING = 1e-5
# Numbers of an entry that a row may set limits to; see `quantities`.
QUANTITIES = ("correlation", "specificity", "ratio", "slope", "spread", "flat", "truth_significant")
_NEED = re.compile(r"(\w+) ([<>]) (-?[0-9.]+)")


@dataclass(frozen=True)
class Expectation:
    """One row: the sign of the metric's change under a probe, None where no sign holds in general.

    `needs` are limits such as `slope < 1.5` of the entry's quantities, `tolerance` is the largest change that counts as
    none.
    """

    sign: Sign | None
    reason: str
    needs: tuple[str, ...] = ()
    tolerance: float = ROUNDING

    def holds_for(self, entry: Mapping[str, float | None]) -> bool:
        """Whether the entry's quantities keep every limit of the row; an unknown one keeps none."""
        return all(_keeps(need, entry) for need in self.needs)


def _keeps(need: str, entry: Mapping[str, float | None]) -> bool:
    name, sign, limit = _parsed(need)
    value = entry.get(name)
    return value is not None and (value < limit if sign == "<" else value > limit)


def _parsed(need: str) -> tuple[str, str, float]:
    match = _NEED.fullmatch(need)
    if match is None or match[1] not in QUANTITIES:
        raise SpecError(f"{FILE}: {need!r} is no limit of {', '.join(QUANTITIES)}.")
    return match[1], match[2], float(match[3])


@dataclass(frozen=True)
class _Row:
    editions: tuple[str, ...]
    probes: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[str, ...]
    expectation: Expectation

    def covers(self, edition: str, probe: str, metric: str, rows: str) -> bool:
        return (
            edition in self.editions
            and any(fnmatchcase(probe, pattern) for pattern in self.probes)
            and any(fnmatchcase(metric, pattern) for pattern in self.metrics)
            and (not self.rows or rows in self.rows)
        )


def expectation(edition: str, probe: str, metric: str, *, rows: str) -> Expectation:
    """What the table says of a metric under a probe; the first row that covers it holds.

    `rows` is the kind of the entry's file, with the scale of cells: `mean`, `counts` or `log1p`. Editions that the
    table does not know have no expectation.
    """
    for row in table():
        if row.covers(edition, probe, metric, rows):
            return row.expectation
    return Expectation(None, "not in the table")


@cache
def table() -> tuple[_Row, ...]:
    """The rows of the table, in order. Raises `SpecError` when one is malformed."""
    text = resources.files(str(__package__)).joinpath(FILE).read_text(encoding="utf-8")
    return tuple(_row(entry) for entry in tomllib.loads(text)["row"])


def _row(entry: Mapping[str, Any]) -> _Row:
    known = {"editions", "probes", "metrics", "rows", "needs", "expected", "tolerance", "reason"}
    needs = tuple(entry.get("needs", ()))
    for need in needs:
        _parsed(need)
    if set(entry) - known or entry["expected"] not in SIGNS or not entry["reason"]:
        raise SpecError(f"{FILE}: a row has unknown keys, an unknown sign or no reason: {dict(entry)}.")
    sign = None if entry["expected"] == "none" else entry["expected"]
    return _Row(
        tuple(entry["editions"]),
        tuple(entry["probes"]),
        tuple(entry["metrics"]),
        tuple(entry.get("rows", ())),
        Expectation(sign, entry["reason"], needs, float(entry.get("tolerance", ROUNDING))),
    )


def quantities(found: Diagnostics) -> dict[str, float | None]:
    """The numbers of an entry that the table's limits speak of.

    `correlation`: mean Pearson correlation of predicted and measured effects. `specificity`: by how much it exceeds
    the mean correlation with other perturbations' measured effects. `ratio`: size of the predicted effects over the
    measured ones. `slope`: of the measured effects on the predicted ones; multiplying the effects by k raises their
    squared error exactly when slope < (k + 1) / 2. `spread`: how much predicted effects differ among perturbations,
    over the truth. `flat`: share of perturbations whose cells are all equal, 0 for mean profiles.
    `truth_significant`: mean share of genes that differ from control in the truth.
    """
    size = found["effect_size"]
    return {
        "correlation": size["mean_correlation_with_truth"],
        "specificity": size["specificity"],
        "ratio": size["ratio"],
        "slope": size["slope"],
        "spread": found["mode_collapse"]["spread_ratio"],
        "flat": found["cells"]["flat_share"] or 0.0,
        "truth_significant": found["significant_genes"]["truth_mean_share"],
    }


def verdict(
    expected: Expectation,
    entry: Mapping[str, float | None],
    before: float | None,
    after: float | None,
    *,
    perfect: float | None,
    better: str,
) -> tuple[Sign | None, bool | None]:
    """(expected sign, whether the change has it) for one metric of one entry.

    `entry` are its `quantities`. Both are None where the row does not hold for the entry or a value is missing; the
    second is None where the metric cannot move further: it stands at its best value, or at 0 and would have to fall.
    """
    if expected.sign is None or not expected.holds_for(entry) or before is None or after is None:
        return None, None
    change = after - before
    seen = "same" if abs(change) <= expected.tolerance else "up" if change > 0 else "down"
    improving = (better == "higher" and expected.sign == "up") or (
        better == "lower" and expected.sign == "down"
    )
    at_best = improving and perfect is not None and abs(before - perfect) <= expected.tolerance
    at_worst = better == "higher" and expected.sign == "down" and before == 0.0
    if seen == "same" and (at_best or at_worst):
        return expected.sign, None
    return expected.sign, seen == expected.sign
