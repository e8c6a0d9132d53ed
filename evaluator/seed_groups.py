"""Rows of a leaderboard that differ by the seed of their model only, as one row: mean and spread over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .entries import Entry
from .leaderboard import Leaderboard, Row, ranked

SEED = "model"


def seed_groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Groups of two and more entries with equal model, settings and commit, and each its own seed.

    Entries whose ScoreCards know no model or no seed are in no group; nor are those of which two share a seed, because
    something that the cards do not say must separate them.
    """
    found: dict[tuple[str, str, str | None], list[Entry]] = {}
    for entry in entries:
        made = entry.card.provenance
        if made.model is not None and SEED in made.seeds:
            key = (made.model, json.dumps(made.settings, sort_keys=True), made.commit)
            found.setdefault(key, []).append(entry)
    return [
        sorted(group, key=_seed)
        for group in found.values()
        if len(group) > 1 and len({_seed(entry) for entry in group}) == len(group)
    ]


def _seed(entry: Entry) -> int:
    return entry.card.provenance.seeds[SEED]


def grouped(board: Leaderboard, entries: Sequence[Entry]) -> Leaderboard:
    """The table with one row per group of seeds, ranked anew. Groups that have no rows here leave it as it is."""
    rows = {row.name: row for row in board.rows}
    groups = [group for group in seed_groups(entries) if all(entry.name in rows for entry in group)]
    if not groups:
        return board
    within = {entry.name for group in groups for entry in group}
    left = [row for row in board.rows if row.name not in within]
    taken = {row.name for row in left}
    made = []
    for group in groups:
        row = _joined([rows[entry.name] for entry in group], board.columns)
        name = row.model if row.model is not None and row.model not in taken else ", ".join(row.members)
        taken.add(name)
        made.append(replace(row, name=name))
    note = "rows of several seeds: mean ± standard deviation over seeds"
    return replace(
        board,
        rows=ranked([*left, *made], board.by, board.better[board.by]),
        notes=(*board.notes, note),
    )


def _joined(rows: Sequence[Row], columns: Sequence[str]) -> Row:
    """One row of several seeds; a metric without a value in one of them has none."""
    values, sd = {}, {}
    for column in columns:
        found = np.array([row.values[column] for row in rows])
        values[column] = float(found.mean())
        if not math.isnan(values[column]):
            sd[column] = float(found.std(ddof=1))
    first = rows[0]
    return Row(
        first.name,
        values,
        {column: min(row.n[column] for row in rows) for column in columns},
        max(row.n_filled for row in rows),
        None,
        sd=sd,
        members=tuple(row.name for row in rows),
        model=first.model,
        commit=first.commit,
        seeds=tuple(seed for row in rows for seed in row.seeds),
        commands=tuple(command for row in rows for command in row.commands),
    )
