"""Load and list the shipped editions and datasets, or a TOML file of the user's."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import SpecError, UnknownName
from .spec_models import DatasetSpec, Edition

SpecT = TypeVar("SpecT", bound=BaseModel)


def parse_spec(model: type[SpecT], table: dict[str, Any], *, origin: str) -> SpecT:
    """`table` as a checked spec. Raises `SpecError` naming every problem and its key."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        lines = [f"{origin}: {error.error_count()} problem(s) in this {model.__name__}"]
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(top level)"
            lines.append(f"  {key}: {problem['msg']}")
        raise SpecError("\n".join(lines)) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The TOML file as a dict. Raises `SpecError` when it cannot be read or parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"{path}: not a readable TOML file ({error}).") from error


def _shipped(folder: str) -> dict[str, Any]:
    root = resources.files("vcbench.data_specs").joinpath(folder)
    return {
        entry.name[:-5]: entry
        for entry in sorted(root.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".toml")
    }


def edition_ids() -> list[str]:
    """Ids of the shipped editions, sorted."""
    return sorted(_shipped("editions"))


def dataset_ids() -> list[str]:
    """Ids of the shipped dataset specs, sorted."""
    return sorted(_shipped("datasets"))


@cache
def load_edition(name: str) -> Edition:
    """A shipped edition by id, or an edition TOML by path (a name that ends in `.toml`).

    Raises
    ------
    UnknownName
        No shipped edition has this id.
    SpecError
        The TOML breaks the schema.
    """
    return _load(Edition, "edition", "editions", name)


@cache
def load_dataset(name: str) -> DatasetSpec:
    """A shipped dataset spec by id, or a dataset TOML by path. Errors as `load_edition`."""
    return _load(DatasetSpec, "dataset", "datasets", name)


def _load(model: type[SpecT], kind: str, folder: str, name: str) -> SpecT:
    if name.endswith(".toml"):
        return parse_spec(model, read_toml(Path(name)), origin=name)
    shipped = _shipped(folder)
    if name not in shipped:
        raise UnknownName(kind, name, sorted(shipped), f"vcbench list {kind}s")
    table = tomllib.loads(shipped[name].read_text(encoding="utf-8"))
    return parse_spec(model, table, origin=f"{name}.toml")
