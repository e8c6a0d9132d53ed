"""`vcbench tune`: the same budget, split and metric for every model."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import click

from ..data_specs.cli_support import (
    InputPath,
    echo_json,
    echo_table,
    format_option,
    note,
    out_option,
    quiet_option,
    seed_option,
    shown_progress,
)


@click.command(
    epilog="Example: vcbench tune ridge linear data.h5ad --split split.csv --features go:terms.gmt --budget 8 -o tuned"
)
@click.argument("names", nargs=-1, required=True, metavar="NAME... DATA")
@click.option("--split", type=InputPath(), required=True, help="Split CSV with validation rows.")
@click.option(
    "--budget", type=click.IntRange(min=1), default=8, show_default=True, help="Trials of every model."
)
@click.option("--by", default="pearson_delta", show_default=True, help="Metric of edition core that chooses.")
@click.option("--features", metavar="FILE|go:GMT", help="Target features, for the models that take them.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting of every trial, as epochs=5."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where deep models train.",
)
@seed_option
@quiet_option
@format_option
@out_option(help="The folder of the trials; those that are there already are not run again.")
def tune(
    names: tuple[str, ...],
    split: Path,
    budget: int,
    by: str,
    features: str | None,
    assignments: tuple[str, ...],
    device: str,
    seed: int,
    quiet: bool,
    output_format: str,
    out: str,
) -> None:
    """Tune the baselines NAME... on the standard file DATA, all with the same budget, split and metric.

    The first trial of a model has its defaults. Settings are chosen on the validation rows; test rows are never
    read. OUT/NAME.toml has the best settings, for `vcbench train NAME DATA --config OUT/NAME.toml`.
    """
    from ..evaluator.metrics.spec import family_metrics
    from .settings import parse_assignments
    from .tuning import best_trials
    from .tuning import tune as run_tuning

    if len(names) < 2:
        raise click.UsageError("give one model or more, and the data file last.")
    known = family_metrics("core")
    if by not in known:
        from ..data_specs.errors import UnknownName

        raise UnknownName("metric", by, sorted(known), "vcbench list metrics")
    with shown_progress(quiet, lines=True) as show:
        trials = run_tuning(
            names[:-1],
            names[-1],
            split,
            out,
            budget=budget,
            by=by,
            features=features,
            settings=dict(parse_assignments(assignments)),
            device=device,
            seed=seed,
            tell=show,
        )
    best = best_trials(trials, known[by].better)
    if output_format == "json":
        echo_json(
            {
                "trials": [asdict(trial) for trial in trials],
                "best": {name: asdict(trial) for name, trial in best.items()},
            }
        )
        return
    order = sorted(best.values(), key=lambda t: _order(t.value, known[by].better))
    rows = []
    for trial in order:
        default = next(t for t in trials if t.model == trial.model and t.trial == 0)
        own = [t for t in trials if t.model == trial.model]
        rows.append(
            (
                trial.model,
                f"{trial.value:.4g}",
                "–" if default.value is None else f"{default.value:.4g}",
                f"{trial.n}/{trial.n_total}",
                len(own),
                f"{sum(t.seconds for t in own):.1f}",
                ", ".join(f"{key}={value}" for key, value in trial.settings.items()) or "defaults",
            )
        )
    head = ("model", f"best {by}", "defaults", "rows", "trials", "s", "settings")
    echo_table(head, rows, title=f"tuned on {trials[0].n_total} validation rows, budget {budget}")
    for trial in trials:
        if trial.value is None:
            note(f"{trial.model}, trial {trial.trial + 1}: no value ({trial.reason})", quiet=quiet)


def _order(value: float | None, better: str) -> float:
    return math.inf if value is None else (-value if better == "higher" else value)
