"""`vcbench data export`: a standard h5ad in a published layout."""

from __future__ import annotations

import click

from .cli_support import (
    echo_issues,
    echo_json,
    echo_table,
    force_option,
    format_option,
    out_option,
    quiet_option,
)
from .cli_support import shown_progress as shown


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--to",
    "layout",
    required=True,
    metavar="LAYOUT|TOML",
    help="gears, scperturb, celleval, vcc2025, vcc2026, a layout of your own; `published`: as before conversion.",
)
@click.option(
    "--spec", metavar="ID|TOML", help="published: the spec that converted FILE, when it is your own."
)
@click.option(
    "--rankings/--no-rankings",
    default=True,
    show_default=True,
    help="gears: rank the genes of every condition, which GEARS needs to train.",
)
@out_option(help="The h5ad to write.")
@format_option
@force_option
@quiet_option
def export(
    file: str,
    layout: str,
    spec: str | None,
    rankings: bool,
    out: str,
    output_format: str,
    force: bool,
    quiet: bool,
) -> None:
    """Turn a standard h5ad back into a published layout; published columns get their names back.

    \b
    Examples:
      vcbench data export norman.h5ad --to gears -o norman/perturb_processed.h5ad
      vcbench data export norman.h5ad --to published -o norman_published.h5ad
    """
    from .errors import UsageError
    from .export import export as export_file
    from .export_published import PUBLISHED, export_published

    if spec is not None and layout != PUBLISHED:
        raise UsageError("--spec names the spec that converted FILE, so it needs --to published.")

    with shown(quiet) as show:
        on_rows = None if show is None else lambda n, total: show(n, total, "cells")
        if layout == PUBLISHED:
            done = export_published(file, spec, out=out, force=force, on_rows=on_rows)
        else:
            done = export_file(file, layout, out=out, rankings=rankings, force=force, on_rows=on_rows)
    facts = {
        "out": str(done.path),
        "layout": done.layout,
        "n_cells": done.n_cells,
        "n_genes": done.n_genes,
        "n_dropped": done.n_dropped,
        "matrix": done.matrix,
        "target_sum": done.target_sum,
        "restored": list(done.restored),
    }
    if output_format == "json":
        echo_json({**facts, "issues": [i.to_json() for i in done.issues]})
        return
    echo_issues(done.issues, err=True)
    echo_table(("fact", "value"), {**facts, "restored": ", ".join(done.restored)}.items())
