"""Split files: `split.csv` with one row per (context, perturbation), and `split.json` with how it was drawn."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .atomic import write_text
from .errors import InvalidFile
from .issues import make_issue
from .remote import input_path

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")
COLUMNS = ("context", "perturbation", "split", "subgroup")
Key = tuple[str, str]


def labels_sha256(labels: Iterable[str]) -> str:
    """sha256 of the sorted distinct labels joined by newlines, UTF-8."""
    return hashlib.sha256("\n".join(sorted(set(labels))).encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """Which (context, perturbation) rows train, select and test.

    `rows` maps a key to (split, subgroup); the subgroup is "" where the recipe has none. `record` is the
    content of `split.json`: recipe, parameters, seed, versions, label hash.
    """

    rows: Mapping[Key, tuple[SplitName, str]]
    record: Mapping[str, Any] = field(default_factory=dict)

    def keys(self, name: SplitName) -> list[Key]:
        """The keys of one part, sorted."""
        return sorted(key for key, (split, _) in self.rows.items() if split == name)

    def subgroup(self, key: Key) -> str:
        """The subgroup of a key, "" where there is none or the key is unknown."""
        return self.rows[key][1] if key in self.rows else ""


def write_split(split: Split, path: str | os.PathLike[str]) -> None:
    """Write `path` (CSV) and the record beside it (same name, `.json`), each whole or not at all."""
    out = Path(path)
    lines = [",".join(COLUMNS)]
    for (context, perturbation), (name, subgroup) in sorted(split.rows.items()):
        lines.append(",".join(_quoted(cell) for cell in (context, perturbation, name, subgroup)))
    write_text(out, "\n".join(lines) + "\n")
    write_text(out.with_suffix(".json"), json.dumps(dict(split.record), indent=2, sort_keys=True) + "\n")


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\n') else cell


def read_split(path: str | os.PathLike[str]) -> Split:
    """The split of a CSV, with the record beside it when there is one.

    Raises
    ------
    InvalidFile
        Missing file, missing columns, an unknown split name, a repeated key (codes E601 to E604).
    """
    file = input_path(path)
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            found = tuple(reader.fieldnames or ())
            listed = list(reader) if set(COLUMNS[:3]) <= set(found) else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidFile(
            [make_issue("E601", where=str(file), found=error, expected="a split CSV", file=file)]
        ) from error
    missing = [column for column in COLUMNS[:3] if column not in found]
    if missing:
        raise InvalidFile(
            [
                make_issue(
                    "E602",
                    where=f"{file.name}:1",
                    found=", ".join(found) or "nothing",
                    expected=", ".join(COLUMNS),
                    file=file,
                )
            ]
        )
    rows: dict[Key, tuple[SplitName, str]] = {}
    issues = []
    for number, row in enumerate(listed, start=2):
        key, name = (row["context"] or "", row["perturbation"] or ""), row["split"]
        if name not in SPLIT_NAMES:
            issues.append(
                make_issue(
                    "E603",
                    where=f"{file.name}:{number}",
                    found=repr(name),
                    expected=" | ".join(SPLIT_NAMES),
                    file=file,
                )
            )
        elif key in rows:
            issues.append(
                make_issue(
                    "E604",
                    where=f"{file.name}:{number}",
                    found=f"{key} again",
                    expected="one row per key",
                    file=file,
                )
            )
        else:
            rows[key] = (name, row.get("subgroup") or "")
    if issues:
        raise InvalidFile(issues)
    record_file = file.with_suffix(".json")
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.exists() else {}
    return Split(rows, record)
