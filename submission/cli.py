"""Commands of the submission part: pack, unpack, inspect. They parse, call one function and print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    EXIT_INVALID,
    dry_run_option,
    echo_issues,
    echo_json,
    echo_table,
    edition_option,
    force_option,
    format_option,
    note,
    out_option,
    quiet_option,
    seed_option,
    threads_option,
)
from ..data_specs.issues import first_of

if TYPE_CHECKING:
    from .diffing import Difference
    from .inspection import Inspection
    from .packing import PackResult

_MODES = ("tile", "shift", "scale", "counts", "thin")


@click.command(
    epilog="Example: vcbench pack RUN --edition vcc2025 --genes gene_names.csv --perts pert_counts.csv "
    "--controls train.h5ad -o entry.vcc"
)
@click.argument("pred", nargs=-1, required=True, metavar="[CONTEXT=]PRED...")
@edition_option()
@click.option("--genes", type=click.Path(), help="Official gene list (CSV); genes are put in its order.")
@click.option(
    "--perts", type=click.Path(), help="Official perturbation list (CSV), with n_cells where given."
)
@click.option(
    "--controls",
    multiple=True,
    metavar="[CONTEXT=]FILE",
    help="File with control cells, for the entry and for emission. Repeat it for several files.",
)
@click.option(
    "--contexts",
    metavar="A,B,C",
    help="Use only these contexts; where the edition requires contexts, exactly these.",
)
@click.option(
    "--cells", "n_cells", type=click.IntRange(min=1), help="Cells per perturbation, for mean effects."
)
@click.option(
    "--mode", type=click.Choice(_MODES), help="How mean effects become cells; default: the edition's."
)
@click.option(
    "--effect-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Multiply the predicted change by this.",
)
@click.option(
    "--score-emission",
    type=click.IntRange(min=2),
    metavar="N",
    help="Also score what emission alone costs, on N perturbations of each context.",
)
@click.option("--pert-col", help="Perturbation column of PRED.")
@click.option("--control", help="Control label of PRED.")
@click.option(
    "--matrix", type=click.Choice(["counts", "log1p"]), help="What X of PRED holds, if it does not say so."
)
@click.option(
    "--target-sum", type=float, help="Total that log1p values of PRED were scaled to, if it does not say so."
)
@out_option(help="The entry: .vcc or .h5ad.")
@seed_option
@threads_option
@force_option
@dry_run_option
@quiet_option
@format_option
def pack(
    pred: tuple[str, ...],
    edition: str,
    contexts: str | None,
    controls: tuple[str, ...],
    output_format: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Turn predictions (cells, mean effects or a run folder) into a valid entry."""
    from .packing import pack as run_pack

    progress = None if quiet or not sys.stderr.isatty() else _show_progress
    result = run_pack(
        pred,
        edition,
        contexts=[name.strip() for name in contexts.split(",") if name.strip()] if contexts else None,
        controls=controls or None,
        progress=progress,
        **options,
    )
    for line in result.record.get("notes", []):
        note(line, quiet=quiet)
    if result.record.get("mode_reason"):
        note(result.record["mode_reason"], quiet=quiet)
    if result.record.get("amplified"):
        note("effect scale outside 0.25 to 4: recorded as amplified", quiet=quiet)
    if output_format == "json":
        echo_json(
            {
                "entry": None if result.entry is None else str(result.entry),
                "manifest": None if result.manifest is None else str(result.manifest),
                "record": result.record,
                "issues": [issue.to_json() for issue in result.warnings],
                "next": result.next_command,
            }
        )
        return
    echo_issues(result.warnings, err=True)
    _print_pack(result)


def _show_progress(done: int, total: int) -> None:
    click.echo(f"\remitted {done:,} of {total:,} perturbations", nl=done == total, err=True)


def _print_pack(result: PackResult) -> None:
    planned = result.record["planned"]
    shape = f"{planned['n_rows']:,} rows x {planned['n_genes']:,} genes"
    if result.entry is None:
        click.echo(
            f"dry run: {shape}, about {planned['estimated_bytes'] / 2**20:,.1f} MiB before compression"
        )
    else:
        size = result.record["entry"]["bytes"]
        click.echo(f"{result.entry}: {shape}, {size / 2**20:,.1f} MiB, valid for {result.record['edition']}")
        worst = max((r["max_abs_error"] for r in result.record["emission"]), default=None)
        if worst is not None:
            click.echo(
                f"emitted {len(result.record['emission']):,} groups; largest error of a group mean {worst:.3g}"
            )
    if "emission_scores" in result.record:
        _print_emission_scores(result.record["emission_scores"])
    click.echo(f"next: {result.next_command}")


def _print_emission_scores(found: dict[str, Any]) -> None:
    rows = [
        [score["metric"], *(_number(score[key]) for key in ("entry", "second_draw", "perfect"))]
        for score in found["metrics"]
    ]
    head = ["metric", "this emission", "second draw of real-like cells", "perfect"]
    title = (
        f"what emission alone costs, on {found['n_perturbations']} perturbations per context: {found['note']}"
    )
    echo_table(head, rows, title=title)


