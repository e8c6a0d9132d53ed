"""Model settings: frozen dataclasses, and `key=value` text turned into their typed fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..data_specs.errors import UnknownName, UsageError

ConfigT = TypeVar("ConfigT")


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """`["k=5", "weights=softmax"]` as a dict. Raises `UsageError` for text without `=` or a repeated key."""
    settings: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r}: expected key=value.")
        if key.strip() in settings:
            raise UsageError(f"--set {key.strip()} is given twice.")
        settings[key.strip()] = value.strip()
    return settings


def build_config(config_class: type[ConfigT], settings: Mapping[str, Any], *, model: str) -> ConfigT:
    """A config of `config_class` with `settings` in place of its defaults.

    Text values are converted to the type of their field; other values must already fit it.

    Raises
    ------
    UnknownName
        A key that the config does not have.
    UsageError
        A value that does not convert, or that the config itself refuses.
    """
    hints = get_type_hints(config_class)
    known = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise UnknownName(f"setting of {model}", key, known, f"vcbench explain {model}")
        values[key] = _convert(value, hints[key], key)
    return config_class(**values)


def describe(config_class: type) -> list[tuple[str, str, Any]]:
    """(name, type in words, default) of each field of a config class."""
    hints = get_type_hints(config_class)
    return [(field.name, _words(hints[field.name]), field.default) for field in fields(config_class)]


def config_dict(config: Any) -> dict[str, Any]:
    """The fields of a config as plain values; infinities stay floats."""
    return asdict(config)


def _convert(value: Any, kind: Any, key: str) -> Any:
    for option in _options(kind):
        converted = _try(value, option)
        if converted is not None:
            return converted[0]
    raise UsageError(f"--set {key}={value}: expected {_words(kind)}.")


def _options(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _try(value: Any, kind: Any) -> tuple[Any] | None:
    """The converted value in a 1-tuple, or None when it does not fit this type."""
    if get_origin(kind) is Literal:
        return (value,) if value in get_args(kind) else None
    if kind is bool:
        text = str(value).lower()
        return (text == "true",) if text in ("true", "false") else None
    if isinstance(value, bool):
        return None
    if kind in (int, float):
        try:
            return (kind(value),) if not (kind is int and isinstance(value, float)) else None
        except ValueError:
            return None
    return (value,) if kind is str and isinstance(value, str) else None


def _words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_words(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return "|".join(str(value) for value in get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true|false", str: "text"}[kind]
