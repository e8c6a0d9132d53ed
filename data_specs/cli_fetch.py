"""`vcbench data fetch`: download a published file."""

from __future__ import annotations

import click

from .cli_support import (
    dry_run_option,
    echo_json,
    echo_table,
    force_option,
    format_option,
    note,
    out_option,
    quiet_option,
    shown_progress,
)


@click.command()
@click.argument("dataset", metavar="ID|TOML")
@click.option(
    "--file", "name", metavar="NAME|ROLE", help="Which file of the dataset; default: the first one."
)
@out_option(help="Folder for the file.")
@dry_run_option
@force_option
@quiet_option
@format_option
def fetch(
    dataset: str, name: str | None, out: str, dry_run: bool, force: bool, quiet: bool, output_format: str
) -> None:
    """Download a published file: resumed after a cut, checked, with its licence and size told first.

    \b
    Example: vcbench data fetch norman2019_scperturb -o downloads/
    """
    from .fetch import chosen_file, fetch_file, plan_fetch
    from .specs import load_card

    spec = load_card(dataset)
    file = chosen_file(spec, name)
    plan = plan_fetch(file, out, force=force)
    size = "unknown size" if plan.n_bytes is None else f"{plan.n_bytes / 1e9:.2f} GB"
    note(f"licence: {spec.license}. Cite: {spec.citation.text} ({spec.citation.year})", quiet=quiet)
    note(f"{file.name}: {size}, {plan.n_present:,} bytes there; {plan.n_free / 1e9:.2f} GB free", quiet=quiet)
    facts = {
        "dataset": spec.id,
        "file": str(plan.target),
        "licence": spec.license,
        "n_bytes": plan.n_bytes,
        "n_present": plan.n_present,
        "n_free": plan.n_free,
    }
    if not dry_run:
        with shown_progress(quiet) as show:
            done = fetch_file(
                file,
                out,
                force=force,
                on_bytes=None if show is None else lambda n, all_: show(n, all_, file.name),
            )
        facts |= {
            "n_bytes": done.n_bytes,
            "resumed_from": done.resumed_from,
            "verified": done.verified or "no checksum",
        }
    if output_format == "json":
        echo_json(facts)
    else:
        echo_table(("fact", "value"), facts.items())
