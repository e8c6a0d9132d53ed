"""Perturbation labels: from the forms found in published files to one canonical form and back.

Canonical: `control`, a target `A`, or a combination `A+B` (targets without repeats, sorted by code point).
Chemical parts carry their dose, `name@10nM`; `+` and `@` inside names are escaped with a backslash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

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


@dataclass(frozen=True)
class LabelRecipe:
    """How one file writes its labels.

    `separator` splits combinations (None: labels are never split, as for compounds), `fillers` are parts
    that stand for "nothing" (`ctrl` in `A+ctrl`), `strip_regex` is removed from the end of every part (guide
    suffixes), `aliases` renames targets and is applied only when given.
    """

    control: tuple[str, ...] = CONTROL_ALIASES
    control_patterns: tuple[str, ...] = CONTROL_PATTERNS
    unassigned: tuple[str, ...] = UNASSIGNED_LABELS
    separator: str | None = "+"
    fillers: tuple[str, ...] = ("ctrl", "control")
    strip_regex: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

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
        parts = [text] if not self.separator else text.split(self.separator)
        targets = []
        for part in (p.strip() for p in parts):
            if part in self.unassigned:
                return UNASSIGNED
            if part in self.fillers or self._is_control(part):
                continue
            name = re.sub(f"(?:{self.strip_regex})$", "", part) if self.strip_regex else part
            targets.append(self.aliases.get(name, name) if self.separator else escape(name))
        return join_targets(targets)

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
        parts = [text] if not self.separator else [part.strip() for part in text.split(self.separator)]
        undeclared = (
            p for p in parts if not (p in self.unassigned or p in self.fillers or self._is_control(p))
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
