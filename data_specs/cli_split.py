"""`vcbench data split`: draw a split by a scheme or by a published recipe."""

from __future__ import annotations

from typing import Any

import click

from .cli_support import echo_issues, echo_json, echo_table, force_option, format_option, note, out_option


def _fractions(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        parts = tuple(float(part) for part in value.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3:
        raise click.BadParameter(f"{value!r} is not three numbers such as 0.7,0.1,0.2.")
    return parts


def _targets(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(name.strip() for name in value.split(",") if name.strip())


def _scheme_help() -> str:
    from .splits import SCHEMES

    return "One of: " + ", ".join(SCHEMES) + "."


def _recipe_help() -> str:
    from .splits.recipes import recipe_ids

    return "A published split, or a TOML of your own. One of: " + ", ".join(recipe_ids()) + "."


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--scheme", default=None, metavar="NAME", help=_scheme_help())
@click.option("--recipe", default=None, metavar="NAME|TOML", help=_recipe_help())
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=None,
    help="Seed of the draw; default: the scheme's own (1 for the GEARS kinds, else 0), or the recipe's first.",
)
@click.option("--fold", type=int, default=None, help="folds: which fold is tested, from 0.")
@click.option("--folds", type=int, default=None, help="folds: how many.  [default: 5]")
@click.option("--context", default=None, help="leave-one-context-out, few-shot-context: the context.")
@click.option("--double", default=None, metavar="A+B", help="leave-one-double-out: the double.")
@click.option(
    "--fractions",
    default=None,
    callback=_fractions,
    metavar="TRAIN,VALIDATION,TEST",
    help="random: the shares.",
)
@click.option(
    "--validation-fraction", type=float, default=None, help="Share of the rest that selects models."
)
@click.option(
    "--train-fraction", type=float, default=None, help="few-shot-context: share that trains.  [default: 0.3]"
)
@click.option(
    "--test-fraction",
    type=float,
    default=None,
    help="transfer, held-out-combinations: share that is held out.  [default: 0.3, 0.5]",
)
@click.option(
    "--validation-share",
    type=float,
    default=None,
    help="transfer, held-out-combinations: share of the held-out that selects models.  [default: 0.5]",
)
@click.option(
    "--max-contexts", type=int, default=None, help="transfer: contexts that hold one out.  [default: 1]"
)
@click.option("--gene-fraction", type=float, default=None, help="gears-simulation: share of seen genes.")
@click.option("--combo-fraction", type=float, default=None, help="gears-simulation: share of trained pairs.")
@click.option(
    "--drop-uncovered", default=None, metavar="GMT", help="GEARS kinds: leave out targets without a gene set."
)
@click.option(
    "--max-term-size", type=int, default=None, help="Largest gene set that counts.  [default: 2000]"
)
@click.option(
    "--drop-targets",
    default=None,
    callback=_targets,
    metavar="A,B",
    help="GEARS kinds: leave out these targets.",
)
@out_option(help="The split CSV; a folder where a scheme writes one file per context or double.")
@format_option
@force_option
def split(
    file: str,
    scheme: str | None,
    recipe: str | None,
    out: str,
    output_format: str,
    force: bool,
    **options: Any,
) -> None:
    """Draw a split of a standard h5ad and write it as CSV, with its record beside it as JSON.

    A recipe is a published split: it knows the hash of the labels it was drawn on and its sizes, and says when the
    file has other labels.

    \b
    Examples:
      vcbench data split norman.h5ad --scheme gears-simulation --seed 1 -o split.csv
      vcbench data split norman.h5ad --recipe gears-norman --seed 1 -o split.csv
      vcbench data split norman.h5ad --scheme leave-one-double-out -o doubles
      vcbench data split norman.h5ad --scheme folds --folds 5 --fold 0 -o fold0.csv
    """
    from .errors import UsageError
    from .splits import draw_split
    from .splits.labels_table import read_labels
    from .splits.output import write_splits
    from .splits.recipes import draw_recipe, load_recipe

    if (scheme is None) == (recipe is None):
        raise UsageError(
            "give either --scheme NAME or --recipe NAME; `vcbench data split --help` lists both."
        )
    issues = ()
    facts: dict[str, Any] = {"scheme": scheme}
    if recipe is not None:
        chosen = load_recipe(recipe)
        made = draw_recipe(read_labels(file), chosen, source=file, **options)
        drawn, issues = made.splits, made.issues
        facts = {
            "scheme": chosen.scheme,
            "recipe": chosen.id,
            "draw": chosen.draw,
            "labels": made.labels,
            "issues": [issue.to_json() for issue in issues],
        }
    else:
        drawn = draw_split(read_labels(file), scheme or "", **options)
    written = write_splits(drawn, out, source=file, force=force)
    if output_format == "json":
        echo_json({**facts, "splits": [{"path": str(path), **part.record} for path, part in written]})
        return
    echo_issues(issues, err=True)
    rows = [(str(path), part.record["n"]) for path, part in written]
    echo_table(
        ("file", "train", "validation", "test"),
        [(path, n["train"], n["validation"], n["test"]) for path, n in rows],
    )
    if recipe is not None:
        note(
            f"recipe {facts['recipe']}: labels beside the published ones: {facts['labels']}; draw: {facts['draw']}"
        )
    for _, part in written:
        for key in ("completed", "drop_uncovered"):
            if key in part.record:
                note(f"{key}: {part.record[key]}")
