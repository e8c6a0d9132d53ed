"""The `vcbench data` group: list, show, check, convert, simulate. Commands parse, call one function, print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .cli_support import (
    EXIT_INVALID,
    LazyGroup,
    echo_issues,
    echo_json,
    echo_table,
    force_option,
    format_option,
    out_option,
    quiet_option,
    seed_option,
)

_HERE = "vcbench.data_specs.cli"
COMMANDS = {
    "list": (f"{_HERE}:list_", "List the dataset layouts that vcbench knows."),
    "show": (f"{_HERE}:show", "Show the card of a dataset: source, licence, expected counts, traps."),
    "fetch": (
        "vcbench.data_specs.cli_fetch:fetch",
        "Download a published file: resumed, checked, licence told.",
    ),
    "check": (f"{_HERE}:check", "Recognise and check a published or a standard h5ad; all problems at once."),
    "convert": (f"{_HERE}:convert", "Turn a published h5ad into a standard one."),
    "filter": (
        "vcbench.data_specs.cli_filter:filter_",
        "Apply a published quality filter; report what went.",
    ),
    "split": ("vcbench.data_specs.cli_split:split", "Draw a split of a standard h5ad and write it as CSV."),
    "export": (
        "vcbench.data_specs.cli_export:export",
        "Turn a standard h5ad back into a published layout, for example GEARS'.",
    ),
    "panel": (
        "vcbench.data_specs.cli_panel:panel",
        "Cut a panel like the 2026 challenge's out of a data set.",
    ),
    "simulate": (f"{_HERE}:simulate", "Simulate a Perturb-seq data set and its truth."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def data() -> None:
    """Datasets: what is known about them, conversion, checks, splits, simulation."""


def _progress(what: str, *, quiet: bool) -> Callable[[int, int], None] | None:
    if quiet or not sys.stderr.isatty():
        return None

    def show_rows(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        click.echo(f"\r{what}: {done:,} of {total:,} cells{end}", err=True, nl=False)

    return show_rows


@click.command("list")
@format_option
def list_(output_format: str) -> None:
    """List the dataset layouts that vcbench knows.

    \b
    Example: vcbench data list
    """
    from .spec_models import DatasetSpec
    from .specs import card_ids, load_card

    cards = [load_card(name) for name in card_ids()]
    rows = [
        (
            card.id,
            card.modality,
            card.matrix.kind if isinstance(card, DatasetSpec) else "fetch only",
            card.n_cells.value if card.n_cells else None,
            card.title,
        )
        for card in cards
    ]
    headers = ("id", "modality", "matrix", "cells", "title")
    if output_format == "json":
        echo_json([dict(zip(headers, row, strict=True)) for row in rows])
    else:
        echo_table(headers, rows)


@click.command()
@click.argument("dataset", metavar="ID|TOML")
@format_option
def show(dataset: str, output_format: str) -> None:
    """Show the card of a dataset: source, licence, expected counts, traps.

    \b
    Example: vcbench data show norman2019_subset
    """
    from .cards import dataset_card
    from .specs import load_card

    spec = load_card(dataset)
    if output_format == "json":
        echo_json(spec.model_dump(mode="json"))
    else:
        click.echo(dataset_card(spec))


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--spec", default=None, metavar="ID|TOML", help="Layout of FILE; default: the one it is recognised as."
)
@format_option
@quiet_option
def check(file: str, spec: str | None, output_format: str, quiet: bool) -> None:
    """Recognise and check a published or a standard h5ad; all problems at once. Exit status 1 when there is an error.

    \b
    Examples:
      vcbench data check norman.h5ad --format json
      vcbench data check NormanWeissman2019_filtered.h5ad --spec norman2019_scperturb
    """
    from .issues import has_errors
    from .published_check import check_file
    from .specs import load_dataset

    chosen = None if spec is None else load_dataset(spec)
    done = check_file(file, chosen, on_rows=_progress("checking", quiet=quiet))
    issues, valid = done.issues, not has_errors(done.issues)
    candidates = done.recognition.candidates[:5] if done.recognition else ()
    if output_format == "json":
        found = [
            {"id": c.spec.id, "score": round(c.score, 4), "evidence": [e.text for e in c.evidence]}
            for c in candidates
        ]
        checked_as = done.spec.id if done.spec else "standard"
        echo_json(
            {
                "valid": valid,
                "checked_as": checked_as,
                "candidates": found,
                "issues": [i.to_json() for i in issues],
            }
        )
    else:
        if done.spec is not None and done.recognition is not None:
            click.echo(f"{file}: {done.spec.title}\n  {done.recognition.why()}")
        echo_issues(issues)
        n_errors = sum(issue.severity == "error" for issue in issues)
        verdict = "valid" if valid else "invalid"
        click.echo(f"{file}: {verdict} ({n_errors} errors, {len(issues) - n_errors} warnings and notes)")
    if not valid:
        raise click.exceptions.Exit(EXIT_INVALID)


@click.command()
@click.argument("src", metavar="SRC")
@click.option(
    "--spec", required=True, metavar="ID|TOML", help="Layout of SRC: `vcbench data list` shows all."
)
@out_option(help="The standard h5ad to write.")
@format_option
@force_option
@quiet_option
def convert(src: str, spec: str, out: str, output_format: str, force: bool, quiet: bool) -> None:
    """Turn a published h5ad into a standard one; refused with every reason when it is not as the spec says.

    \b
    Example: vcbench data convert norman2019_subset.h5ad --spec norman2019_subset -o norman.h5ad
    """
    from .conversion import convert as convert_file
    from .specs import load_dataset

    done = convert_file(
        src, load_dataset(spec), out=out, force=force, on_rows=_progress("converting", quiet=quiet)
    )
    facts: dict[str, Any] = {
        "out": str(done.path),
        "n_cells": done.n_cells,
        "n_genes": done.n_genes,
        "n_dropped": done.n_dropped,
        "n_controls": done.n_controls,
        "n_perturbations": done.n_perturbations,
        "contexts": list(done.contexts),
        "target_sum": done.target_sum,
        "target_sum_from": done.target_sum_from,
    }
    if output_format == "json":
        echo_json({**facts, "label_map": done.label_map, "issues": [i.to_json() for i in done.issues]})
        return
    echo_issues(done.issues, err=True)
    renamed = sum(source != name for source, name in done.label_map.items())
    facts |= {"contexts": ", ".join(done.contexts), "labels_rewritten": renamed}
    echo_table(("fact", "value"), facts.items())


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@click.command()
@out_option(help="The h5ad to write; its truth goes beside it as NAME.truth.h5ad.")
@click.option("--genes", type=int, default=2000, show_default=True, help="Genes.")
@click.option("--singles", type=int, default=60, show_default=True, help="Single perturbations.")
@click.option("--doubles", type=int, default=30, show_default=True, help="Pairs of them.")
@click.option(
    "--contexts", default="A", show_default=True, callback=_names, help="Context names, comma-separated."
)
@click.option("--cells", type=int, default=100, show_default=True, help="Cells per perturbation and context.")
@click.option("--controls", type=int, default=500, show_default=True, help="Control cells per context.")
@click.option("--depth", type=float, default=5000.0, show_default=True, help="Mean counts of a cell.")
@click.option("--programs", type=int, default=10, show_default=True, help="Gene programs.")
@click.option("--batches", type=int, default=2, show_default=True, help="Technical batches.")
@click.option("--effect-scale", type=float, default=1.0, show_default=True, help="Size of the effects.")
@click.option(
    "--context-similarity",
    type=float,
    default=0.8,
    show_default=True,
    help="Correlation of an effect between contexts.",
)
@click.option("--knockdown", type=float, default=0.8, show_default=True, help="Expression lost by a target.")
@click.option(
    "--modality",
    type=click.Choice(["CRISPRi", "CRISPRa", "drug", "cytokine"]),
    default="CRISPRi",
    show_default=True,
    help="Screen.",
)
@click.option(
    "--doses", default="", callback=_names, metavar="DOSES", help="drug: doses of each compound, as 10nM,1uM."
)
@click.option("--gmt", default=None, metavar="OUT.gmt", help="Also write gene sets that follow the programs.")
@seed_option
@format_option
@force_option
@quiet_option
def simulate(
    out: str, gmt: str | None, seed: int, output_format: str, force: bool, quiet: bool, **spec: Any
) -> None:
    """Simulate a Perturb-seq data set: a standard h5ad, its truth, and optionally gene sets.

    \b
    Example: vcbench data simulate -o sim.h5ad --genes 600 --singles 40 --doubles 20 --gmt sim.gmt
    """
    from .simulate import simulate_dataset
    from .simulate_model import SimulationSpec

    truth = simulate_dataset(
        out,
        SimulationSpec(**spec),
        seed,
        gmt=gmt,
        force=force,
        on_rows=_progress("simulating", quiet=quiet),
    )
    facts = {
        "out": str(truth.path),
        "truth": str(truth.truth_path),
        "gmt": None if gmt is None else str(Path(gmt)),
        "n_genes": len(truth.genes),
        "contexts": list(truth.contexts),
        "n_perturbations": len({name for _, name in truth.keys}),
        "n_interacting": int((truth.interaction != 0).any(axis=1).sum()),
        "target_sum": truth.target_sum,
    }
    if output_format == "json":
        echo_json(facts)
    else:
        echo_table(("fact", "value"), {**facts, "contexts": ", ".join(truth.contexts)}.items())
