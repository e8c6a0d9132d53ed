"""`vcbench score`: one prediction against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data_specs.cli_support import (
    dry_run_option,
    echo_estimate,
    echo_issues,
    echo_json,
    echo_table,
    edition_option,
    executor_option,
    force_option,
    format_option,
    memory_option,
    note,
    out_option,
    quiet_option,
    scoring_device_option,
    seed_option,
    shown_progress,
    threads_option,
)
from ..data_specs.remote import input_path, is_remote
from .score_options import SUBSETS

if TYPE_CHECKING:
    from .scorecard import MetricValue, ScoreCard
    from .scoring import Scored, Scorer
    from .uncertainty.bootstrap import Interval


@click.command()
@click.argument("preds", nargs=-1, required=True, metavar="PRED...", type=click.Path())
@click.option(
    "--truth",
    "truths",
    required=True,
    multiple=True,
    metavar="[CONTEXT=]REAL.h5ad|BUNDLE",
    help="The real cells, controls included, or a truth bundle; repeat it with contexts for several.",
)
@edition_option()
@click.option("--profile", metavar="NAME", help="Metrics of the edition; default: the edition's own choice.")
@click.option("--split", type=click.Path(dir_okay=False), help="Split file: evaluate one part of it.")
@click.option(
    "--subset", type=click.Choice(SUBSETS), default="test", show_default=True, help="Part of the split."
)
@click.option("--pert-col", metavar="COL", help="obs column of the labels; default: the edition's.")
@click.option("--control", metavar="LABEL", help="Control label; default: the edition's.")
@click.option("--context-col", metavar="COL", help="obs column of the contexts; default: the edition's.")
@click.option(
    "--matrix",
    type=click.Choice(["counts", "log1p"]),
    help="Kind of X, only for files that do not declare it in uns/vcbench; it never overrides a declaration.",
)
@click.option("--name", metavar="NAME", help="Name of the entry in tables; default: the file's.")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="NAME=FILE",
    help="What the edition compares with: baseline=agg.csv, anchor=anchor_agg.parquet; openproblems: "
    "train=de_train.h5ad, id_map=id_map.csv, genes=intersection.",
)
@click.option(
    "--baseline",
    metavar="FILE|published",
    help="Short for --reference baseline=…: an agg_results.csv, or `published`.",
)
@click.option(
    "--no-target-genes", is_flag=True, help="vcc2026: perturbations have no target gene to leave out."
)
@click.option(
    "--target-map", type=click.Path(dir_okay=False), help="vcc2026: CSV label,gene; an empty gene means none."
)
@click.option(
    "--provenance",
    multiple=True,
    metavar="NAME=VALUE",
    help="What made the entries, where their files do not say: model, commit, seed, command, or a setting.",
)
@click.option("--no-intervals", is_flag=True, help="Leave out the 95% intervals over perturbations.")
@click.option(
    "--cell-resamples",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also give standard errors over cells: score N draws of the cells of every perturbation (N times the work).",
)
@click.option(
    "--only-missing",
    is_flag=True,
    help="Keep ScoreCards in --out that were made of the same files, rules and options; score the others.",
)
@click.option("--tmp", type=click.Path(), metavar="DIR", help="Where a .vcc is unpacked; default: beside it.")
@executor_option
@seed_option
@threads_option
@memory_option
@scoring_device_option
@dry_run_option
@out_option(required=False, help="Folder for the ScoreCard and its tables.")
@force_option
@quiet_option
@format_option
def score(
    preds: tuple[str, ...],
    truths: tuple[str, ...],
    edition: str,
    profile: str | None,
    split: str | None,
    subset: Any,
    pert_col: str | None,
    control: str | None,
    context_col: str | None,
    matrix: Any,
    name: str | None,
    references: tuple[str, ...],
    baseline: str | None,
    no_target_genes: bool,
    target_map: str | None,
    provenance: tuple[str, ...],
    no_intervals: bool,
    cell_resamples: int,
    only_missing: bool,
    tmp: str | None,
    executor: str,
    seed: int,
    threads: int | None,
    memory: int | None,
    device: str,
    dry_run: bool,
    out: str | None,
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Score PRED (cells or mean effects, .h5ad or .vcc) against the truth.

    Several are scored in one run that measures the truth once; --out is then the folder of their ScoreCards,
    which `vcbench compare` ranks. One that cannot be scored does not stop the others.

    \b
    Examples:
      vcbench score pred.h5ad --truth real.h5ad --edition core --split split.csv -o card/
      vcbench score a.h5ad b.h5ad --truth real.h5ad --edition core -o results/
      vcbench score pred.h5ad --truth A=a.h5ad --truth B=b.h5ad --edition core --format json
    """
    from .executors import open_executor
    from .kernels.idle import let_idle_threads_sleep
    from .provenance import parse_provenance
    from .scoring import Scorer
    from .vcc2026.targets import read_target_map

    let_idle_threads_sleep()
    if only_missing and out is None:
        raise click.UsageError("--only-missing needs --out, where the ScoreCards are.")
    folders = _card_folders(preds, name=name, out=out, force=force or only_missing)
    if dry_run:
        from .estimate import estimate_score

        for pred in preds:
            found = estimate_score(
                pred,
                parse_truths(truths),
                edition=edition,
                pert_col=pert_col,
                threads=threads,
                memory=memory,
            )
            echo_estimate(found.to_json(), output_format=output_format)
        return
    about = parse_provenance(provenance)
    with (
        shown_progress(quiet) as show,
        open_executor(executor, threads=threads) as workers,
        Scorer(
            parse_truths(truths),
            edition=edition,
            profile=profile,
            split=split,
            subset=subset,
            pert_col=pert_col,
            control=control,
            context_col=context_col,
            matrix=matrix,
            references=parse_references((*references, *([f"baseline={baseline}"] if baseline else []))),
            no_target_genes=no_target_genes,
            target_map=None if target_map is None else read_target_map(target_map),
            seed=seed,
            threads=threads,
            memory=memory,
            device=device,
            intervals=not no_intervals,
            cell_resamples=cell_resamples,
            executor=workers,
            tmp=tmp,
            progress=show,
            keep_truth=len(preds) > 1,
        ) as scorer,
    ):
        keys = {pred: scorer.content_key(pred) for pred in preds} if only_missing else {}
        todo = _without_kept(dict(zip(preds, folders, strict=True)), keys, quiet)
        if not todo:
            if output_format == "json":
                echo_json({"kept": [str(folder) for folder in folders]})
            return
        if len(preds) > 1:
            _score_many(scorer, todo, about, keys, force or only_missing, quiet, output_format)
            return
        if workers is not None and not scorer.divides_cells:
            only = "its draws are divided" if cell_resamples else "--executor divides several entries"
            note(f"one entry of this edition is scored here: {only}", quiet=quiet)
        pred = next(iter(preds))
        scored = scorer.score(pred, name=name, provenance=about)
    _remember(scored, keys.get(pred))
    if out:
        note(f"wrote {scored.write(out, force=force or only_missing)}", quiet=quiet)
    if output_format == "json":
        echo_json(scored.card.model_dump(mode="json"))
    else:
        _print_scored(scored, quiet=quiet)


