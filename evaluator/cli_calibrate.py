"""`vcbench calibrate`: which metrics of an edition can tell good from uninformative predictions on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    echo_json,
    echo_table,
    edition_option,
    executor_option,
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
    from .calibration.file import Calibration


@click.command()
@click.argument("truths", nargs=-1, required=True, metavar="[CONTEXT=]REAL.h5ad...")
@edition_option()
@click.option("--profile", metavar="NAME", help="Metrics of the edition; default: the edition's own choice.")
@click.option("--split", type=click.Path(dir_okay=False), help="Split file: calibrate one part of it.")
@click.option(
    "--subset", type=click.Choice(SUBSETS), default="test", show_default=True, help="Part of the split."
)
@click.option("--pert-col", metavar="COL", help="obs column of the labels; default: the edition's.")
@click.option("--control", metavar="LABEL", help="Control label; default: the edition's.")
@click.option("--context-col", metavar="COL", help="obs column of the contexts; default: the edition's.")
@click.option(
    "--matrix", type=click.Choice(["counts", "log1p"]), help="Kind of X, for files that do not declare it."
)
@click.option(
    "--no-target-genes", is_flag=True, help="vcc2026: perturbations have no target gene to leave out."
)
@click.option(
    "--target-map", type=click.Path(dir_okay=False), help="vcc2026: CSV label,gene; an empty gene means none."
)
@seed_option
@threads_option
@memory_option
@executor_option
@out_option(required=False, help="JSON file for the calibration.")
@force_option
@quiet_option
@format_option
def calibrate(
    truths: tuple[str, ...],
    edition: str,
    profile: str | None,
    split: str | None,
    subset: Any,
    pert_col: str | None,
    control: str | None,
    context_col: str | None,
    matrix: Any,
    no_target_genes: bool,
    target_map: str | None,
    seed: int,
    threads: int | None,
    memory: int | None,
    executor: str,
    out: str | None,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Score references made of the real cells themselves, and say which metrics can tell them apart.

    References: no change, mean, permuted perturbations, a replicate (the other half of the cells) and the
    replicate shrunken towards the mean (interpolated duplicate).

    \b
    Examples:
      vcbench calibrate real.h5ad --edition core --split split.csv -o calibration.json
      vcbench compare results/ --calibration calibration.json
    """
    from ..data_specs.atomic import check_output, write_text
    from .calibration.run import calibrate as run_calibrate
    from .cli_score import parse_truths
    from .executors import open_executor
    from .kernels.idle import let_idle_threads_sleep
    from .memory import block_bytes
    from .score_options import ScoreOptions
    from .vcc2026.targets import read_target_map

    let_idle_threads_sleep()
    listed = parse_truths(truths)
    if out:
        check_output(out, inputs=[path for _, path in listed], force=force)
    with shown_progress(quiet, lines=True) as show, open_executor(executor, threads=threads) as workers:
        found = run_calibrate(
            listed,
            edition=edition,
            profile=profile,
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
                executor=workers,
                block_bytes=block_bytes(memory),
                no_target_genes=no_target_genes,
                target_map=None if target_map is None else read_target_map(target_map),
            ),
            progress=show,
        )
    if out:
        write_text(Path(out), found.to_text())
        note(f"wrote {out}", quiet=quiet)
    if output_format == "json":
        echo_json(found.model_dump(mode="json"))
    else:
        _print(found)


def _print(found: Calibration) -> None:
    from .calibration.references import REFERENCES

    rows = [
        (
            name,
            *(_number(getattr(metric, reference)) for reference in REFERENCES),
            _number(metric.dynamic_range_fraction),
            _number(metric.bound_discrimination),
            "yes" if metric.discriminates else "NO",
            "" if metric.discriminates else metric.reason,
        )
        for name, metric in found.metrics.items()
    ]
    echo_table(
        (
            "metric",
            *(name.replace("_", " ") for name in REFERENCES),
            "range",
            "bound",
            "discriminates",
            "why not",
        ),
        rows,
        title=f"edition {found.edition}, profile {found.profile}: half of the real cells against the other half",
    )
    click.echo()
    rows = [
        (
            name,
            stratum["n"],
            *(_number(stratum[f"median_{key}"]) for key in ("half_correlation", "reliability")),
        )
        for name, stratum in found.reliability.items()
    ]
    echo_table(
        ("perturbations", "n", "half correlation", "reliability"), rows, title="median reliability of effects"
    )
    for name, why in found.left_out.items():
        click.echo(f"left out {name}: {why}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
