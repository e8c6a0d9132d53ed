"""Load and list the shipped editions and datasets, or a TOML file of the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import SpecError, UnknownName
from .spec_models import DatasetCard, DatasetSpec, Edition

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


def shipped_toml(folder: str) -> dict[str, Any]:
    """The TOML files shipped in a folder of this part, by name without the ending."""
    root = resources.files("vcbench.data_specs").joinpath(folder)
    return {
        entry.name[:-5]: entry
        for entry in sorted(root.iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".toml")
    }


def edition_ids() -> list[str]:
    """Ids of the shipped editions, sorted."""
    return sorted(shipped_toml("editions"))


def dataset_ids() -> list[str]:
    """Ids of the shipped dataset layouts, sorted: those that can be converted."""
    return [name for name, table in _dataset_tables().items() if "labels" in table]


def card_ids() -> list[str]:
    """Ids of all shipped dataset cards, sorted: `dataset_ids`, and those that can only be shown and fetched."""
    return list(_dataset_tables())


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
    if name.endswith(".toml"):
        return parse_spec(Edition, read_toml(Path(name)), origin=name)
    shipped = shipped_toml("editions")
    if name not in shipped:
        raise UnknownName("edition", name, sorted(shipped), "vcbench list editions")
    return parse_spec(
        Edition, tomllib.loads(shipped[name].read_text(encoding="utf-8")), origin=f"{name}.toml"
    )


@cache
def load_dataset(name: str) -> DatasetSpec:
    """A shipped dataset layout by id, or a TOML of the user's by path.

    A TOML with `base = "ID"` extends that layout: its own keys win, tables are merged, lists replaced, and the keys
    listed in `unset` (`"n_cells"`, `"matrix.target_sum"`) are dropped. Of a TOML with `[variants.NAME]`,
    `PATH.toml#NAME` is one.

    Raises
    ------
    UnknownName
        No shipped layout has this id.
    SpecError
        The TOML breaks the schema, or the dataset has a card only.
    """
    table = _dataset_table(name)
    if "labels" not in table and not name.partition("#")[0].endswith(".toml"):
        raise SpecError(
            f"{name}: has a card only (`vcbench data show {name}`); its files are no h5ad to convert."
        )
    return parse_spec(DatasetSpec, table, origin=name if ".toml" in name else f"{name}.toml")


@cache
def load_card(name: str) -> DatasetCard:
    """The card of a dataset: its layout where it has one. Errors as `load_dataset`."""
    table = _dataset_table(name)
    if "labels" in table:
        return load_dataset(name)
    return parse_spec(DatasetCard, table, origin=name if ".toml" in name else f"{name}.toml")


@cache
def _dataset_tables() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for family, entry in shipped_toml("datasets").items():
        tables |= _variants(tomllib.loads(entry.read_text(encoding="utf-8")), family)
    return dict(sorted(tables.items()))


def _variants(table: dict[str, Any], family: str) -> dict[str, dict[str, Any]]:
    """The specs of a file of one family by id, `FAMILY_VARIANT`; a file without variants is one spec."""
    shared = {key: value for key, value in table.items() if key != "variants"}
    if "variants" not in table:
        return {str(table.get("id", family)): {"id": family, "family": family, **shared}}
    return {
        f"{family}_{name}": {"family": family, **merged(shared, part), "id": f"{family}_{name}"}
        for name, part in table["variants"].items()
    }


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `change`: tables are merged, `traps` appended, everything else replaced."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            out[key] = merged(old, value)
        elif key == "traps" and isinstance(old, list):
            out[key] = [*old, *value]
        else:
            out[key] = value
    return out


def _dataset_table(name: str, within: tuple[str, ...] = ()) -> dict[str, Any]:
    path, _, variant = name.partition("#")
    if not path.endswith(".toml"):
        tables = _dataset_tables()
        if name not in tables:
            raise UnknownName("dataset", name, list(tables), "vcbench list datasets")
        return tables[name]
    if name in within:
        raise SpecError(f"{name}: extends itself ({' -> '.join((*within, name))}).")
    table = read_toml(Path(path))
    if "variants" in table:
        specs = _variants(table, str(table.get("family", Path(path).stem)))
        chosen = [spec for key, spec in specs.items() if variant in ("", key) or key.endswith(f"_{variant}")]
        if len(chosen) != 1:
            raise SpecError(
                f"{path}: has {len(specs)} variants; name one: {', '.join(f'{path}#{k}' for k in specs)}."
            )
        return chosen[0]
    base = table.pop("base", None)
    if base is None:
        return table
    unset = table.pop("unset", [])
    if not isinstance(base, str) or not isinstance(unset, list):
        raise SpecError(f"{path}: `base` is the id of a dataset, `unset` a list of keys.")
    parent = base if ".toml" not in base else str(Path(path).parent / base)
    whole = _dataset_table(parent, (*within, name))
    for key in unset:
        whole = _without(whole, str(key).split("."), path)
    return {**merged(whole, table), "id": table.get("id", Path(path).stem)}


def _without(table: Mapping[str, Any], key: list[str], path: str) -> dict[str, Any]:
    if key[0] not in table or (len(key) > 1 and not isinstance(table[key[0]], dict)):
        raise SpecError(f"{path}: `unset` names {'.'.join(key)!r}, which the base does not have.")
    rest = {name: value for name, value in table.items() if name != key[0]}
    return rest if len(key) == 1 else {**rest, key[0]: _without(table[key[0]], key[1:], path)}
