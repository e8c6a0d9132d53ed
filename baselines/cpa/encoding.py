"""Labels as rows of a perturbation table and doses: names, dose units, combinations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_specs.errors import ModelError
from ...data_specs.labels import CONTROL, base_unit, parse_dose, split_label
from .config import DoseScaleForm

PAD_ROW, CONTROL_ROW = 0, 1
PAD = "<PAD>"


@dataclass(frozen=True)
class Part:
    """One part of a label: the table's name (with the time, where the label has one), the target, the dose."""

    name: str
    target: str
    dose: float | None
    unit: str | None


def parts_of(label: str) -> tuple[Part, ...]:
    """The parts of a canonical label; `()` for control.

    Examples
    --------
    >>> parts_of("JQ1@10nM@24h")
    (Part(name='JQ1@24h', target='JQ1', dose=10.0, unit='nM'),)
    """
    found = []
    for text in split_label(label):
        target, dose, unit, hours = parse_dose(text)
        name = target if hours is None else f"{target}@{hours:g}h"
        found.append(Part(name, target, dose, unit))
    return tuple(found)


def condition_of(label: str) -> str:
    """The label without doses: the class of the condition adversary."""
    return "+".join(part.name for part in parts_of(label)) or CONTROL


@dataclass(frozen=True)
class DoseScale:
    """How a dose becomes the number that the dose response sees; fitted on the training labels.

    `unit` is the base unit of the training doses, "" when the labels carry none; `raw_unit` the unit in which `raw`
    doses count; `lowest` and `highest` are in the base unit.
    """

    form: DoseScaleForm
    unit: str = ""
    raw_unit: str = ""
    lowest: float = 1.0
    highest: float = 1.0

    @classmethod
    def fit(cls, form: DoseScaleForm, labels: Iterable[str]) -> DoseScale:
        """The scale of some training labels. Raises `ModelError` for doses that cannot be compared."""
        parts = [part for label in labels for part in parts_of(label)]
        dosed = [part for part in parts if part.dose is not None and part.unit is not None]
        if not dosed:
            return cls(form)
        if len(dosed) < len(parts):
            bare = next(part.name for part in parts if part.dose is None)
            raise ModelError(
                f"some training labels carry doses and others none (first: {bare!r}); give all of them one, such as "
                f"{bare}@10nM."
            )
        units = sorted({str(part.unit) for part in dosed})
        bases = {base_unit(unit)[0] for unit in units}
        if len(bases) > 1:
            raise ModelError(f"doses in {', '.join(units)} cannot be compared; convert them to one unit.")
        values = [_in_base(part) for part in dosed]
        if min(values) <= 0:
            raise ModelError("a training dose is 0; label such cells control.")
        raw = units[0] if len(units) == 1 else ("uM" if bases == {"M"} else next(iter(bases)))
        return cls(form, next(iter(bases)), raw, min(values), max(values))

    def problem(self, part: Part) -> str:
        """Why a part's dose does not fit the training doses, "" when it does."""
        if not self.unit:
            return "" if part.dose is None else f"{part.name} has a dose; the training labels have none"
        if part.dose is None or part.unit is None:
            return f"{part.name} has no dose; the training labels have one"
        base, _ = base_unit(part.unit)
        return "" if base == self.unit else f"the dose of {part.name} is in {part.unit}, not in {self.unit}"

    def value(self, part: Part) -> float:
        """The number for the dose response; 1 without doses."""
        if not self.unit or part.dose is None:
            return 1.0
        dose = _in_base(part)
        if self.form == "raw":
            return dose / base_unit(self.raw_unit)[1]
        if self.form == "relative" or self.lowest == self.highest:
            return dose / self.highest
        return math.log1p(dose / self.lowest) / math.log1p(self.highest / self.lowest)


def _in_base(part: Part) -> float:
    return float(part.dose or 0.0) * base_unit(str(part.unit))[1]


@dataclass(frozen=True)
class PerturbationTable:
    """Rows of the perturbation table by name: 0 padding, 1 control, then the others in sorted order."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, names: Iterable[str], *, control: str = CONTROL) -> PerturbationTable:
        """The table of some names, sorted; padding and control first."""
        return cls((PAD, control, *sorted(set(names) - {control, PAD})))

    @cached_property
    def position(self) -> dict[str, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def missing(self, label: str) -> list[str]:
        """Names of a label that have no row."""
        return [part.name for part in parts_of(label) if part.name not in self.position]

    def slots(
        self, names: Sequence[str], doses: Sequence[float], *, match_doses: bool = True
    ) -> tuple[list[int], list[float]]:
        """Sorted rows of some names, and their doses: each its own, or in the order given (upstream).

        Raises
        ------
        ModelError
            A name without a row, a repeated name (upstream merges them), or another number of doses.
        """
        if len(doses) != len(names):
            raise ModelError(f"{len(doses)} dose(s) for {len(names)} part(s) of {'+'.join(names)!r}.")
        unknown = [name for name in names if name not in self.position]
        if unknown:
            raise ModelError(f"no perturbation called {unknown[0]!r} was trained.")
        if len(set(names)) < len(names):
            raise ModelError(f"{'+'.join(names)!r} names a perturbation twice.")
        pairs = sorted(zip((self.position[name] for name in names), doses, strict=True))
        matched = [dose for _, dose in pairs] if match_doses else list(doses)
        return [row for row, _ in pairs], matched

    def encode(
        self, label: str, scale: DoseScale, *, match_doses: bool = True
    ) -> tuple[list[int], list[float]]:
        """Rows and scaled doses of a canonical label; control is its own row at dose 1. Raises `ModelError`."""
        parts = parts_of(label)
        if not parts:
            return [CONTROL_ROW], [1.0]
        problems = [text for part in parts if (text := scale.problem(part))]
        if problems:
            raise ModelError(f"{label}: {'; '.join(problems)}.")
        return self.slots(
            [part.name for part in parts], [scale.value(part) for part in parts], match_doses=match_doses
        )


def padded(encoded: Sequence[tuple[list[int], list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (int64) and doses (float64), both shape (n, most parts), unused slots 0."""
    width = max((len(rows) for rows, _ in encoded), default=1)
    rows = np.zeros((len(encoded), width), dtype=np.int64)
    doses = np.zeros((len(encoded), width))
    for i, (own, values) in enumerate(encoded):
        rows[i, : len(own)] = own
        doses[i, : len(values)] = values
    return rows, doses
