"""The commit of the running code, for records of what made a result."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

TIMEOUT_S = 10


@cache
def code_commit() -> str | None:
    """The commit of the git checkout that this code runs from, `-dirty` behind it with changes; None without one.

    A package installed into somebody else's repository is not under its version control and has no commit.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")


def _git(folder: Path, *args: str) -> str | None:
    """What git prints; None where it is not installed or refuses."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
