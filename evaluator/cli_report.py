"""`vcbench report`: ScoreCards and what stands beside them as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..data_specs.cli_support import force_option, note, out_option, quiet_option


@click.command()
@click.argument("cards", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--by", metavar="METRIC", help="Order by this metric; default: the edition's first.")
@click.option(
    "--calibration", type=click.Path(dir_okay=False), help="File of `vcbench calibrate` on the same truth."
)
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Report of `vcbench probe ENTRY -o FILE`; repeat it for several.",
)
@click.option("--run", "runs", multiple=True, metavar="NAME=RUN", help="Run folder whose training is shown.")
@click.option(
    "--pred",
    "predictions",
    multiple=True,
    metavar="NAME=FILE",
    help="File of an entry, for plots of its effects.",
)
@click.option(
    "--truth", "truths", multiple=True, metavar="[CONTEXT=]FILE", help="The real cells, for plots of effects."
)
@click.option("--pert-col", help="Perturbation column of these files.")
@click.option("--control", help="Control label of these files.")
@click.option(
    "--matrix", type=click.Choice(["counts", "log1p"]), help="What X of files that do not say so holds."
)
@click.option("--title", default="vcbench report", show_default=True)
@click.option("--figures", type=click.Path(path_type=Path), help="Folder for PNG and CSV of every figure.")
@out_option(help="The HTML file.")
@force_option
@quiet_option
def report(
    cards: tuple[str, ...],
    by: str | None,
    calibration: str | None,
    probes: tuple[Path, ...],
    runs: tuple[str, ...],
    predictions: tuple[str, ...],
    truths: tuple[str, ...],
    pert_col: str | None,
    control: str | None,
    matrix: Any,
    title: str,
    figures: Path | None,
    out: str,
    force: bool,
    quiet: bool,
) -> None:
    """One self-contained page about the ScoreCards in CARDS (folders of `vcbench score -o`, or folders of them).

    \b
    Examples:
      vcbench report results/ -o report.html
      vcbench report results/ --calibration calibration.json --probe probe.json -o report.html
      vcbench report results/ --pred ridge=ridge.h5ad --truth real.h5ad --run gears=runs/gears -o report.html
    """
    from ..data_specs.atomic import check_output
    from .cli_score import parse_truths
    from .entries import read_entries
    from .leaderboard import calibration_for
    from .report.content import gather
    from .report.figures import check_figures, write_figures
    from .report.page import write_report
    from .report.sources import read_curves, read_probes

    target = check_output(out, force=force)
    if figures is not None:
        check_figures(figures, force=force)
    entries = read_entries([Path(card) for card in cards])
    found = gather(
        entries,
        title=title,
        by=by,
        calibration=None if calibration is None else calibration_for(calibration, entries),
        probes=read_probes(probes, edition=entries[0].card.edition),
        curves=read_curves(parse_named(runs, "--run")),
        predictions=parse_named(predictions, "--pred"),
        truth=parse_truths(truths),
        pert_col=pert_col,
        control=control,
        matrix=matrix,
    )
    size = write_report(found, target)
    what = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    note(f"wrote {target}: {what}, {size / 2**20:.2f} MiB", quiet=quiet)
    if figures is not None:
        note(f"wrote {write_figures(found, figures, force=force)} figures to {figures}", quiet=quiet)


def parse_named(texts: Sequence[str], option: str) -> dict[str, Path]:
    """Name to path of each `NAME=PATH`. Raises `UsageError` for another form or a name that comes twice."""
    from ..data_specs.errors import UsageError

    out: dict[str, Path] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (sign and name and path) or name in out:
            raise UsageError(f"{option} {text!r}: give NAME=PATH, each name once.")
        out[name] = Path(path)
    return out
