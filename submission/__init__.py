"""Predictions to valid submission files, and back."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ControlPool": "control_pool",
    "EmissionReport": "emission",
    "EmittedGroup": "emission",
    "Inspection": "inspection",
    "PackResult": "packing",
    "diff_entries": "diffing",
    "emit_cells": "emission",
    "inspect_file": "inspection",
    "pack": "packing",
    "unpack": "unpacking",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
