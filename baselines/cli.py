"""The commands `train` and `predict`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ..data_specs.cli_support import (
    InputPath,
    dry_run_option,
    echo_json,
    echo_table,
    executor_option,
    force_option,
    format_option,
    note,
    out_option,
    quiet_option,
    seed_option,
)
from ..data_specs.errors import UsageError

_DEVICES = click.Choice(["auto", "cpu", "cuda"])


@click.command(
    epilog="Example: vcbench train linear data.h5ad --split split.csv --set n_components=20 -o run"
)
@click.argument("name")
@click.argument("data", type=InputPath())
@click.option("--split", type=InputPath(), help="Split CSV; without it every perturbation trains.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting; repeat for more.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="TOML file of settings; --set replaces single ones.",
)
@click.option(
    "--features", metavar="FILE|go:GMT", help="Target features: .tsv, .csv, .parquet or go:FILE.gmt[.gz]."
)
@click.option("--device", type=_DEVICES, default="auto", show_default=True, help="Where to train.")
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@dry_run_option
@seed_option
@force_option
@quiet_option
@format_option
@out_option(required=False, help="The run folder to write; --dry-run writes none.")
def train(
    name: str,
    data: Path,
    split: Path | None,
    assignments: tuple[str, ...],
    config: Path | None,
    features: str | None,
    device: str,
    resume: bool,
    dry_run: bool,
    seed: int,
    force: bool,
    quiet: bool,
    output_format: str,
    out: str | None,
) -> None:
    """Fit the baseline NAME on the standard file DATA and write a run folder.

    `vcbench list baselines` shows every NAME, `vcbench explain NAME` its settings. Deep models take --device,
    --resume and --dry-run, and train on several processes with `torchrun -m vcbench.baselines.training`.
    """
    from .registry import create, is_deep
    from .settings import parse_assignments
    from .train import load_data
    from .train import train as run_training

    if out is None and not dry_run:
        raise UsageError("train needs -o RUN, the run folder to write.")
    settings: dict[str, Any] = dict(parse_assignments(assignments))
    if config is not None:
        from .training.config import read_toml

        settings = {**read_toml(config), **settings}
    # Names and settings are checked before the data are read, which may take long.
    create(name, settings)
    if is_deep(name):
        options = {"settings": settings, "features": features, "seed": seed, "device": device}
        if dry_run:
            _estimate_deep(name, data, split, options, output_format)
        else:
            options |= {"resume": resume, "force": force, "quiet": quiet}
            _train_deep(name, data, split, str(out), options, output_format)
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(f"{name} is fitted in one process; use `vcbench train` without torchrun.")
    if device == "cuda":
        note(f"{name} is fitted on the CPU; --device cuda has no effect.", quiet=quiet)
    if resume:
        note(f"{name} is fitted in one step; there is nothing to resume.", quiet=quiet)
    loaded = load_data(data, split)
    if dry_run:
        shown = {"model": name, "n_train": len(loaded.data.keys), "n_genes": len(loaded.data.genes)}
        if output_format == "json":
            echo_json(shown)
        else:
            click.echo(
                f"{name}: {shown['n_train']} training rows, {shown['n_genes']:,} genes; fitted in one step."
            )
        return
    result = run_training(
        name, loaded, str(out), settings=settings, features=features, seed=seed, force=force
    )
    if output_format == "json":
        echo_json(result.to_json())
        return
    click.echo(
        f"{out}: {name}, {result.n_train} training rows, {result.n_genes:,} genes, "
        f"{result.n_parameters:,} stored numbers, fitted in {result.fit_s:.3g} s"
    )
    if result.amplified:
        note("amplified: the factor on predicted effects is outside 0.25 to 4.", quiet=quiet)
    for text in result.notes:
        note(text, quiet=quiet)


def _train_deep(
    name: str, data: Path, split: Path | None, out: str, options: dict[str, Any], output_format: str
) -> None:
    from .deep_train import train_deep

    result = train_deep(name, data, split, out, **options)
    if result is None:
        return
    if output_format == "json":
        echo_json(result.to_json())
        return
    click.echo(
        f"{out}: {name}, {result.n_train} training rows, {result.n_genes:,} genes, "
        f"{result.n_parameters:,} trained numbers, {result.steps:,} steps in {result.fit_s:.3g} s on {result.device}; "
        f"best {result.select} {result.best:.4g} after {result.best_step:,} steps ({result.stopped})"
    )
    for text in result.notes:
        note(text, quiet=options["quiet"])


def _estimate_deep(
    name: str, data: Path, split: Path | None, options: dict[str, Any], output_format: str
) -> None:
    from .deep_train import estimate_deep

    found = estimate_deep(name, data, split, **options)
    if os.environ.get("RANK", "0") != "0":
        return
    if output_format == "json":
        echo_json({"model": name, **found.to_json()})
        return
    peak = ", ".join(f"{where} {value:,.0f} MiB" for where, value in found.peak_mib.items())
    rows = [
        ["trained numbers", f"{found.n_parameters:,}"],
        ["weights, optimizer", f"{found.weights_mib:,.1f} MiB, {found.optimizer_mib:,.1f} MiB"],
        ["peak memory", peak],
        ["training cells", f"{found.n_cells:,}"],
        ["steps", f"{found.steps_per_epoch:,} per epoch, {found.steps:,} in all"],
        ["speed", f"{found.cells_per_s:,.0f} cells/s on {found.device}"],
        ["one epoch", f"{found.epoch_s:,.1f} s"],
        ["whole training", f"{found.total_s:,.1f} s, and {found.load_s:,.1f} s to load"],
    ]
    echo_table(["what", "estimate"], rows)


@click.command(epilog="Examples: vcbench predict run; vcbench predict run --cells 200 -o cells.h5ad")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--controls",
    type=InputPath(),
    help="Standard file with control cells; default: the control means of the training file.",
)
@click.option(
    "--perturbations",
    type=InputPath(),
    help="CSV context,perturbation of the rows to predict; default: the split's test rows.",
)
@click.option(
    "--cells", type=click.IntRange(min=1), help="Write this many cells per row instead of its mean profile."
)
@seed_option
@click.option(
    "--all", "everything", is_flag=True, help="Every row of the split (of training without a split)."
)
@click.option(
    "--device", type=_DEVICES, default="cpu", show_default=True, help="Where a deep model predicts."
)
@executor_option
@force_option
@quiet_option
@format_option
@out_option(
    required=False,
    help="The h5ad to write; default: prediction.h5ad in RUN, where `vcbench pack RUN` finds it.",
)
def predict(
    run: Path,
    controls: Path | None,
    perturbations: Path | None,
    everything: bool,
    cells: int | None,
    seed: int,
    device: str,
    executor: str,
    force: bool,
    quiet: bool,
    output_format: str,
    out: str | None,
) -> None:
    """Predict with the run folder RUN: one absolute mean profile per (context, perturbation), or cells.

    Cells are drawn from the control cells of --controls, by default those of the training file; models that predict
    cells themselves (their card says so) turn each into a cell of their own.
    """
    from ..data_specs.atomic import check_output
    from ..evaluator.executors import open_executor
    from ..submission.pack_inputs import PREDICTION_NAME
    from .predict import choose_keys, write_prediction
    from .predict import predict as run_prediction
    from .run_folder import load_run

    loaded = load_run(run, device=device)
    out = out or str(run / PREDICTION_NAME)
    inputs = [path for path in (controls, perturbations) if path is not None]
    check_output(out, inputs=inputs, force=force)
    keys = choose_keys(
        loaded, perturbations=perturbations, everything=everything, contexts=sorted(loaded.control_means)
    )
    with open_executor(executor) as workers:
        result = run_prediction(loaded, keys, controls=controls, executor=workers)
    summary = {"out": out, "model": loaded.name, **result.to_json()}
    if cells is None:
        write_prediction(out, result, loaded, inputs=inputs, force=force)
    else:
        from .emit import training_file, write_cells
        from .own_cells import write_own_cells

        source = controls or training_file(loaded)
        if getattr(loaded.model, "has_cells", False):
            write_own_cells(out, result, loaded, controls=source, n_cells=cells, seed=seed, force=force)
            summary["cells"] = "the model's own"
        else:
            reports = write_cells(out, result, loaded, controls=source, n_cells=cells, seed=seed, force=force)
            summary["emission"] = [report.to_json() for report in reports]
    if output_format == "json":
        echo_json(summary)
        return
    click.echo(
        f"{out}: {summary['n_predicted']} predicted, {summary['n_fallback']} fallback, "
        f"{summary['n_refused']} refused of {summary['n_rows']} rows, {summary['n_genes']:,} genes"
        + (f", {cells:,} cells each" if cells else "")
    )
    rows = [
        [kind, item["context"], item["perturbation"], item["reason"]]
        for kind in ("fallback", "refused")
        for item in summary[kind]
    ]
    if rows:
        echo_table(["status", "context", "perturbation", "reason"], rows)
    for text in result.notes:
        note(text, quiet=quiet)


@click.command(
    epilog="Example: vcbench features run -o genes.tsv; vcbench train ridge data.h5ad --features genes.tsv"
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--like", type=click.Path(path_type=Path), help="Keep the genes and targets of this standard file."
)
@force_option
@format_option
@out_option(help="The .tsv, .csv or .parquet table to write.")
def features(source: Path, like: Path | None, force: bool, output_format: str, out: str) -> None:
    """Write the gene embeddings of SOURCE, a run folder or an scGPT checkpoint folder, as a feature table."""
    from .feature_export import embedding_table, names_in, only, write_feature_table

    table = embedding_table(source)
    if like is not None:
        table = only(table, names_in(like))
    write_feature_table(out, table, inputs=[] if like is None else [like], force=force)
    if output_format == "json":
        echo_json({"out": out, "n_genes": len(table.names), "n_dims": table.n_dims})
        return
    click.echo(f"{out}: {len(table.names):,} genes, {table.n_dims} dimensions")


@click.command(epilog="Example: vcbench perfect data.h5ad --split split.csv -o perfect.h5ad")
@click.argument("data", type=InputPath())
@click.option("--split", required=True, type=InputPath(), help="Split CSV with test rows.")
@force_option
@out_option(help="The mean-effects h5ad to write.")
def perfect(data: Path, split: Path, force: bool, out: str) -> None:
    """Write the measured means of the test rows of DATA: the upper bound of a leaderboard, never a model."""
    from .suite import write_perfect

    click.echo(f"{out}: {write_perfect(data, split, out, force=force)} measured rows")
