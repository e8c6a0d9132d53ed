"""Scored entries: ScoreCards with their tables, read from folders, that may stand in one leaderboard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..data_specs.errors import UsageError
from .scorecard import ScoreCard, read_scorecard

KEYS = ["context", "perturbation"]


@dataclass(frozen=True)
class Entry:
    """One scored prediction: its card and its per-perturbation table, sorted by (context, perturbation)."""

    card: ScoreCard
    table: pd.DataFrame
    folder: Path

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def predicted(self) -> set[tuple[str, str]]:
        """The (context, perturbation) rows this entry predicts."""
        rows = self.table
        if "status" in rows:
            rows = rows[rows["status"] != "refused"]
        return set(zip(rows["context"], rows["perturbation"], strict=True))

    @property
    def imported(self) -> bool:
        """Whether the challenge platform made this result: it has values but no rows."""
        return "platform" in self.card.parameters


def read_entries(paths: Sequence[str | os.PathLike[str]]) -> list[Entry]:
    """Entries from ScoreCard folders; a folder of such folders is expanded.

    Raises
    ------
    UsageError
        No ScoreCard, two of the same name, or cards of different editions, profiles, truths or row sets.
    """
    entries = [_read_entry(folder) for path in paths for folder in _card_folders(Path(path))]
    if not entries:
        raise UsageError("no ScoreCard folder was given; `vcbench score ... -o DIR` writes one.")
    names = [entry.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"two ScoreCards are named {repeated[0]!r}; give each `vcbench score --name`.")
    _refuse_mixtures([entry for entry in entries if not entry.imported])
    editions = sorted({entry.card.edition for entry in entries})
    if len(editions) > 1:
        raise UsageError(
            f"the ScoreCards have different editions ({', '.join(editions)}); they are never mixed."
        )
    return entries


def _card_folders(path: Path) -> list[Path]:
    if (path / "scorecard.json").is_file() or not path.is_dir():
        return [path]
    return sorted(child for child in path.iterdir() if (child / "scorecard.json").is_file())


def _read_entry(folder: Path) -> Entry:
    from .platform_results import is_platform_result, read_platform_result

    if is_platform_result(folder):
        card, result = read_platform_result(folder)
        return Entry(card, result.per_perturbation, folder)
    card = read_scorecard(folder)
    table_file = (folder if folder.is_dir() else folder.parent) / "per_perturbation.csv"
    try:
        table = pd.read_csv(table_file, dtype=dict.fromkeys(KEYS, str), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise UsageError(f"{table_file}: not a readable per-perturbation table ({error}).") from error
    table = table.assign(context=table["context"].fillna(""))
    return Entry(card, table.sort_values(KEYS, ignore_index=True), folder)


def _refuse_mixtures(entries: Sequence[Entry]) -> None:
    if not entries:
        return
    first = entries[0]
    for entry in entries[1:]:
        for label, mine, theirs in (
            ("editions", first.card.edition, entry.card.edition),
            ("profiles", first.card.profile, entry.card.profile),
            ("truths", _truth_hash(first.card), _truth_hash(entry.card)),
            ("evaluated rows", row_keys(first), row_keys(entry)),
        ):
            if mine != theirs:
                shown = "" if label == "evaluated rows" else f" ({mine} and {theirs})"
                raise UsageError(
                    f"{first.name!r} and {entry.name!r} have different {label}{shown}; they are never mixed."
                )


def _truth_hash(card: ScoreCard) -> object:
    return {name: item.get("sha256") for name, item in card.inputs.items() if name.startswith("truth")}


def row_keys(entry: Entry) -> list[tuple[str, str]]:
    """The (context, perturbation) rows of an entry, in order."""
    return list(zip(entry.table["context"], entry.table["perturbation"], strict=True))