@click.command(epilog="Example: vcbench unpack entry.vcc -o prediction.h5ad")
@click.argument("entry", type=click.Path())
@out_option(help="The h5ad to write.")
@force_option
@quiet_option
@format_option
def unpack(entry: str, out: str, force: bool, quiet: bool, output_format: str) -> None:
    """Turn a submission file back into the h5ad it holds."""
    from .unpacking import unpack as run_unpack

    result = run_unpack(entry, out=out, force=force)
    if output_format == "json":
        echo_json(
            {
                "h5ad": str(result.h5ad),
                "container": result.container,
                "n_obs": result.n_obs,
                "n_vars": result.n_vars,
                "issues": [issue.to_json() for issue in result.notes],
            }
        )
        return
    if not quiet:
        echo_issues(result.notes, err=True)
    click.echo(
        f"{result.h5ad}: {result.n_obs:,} rows x {result.n_vars:,} genes, from a {result.container} container"
    )
    click.echo(f"next: vcbench inspect {result.h5ad}")


@click.command(name="inspect", epilog="Example: vcbench inspect entry.vcc --format json")
@click.argument("file", type=click.Path())
@click.option("--tmp", type=click.Path(), help="Folder to unpack a .vcc in; default: beside it.")
@format_option
def inspect(file: str, tmp: str | None, output_format: str) -> None:
    """Show what is in an h5ad or a submission file."""
    from .inspection import inspect_file

    result = inspect_file(file, tmp=tmp)
    if output_format == "json":
        echo_json(result.to_json())
        return
    echo_issues(result.notes, err=True)
    _print_inspection(result)


def _print_inspection(found: Inspection) -> None:
    matrix = found.declared.get("matrix") or {}
    declared = f"{matrix.get('kind')}, target sum {matrix.get('target_sum')}" if matrix else "nothing"
    rows: list[tuple[str, str]] = [
        ("container", f"{found.container}, {found.file_bytes / 2**20:,.1f} MiB"),
        (
            "rows x genes",
            f"{found.n_obs:,} x {found.n_vars:,} ({found.declared.get('rows', 'rows not declared')})",
        ),
        ("X", f"{found.storage} {found.dtype}, {found.stored:,} stored, density {found.density:.3f}"),
        ("values", f"{found.values}, largest {_number(found.maximum)}"),
        ("declared", declared),
        ("row totals", _spread(found.row_totals)),
        ("genes detected", _spread(found.detected)),
        ("labels", f"{found.label_column}: {len(found.labels):,}" if found.label_column else "no column"),
        ("control rows", ", ".join(f"{name}: {n:,}" for name, n in found.controls.items()) or "none"),
        ("contexts", ", ".join(f"{name}: {n:,}" for name, n in found.contexts.items()) or "no column"),
        ("in memory", f"{found.memory['csr_float32'] / 2**20:,.1f} MiB sparse"),
        (
            "official 2026 tools",
            f"about {found.memory['official_packing'] / 2**30:,.1f} GiB to pack, "
            f"{found.memory['official_scoring'] / 2**30:,.1f} GiB on the server",
        ),
    ]
    bad = {"NaN": found.n_nan, "infinite": found.n_infinite, "negative": found.n_negative}
    if any(bad.values()):
        rows.append(("problems", ", ".join(f"{n:,} {name}" for name, n in bad.items() if n)))
    if found.n_unlabelled:
        rows.append(("unlabelled", f"{found.n_unlabelled:,} rows"))
    echo_table(["what", "found"], rows, title=found.path)
    if found.labels:
        largest = sorted(found.labels.items(), key=lambda item: (-item[1], item[0]))[:10]
        echo_table([found.label_column or "label", "rows"], [(name, f"{n:,}") for name, n in largest])


def _spread(spread: Any) -> str:
    if spread is None:
        return "none"
    return f"{_number(spread.minimum)} to {_number(spread.maximum)}, median {_number(spread.median)}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.6g}"


@click.command(epilog="Example: vcbench diff old.vcc new.vcc")
@click.argument("left", type=click.Path())
@click.argument("right", type=click.Path())
@click.option("--tmp", type=click.Path(), help="Folder to unpack .vcc files in; default: beside them.")
@format_option
def diff(left: str, right: str, tmp: str | None, output_format: str) -> None:
    """Show what separates two entries: genes, labels, cells per perturbation, mean profiles.

    Exit code 0: equal; 1: different; 2: wrong usage.
    """
    from .diffing import diff_entries

    found = diff_entries(left, right, tmp=tmp)
    if output_format == "json":
        echo_json(found.to_json())
    else:
        _print_difference(found)
    if not found.equal:
        click.get_current_context().exit(EXIT_INVALID)


def _print_difference(found: Difference) -> None:
    def some(items: tuple[Any, ...]) -> str:
        named = [
            item if isinstance(item, str) else ": ".join(part for part in item if part) for item in items
        ]
        return first_of(named)

    values = {True: "equal", False: "different", None: "not comparable"}[found.same_values]
    rows = [
        ("rows x genes", " and ".join(f"{n:,} x {m:,}" for n, m in (found.shape_left, found.shape_right))),
        ("genes", "same order" if found.same_gene_order else "another order or set"),
        ("only in the first", f"genes {some(found.genes_only_left)}; groups {some(found.groups_only_left)}"),
        (
            "only in the second",
            f"genes {some(found.genes_only_right)}; groups {some(found.groups_only_right)}",
        ),
        ("labels by row", "same" if found.same_labels else "different"),
        ("other numbers of rows", some(found.sizes_differ)),
        ("values", values),
        ("groups with other means", f"{len(found.groups):,}"),
    ]
    echo_table(["what", "found"], rows, title=f"{found.left} and {found.right}")
    if found.groups:
        table = [
            (g.context, g.perturbation, f"{g.largest:.4g}", f"{g.rms:.4g}", _number(g.correlation))
            for g in found.groups[:10]
        ]
        echo_table(["context", "perturbation", "largest", "rms", "correlation"], table)
    click.echo("equal" if found.equal else "different")
