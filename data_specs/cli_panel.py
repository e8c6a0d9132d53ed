"""`vcbench data panel`: hold out a context locally."""

from __future__ import annotations

import click

from .cli_support import (
    echo_json,
    echo_table,
    force_option,
    format_option,
    out_option,
    quiet_option,
    seed_option,
)
from .cli_support import shown_progress as shown


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--contexts", metavar="A,B", help="Contexts of the panel; default: all of the file.")
@click.option("--cells", type=click.IntRange(min=1), default=400, show_default=True, help="Cells per target.")
@click.option("--controls", type=click.IntRange(min=1), help="Control cells per context; default: all.")
@click.option(
    "--depth", type=click.IntRange(min=1), default=20_000, show_default=True, help="Counts per cell."
)
@seed_option
@out_option(help="Folder of the panel.")
@force_option
@quiet_option
@format_option
def panel(
    file: str,
    contexts: str | None,
    cells: int,
    controls: int | None,
    depth: int,
    seed: int,
    out: str,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Cut a panel like the 2026 challenge's out of a standard h5ad: a competitor's files, and the truth to score with.

    \b
    Example: vcbench data panel screen.h5ad --contexts HepG2 --cells 400 --depth 20000 -o panel/
    """
    from .panel import simulate_panel

    with shown(quiet) as show:
        made = simulate_panel(
            file,
            out,
            contexts=None if contexts is None else [c.strip() for c in contexts.split(",") if c.strip()],
            cells=cells,
            controls=controls,
            depth=depth,
            seed=seed,
            force=force,
            on_rows=None if show is None else lambda done, total: show(done, total, "cells"),
        )
    facts = {
        "out": str(made.folder),
        "contexts": list(made.contexts),
        "n_perturbations": made.n_perturbations,
        "n_cells": made.n_cells,
        "n_controls": made.n_controls,
        "n_shallow": made.n_shallow,
        "n_targets_with_too_few_cells": len(made.too_small),
    }
    if output_format == "json":
        echo_json(facts)
    else:
        echo_table(("fact", "value"), {**facts, "contexts": ", ".join(made.contexts)}.items())
