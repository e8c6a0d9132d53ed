"""`vcbench data filter`: apply a published quality filter."""

from __future__ import annotations

import click

from .cli_support import (
    dry_run_option,
    echo_issues,
    echo_json,
    echo_table,
    force_option,
    format_option,
    note,
    out_option,
    quiet_option,
    seed_option,
    shown_progress,
)


def _recipe_help() -> str:
    from .filters.recipes import recipe_ids

    return "A published filter, or a TOML of your own. One of: " + ", ".join(recipe_ids()) + "."


@click.command("filter")
@click.argument("file", metavar="FILE")
@click.option("--recipe", required=True, metavar="NAME|TOML", help=_recipe_help())
@click.option(
    "--de-genes",
    type=click.Path(dir_okay=False),
    metavar="CSV",
    help="Numbers of DE genes (perturbation, n_de_genes), for recipes that ask for them.",
)
@seed_option
@out_option(required=False, help="The standard h5ad to write; its report goes beside it as NAME.filter.json.")
@dry_run_option
@format_option
@force_option
@quiet_option
def filter_(
    file: str,
    recipe: str,
    de_genes: str | None,
    seed: int,
    out: str | None,
    dry_run: bool,
    output_format: str,
    force: bool,
    quiet: bool,
) -> None:
    """Filter a standard h5ad by a published recipe, and report what went by which rule.

    \b
    Examples:
      vcbench data filter screen.h5ad --recipe cell-load --dry-run
      vcbench data filter screen.h5ad --recipe scperteval -o filtered.h5ad
    """
    from .errors import UsageError
    from .filters.apply import filter_file
    from .filters.recipes import load_recipe

    if out is None and not dry_run:
        raise UsageError("give -o OUT.h5ad, or --dry-run to see what would go.")
    chosen = load_recipe(recipe)
    with shown_progress(quiet) as show:
        report = filter_file(
            file,
            chosen,
            out=None if dry_run else out,
            seed=seed,
            de_genes=de_genes,
            force=force,
            on_rows=None if show is None else lambda done, total: show(done, total, "cells"),
        )
    if output_format == "json":
        echo_json({"out": None if report.path is None else str(report.path), **report.to_json()})
        return
    echo_issues(report.issues, err=True)
    names = ("cells", "genes", "perturbations", "controls")
    rows = [("(before)", *(f"{getattr(report.before, name):,}" for name in names))]
    for step in report.steps:
        shown = ", ".join(f"{key}={value}" for key, value in step.parameters.items())
        rows.append(
            (f"{step.rule} {shown}".strip(), *(f"-{getattr(step.removed, name):,}" for name in names))
        )
    rows.append(("(after)", *(f"{getattr(report.after, name):,}" for name in names)))
    echo_table(("rule", *names), rows, title=f"{report.recipe}: {report.title}")
    for text in report.left_out:
        note(f"not done by this recipe: {text}", quiet=quiet)
    if dry_run:
        note("dry run: nothing was written", quiet=quiet)
