"""Print pip constraints with the lowest version of every dependency that pyproject.toml allows.

`python tests/release/bounds.py [EXTRA...]` takes the dependencies themselves and those of the named extras;
`tests/release/lowest.txt` is its output for `test`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWEST = Path(__file__).parent / "lowest.txt"


def lowest(extras: tuple[str, ...] = ("test",)) -> list[str]:
    """`NAME==VERSION` lines, sorted. Raises `SystemExit` for a dependency without a lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    pins: dict[str, str] = {}
    for requirement in wanted:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^]]*\])?\s*(?:>=|==)\s*([0-9][0-9a-z.]*)", requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} has no lowest version")
        name, version = match.groups()
        if pins.setdefault(name, version) != version:
            raise SystemExit(f"{name} has two lowest versions: {pins[name]} and {version}")
    return [f"{name}=={pins[name]}" for name in sorted(pins)]


if __name__ == "__main__":
    print("\n".join(lowest(tuple(sys.argv[1:]) or ("test",))))
