"""`vcbench truth control-methods` and `vcbench truth de`: what Open Problems derives from real data, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ...data_specs.cli_support import (
    echo_issues,
    echo_json,
    echo_table,
    force_option,
    format_option,
    out_option,
    quiet_option,
    seed_option,
    shown_progress,
)


@click.command("control-methods")
@click.argument("real", type=click.Path())
@click.option("--train", type=click.Path(dir_okay=False), help="Training table; four of the methods need it.")
@click.option(
    "--id-map", type=click.Path(dir_okay=False), help="CSV id,cell_type,sm_name: the rows to predict."
)
@seed_option
@out_option(help="Folder of the predictions, METHOD.h5ad each.")
@force_option
@quiet_option
@format_option
def control_methods(
    real: str,
    train: str | None,
    id_map: str | None,
    seed: int,
    out: str,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Write what the six control methods of Open Problems predict for the test table REAL.

    \b
    Example:
      vcbench truth control-methods de_test.h5ad --train de_train.h5ad --id-map id_map.csv -o controls/
    """
    from .controls import write_control_predictions

    done = write_control_predictions(out, real, train, id_map=id_map, seed=seed, force=force)
    if output_format == "json":
        entries = {
            name: {"path": str(item), "reason": None}
            if isinstance(item, Path)
            else {"path": None, "reason": item}
            for name, item in done.items()
        }
        echo_json(entries)
        return
    rows = [(name, item if isinstance(item, Path) else f"not written: {item}") for name, item in done.items()]
    echo_table(("method", "file"), rows)


def _columns(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(name.strip() for name in value.split(",") if name.strip() not in ("", "none"))


@click.command()
@click.argument("cells", type=click.Path())
@click.option(
    "--replicate",
    "replicates",
    required=True,
    callback=_columns,
    metavar="COL[,COL]",
    help="obs columns that, with context and perturbation, make one pseudobulk.",
)
@click.option(
    "--covariate",
    "covariates",
    callback=_columns,
    metavar="COL[,COL]|none",
    help="Replicate columns that enter the model; default: the first one.",
)
@click.option("--pert-col", metavar="COL", help="obs column of the labels.  [default: perturbation]")
@click.option("--control", metavar="LABEL", help="Control label.  [default: control]")
@click.option("--context-col", metavar="COL", help="obs column of the contexts.  [default: context]")
@click.option(
    "--min-cells", type=click.IntRange(min=1), default=10, show_default=True, help="Cells of a pseudobulk."
)
@click.option(
    "--gene-filter/--all-genes",
    "filter_genes",
    default=True,
    show_default=True,
    help="Keep genes that are expressed in every context (edgeR's filterByExpr).",
)
@click.option(
    "--prior-count",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    help="Added to each count before the logarithm.",
)
@click.option("--split", type=click.Path(dir_okay=False), help="Split CSV; with --part.")
@click.option(
    "--part",
    type=click.Choice(["train", "validation", "test"]),
    help="Rows to write; for train, only training cells enter the model.",
)
@out_option(help="The table to write, an h5ad.")
@force_option
@quiet_option
@format_option
def de(cells: str, out: str, force: bool, quiet: bool, output_format: str, **options: Any) -> None:
    """Turn cells into a table of differential expression: pseudobulks, a linear model, moderated t tests.

    The table has the layout of the Open Problems task, so edition openproblems reads it as truth.

    \b
    Examples:
      vcbench truth de cells.h5ad --replicate donor -o de.h5ad
      vcbench truth de cells.h5ad --replicate plate,well --split split.csv --part test -o de_test.h5ad
    """
    from .de_table import write_de_table

    with shown_progress(quiet) as show:
        table = write_de_table(cells, out, force=force, progress=show, **options)
    record = table.record["de"]
    facts = {
        "out": out,
        "n_rows": len(table.keys),
        "n_genes": len(table.genes),
        "n_de": int(table.layers["is_de_adj"].sum()),
        **{key: record[key] for key in ("n_pseudobulks", "df_residual", "df_prior", "s2_prior")},
    }
    if output_format == "json":
        echo_json({**facts, "issues": [issue.to_json() for issue in table.issues]})
        return
    echo_issues(table.issues, err=True)
    echo_table(("fact", "value"), facts.items())
