"""Open a pair for scoring: contexts, labels, groups and scales, or every reason why they cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.issues import Issue, sort_issues
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ..score_options import ScoreOptions
from . import checks
from .scale import make_scale, scan_values
from .side import Side, group_codes

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Pair:
    """Prediction and truth of one context, over the same targets and genes. `context` is "" when there is one only."""

    context: str
    pred: Side
    truth: Side


@dataclass(frozen=True)
class _Table:
    """Labels and contexts of the rows of one file, object arrays of str or None."""

    source: Source
    labels: np.ndarray
    contexts: np.ndarray


def open_pairs(
    pred: Source, truth: Source, *, edition: Edition, options: ScoreOptions, progress: Progress
) -> tuple[list[Pair], list[Issue]]:
    """One pair per context of the truth, and the warnings.

    Without a context column all rows are one context. With a split, only the chosen perturbations of the truth
    and the control are kept, in both files.

    Raises
    ------
    InvalidFile
        The files cannot be compared (E565 to E570, E575 to E577), or their values break the rules of the
        matrix kind (E571 to E574); all problems of a stage at once.
    """
    column = options.pert_col or edition.file.perturbation_column
    control = options.control or edition.file.control_label
    context_column = options.context_col or edition.file.context_column
    columns = [column] if context_column is None else [column, context_column]
    issues = checks.gene_issues(pred, truth)
    for source in (truth, pred):
        issues += checks.row_kind_issues(source, edition.id)
        issues += checks.column_issues(source, columns)
    if any(issue.code == "E567" for issue in issues):
        raise InvalidFile(sort_issues(issues))
    tables = {
        "truth": _table(truth, column, context_column),
        "pred": _table(pred, column, context_column),
    }
    for table in tables.values():
        issues += checks.unlabelled_issues(table.source, column, table.labels)
    chosen, label_issues = _targets(tables, column, control, options)
    issues += label_issues
    if issues:
        raise InvalidFile(sort_issues(issues))

    pairs, warnings = [], []
    for context, targets in chosen.items():
        sides = {}
        for done, role in enumerate(("truth", "pred")):
            progress(done, 2, f"reading {tables[role].source.name}")

            def opened(role: str = role, context: str = context, targets: tuple[str, ...] = targets):
                return _open_side(
                    role, tables[role], context, targets, control, edition=edition, options=options
                )

            key = ("cell-eval side", context, targets)
            side, problems, notes = options.remembered(key, opened) if role == "truth" else opened()
            issues += problems
            warnings += notes
            sides[role] = side
        if not issues:
            pairs.append(Pair(context, sides["pred"], sides["truth"]))
    if issues:
        raise InvalidFile(sort_issues(issues))
    return pairs, warnings


def open_prediction(
    pred: Source,
    truth: checks.GeneAxis,
    panels: Mapping[str, tuple[str, ...]],
    *,
    context_column: str | None,
    edition: Edition,
    options: ScoreOptions,
    progress: Progress,
) -> tuple[dict[str, Side], list[Issue]]:
    """The prediction's side of every context of a truth that is known already, and the warnings.

    Parameters
    ----------
    truth
        Name and genes of the truth, for comparison and messages.
    panels
        Context to its perturbations in code-point order. Without `context_column` all rows are the only context.

    Raises
    ------
    InvalidFile
        As `open_pairs`, for the prediction alone.
    """
    column = options.pert_col or edition.file.perturbation_column
    control = options.control or edition.file.control_label
    columns = [column] if context_column is None else [column, context_column]
    issues = checks.gene_issues(pred, truth) + checks.row_kind_issues(pred, edition.id)
    issues += checks.column_issues(pred, columns)
    if any(issue.code == "E567" for issue in issues):
        raise InvalidFile(sort_issues(issues))
    table = _table(pred, column, context_column)
    if context_column is None:
        table.contexts[:] = next(iter(panels))
    issues += checks.unlabelled_issues(pred, column, table.labels)
    for context, targets in panels.items():
        place = f" (context {context})" if context else ""
        present = {x for x in table.labels[table.contexts == context] if x is not None}
        issues += checks.control_issues(pred, present, column, control, place)
        issues += checks.label_issues(pred, truth, present - {control}, set(targets), column, place)
    if issues:
        raise InvalidFile(sort_issues(issues))
    sides, warnings = {}, []
    for done, (context, targets) in enumerate(panels.items()):
        progress(done, len(panels), f"reading {pred.name}")
        side, problems, notes = _open_side(
            "pred", table, context, targets, control, edition=edition, options=options
        )
        issues, warnings = issues + problems, warnings + notes
        if side is not None:
            sides[context] = side
    if issues:
        raise InvalidFile(sort_issues(issues))
    return sides, warnings


def open_alone(source: Source, *, edition: Edition, options: ScoreOptions) -> Side:
    """One file as one context, with all its perturbations; for the ceiling and the mean baseline.

    Raises
    ------
    InvalidFile
        The labels or values cannot be used (E567, E569 to E577).
    """
    return _opened(source, None, edition, options)[0][1]


def open_contexts(source: Source, *, edition: Edition, options: ScoreOptions) -> list[tuple[str, Side]]:
    """(context, side) of every context of a truth, sorted; one nameless context without a context column.

    Raises `InvalidFile` as `open_alone`.
    """
    return _opened(source, options.context_col or edition.file.context_column, edition, options)


def _opened(
    source: Source, context_column: str | None, edition: Edition, options: ScoreOptions
) -> list[tuple[str, Side]]:
    column = options.pert_col or edition.file.perturbation_column
    control = options.control or edition.file.control_label
    issues = checks.row_kind_issues(source, edition.id) + checks.repeated_gene_issues(source)
    issues += checks.column_issues(source, [column, *([context_column] if context_column else [])])
    if issues:
        raise InvalidFile(sort_issues(issues))
    table = _table(source, column, context_column)
    issues += checks.unlabelled_issues(source, column, table.labels)
    chosen = {}
    for context in sorted({c for c in table.contexts if c is not None}):
        place = f" (context {context})" if context else ""
        labels = {label for label in table.labels[table.contexts == context] if label is not None}
        issues += checks.control_issues(source, labels, column, control, place)
        chosen[context] = tuple(sorted(labels - {control}))
        if not chosen[context]:
            issues.append(checks.nothing_issue(source, place))
    if not chosen:
        issues.append(checks.nothing_issue(source, ""))
    if issues:
        raise InvalidFile(sort_issues(issues))
    sides = []
    for context, targets in chosen.items():
        side, found, _ = _open_side(
            "truth", table, context, targets, control, edition=edition, options=options
        )
        issues += found
        sides.append((context, side))
    if issues:
        raise InvalidFile(sort_issues(issues))
    return sides


def _table(source: Source, column: str, context_column: str | None) -> _Table:
    labels = source.labels(column).values()
    if context_column is None:
        return _Table(source, labels, np.full(source.n_obs, "", dtype=object))
    return _Table(source, labels, source.labels(context_column).values())


def _targets(
    tables: dict[str, _Table], column: str, control: str, options: ScoreOptions
) -> tuple[dict[str, tuple[str, ...]], list[Issue]]:
    """The perturbations to score per context, in code-point order."""
    chosen: dict[str, tuple[str, ...]] = {}
    issues: list[Issue] = []
    truth, pred = tables["truth"], tables["pred"]
    for context in sorted({c for c in truth.contexts if c is not None}):
        place = f" (context {context})" if context else ""
        wanted = _wanted(context, options)
        found = {}
        for role, table in tables.items():
            present = {x for x in table.labels[table.contexts == context] if x is not None}
            found[role] = {x for x in present if x == control or wanted is None or x in wanted}
            issues += checks.control_issues(table.source, present, column, control, place)
        issues += checks.label_issues(
            pred.source, truth.source, found["pred"] - {control}, found["truth"] - {control}, column, place
        )
        chosen[context] = tuple(sorted(found["truth"] - {control}))
        if not chosen[context]:
            issues.append(checks.nothing_issue(truth.source, place))
    if not chosen:
        issues.append(checks.nothing_issue(truth.source, ""))
    return chosen, issues


def _wanted(context: str, options: ScoreOptions) -> set[str] | None:
    """The perturbations of the split's part in this context; None without a split."""
    if options.split is None:
        return None
    keys = [key for key, (part, _) in options.split.rows.items() if options.subset in ("all", part)]
    if not context and len({place for place, _ in keys}) > 1:
        raise UsageError("the split has several contexts; name their column with --context-col.")
    return {perturbation for place, perturbation in keys if not context or place == context}


def _open_side(
    role: str,
    table: _Table,
    context: str,
    targets: tuple[str, ...],
    control: str,
    *,
    edition: Edition,
    options: ScoreOptions,
) -> tuple[Side | None, list[Issue], list[Issue]]:
    source = table.source
    groups = group_codes(table.labels, targets, control)
    groups[table.contexts != context] = -1
    keep = groups >= 0
    scan = scan_values(source, keep, block_bytes=options.block_bytes)
    problems = checks.value_issues(source, scan, options.matrix)
    if problems:
        return None, problems, []
    scale = make_scale(scan, keep, storage=source.matrix.storage, requested=options.matrix)
    problems = checks.scale_issues(source, scale)
    if problems:
        return None, problems, []
    side = Side(
        role, source, targets, groups, scan, scale, options.block_bytes, options.memory, options.device
    )
    return side, [], checks.declared_kind_warning(source, scale)
