"""Filter recipes: one TOML under `filter_recipes/` is one published filter, a list of rules with their parameters."""

from __future__ import annotations

import inspect
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from ..errors import UnknownName
from ..spec_models import Strict
from ..specs import parse_spec, read_toml
from .rules import RULES

FOLDER = "filter_recipes"
LIST_COMMAND = "vcbench data filter --help"


class Step(Strict):
    """One rule with its parameters, which stand beside `rule` in the TOML."""

    model_config = ConfigDict(extra="allow", frozen=True)

    rule: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> Step:
        if self.rule not in RULES:
            raise ValueError(f"no rule {self.rule!r}; the rules are {', '.join(RULES)}")
        signature = inspect.signature(RULES[self.rule])
        known = {name: item for name, item in signature.parameters.items() if name != "state"}
        foreign = sorted(set(self.parameters) - set(known))
        if foreign:
            raise ValueError(f"rule {self.rule} has no parameter {foreign[0]!r}")
        needed = [name for name, item in known.items() if item.default is item.empty]
        lacking = sorted(set(needed) - set(self.parameters))
        if lacking:
            raise ValueError(f"rule {self.rule} needs {lacking[0]!r}")
        return self


class FilterRecipe(Strict):
    """A published filter. `left_out` lists what its publication also does and the recipe does not, with the reason."""

    id: str
    title: str
    source: str
    steps: tuple[Step, ...] = Field(min_length=1)
    left_out: tuple[str, ...] = ()
    notes: str = ""


def recipe_ids() -> list[str]:
    """Ids of the shipped filter recipes, sorted."""
    root = resources.files("vcbench.data_specs").joinpath(FOLDER)
    return sorted(entry.name[:-5] for entry in root.iterdir() if entry.name.endswith(".toml"))


@cache
def load_recipe(name: str) -> FilterRecipe:
    """A shipped recipe by id, or a TOML of the user's by path.

    Raises
    ------
    UnknownName
        No shipped recipe has this id.
    SpecError
        The TOML breaks the schema: an unknown rule, or a parameter that is missing or too many.
    """
    if name.endswith(".toml"):
        return parse_spec(FilterRecipe, {"id": Path(name).stem, **read_toml(Path(name))}, origin=name)
    if name not in recipe_ids():
        raise UnknownName("filter recipe", name, recipe_ids(), LIST_COMMAND)
    text = resources.files("vcbench.data_specs").joinpath(FOLDER, f"{name}.toml").read_text(encoding="utf-8")
    return parse_spec(FilterRecipe, {"id": name, **tomllib.loads(text)}, origin=f"{name}.toml")
