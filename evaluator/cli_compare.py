"""`vcbench compare`: ScoreCards as one ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import echo_json, echo_table, force_option, format_option

if TYPE_CHECKING:
    from .calibration.file import Calibration
    from .entries import Entry
    from .leaderboard import Leaderboard


@click.command()
@click.argument("cards", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--by", metavar="METRIC", help="Order by this metric; default: the first column.")
@click.option("--metrics", metavar="A,B,C", help="Columns to show.")
@click.option("--filler", default="mean", show_default=True, help="Entry whose values fill refused rows.")
@click.option(
    "--intervals",
    type=click.Choice(["by", "all", "none"]),
    default="by",
    show_default=True,
    help="Columns that show their 95% intervals: the ordering one, all, none; JSON and CSV have them all.",
)
@click.option(
    "--calibration",
    type=click.Path(dir_okay=False),
    help="File of `vcbench calibrate`: marks metrics that cannot tell a replicate from the mean.",
)
@click.option(
    "--group-seeds",
    is_flag=True,
    help="One row, mean ± sd, for entries that differ by their model's seed only.",
)
@click.option("--commands", is_flag=True, help="Also print the exact command behind every row.")
@click.option("--paired", is_flag=True, help="Compare two entries perturbation by perturbation.")
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a self-contained HTML page.")
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), help="Also write a CSV.")
@click.option("--title", default="vcbench leaderboard", show_default=True, help="Title of the HTML page.")
@force_option
@format_option
def compare(
    cards: tuple[str, ...],
    by: str | None,
    metrics: str | None,
    filler: str,
    intervals: Any,
    calibration: str | None,
    group_seeds: bool,
    commands: bool,
    paired: bool,
    html: str | None,
    csv_path: str | None,
    title: str,
    force: bool,
    output_format: str,
) -> None:
    """Rank the ScoreCards in CARDS (folders that `vcbench score -o` wrote, or a folder of them).

    Result files of the 2026 platform (.json) stand beside them in a table of their own.

    \b
    Examples:
      vcbench compare results/
      vcbench compare a/ b/ c/ --by mse_top20_de --html leaderboard.html
      vcbench compare a/ b/ --paired
      vcbench compare results/ --group-seeds --commands
      vcbench compare results/ --calibration calibration.json --intervals all
    """
    from ..data_specs.atomic import check_output
    from .entries import read_entries
    from .leaderboard import calibration_for, format_cell, format_column, write_csv, write_html
    from .leaderboard import compare as run_compare

    for path in (html, csv_path):
        if path:
            check_output(path, force=force)
    columns = tuple(name.strip() for name in metrics.split(",")) if metrics else None
    entries = read_entries([Path(card) for card in cards])
    found = None if calibration is None else calibration_for(calibration, entries)
    if paired:
        if by or html:
            raise click.UsageError("--paired makes its own table: leave out --by and --html.")
        _show_paired(entries, columns, csv_path, output_format, found)
        return
    boards = run_compare(
        entries,
        by=by,
        columns=columns,
        filler=filler,
        intervals=intervals,
        calibration=found,
        group_seeds=group_seeds,
    )
    if html:
        write_html(boards, html, title=title)
    if csv_path:
        write_csv(boards, csv_path)
    if output_format == "json":
        echo_json({"tables": [_plain(board) for board in boards]})
        return
    for board in boards:
        head = f"{board.title}: {board.n_rows} of {board.n_total} perturbations, edition {board.edition}, by {board.by}"
        if not board.rows:
            click.echo(f"{head}; {'; '.join(board.notes)}\n")
            continue
        named = any(row.model for row in board.rows)
        rows = [
            [
                row.rank if row.rank is not None else "-",
                row.name,
                *([row.model, (row.commit or "")[:10], " ".join(map(str, row.seeds))] if named else []),
                *(format_cell(board, row, column) for column in board.columns),
                row.n_filled,
            ]
            for row in board.rows
        ]
        titles = [format_column(board, column) for column in board.columns]
        about = ["model", "commit", "seeds"] if named else []
        echo_table(["rank", "entry", *about, *titles, "filled"], rows, title=head)
        for text in board.notes:
            click.echo(f"note: {text}")
        for row in board.rows if commands else ():
            for command in row.commands:
                click.echo(f"{row.name}: {command}")
        click.echo("")


def _plain(board: Leaderboard) -> dict[str, Any]:
    left = asdict(replace(board, calibration={}))
    return left | {"calibration": {name: found.model_dump() for name, found in board.calibration.items()}}


def _show_paired(
    entries: Sequence[Entry],
    columns: Sequence[str] | None,
    csv_path: str | None,
    output_format: str,
    calibration: Calibration | None,
) -> None:
    from ..data_specs.atomic import write_text
    from .leaderboard import MARK, paired_frame, paired_metrics

    found = paired_metrics(entries, columns=columns)
    first, second = entries[0].name, entries[1].name
    marks = {m.metric: None if calibration is None else calibration.mark(m.metric) for m in found}
    known = {} if calibration is None else calibration.metrics
    told = {m.metric: known[m.metric].discriminates if m.metric in known else None for m in found}
    if csv_path:
        frame = paired_frame(found)
        if calibration is not None:
            frame["discriminates"] = [told[name] for name in frame["metric"]]
        write_text(csv_path, frame.to_csv(index=False))
    if output_format == "json":
        listed = [
            asdict(m) | ({} if calibration is None else {"discriminates": told[m.metric]}) for m in found
        ]
        echo_json({"paired": {"first": first, "second": second, "metrics": listed}})
        return
    rows = [
        [
            f"{metric.metric} {MARK}" if marks[metric.metric] else metric.metric,
            metric.n,
            *map(_number, (metric.first, metric.second, metric.difference)),
            "–" if metric.low is None or metric.high is None else f"[{metric.low:.4g}, {metric.high:.4g}]",
            *map(_number, (metric.effect_size, metric.wins, metric.p, metric.p_holm)),
            metric.reason or "",
        ]
        for metric in found
    ]
    head = [
        "metric",
        "n",
        first,
        second,
        "difference",
        "95% interval",
        "effect size",
        "wins",
        "p",
        "Holm p",
        "note",
    ]
    echo_table(head, rows, title=f"{first} minus {second}, paired over perturbations")
    for name, why in marks.items():
        if why:
            click.echo(f"note: {MARK} {name} cannot tell a replicate from the mean on this truth: {why}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
