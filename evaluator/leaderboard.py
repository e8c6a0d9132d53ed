"""Ranked tables of ScoreCards: on the rows that every entry predicts, and with refusals filled by the training mean.

A mean over an entry's own coverage is never ranked: leaving out hard perturbations must not help.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from ..data_specs.atomic import write_text
from ..data_specs.errors import UnknownName, UsageError
from .entries import Entry, row_keys
from .scorecard import Better
from .uncertainty.bootstrap import Interval

if TYPE_CHECKING:
    from .calibration.file import Calibration, MetricCalibration
    from .uncertainty.paired import PairedMetric

PERFECT = "perfect"
FILLER = "mean"
MARK = "*"
ShownIntervals = Literal["by", "all", "none"]
DEFAULT_COLUMNS = {
    "core": (
        "pearson_delta",
        "mse_top20_de",
        "mse",
        "mae",
        "pearson_delta_top20_de",
        "direction_accuracy",
        "top20_overlap",
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of a leaderboard: mean and n per metric, rows filled, rank (equal values share one; None: unranked).

    `low` and `high` bound the mean over the population of perturbations (95%); None where there is no interval.
    A row of several seeds (`seed_groups`) has their mean and standard deviation `sd`, and its `members`. `model`,
    `commit`, `seeds` and the exact `commands` say what made the row, where its ScoreCard knows.
    """

    name: str
    values: dict[str, float]
    n: dict[str, int]
    n_filled: int
    rank: int | None
    low: dict[str, float | None] = field(default_factory=dict)
    high: dict[str, float | None] = field(default_factory=dict)
    sd: dict[str, float] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    model: str | None = None
    commit: str | None = None
    seeds: tuple[int, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """A ranked table: `n_rows` of `n_total` perturbations enter it; `columns` are metric names, `by` orders it.

    Text shows intervals in `interval_columns`. `calibration` says of columns what they can tell apart on this truth.
    """

    title: str
    edition: str
    profile: str
    by: str
    columns: tuple[str, ...]
    better: dict[str, Better]
    rows: tuple[Row, ...]
    n_rows: int
    n_total: int
    notes: tuple[str, ...] = ()
    interval_columns: tuple[str, ...] = ()
    calibration: dict[str, MetricCalibration] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row per entry: rank, name, each metric with its n, interval and calibration, n_filled."""
        records = []
        for row in self.rows:
            record: dict[str, object] = {
                "rank": row.rank,
                "name": row.name,
                "model": row.model,
                "commit": row.commit,
                "seeds": " ".join(map(str, row.seeds)),
            }
            for column in self.columns:
                record[column] = row.values[column]
                record[f"{column}_n"] = row.n[column]
                if column in row.sd:
                    record[f"{column}_sd"] = row.sd[column]
                if row.low:
                    record[f"{column}_low"], record[f"{column}_high"] = (
                        row.low.get(column),
                        row.high.get(column),
                    )
                if column in self.calibration:
                    record[f"{column}_discriminates"] = self.calibration[column].discriminates
            records.append(
                {
                    **record,
                    "n_rows": self.n_rows,
                    "n_total": self.n_total,
                    "n_filled": row.n_filled,
                    "commands": "\n".join(row.commands),
                }
            )
        return pd.DataFrame(records)


def compare(
    entries: Sequence[Entry],
    *,
    by: str | None = None,
    columns: Sequence[str] | None = None,
    filler: str = FILLER,
    intervals: ShownIntervals = "by",
    calibration: Calibration | None = None,
    group_seeds: bool = False,
) -> list[Leaderboard]:
    """The leaderboard on common rows and, when some entry refused rows, the one with filled refusals.

    Entries of edition vcc2025 with the seven metrics of its generalist profile are also ranked by their mean rank.

    Parameters
    ----------
    by
        Metric that orders the table; the first of `columns` when None. Entries without a value come last.
    filler
        Name of the entry whose values stand in for refused rows in the second table.
    intervals
        Which columns show their intervals in text: the ordering one, all, or none.
    calibration
        Marks the metrics that cannot tell a replicate from the mean; see `calibration_for`.
    group_seeds
        Show entries that differ by their model's seed only as one row; see `seed_groups`.

    Raises
    ------
    UnknownName
        A metric that the ScoreCards do not have.
    """
    if any(entry.imported for entry in entries):
        local = [entry for entry in entries if not entry.imported]
        boards = (
            compare(
                local,
                by=by,
                columns=columns,
                filler=filler,
                intervals=intervals,
                calibration=calibration,
                group_seeds=group_seeds,
            )
            if local
            else []
        )
        return [*boards, _overall_board(entries)]
    from .generalist import applies, generalist_board

    known = list(entries[0].card.metrics)
    shown = tuple(
        columns or [c for c in DEFAULT_COLUMNS.get(entries[0].card.edition, ()) if c in known] or known[:8]
    )
    key = by or shown[0]
    for name in (*shown, key):
        if name not in known:
            raise UnknownName("metric", name, known, "vcbench list metrics")
    shown = shown if key in shown else (key, *shown)
    keys = row_keys(entries[0])
    common = sorted(set(keys).intersection(*(entry.predicted for entry in entries)))
    boards = [_board(entries, common, len(keys), key, shown, title="Rows that every entry predicts")]
    if len(common) < len(keys):
        boards.append(_filled_board(entries, keys, key, shown, filler))
    if group_seeds:
        from .seed_groups import grouped

        boards = [grouped(board, entries) for board in boards]
    if applies(entries):
        boards.append(generalist_board(entries))
    listed = {"by": (key,), "all": shown, "none": ()}[intervals]
    return [
        _calibrated(
            replace(board, interval_columns=tuple(c for c in listed if c in board.columns)), calibration
        )
        for board in boards
    ]


def calibration_for(path: str | os.PathLike[str], entries: Sequence[Entry]) -> Calibration:
    """The calibration in a file. Raises `InvalidFile` when it is unreadable (E731) or not of these entries (E732)."""
    from .calibration.file import check_belongs, read_calibration

    found = read_calibration(path)
    for entry in entries:
        if not entry.imported:
            check_belongs(found, entry.card, path=path)
    return found


def _calibrated(board: Leaderboard, calibration: Calibration | None) -> Leaderboard:
    if calibration is None:
        return board
    known = {name: calibration.metrics[name] for name in board.columns if name in calibration.metrics}
    marked = [
        f"{MARK} {name} cannot tell a replicate from the mean on this truth: {found.reason}"
        for name, found in known.items()
        if not found.discriminates
    ]
    return replace(board, calibration=known, notes=(*board.notes, *marked))


def paired_metrics(entries: Sequence[Entry], *, columns: Sequence[str] | None = None) -> list[PairedMetric]:
    """The first of two entries minus the second in every metric (or those of `columns`), paired over perturbations.

    Raises
    ------
    UsageError
        Not two entries, or one without rows.
    UnknownName
        A metric that the ScoreCards do not have.
    """
    from .uncertainty.paired import compare_paired

    if len(entries) != 2 or any(entry.imported for entry in entries):
        raise UsageError(
            f"a paired comparison takes two entries scored by vcbench; {len(entries)} were given."
        )
    first, second = entries
    for name in columns or ():
        if name not in first.card.metrics:
            raise UnknownName("metric", name, list(first.card.metrics), "vcbench list metrics")
    return compare_paired(
        first.table,
        second.table,
        {name: first.card.metrics[name] for name in columns or first.card.metrics},
        by_context=first.card.edition == "vcc2026",
    )


def paired_frame(metrics: Sequence[PairedMetric]) -> pd.DataFrame:
    """One row per metric with all its fields."""
    return pd.DataFrame([asdict(metric) for metric in metrics])


def _overall_board(entries: Sequence[Entry]) -> Leaderboard:
    """Overall scores and panel values of local and imported results side by side, not ranked."""
    imported = next(entry for entry in entries if entry.imported)
    shown = tuple(imported.card.metrics)
    better: dict[str, Better] = {"score": "higher"}
    better |= {name: imported.card.metrics[name].better for name in shown}
    rows = []
    for entry in entries:
        values, n = {"score": float("nan") if entry.card.score is None else entry.card.score}, {"score": 0}
        for name in shown:
            metric = entry.card.metrics.get(name)
            values[name] = float("nan") if metric is None or metric.value is None else metric.value
            n[name] = 0 if metric is None else metric.n
        rows.append(Row(entry.name, values, n, 0, None))
    return Leaderboard(
        "Overall scores beside those of the platform",
        imported.card.edition,
        imported.card.profile,
        "score",
        ("score", *shown),
        better,
        tuple(rows),
        0,
        0,
        (
            "local scores and the platform's have other ends; their values per metric compare only on the same truth",
        ),
    )


def _filled_board(
    entries: Sequence[Entry], keys: list[tuple[str, str]], by: str, columns: tuple[str, ...], filler: str
) -> Leaderboard:
    source = next((entry for entry in entries if entry.name == filler), None)
    title = f"All rows, refusals filled with {filler!r}"
    if source is None or source.predicted != set(keys):
        why = f"no entry named {filler!r} that predicts every row is among the ScoreCards"
        return _board(
            [], [], len(keys), by, columns, title=title, notes=(f"not made: {why}",), like=entries[0]
        )
    full = [_filled(entry, source) for entry in entries]
    filled = {entry.name: len(keys) - len(entry.predicted) for entry in entries}
    return _board(full, keys, len(keys), by, columns, title=title, filled=filled)


def _filled(entry: Entry, source: Entry) -> Entry:
    refused = np.array([key not in entry.predicted for key in row_keys(entry)])
    metrics = [name for name in entry.card.metrics if name in entry.table]
    table = entry.table.copy()
    table.loc[refused, metrics] = source.table.loc[refused, metrics]
    return Entry(entry.card, table, entry.folder)


def _board(
    entries: Sequence[Entry],
    keys: Sequence[tuple[str, str]],
    n_total: int,
    by: str,
    columns: tuple[str, ...],
    *,
    title: str,
    filled: dict[str, int] | None = None,
    notes: tuple[str, ...] = (),
    like: Entry | None = None,
) -> Leaderboard:
    card = (like or entries[0]).card
    better: dict[str, Better] = {name: card.metrics[name].better for name in columns}
    wanted = set(keys)
    rows = []
    for entry in entries:
        inside = np.array([key in wanted for key in row_keys(entry)], dtype=bool)
        values, n = {}, {}
        for name in columns:
            values[name], n[name] = _aggregate(entry, name, inside)
        found = _intervals(entry, values, inside)
        made = entry.card.provenance
        rows.append(
            Row(
                entry.name,
                values,
                n,
                (filled or {}).get(entry.name, 0),
                None,
                {name: interval.low for name, interval in found.items()},
                {name: interval.high for name, interval in found.items()},
                model=made.model,
                commit=made.commit,
                seeds=tuple(made.seeds[name] for name in sorted(made.seeds)),
                commands=() if made.command is None else (made.command,),
            )
        )
    return Leaderboard(
        title,
        card.edition,
        card.profile,
        by,
        columns,
        better,
        ranked(rows, by, better[by]),
        len(keys),
        n_total,
        notes,
    )


def _aggregate(entry: Entry, name: str, inside: np.ndarray) -> tuple[float, int]:
    if name not in entry.table:
        # A panel metric has one value for the whole entry; it is shown only when every row takes part.
        metric = entry.card.metrics[name]
        value = metric.value if inside.all() and metric.value is not None else np.nan
        return float(value), metric.n
    values = entry.table[name].to_numpy(dtype=float)[inside]
    known = values[~np.isnan(values)]
    return (float(known.mean()) if len(known) else float("nan")), len(known)


def _intervals(entry: Entry, values: dict[str, float], inside: np.ndarray) -> dict[str, Interval]:
    """The interval of each mean over the chosen rows: that of the card when these are all of its rows."""
    from .uncertainty.intervals import STREAM, Aggregation, metric_intervals

    metrics = {
        name: entry.card.metrics[name].model_copy(update={"value": None if np.isnan(value) else value})
        for name, value in values.items()
        if name in entry.table
    }
    rng = np.random.default_rng(np.random.SeedSequence([entry.card.seeds.get("root", 0), STREAM]))
    found = metric_intervals(entry.table.loc[inside], metrics, Aggregation(), rng) if inside.any() else {}
    for name in values:
        if name not in found:
            stored = entry.card.metrics[name]
            whole = inside.all() and name not in entry.table
            found[name] = Interval(*((stored.low, stored.high) if whole else (None, None)))
    return found


def ranked(rows: Sequence[Row], by: str, better: Better) -> tuple[Row, ...]:
    """Rows in order of one column with their ranks; the perfect reference stands first, rows without a value last."""
    sign = -1.0 if better == "higher" else 1.0

    def value_of(row: Row) -> float:
        return rounded(row.values[by])

    def order(row: Row) -> tuple[bool, bool, float, str]:
        value = value_of(row)
        return (
            row.name != PERFECT,
            bool(np.isnan(value)),
            0.0 if np.isnan(value) else sign * value,
            row.name,
        )

    out: list[Row] = []
    place, rank, last = 0, 0, None
    for row in sorted(rows, key=order):
        value = value_of(row)
        is_ranked = row.name != PERFECT and not np.isnan(value)
        if is_ranked:
            place += 1
            rank, last = (rank if value == last else place), value
        out.append(replace(row, rank=rank if is_ranked else None))
    return tuple(out)


def rounded(value: float) -> float:
    """Seven significant digits: values that differ only by rounding share a rank."""
    return float(f"{value:.7g}")


def write_csv(boards: Sequence[Leaderboard], path: str | os.PathLike[str]) -> None:
    """All tables as one CSV with a `table` column, whole or not at all."""
    frames = [board.to_frame().assign(table=board.title) for board in boards if board.rows]
    columns = list(dict.fromkeys(column for frame in frames for column in frame.columns))
    filled = [frame.dropna(axis=1, how="all") for frame in frames]
    text = pd.concat(filled).reindex(columns=columns).to_csv(index=False) if frames else ""
    write_text(path, text)


def write_html(
    boards: Sequence[Leaderboard], path: str | os.PathLike[str], *, title: str = "vcbench"
) -> None:
    """A plain self-contained HTML page of the tables, without any outside request."""
    from importlib import resources

    from jinja2 import Environment

    source = (
        resources.files("vcbench.evaluator")
        .joinpath("templates/leaderboard.html")
        .read_text(encoding="utf-8")
    )
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    write_text(
        path,
        template.render(boards=boards, title=title, format_cell=format_cell, format_column=format_column),
    )


def format_column(board: Leaderboard, column: str) -> str:
    """The name of a column, marked when its metric cannot tell a replicate from the mean."""
    found = board.calibration.get(column)
    return column if found is None or found.discriminates else f"{column} {MARK}"


def format_cell(board: Leaderboard, row: Row, column: str) -> str:
    """A value with its interval, where shown, and its coverage, `(n/n_rows)`, when not all rows entered it."""
    n, text = row.n[column], format_value(row.values[column])
    if column in row.sd:
        text += f" ± {row.sd[column]:.2g}"
    low, high = row.low.get(column), row.high.get(column)
    if column in board.interval_columns and low is not None and high is not None:
        text += f" [{low:.4g}, {high:.4g}]"
    if n == board.n_rows:
        return text
    return f"{text} ({n}/{board.n_rows})" if board.n_rows else f"{text} ({n})"


def format_value(value: float) -> str:
    """Four significant digits; an en dash for a null."""
    return "–" if np.isnan(value) else f"{value:.4g}"
