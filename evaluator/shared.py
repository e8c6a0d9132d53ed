"""What several entries share: measurements of the truth, taken once and kept while a run lasts."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Shared:
    """Remembers results by key. All entries of a run have the same truth, edition, profile and options."""

    def __init__(self) -> None:
        self._held: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result under this key, computed when it is asked for first."""
        if key not in self._held:
            self._held[key] = compute()
        return self._held[key]
