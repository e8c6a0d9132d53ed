"""What made an entry: model, settings, commit, command and seeds, from the file's own record and from the caller."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ..data_specs.errors import InvalidFile, UsageError
from ..data_specs.issues import make_issue
from .scorecard import Provenance

# The key in `uns["vcbench"]` under which `vcbench predict` leaves the record of a run.
RUN = "run"
FIELDS = ("model", "commit", "seed", "command")


def provenance_of(
    source: Any, given: Mapping[str, str] | None = None, *, command: str | None = None
) -> Provenance:
    """The provenance of an opened entry.

    Parameters
    ----------
    source
        Its `uns["vcbench"]` may hold `model`, and `run`: JSON with model, settings, commit and seed.
    given
        What the caller says, and knows better: `model`, `commit`, `seed`, `command`; other names are settings.
    command
        The command line of this scoring run.

    Raises
    ------
    InvalidFile
        The file's `run` record cannot be read, or its seed is no whole number (E017).
    UsageError
        The seed that the caller gives is no whole number.
    """
    record = getattr(source, "vcbench", {})
    run = _run(record.get(RUN), source)
    given = dict(given or {})
    model = given.get("model") or run.get("model") or record.get("model")
    settings = dict(run.get("settings") or {}) | {k: v for k, v in given.items() if k not in FIELDS}
    seed = given.get("seed", run.get("seed"))
    try:
        seeds = {} if seed is None else {"model": int(seed)}
    except (TypeError, ValueError) as error:
        if "seed" not in given:
            raise _unreadable(source, f"the seed {seed!r}") from error
        raise UsageError(f"--provenance seed={seed!r}: is no whole number.") from error
    return Provenance(
        model=None if model is None else str(model),
        settings=settings,
        commit=given.get("commit") or run.get("commit"),
        command=given.get("command") or command,
        seeds=seeds,
    )


def _run(text: Any, source: Any) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:
        raise _unreadable(source, f"no JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("settings", {}), dict):
        raise _unreadable(source, f"JSON of a {type(found).__name__}, or settings that are no object")
    return found


def _unreadable(source: Any, found: str) -> InvalidFile:
    issue = make_issue(
        "E017",
        where=f"{source.name}:/uns/vcbench/{RUN}",
        found=found,
        expected="a JSON object with model, settings, commit and seed",
        file=shlex.quote(str(source.path)),
    )
    return InvalidFile([issue])


def parse_provenance(texts: tuple[str, ...]) -> dict[str, str]:
    """Name to value of each `NAME=VALUE`. Raises `UsageError` for another form or a name given twice."""
    out: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (sign and name and value) or name in out:
            raise UsageError(f"--provenance {text!r}: give NAME=VALUE, each name once.")
        out[name] = value
    return out