def _card_folders(
    preds: Sequence[str], *, name: str | None, out: str | None, force: bool
) -> list[Path | None]:
    """Where the ScoreCard of each entry goes, checked before any work: the folder itself, or one in it per entry.

    Raises
    ------
    UsageError
        Several entries without a folder, with one name, or two whose files have the same name.
    OutputError
        A folder that may not be written.
    """
    from ..data_specs.errors import OutputError, UsageError

    if len(preds) == 1:
        if out:
            check_card_folder(out, force=force)
        return [None if out is None else Path(out)]
    if name is not None:
        raise UsageError("--name is for one entry; several are named after their files.")
    names = [input_path(pred).name.removesuffix(".h5ad").removesuffix(".vcc") for pred in preds]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"two entries are called {repeated[0]!r}; rename a file or score it alone with --name."
        )
    if out is None:
        return [None] * len(preds)
    folder = Path(out)
    if (folder.exists() and not folder.is_dir()) or (folder / "scorecard.json").exists():
        raise OutputError(
            f"{folder}: several entries need a folder of ScoreCards; this is none. Choose another --out."
        )
    for name in names:
        check_card_folder(str(folder / name), force=force)
    return [folder / name for name in names]


def _without_kept(
    folders: Mapping[str, Path | None], keys: Mapping[str, str], quiet: bool
) -> dict[str, Path | None]:
    """The entries whose folder does not hold the ScoreCard of their key; the others are named."""
    from .content_key import has_key

    todo = {}
    for pred, folder in folders.items():
        if pred in keys and folder is not None and has_key(folder, keys[pred]):
            note(f"kept {folder}: made of the same files, rules and options", quiet=quiet)
        else:
            todo[pred] = folder
    return todo


