"""Split schemes by name. Modules load when a scheme is drawn."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UnknownName, UsageError

if TYPE_CHECKING:
    from ..split_file import Split
    from .labels_table import LabelTable


@dataclass(frozen=True)
class Scheme:
    """Where a scheme is (`module:function` in this package), its fixed arguments and one line about it."""

    target: str
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The function that draws it."""
        module, function = self.target.split(":")
        return getattr(import_module(f".{module}", __name__), function)

    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        names = inspect.signature(self.load()).parameters
        return tuple(name for name in names if name != "table" and name not in self.fixed)


def _gears(kind: str, summary: str, *, compat: bool) -> Scheme:
    return Scheme("gears:gears_kind", summary, {"kind": kind, "compat": compat})


_UPSTREAM = "GEARS' own, draws with replacement"
_NATIVE = "drawn without replacement, no empty part"
SCHEMES: dict[str, Scheme] = {
    "gears-simulation": Scheme(
        "gears:gears_simulation", "GEARS' benchmark split: unseen genes and combinations by seen genes."
    ),
    "gears-simulation-single": Scheme(
        "gears:gears_simulation", "The same; GEARS' name for data with singles only."
    ),
    "gears-combo-seen0": _gears("combo_seen0", f"Combinations of unseen genes; {_UPSTREAM}.", compat=True),
    "gears-combo-seen1": _gears(
        "combo_seen1", f"Combinations with an unseen gene; {_UPSTREAM}.", compat=True
    ),
    "gears-combo-seen2": _gears("combo_seen2", f"Combinations of any genes; {_UPSTREAM}.", compat=True),
    "gears-single": _gears("single", f"Singles of unseen genes; {_UPSTREAM}.", compat=True),
    "gears-no-test": _gears("no_test", f"Train and validation only; {_UPSTREAM}.", compat=True),
    "combo-seen0": _gears("combo_seen0", f"Combinations of unseen genes; {_NATIVE}.", compat=False),
    "combo-seen1": _gears("combo_seen1", f"Combinations with an unseen gene; {_NATIVE}.", compat=False),
    "combo-seen2": _gears("combo_seen2", f"Combinations of any genes; {_NATIVE}.", compat=False),
    "single": _gears("single", f"Singles of unseen genes; {_NATIVE}.", compat=False),
    "no-test": _gears("no_test", f"Train and validation only; {_NATIVE}.", compat=False),
    "folds": Scheme("folds:folds", "Random folds; every perturbation is tested in one of them."),
    "random": Scheme("folds:random_fractions", "One random draw of the perturbations by fractions."),
    "leave-one-context-out": Scheme(
        "contexts:leave_one_context_out", "One context is test; one file per context without --context."
    ),
    "few-shot-context": Scheme(
        "contexts:few_shot_context", "Some perturbations of a context train, its others are test."
    ),
    "transfer": Scheme("contexts:transfer", "Perturbations held out in one context and trained in others."),
    "held-out-combinations": Scheme(
        "doubles:held_out_combinations", "All singles train; a share of the combinations is held out."
    ),
    "leave-one-double-out": Scheme(
        "doubles:leave_one_double_out", "One double is test; one file per double without --double."
    ),
}


def draw_split(table: LabelTable, scheme: str, **options: Any) -> Split | dict[str, Split]:
    """The split of a scheme, or several by name for the schemes that leave one out at a time.

    Options that are None are left at the scheme's default.

    Raises
    ------
    UnknownName
        No scheme has this name.
    UsageError
        An option that the scheme does not have, or one that does not fit the data.
    """
    if scheme not in SCHEMES:
        raise UnknownName("split scheme", scheme, list(SCHEMES), "vcbench data split --help")
    chosen = SCHEMES[scheme]
    given = {name: value for name, value in options.items() if value is not None}
    known = chosen.options()
    foreign = sorted(set(given) - set(known))
    if foreign:
        names = ", ".join("--" + name.replace("_", "-") for name in foreign)
        own = ", ".join("--" + name.replace("_", "-") for name in known)
        raise UsageError(f"scheme {scheme} does not take {names}; it takes {own}.")
    return chosen.load()(table, **chosen.fixed, **given)
