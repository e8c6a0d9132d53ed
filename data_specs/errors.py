"""Exceptions of vcbench. Problems inside a user's file are `Issue`s (issues.py), carried by `InvalidFile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .issues import Issue


class VCBenchError(Exception):
    """Base of every error that vcbench raises on purpose. Anything else that escapes is a bug."""

    exit_code = 2


class UsageError(VCBenchError):
    """The call itself is wrong: contradictory options, a missing argument, an unknown name."""


class UnknownName(UsageError):
    """A metric, edition, dataset, baseline or issue code that does not exist.

    The message names the nearest known names and the command that lists them all.
    """

    def __init__(self, kind: str, name: str, known: Sequence[str], list_command: str):
        import difflib

        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"no {kind} {name!r}.{hint} `{list_command}` shows all {len(known)}.")
        self.kind, self.name, self.known = kind, name, tuple(known)


class SpecError(VCBenchError):
    """An edition, dataset or config TOML that breaks its schema. Lists every problem at once."""


class ShapeError(UsageError):
    """Arrays whose shapes do not fit together."""


class OutputError(VCBenchError):
    """An output that cannot be written: it exists, is a directory, equals an input, or the disk is full."""

    exit_code = 1


class DownloadError(VCBenchError):
    """A published file that cannot be fetched: no answer, cut, or not what its size and checksum say."""

    exit_code = 1


class InvalidFile(VCBenchError):
    """A user's file with problems. `issues` holds all of them; no result was produced."""

    exit_code = 1

    def __init__(self, issues: Sequence[Issue]):
        self.issues = tuple(issues)
        super().__init__("\n".join(issue.render() for issue in self.issues))

    def __reduce__(self) -> tuple[type[InvalidFile], tuple[tuple[Issue, ...]]]:
        # Exceptions come back from other processes by their arguments.
        return InvalidFile, (self.issues,)


class WorkersLost(VCBenchError):
    """Parts of a run whose workers died again and again."""

    exit_code = 1


class MetricError(VCBenchError):
    """A metric that cannot be computed on valid input. Fails the run with its reason."""

    exit_code = 1


class ModelError(VCBenchError):
    """A model that cannot be fitted, loaded or asked for what was requested."""

    exit_code = 1
