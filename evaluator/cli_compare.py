"""`vcbench compare`: ScoreCards as one ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..data_specs.cli_support import echo_json, echo_table, force_option, format_option

if TYPE_CHECKING:
    from .leaderboard import Entry


@click.command()
@click.argument("cards", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--by", metavar="METRIC", help="Order by this metric; default: the first column.")
@click.option("--metrics", metavar="A,B,C", help="Columns to show.")
@click.option("--filler", default="mean", show_default=True, help="Entry whose values fill refused rows.")
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
    """
    from ..data_specs.atomic import check_output
    from .leaderboard import compare as run_compare
    from .leaderboard import format_cell, read_entries, write_csv, write_html

    for path in (html, csv_path):
        if path:
            check_output(path, force=force)
    columns = tuple(name.strip() for name in metrics.split(",")) if metrics else None
    entries = read_entries([Path(card) for card in cards])
    if paired:
        if by or html:
            raise click.UsageError("--paired makes its own table: leave out --by and --html.")
        _show_paired(entries, columns, csv_path, output_format)
        return
    boards = run_compare(entries, by=by, columns=columns, filler=filler)
    if html:
        write_html(boards, html, title=title)
    if csv_path:
        write_csv(boards, csv_path)
    if output_format == "json":
        echo_json({"tables": [asdict(board) for board in boards]})
        return
    for board in boards:
        head = f"{board.title}: {board.n_rows} of {board.n_total} perturbations, edition {board.edition}, by {board.by}"
        if not board.rows:
            click.echo(f"{head}; {'; '.join(board.notes)}\n")
            continue
        rows = [
            [
                row.rank if row.rank is not None else "-",
                row.name,
                *(format_cell(board, row, column) for column in board.columns),
                row.n_filled,
            ]
            for row in board.rows
        ]
        echo_table(["rank", "entry", *board.columns, "filled"], rows, title=head)
        for text in board.notes:
            click.echo(f"note: {text}")
        click.echo("")


def _show_paired(
    entries: Sequence[Entry], columns: Sequence[str] | None, csv_path: str | None, output_format: str
) -> None:
    from ..data_specs.atomic import write_text
    from .leaderboard import paired_frame, paired_metrics

    found = paired_metrics(entries, columns=columns)
    first, second = entries[0].name, entries[1].name
    if csv_path:
        write_text(csv_path, paired_frame(found).to_csv(index=False))
    if output_format == "json":
        echo_json({"paired": {"first": first, "second": second, "metrics": [asdict(m) for m in found]}})
        return
    rows = [
        [
            metric.metric,
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
