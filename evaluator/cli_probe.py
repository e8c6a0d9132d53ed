"""`vcbench probe`: how the scores of an entry move under documented exploits, and what the entry itself looks like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    echo_json,
    echo_table,
    edition_option,
    force_option,
    format_option,
    memory_option,
    note,
    out_option,
    quiet_option,
    seed_option,
    shown_progress,
    threads_option,
)
from .score_options import SUBSETS

if TYPE_CHECKING:
    from .probes.run import ProbeReport


@click.command()
@click.argument("entry", type=click.Path())
@click.option(
    "--truth",
    "truths",
    required=True,
    multiple=True,
    metavar="[CONTEXT=]REAL.h5ad|BUNDLE",
    help="The real cells, controls included, or a truth bundle; repeat it with contexts for several.",
)
@edition_option()
@click.option("--profile", metavar="NAME", help="Metrics of the edition; default: the edition's own choice.")
@click.option(
    "--probes",
    metavar="A,B",
    help="Names of the probes to apply; `none` for marks, flags and diagnostics alone; default: all.",
)
@click.option("--split", type=click.Path(dir_okay=False), help="Split file: evaluate one part of it.")
@click.option(
    "--subset", type=click.Choice(SUBSETS), default="test", show_default=True, help="Part of the split."
)
@click.option("--pert-col", metavar="COL", help="obs column of the labels; default: the edition's.")
@click.option("--control", metavar="LABEL", help="Control label; default: the edition's.")
@click.option("--context-col", metavar="COL", help="obs column of the contexts; default: the edition's.")
@click.option(
    "--matrix", type=click.Choice(["counts", "log1p"]), help="Kind of X, for files that do not declare it."
)
@click.option("--reference", "references", multiple=True, metavar="NAME=FILE", help="As for `vcbench score`.")
@click.option("--baseline", metavar="FILE|published", help="Short for --reference baseline=….")
@click.option(
    "--no-target-genes", is_flag=True, help="vcc2026: perturbations have no target gene to leave out."
)
@click.option(
    "--target-map", type=click.Path(dir_okay=False), help="vcc2026: CSV label,gene; an empty gene means none."
)
@click.option("--tmp", type=click.Path(file_okay=False), help="Folder of the temporary changed entries.")
@seed_option
@threads_option
@memory_option
@out_option(required=False, help="JSON file for the report.")
@force_option
@quiet_option
@format_option
def probe(
    entry: str,
    truths: tuple[str, ...],
    edition: str,
    profile: str | None,
    probes: str | None,
    split: str | None,
    subset: Any,
    pert_col: str | None,
    control: str | None,
    context_col: str | None,
    matrix: Any,
    references: tuple[str, ...],
    baseline: str | None,
    no_target_genes: bool,
    target_map: str | None,
    tmp: str | None,
    seed: int,
    threads: int | None,
    memory: int | None,
    out: str | None,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Change ENTRY (cells or mean effects, .h5ad or .vcc) in every documented way, and show how each metric moves.

    Marks describe the entry (collapse, tiled or copied cells); flags suspect an exploit and show the evidence.

    \b
    Examples:
      vcbench probe entry.h5ad --truth real.h5ad --edition vcc2025 -o probes.json
      vcbench probe effects.h5ad --truth real.h5ad --edition core --split split.csv --probes scale-10,sign-flip
    """
    import json

    from ..data_specs.atomic import check_output, write_text
    from .cli_score import parse_references, parse_truths
    from .kernels.idle import let_idle_threads_sleep
    from .memory import block_bytes
    from .probes.run import probe_entry
    from .score_options import ScoreOptions
    from .vcc2026.targets import read_target_map

    let_idle_threads_sleep()
    if out:
        check_output(out, inputs=[entry], force=force)
    with shown_progress(quiet, lines=True) as show:
        report = probe_entry(
            entry,
            parse_truths(truths),
            edition=edition,
            profile=profile,
            probes=parse_probes(probes),
            split=split,
            options=ScoreOptions(
                subset=subset,
                pert_col=pert_col,
                control=control,
                context_col=context_col,
                matrix=matrix,
                seed=seed,
                threads=threads,
                memory=memory,
                block_bytes=block_bytes(memory),
                references=parse_references((*references, *([f"baseline={baseline}"] if baseline else []))),
                no_target_genes=no_target_genes,
                target_map=None if target_map is None else read_target_map(target_map),
            ),
            tmp=tmp,
            progress=show,
        )
    found = report.to_json()
    if out:
        write_text(Path(out), json.dumps(found, indent=1, allow_nan=False) + "\n")
        note(f"wrote {out}", quiet=quiet)
    if output_format == "json":
        echo_json(found)
    else:
        _print_report(report)


def parse_probes(text: str | None) -> tuple[str, ...] | None:
    """The names of `A,B`; () for `none`, None without a text."""
    if text is None:
        return None
    return () if text == "none" else tuple(name for name in text.split(",") if name)


def _print_report(report: ProbeReport) -> None:
    shown = {True: "yes", False: "NO", None: ""}
    rows = [
        (
            row.probe,
            row.metric,
            *("–" if value is None else f"{value:.4g}" for value in (row.before, row.after)),
            "–" if row.change is None else f"{row.change:+.3g}",
            row.expected or "",
            shown[row.as_expected],
        )
        for row in report.rows
    ]
    echo_table(
        ("probe", "metric", "before", "after", "change", "expected", "as expected"),
        rows,
        title=f"{report.entry}: edition {report.edition}, profile {report.profile}",
    )
    for outcome in report.outcomes:
        if not outcome.applied:
            click.echo(f"{outcome.name} was not applied: {outcome.reason}")
    for title, findings in (("marks", report.marks), ("flags", report.flags)):
        click.echo(f"{title}: {'none' if not findings else ''}")
        for finding in findings:
            click.echo(f"  {finding.name}: {finding.evidence}")