def _remember(scored: Scored, key: str | None) -> None:
    from .content_key import KEY

    if key is not None:
        scored.card.parameters[KEY] = key


def _score_many(
    scorer: Scorer,
    folders: Mapping[str, Path | None],
    about: Mapping[str, str],
    keys: Mapping[str, str],
    force: bool,
    quiet: bool,
    output_format: str,
) -> None:
    """Score one entry after the other, write each ScoreCard at once; exit code 1 when one could not be scored."""
    from ..data_specs.errors import InvalidFile
    from .scoring import Scored

    cards, failed = [], []
    for pred, scored in scorer.score_all(list(folders), provenance=about):
        folder = folders[str(pred)]
        if not isinstance(scored, Scored):
            issues = scored.issues if isinstance(scored, InvalidFile) else ()
            failed.append({"entry": pred, "error": str(scored), "issues": [i.to_json() for i in issues]})
            click.echo(f"{pred} was not scored:\n{scored}", err=True)
            continue
        _remember(scored, keys.get(str(pred)))
        cards.append(scored.card)
        if folder is not None:
            note(f"wrote {scored.write(folder, force=force)}", quiet=quiet)
        if output_format != "json":
            _print_scored(scored, quiet=quiet)
            click.echo()
    if output_format == "json":
        echo_json({"cards": [card.model_dump(mode="json") for card in cards], "failed": failed})
    if failed:
        click.get_current_context().exit(1)


def _print_scored(scored: Scored, *, quiet: bool) -> None:
    _print_table(scored.card, quiet=quiet)
    _print_cell_noise(scored.result.tables)
    _print_terms(scored.result.tables)
    _print_control_methods(scored.result.tables)
    _print_leaderboard(scored.result.tables)


def parse_truths(texts: Sequence[str]) -> list[tuple[str | None, str]]:
    """(context, path) of each `[CONTEXT=]PATH`. A text that is an existing path is never split.

    Raises `UsageError` for an empty path or a context given twice.
    """
    from ..data_specs.errors import UsageError

    out: list[tuple[str | None, str]] = []
    for text in texts:
        context, sign, path = text.partition("=")
        if not sign or is_remote(text) or Path(text).exists():
            context, path = "", text
        if not path:
            raise UsageError(f"--truth {text!r}: names no file.")
        if context and any(context == other for other, _ in out):
            raise UsageError(f"--truth gives the context {context!r} twice.")
        out.append((context or None, path))
    return out


def parse_references(texts: Sequence[str]) -> dict[str, str]:
    """Name to file of each `NAME=FILE`. Raises `UsageError` when one has another form or a name comes twice."""
    from ..data_specs.errors import UsageError

    out: dict[str, str] = {}
    for text in texts:
        name, sign, file = text.partition("=")
        if not (sign and name and file) or name in out:
            raise UsageError(f"--reference {text!r}: give NAME=FILE, each name once.")
        out[name] = file
    return out


