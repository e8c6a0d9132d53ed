"""The generalist ranking of the 2025 challenge: mean rank over seven metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .leaderboard import PERFECT, Leaderboard, Row, rounded

if TYPE_CHECKING:
    from .entries import Entry
    from .scorecard import Better

EDITION = "vcc2025"
METRICS = (
    "discrimination_score_l1",
    "overlap_at_N",
    "mae",
    "pearson_delta",
    "de_spearman_lfc_sig",
    "pr_auc",
    "de_spearman_sig",
)
MEAN_RANK = "mean_rank"
TITLE = "Generalist ranking (mean rank over seven metrics)"
NOTE = "ranks per metric, 1 is best; equal values share their mean rank, a null ranks last"


def applies(entries: Sequence[Entry]) -> bool:
    """Whether at least two entries of edition vcc2025 have all seven metrics."""
    return len(entries) > 1 and all(
        entry.card.edition == EDITION and all(name in entry.card.metrics for name in METRICS)
        for entry in entries
    )


def generalist_board(entries: Sequence[Entry]) -> Leaderboard:
    """Every entry's rank in each of the seven metrics, and their mean, which orders the table.

    Values that agree after rounding (`leaderboard.rounded`) are equal and share the mean of their places; entries
    whose metric is null share the last places. The organisers have not published how they treat ties. A perfect
    reference stands above, unranked.
    """
    ranked = [entry for entry in entries if entry.name != PERFECT]
    better: dict[str, Better] = {name: entries[0].card.metrics[name].better for name in METRICS}
    places: dict[str, dict[str, float]] = {entry.name: {} for entry in ranked}
    for metric in METRICS:
        values = {entry.name: entry.card.metrics[metric].value for entry in ranked}
        for name, place in mean_places(values, better[metric]).items():
            places[name][metric] = place
    means = {name: math.fsum(found.values()) / len(METRICS) for name, found in places.items()}
    order = mean_places(means, "lower")
    n_total = max(entry.card.metrics[metric].n_total for entry in entries for metric in METRICS)
    rows = []
    for entry in entries:
        n = {metric: entry.card.metrics[metric].n for metric in METRICS} | {MEAN_RANK: n_total}
        if entry.name == PERFECT:
            rows.append(Row(entry.name, dict.fromkeys((MEAN_RANK, *METRICS), math.nan), n, 0, None))
            continue
        first = 1 + sum(other < order[entry.name] for other in order.values())
        values = {MEAN_RANK: means[entry.name], **places[entry.name]}
        rows.append(Row(entry.name, values, n, 0, first))
    rows.sort(key=lambda row: (row.rank is not None, row.rank or 0, row.name))
    card = entries[0].card
    return Leaderboard(
        TITLE,
        card.edition,
        card.profile,
        MEAN_RANK,
        (MEAN_RANK, *METRICS),
        dict.fromkeys((MEAN_RANK, *METRICS), "lower"),
        tuple(rows),
        n_total,
        n_total,
        (NOTE,),
    )


def mean_places(values: Mapping[str, float | None], better: Better) -> dict[str, float]:
    """The place of each name, 1 for the best; equal values share the mean of their places, None comes last.

    Examples
    --------
    >>> mean_places({"a": 0.5, "b": 0.9, "c": 0.5, "d": None}, "higher")
    {'a': 2.5, 'b': 1.0, 'c': 2.5, 'd': 4.0}
    """
    sign = -1.0 if better == "higher" else 1.0
    keys = {name: math.inf if value is None else sign * rounded(value) for name, value in values.items()}
    listed = list(keys.values())
    return {
        name: sum(other < key for other in listed) + (1 + sum(other == key for other in listed)) / 2
        for name, key in keys.items()
    }
