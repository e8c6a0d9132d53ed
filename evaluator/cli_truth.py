"""`vcbench truth`: bundles of everything that scoring needs of the real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    LazyGroup,
    dry_run_option,
    echo_estimate,
    echo_json,
    echo_table,
    edition_option,
    executor_option,
    force_option,
    format_option,
    memory_option,
    out_option,
    quiet_option,
    scoring_device_option,
    shown_progress,
    threads_option,
)

if TYPE_CHECKING:
    from .bundles import Bundle

COMMANDS = {
    "build": (
        "vcbench.evaluator.cli_truth:build",
        "Measure the real data once: tests, baseline, replicate anchors.",
    ),
    "control-methods": (
        "vcbench.evaluator.openproblems.cli:control_methods",
        "Open Problems: write the predictions of the six control methods.",
    ),
    "de": (
        "vcbench.evaluator.openproblems.cli:de",
        "Open Problems: turn cells into a table of differential expression.",
    ),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def truth() -> None:
    """What is computed from the real data once: truth bundles, control methods, tables."""


@click.command()
@click.argument("real", type=click.Path())
@edition_option()
@out_option(help="Folder of the bundle.")
@click.option(
    "--baseline",
    metavar="KIND|FILE",
    help="What scores 0. vcc2026: context-mean (default), generic, none, or a ready-made prediction FILE.h5ad. "
    "2025 and cell-eval: published, none (default), or an agg_results.csv.",
)
@click.option(
    "--train",
    type=click.Path(dir_okay=False),
    help="2025 and cell-eval: training cells; their mean response scores 0.",
)
@click.option(
    "--perts",
    type=click.Path(dir_okay=False),
    help="With --train: CSV of the baseline's n_cells per perturbation; default: as many as are real.",
)
@click.option(
    "--ceiling/--no-ceiling",
    default=True,
    show_default=True,
    help="2025 and cell-eval: score one half of the real cells against the other.",
)
@click.option(
    "--emission",
    type=click.Choice(["tile", "dispersed"]),
    default="tile",
    show_default=True,
    help="vcc2026, cells of a mean response: all equal, or control cells scaled to it.",
)
@click.option(
    "--min-cells",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="context-mean: cells a perturbation needs to enter the mean.",
)
@click.option(
    "--max-residual",
    type=click.FloatRange(min=0),
    default=0.3,
    show_default=True,
    help="context-mean: largest share of its target's control expression that a perturbation may keep.",
)
@click.option(
    "--exclude-target-gene/--keep-target-gene",
    default=True,
    show_default=True,
    help="generic: leave each perturbation out of the mean of its own gene.",
)
@click.option(
    "--anchor/--no-anchor", default=True, show_default=True, help="vcc2026, replicate anchors: what scores 1."
)
@click.option("--splits", type=click.IntRange(min=1), default=5, show_default=True, help="Replicate splits.")
@click.option(
    "--base-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of splits, halves and drawn baselines.",
)
@click.option("--profile", metavar="NAME", help="Metrics to measure; default: the edition's own choice.")
@click.option("--pert-col", metavar="COL", help="obs column of the labels; default: the edition's.")
@click.option("--control", metavar="LABEL", help="Control label; default: the edition's.")
@click.option("--context-col", metavar="COL", help="obs column of the contexts; default: the edition's.")
@click.option(
    "--matrix",
    type=click.Choice(["counts", "log1p"]),
    help="2025 and cell-eval: kind of X, instead of detection.",
)
@click.option("--no-target-genes", is_flag=True, help="The perturbations have no target gene to leave out.")
@click.option(
    "--target-map", type=click.Path(dir_okay=False), help="CSV label,gene; an empty gene means none."
)
@threads_option
@memory_option
@scoring_device_option
@executor_option
@dry_run_option
@force_option
@quiet_option
@format_option
def build(
    real: str,
    edition: str,
    out: str,
    baseline: str | None,
    train: str | None,
    perts: str | None,
    ceiling: bool,
    emission: Any,
    min_cells: int,
    max_residual: float,
    exclude_target_gene: bool,
    anchor: bool,
    splits: int,
    base_seed: int,
    profile: str | None,
    pert_col: str | None,
    control: str | None,
    context_col: str | None,
    matrix: Any,
    no_target_genes: bool,
    target_map: str | None,
    threads: int | None,
    memory: int | None,
    device: str,
    executor: str,
    dry_run: bool,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Build the truth bundle of REAL.h5ad (real cells, controls included).

    \b
    Examples:
      vcbench truth build context_A.h5ad --edition vcc2026 -o bundle_A/
      vcbench truth build context_A.h5ad --edition vcc2026 --baseline generic --emission dispersed -o bundle_A/
      vcbench truth build test.h5ad --edition vcc2025 --train train.h5ad --perts pert_counts.csv -o bundle/
    """
    from .executors import open_executor
    from .kernels.idle import let_idle_threads_sleep
    from .truth import build_truth, check_folder

    let_idle_threads_sleep()
    check_folder(Path(out), force=force)
    if dry_run:
        from .estimate import estimate_truth

        found = estimate_truth(
            real,
            edition=edition,
            pert_col=pert_col,
            n_splits=splits,
            anchor=anchor,
            threads=threads,
            memory=memory,
        )
        echo_estimate(found.to_json(), output_format=output_format)
        return
    with shown_progress(quiet, lines=True) as show, open_executor(executor, threads=threads) as workers:
        bundle = build_truth(
            real,
            out,
            edition=edition,
            profile=profile,
            baseline=baseline,
            train=train,
            perts=perts,
            ceiling=ceiling,
            emission=emission,
            min_cells=min_cells,
            max_residual=max_residual,
            exclude_target_gene=exclude_target_gene,
            anchor=anchor,
            n_splits=splits,
            base_seed=base_seed,
            pert_col=pert_col,
            control=control,
            context_col=context_col,
            matrix=matrix,
            no_target_genes=no_target_genes,
            target_map=target_map,
            threads=threads,
            memory=memory,
            device=device,
            executor=workers,
            force=force,
            progress=show,
        )
    if output_format == "json":
        echo_json({"bundle": str(bundle.path), "sha256": bundle.sha256, "manifest": dict(bundle.manifest)})
        return
    rows = [(context or "all", metric, *map(_number, ends)) for context, metric, *ends in ends_of(bundle)]
    title = f"bundle {bundle.path} (local references)"
    echo_table(("context", "metric", "baseline", "replicate or ceiling"), rows, title=title)


def ends_of(bundle: Bundle) -> list[tuple[str, str, float | None, float | None]]:
    """(context, metric, lower end, upper end) of every metric in a bundle; the upper one is a replicate or ceiling."""
    from .celleval.bundle import CellevalBundle
    from .vcc2026.bundle import TruthBundle

    if isinstance(bundle, TruthBundle):
        pairs = {context: (ends.zeros, ends.ones) for context, ends in bundle.ends.items()}
    else:
        assert isinstance(bundle, CellevalBundle)
        pairs = {bundle.contexts[0]: (bundle.baseline or {}, bundle.ceiling(bundle.metrics))}
    return [
        (context, metric, zeros.get(metric), ones.get(metric))
        for context, (zeros, ones) in pairs.items()
        for metric in sorted({*zeros, *ones})
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
