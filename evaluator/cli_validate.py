"""`vcbench validate` and `vcbench verify`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    EXIT_INVALID,
    echo_issues,
    echo_json,
    edition_option,
    force_option,
    format_option,
    memory_option,
    quiet_option,
)
from ..data_specs.remote import input_path

if TYPE_CHECKING:
    from .checks.value_scan import Progress
    from .validation_report import ValidationReport

# Decoding, sorting and summing a block takes several copies of it.
BLOCKS_IN_MEMORY = 8
_LARGEST_BLOCK, _SMALLEST_BLOCK = 16 * 2**20, 2**20


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """What `validate` and `verify` share."""
    shared = (
        edition_option(),
        click.option("--genes", type=click.Path(), metavar="CSV", help="The official gene list, in order."),
        click.option("--perts", type=click.Path(), metavar="CSV", help="The official perturbation list."),
        click.option("--contexts", metavar="A,B,C", help="The contexts that the entry must hold."),
        click.option(
            "--controls",
            multiple=True,
            metavar="[CONTEXT=]FILE",
            help="Real control cells to compare the cells with. Repeat it for several files.",
        ),
        click.option(
            "--truth",
            multiple=True,
            metavar="[CONTEXT=]FILE",
            help="Held-out real cells: none of them may be in the entry.",
        ),
        click.option(
            "--train",
            multiple=True,
            metavar="[CONTEXT=]FILE",
            help="Training cells: predicted cells should not be copies of them.",
        ),
        click.option(
            "--pert-col", metavar="COLUMN", help="obs column of the perturbation; default: the edition's."
        ),
        click.option("--control", metavar="LABEL", help="Label of control cells; default: the edition's."),
        click.option(
            "--context-col", metavar="COLUMN", help="obs column of the context; default: the edition's."
        ),
        click.option(
            "--matrix",
            type=click.Choice(["counts", "log1p"]),
            help="The scale of X where the file does not declare it.",
        ),
        click.option(
            "--tmp", type=click.Path(), metavar="DIR", help="Where a .vcc is unpacked; default: beside it."
        ),
        memory_option,
        format_option,
        quiet_option,
    )
    for option in reversed(shared):
        command = option(command)
    return command


@click.command(
    epilog="Examples: vcbench validate pred.vcc --edition vcc2025 --genes gene_names.csv --perts pert_counts.csv"
)
@click.argument("file", type=click.Path())
@_options
@click.option(
    "--fix",
    type=click.Path(),
    metavar="OUT",
    help="Write a corrected copy (gene order, stored zeros, label suffixes, encoding) and check that.",
)
@click.option("--dry-run", is_flag=True, help="Check the header alone: genes, labels, panel; read no value.")
@force_option
def validate(file: str, fix: str | None, force: bool, **options: Any) -> None:
    """Check FILE (.h5ad or .vcc) against an edition: all problems at once, and what was not checked.

    Exit code 0: valid (warnings allowed); 1: invalid; 2: wrong usage. With --fix they are about the corrected copy.
    """
    if fix is None:
        _run(file, [], **options)
        return
    if options["dry_run"]:
        raise click.UsageError("--fix writes a file and --dry-run reads no value: give one of them.")
    from .fixing import fix_entry
    from .validation import CheckedNames

    names = ("genes", "perts", "pert_col", "control", "context_col", "matrix")
    contexts = options["contexts"]
    fixed = fix_entry(
        file,
        fix,
        edition=options["edition"],
        names=CheckedNames(
            contexts=None if contexts is None else _listed(contexts), **{key: options[key] for key in names}
        ),
        tmp=options["tmp"],
        force=force,
    )
    _run(fix, fixed.changes or ["nothing: a plain copy"], **options)


@click.command(
    epilog="Example: vcbench verify entry.vcc --edition vcc2026 --genes gene_names.csv --perts pert_counts.csv "
    "--contexts A,B,C"
)
@click.argument("file", type=click.Path())
@_options
def verify(file: str, **options: Any) -> None:
    """Check a finished submission file completely: its container, `meta.json` against the content, and all rules.

    Exit code 0: valid (warnings allowed); 1: invalid; 2: wrong usage.
    """
    from ..data_specs.containers import is_container
    from ..data_specs.errors import UsageError

    if input_path(file).is_file() and not is_container(file):
        raise UsageError(f"{file}: is no submission file; `vcbench validate` checks an h5ad.")
    _run(file, [], **options)


def _run(
    file: str,
    changes: Sequence[str],
    *,
    edition: str,
    contexts: str | None,
    controls: tuple[str, ...],
    truth: tuple[str, ...],
    train: tuple[str, ...],
    memory: int | None,
    output_format: str,
    quiet: bool,
    dry_run: bool = False,
    **options: Any,
) -> None:
    from .validation import validate as run_validate

    block = _LARGEST_BLOCK if memory is None else memory // BLOCKS_IN_MEMORY
    with _progress(quiet) as progress:
        report = run_validate(
            file,
            edition=edition,
            contexts=None if contexts is None else _listed(contexts),
            controls=controls or None,
            truth=truth or None,
            train=train or None,
            block_bytes=max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, block)),
            header_only=dry_run,
            progress=progress,
            **options,
        )
    if output_format == "json":
        echo_json(report.to_json() | ({"changes": list(changes)} if changes else {}))
    else:
        for change in changes:
            click.echo(f"changed: {change}")
        _print(report, file, edition)
    if not report.valid:
        click.get_current_context().exit(EXIT_INVALID)


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("names at least one context.", param_hint="--contexts")
    return names


def _print(report: ValidationReport, file: str, edition: str) -> None:
    echo_issues(report.issues)
    tally = {s: sum(issue.severity == s for issue in report.issues) for s in ("error", "warning", "info")}
    counts = f"{tally['error']} errors, {tally['warning']} warnings, {tally['info']} notes"
    size = (
        f"{report.facts['n_obs']:,} rows x {report.facts['n_vars']:,} genes; "
        if "n_obs" in report.facts
        else ""
    )
    click.echo(f"{file}: {'valid' if report.valid else 'INVALID'} for edition {edition}: {size}{counts}")
    if report.not_checked:
        click.echo("not checked:")
        for entry in report.not_checked:
            click.echo(f"  {entry.what}: {entry.why}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label="rows", file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance
