"""What `validate` found, and what it left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..data_specs.issues import Issue


@dataclass(frozen=True)
class NotChecked:
    """A check that was not made, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` found.

    Attributes
    ----------
    valid
        No issue is an error; warnings and notes are allowed.
    issues
        Errors first, then warnings, then notes.
    facts
        Plain numbers and text about the file; empty when it could not be opened.
    not_checked
        What was left out, with the reason.
    """

    valid: bool
    issues: tuple[Issue, ...]
    facts: dict[str, Any]
    not_checked: tuple[NotChecked, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as `{"valid", "issues", "facts", "not_checked"}` of plain values."""
        return {
            "valid": self.valid,
            "issues": [issue.to_json() for issue in self.issues],
            "facts": self.facts,
            "not_checked": [asdict(entry) for entry in self.not_checked],
        }