def check_card_folder(out: str, *, force: bool) -> None:
    """Refuse an output folder before any work: taken, or (with `force`) not one that `vcbench score` wrote.

    Raises `OutputError`.
    """
    from ..data_specs.errors import OutputError

    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; --out needs a folder here.")
    if folder.exists() and not force:
        raise OutputError(f"{folder}: exists already. Choose another --out or add --force.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "scorecard.json").is_file():
        raise OutputError(
            f"{folder}: holds no ScoreCard, so --force does not replace it. Choose another --out."
        )


def _print_table(card: ScoreCard, *, quiet: bool) -> None:
    ceilings = _shown_ceilings(card)
    rows = [
        (
            name,
            "–" if value.value is None else f"{value.value:.6g}",
            _interval(value),
            "" if value.perfect is None else f"{value.perfect:g}",
            {"higher": "up", "lower": "down", "none": ""}[value.better],
            f"{value.n}/{value.n_total}",
            *([ceilings.get(name, "")] if ceilings else []),
            value.reason or "",
        )
        for name, value in card.metrics.items()
    ]
    echo_table(
        (
            "metric",
            "value",
            "95% interval",
            "perfect",
            "better",
            "n",
            *(["ceiling"] if ceilings else []),
            "nulls",
        ),
        rows,
        title=f"{card.name}: edition {card.edition}, profile {card.profile}",
    )
    shown = "–" if card.score is None else f"{card.score:.6g}"
    if card.score_interval is not None and card.score_interval.low is not None:
        shown += f" {_interval(card.score_interval)}"
    click.echo(f"score: {shown}" + (f" ({card.score_reason})" if card.score_reason else ""))
    if not quiet:
        from ..data_specs.issues import Issue

        echo_issues((Issue(**issue) for issue in card.issues), err=True)  # type: ignore[arg-type]


def _interval(value: MetricValue | Interval) -> str:
    return "–" if value.low is None or value.high is None else f"[{value.low:.4g}, {value.high:.4g}]"


def _shown_ceilings(card: ScoreCard) -> dict[str, str]:
    """Metric to its data ceiling as text, one number per context; empty without a ceiling."""
    stored = card.parameters.get("ceiling") or {}
    names = dict.fromkeys(name for values in stored.values() for name in values)
    return {
        name: " / ".join(f"{values[name]:.6g}" if name in values else "–" for values in stored.values())
        for name in names
    }


def _print_terms(tables: Mapping[str, Any]) -> None:
    """What each metric adds to the overall score: its ends, the score before and after clamping."""
    table = tables.get("from_baseline")
    title = "from_baseline"
    if table is None and "score_columns" in tables:
        table, title = tables["score_columns"], "from_replicate, local references"
        table = table[table["column"] == "from_replicate"].drop(columns="column")
    if table is None or not len(table):
        return
    hidden = [name for name in table.columns if name == "context" and not table[name].any()]
    shown = table.drop(columns=hidden)
    rows = [[_cell(value) for value in row] for row in shown.astype(object).values]
    click.echo()
    echo_table(list(shown.columns), rows, title=title)


def _print_cell_noise(tables: Mapping[str, Any]) -> None:
    """Standard errors over cells, where they were asked for."""
    if "cell_noise" in tables:
        table = tables["cell_noise"]
        click.echo()
        rows = [[_cell(value) for value in row] for row in table.astype(object).values]
        echo_table(["metric", "value", "standard error", "bias", "draws"], rows, title="over cells")


def _print_control_methods(tables: Mapping[str, Any]) -> None:
    """The control methods of a table edition under the entry's own values."""
    if "control_methods" in tables:
        table = tables["control_methods"]
        click.echo()
        rows = [[_cell(value) for value in row] for row in table.astype(object).values]
        echo_table(list(table.columns), rows, title="control methods")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_leaderboard(tables: Mapping[str, Any]) -> None:
    """The challenge's leaderboard layout, where the edition has one."""
    if "leaderboard" not in tables:
        return
    table = tables["leaderboard"]
    rows = [
        ["–" if cell != cell else f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row]
        for row in table.values
    ]
    click.echo()
    echo_table(list(table.columns), rows, title="leaderboard layout, local references")
