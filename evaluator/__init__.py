"""Read, validate, measure, score, compare, report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "MetricSpec": "metrics.spec",
    "MetricValue": "scorecard",
    "ScoreCard": "scorecard",
    "compare": "leaderboard",
    "read_entries": "entries",
    "score": "scoring",
    "validate": "validation",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
