"""Perturbation labels: from the forms found in published files to one canonical form and back.

Canonical: `control`, a target `A`, or a combination `A+B` (targets without repeats, sorted by code point).
Chemical parts carry their dose, `name@10nM`; `+` and `@` inside names are escaped with a backslash.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

CONTROL = "control"
UNASSIGNED = "unassigned"
CONTROL_ALIASES = (
    "control",
    "ctrl",
    "non-targeting",
    "Non-Targeting",
    "NT",
    "NTC",
    "Vehicle",
    "Dimethyl Sulfoxide",
    "DMSO_TF",
    "DMSO",
)
CONTROL_PATTERNS = (r"INTERGENIC.*", r"6[23]\(mod\).*", r"Gal4-4\(mod\).*", r"NegCtrl\d+.*")
UNASSIGNED_LABELS = ("*", "None", "nan", "NaN", "", "unassigned")
LabelKind = Literal["control", "perturbation", "unassigned"]


def escape(name: str) -> str:
    """A compound or gene name with `\\`, `+` and `@` escaped, safe inside a canonical label."""
    return re.sub(r"([\\+@])", r"\\\1", name)


def unescape(name: str) -> str:
    """The inverse of `escape`."""
    return re.sub(r"\\(.)", r"\1", name)


def split_label(label: str) -> tuple[str, ...]:
    """The parts of a canonical label, still escaped; `()` for `control`.

    Examples
    --------
    >>> split_label("KLF1+MAP2K6")
    ('KLF1', 'MAP2K6')
    >>> split_label("control")
    ()
    """
    if label == CONTROL:
        return ()
    return tuple(part for part in re.split(r"(?<!\\)\+", label) if part)


def targets_of(label: str) -> tuple[str, ...]:
    """The targets of a canonical label without dose and time, unescaped, in label order."""
    return tuple(unescape(re.split(r"(?<!\\)@", part)[0]) for part in split_label(label))


def join_targets(targets: Iterable[str]) -> str:
    """The canonical label of some (escaped) targets: repeats dropped, sorted, joined by `+`; `control` when empty."""
    unique = sorted(set(targets))
    return "+".join(unique) if unique else CONTROL


def parse_dose(part: str) -> tuple[str, float | None, str | None, float | None]:
    """(name, dose, dose unit, hours) of one chemical part, for example `JQ1@10nM@24h`.

    Examples
    --------
    >>> parse_dose("JQ1@10nM@24h")
    ('JQ1', 10.0, 'nM', 24.0)
    """
    name, *rest = re.split(r"(?<!\\)@", part)
    dose, unit, hours = None, None, None
    for piece in rest:
        match = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([A-Za-zµ/%]+)", piece)
        if not match:
            continue
        if match[2] == "h":
            hours = float(match[1])
        else:
            dose, unit = float(match[1]), match[2]
    return unescape(name), dose, unit, hours


_PREFIXES = {"p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "": 1.0}
_BASE_UNITS = ("M", "g/ml", "g/l", "U/ml")


def base_unit(unit: str) -> tuple[str, float]:
    """The unprefixed unit of a dose unit and the factor to it; an unknown unit is its own base.

    Examples
    --------
    >>> base_unit("nM"), base_unit("ug/mL"), base_unit("%")
    (('M', 1e-09), ('g/ml', 1e-06), ('%', 1.0))
    """
    for base in _BASE_UNITS:
        # A capital M is molar and mega is no unit of a dose, so only masses and volumes ignore case.
        flags = re.IGNORECASE if "/" in base else 0
        match = re.fullmatch(f"([pnuµμm]?){re.escape(base)}", unit, flags=flags)
        if match:
            return base, _PREFIXES[match[1].lower()]
    return unit, 1.0


def number_text(value: float | np.floating) -> str:
    """The shortest decimal text that reads back as the same number in its own precision: `0.1`, `10000`."""
    return np.format_float_positional(value, trim="-")


def part_with_dose(
    name: str, dose: float | np.floating, unit: str, hours: float | np.floating | None = None
) -> str:
    """One chemical part of a canonical label; `name` is escaped already.

    Examples
    --------
    >>> part_with_dose("JQ1", 10.0, "nM"), part_with_dose("JQ1", 0.5, "uM", 24.0)
    ('JQ1@10nM', 'JQ1@0.5uM@24h')
    """
    micro = unit.replace("µ", "u").replace("μ", "u")
    time = "" if hours is None else f"@{number_text(hours)}h"
    return f"{name}@{number_text(dose)}{micro}{time}"


def dose_tuples(text: str) -> list[tuple[str, float, str]] | None:
    """The (compound, dose, unit) of a label such as `[('JQ1', 0.5, 'uM')]`; None when it is no such text."""
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(items, list) or not items:
        return None
    for item in items:
        if not isinstance(item, tuple) or len(item) != 3:
            return None
        name, dose, unit = item
        if not isinstance(name, str) or not isinstance(dose, (int, float)) or not isinstance(unit, str):
            return None
    return [(name.strip(), float(dose), unit) for name, dose, unit in items]


@dataclass(frozen=True)
class LabelRecipe:
    """How one file writes its labels.

    `separator` splits combinations (None: labels are never split, as for compounds), `fillers` are parts
    that stand for "nothing" (`ctrl` in `A+ctrl`; `filler_patterns`: by full match), `strip_regex` is removed from
    the end of every part (guide suffixes), `target_regex` finds the target as its group 1 in a part that it matches
    in full, `aliases` renames targets and is applied only when given. `form` is `tuples` where a label is the text
    of a list of (compound, dose, unit).
    """

    control: tuple[str, ...] = CONTROL_ALIASES
    control_patterns: tuple[str, ...] = CONTROL_PATTERNS
    unassigned: tuple[str, ...] = UNASSIGNED_LABELS
    separator: str | None = "+"
    fillers: tuple[str, ...] = ("ctrl", "control")
    strip_regex: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    filler_patterns: tuple[str, ...] = ()
    target_regex: str | None = None
    form: Literal["plain", "tuples"] = "plain"

    @cached_property
    def _filler_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{p})" for p in self.filler_patterns) or r"(?!)")

    def _is_filler(self, part: str) -> bool:
        return part in self.fillers or self._filler_pattern.fullmatch(part) is not None

    def _parts(self, text: str) -> list[str]:
        if not self.separator:
            return [text]
        # A `+` that stands in a compound's name is escaped in labels that were canonical before.
        pattern = r"(?<!\\)\+" if self.separator == "+" else re.escape(self.separator)
        return [part.strip() for part in re.split(pattern, text)]

    def _target(self, part: str) -> str:
        if self.target_regex and (match := re.fullmatch(self.target_regex, part)):
            part = match[1]
        name = re.sub(f"(?:{self.strip_regex})$", "", part) if self.strip_regex else part
        name = self.aliases.get(name, name)
        return name if self.separator == "+" else escape(name)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{p})" for p in self.control_patterns) or r"(?!)")

    def kind(self, source: str | None) -> LabelKind:
        """Whether a source label means control, unassigned or a perturbation."""
        if source is None or source.strip() in self.unassigned:
            return "unassigned"
        return "control" if self.canonical(source) == CONTROL else "perturbation"

    def _is_control(self, text: str) -> bool:
        return text in self.control or self._control_pattern.fullmatch(text) is not None

    def canonical(self, source: str | None) -> str:
        """The canonical label of a source label; `control` or `unassigned` where it means that.

        Examples
        --------
        >>> recipe = LabelRecipe(separator="+", fillers=("ctrl",))
        >>> [recipe.canonical(x) for x in ("B+A", "A+ctrl", "ctrl", "*")]
        ['A+B', 'A', 'control', 'unassigned']
        """
        text = "" if source is None else str(source).strip()
        if text in self.unassigned:
            return UNASSIGNED
        if self._is_control(text):
            return CONTROL
        if self.form == "tuples" and (doses := dose_tuples(text)) is not None:
            return join_targets(
                part_with_dose(self._target(name), dose, unit)
                for name, dose, unit in doses
                if not self._is_control(name)
            )
        targets = []
        for part in self._parts(text):
            if part in self.unassigned:
                return UNASSIGNED
            if not (self._is_filler(part) or self._is_control(part)):
                targets.append(self._target(part))
        return join_targets(targets)

    def unreadable(self, source: str) -> bool:
        """True when a label is not of the form that this recipe reads."""
        text = source.strip()
        plain = self.form == "plain" or text in self.unassigned or self._is_control(text)
        return not plain and dose_tuples(text) is None

    def reserved(self, source: str) -> bool:
        """True when a label uses the word `control` or `unassigned` as a target, undeclared in this recipe.

        Examples
        --------
        >>> LabelRecipe(control=("NT",), fillers=()).reserved("control")
        True
        """
        text = source.strip()
        if text in self.unassigned or self._is_control(text):
            return False
        undeclared = (
            p
            for p in self._parts(text)
            if not (p in self.unassigned or self._is_filler(p) or self._is_control(p))
        )
        return any(part in (CONTROL, UNASSIGNED) for part in undeclared)

    def label_map(self, sources: Iterable[str | None]) -> dict[str, str]:
        """Source label to canonical label, for every distinct source."""
        return {str(s): self.canonical(s) for s in dict.fromkeys(sources)}


STANDARD = LabelRecipe(control=(CONTROL,), control_patterns=(), separator="+", fillers=())


def is_canonical(label: str) -> bool:
    """True when `label` is exactly its own canonical form."""
    return bool(label) and (label == CONTROL or join_targets(split_label(label)) == label)


def guide_suffixed(labels: Sequence[str], known: Iterable[str]) -> list[str]:
    """Labels such as `ADNP-1` whose stem is a known name while the label itself is not."""
    names = set(known)
    return [x for x in labels if x not in names and (m := re.fullmatch(r"(.+)-\d+", x)) and m[1] in names]
