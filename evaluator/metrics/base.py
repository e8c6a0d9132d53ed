"""What metric functions return when a perturbation has no value."""

from __future__ import annotations

from typing import NamedTuple


class Null(NamedTuple):
    """No value, and why, in a few words that fit a table."""

    reason: str


Value = float | Null
