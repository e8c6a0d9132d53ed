"""Score one prediction in edition vcc2026: every context on its own, then the mean over contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import UsageError
from ...data_specs.issues import first_of
from ..score_options import ScoreOptions
from ..scorecard import MetricValue, ScoreResult, finite_or_none
from .catalog import ENTRIES, NORM, resolve
from .cells import Cells
from .columns import ContextScores, Ends, competition_score, leaderboard, score_contexts, score_table
from .measure import PanelValues, measure, needs_bulk, needs_cells, needs_de
from .panel import Columns, TruthCells, match_prediction, read_truth
from .parameters import check_parameters
from .sides import RealSide, bulk_panel, de_panel, measure_pred, measure_real
from .targets import TargetRule, gene_index

if TYPE_CHECKING:
    import pandas as pd

    from ...data_specs.sources import Source
    from ...data_specs.spec_models import Edition, Profile
    from ..pipelines import Progress
    from .bundle import JoinedBundles, TruthBundle


@dataclass(frozen=True)
class ContextResult:
    """One context: metric values and how many cells stood behind them."""

    context: str
    values: PanelValues
    n_cells_truth: np.ndarray
    n_cells_pred: np.ndarray
    n_control: int
    genes: tuple[str, ...]


def score_vcc2026(
    pred: Source,
    truth: Source | TruthBundle | JoinedBundles,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    progress: Progress,
) -> ScoreResult:
    """Score a prediction as cell-eval2 0.20 does with preset vcc2026 on CPU.

    The truth's contexts are scored separately; each value of the result is the mean over contexts, the values per
    context are its strata. Control cells of the prediction are replaced by the truth's. The overall score needs a
    truth bundle, or `options.references` with `anchor` and `baseline` (files of cell-eval2 or of a bundle).

    Raises
    ------
    InvalidFile
        The files break a scoring rule or do not fit together (codes E580 to E594).
    MetricError
        A metric cannot be computed, or its ends define no scale. Nothing is dropped silently.
    UsageError
        An option that this edition does not have.
    """
    from .bundle import JoinedBundles, TruthBundle

    if options.matrix == "log1p":
        raise UsageError("edition vcc2026 scores raw counts; log1p files are not read.")
    if options.split is not None:
        raise UsageError("edition vcc2026 scores every perturbation of the truth; --split is not used.")
    check_parameters(edition)
    names = resolve(profile.metrics)
    rule = target_rule(options)
    columns = Columns.of(edition, options)
    if isinstance(truth, (TruthBundle, JoinedBundles)):
        rule = _bundle_rule(truth, options)
        results, notes = _score_bundle(pred, truth, names, columns, options, rule, progress)
        ends = truth.ends
    else:
        results, notes = _score_cells(pred, truth, names, columns, options, rule, progress)
        ends = Ends.from_references(options.references, [result.context for result in results])
    notes += [note for result in results if (note := _unresolved_note(result, rule))]
    scored = score_contexts(edition, [(r.context, r.values) for r in results], ends)
    parameters = _parameters(columns, rule, ends) | {
        "control_cells_of_the_truth": {result.context or "all": result.n_control for result in results}
    }
    return assemble(edition, names, results, scored, notes=notes, parameters=parameters)


def target_rule(options: ScoreOptions) -> TargetRule:
    """How labels find their own gene, from the caller's options."""
    return TargetRule(dict(options.target_map or {}), options.no_target_genes)


def _bundle_rule(bundle: TruthBundle | JoinedBundles, options: ScoreOptions) -> TargetRule:
    """The rule the bundle's ends were measured with. Raises `UsageError` when the caller asks for another one."""
    asked = options.no_target_genes or options.target_map is not None
    if asked and target_rule(options) != bundle.rule:
        raise UsageError(
            f"bundle {bundle.name} was built with other target genes; build it again with these options."
        )
    return bundle.rule


def _unresolved_note(result: ContextResult, rule: TargetRule) -> str | None:
    """Which labels keep their own gene because no gene of the axis bears its name."""
    labels = result.values.perturbations
    index = gene_index(result.genes)
    unresolved = [
        label for label in labels if (gene := rule.gene_of(label)) is not None and gene not in index
    ]
    if not unresolved:
        return None
    place = f"{result.context}: " if result.context else ""
    return f"{place}no target gene is left out for {first_of(unresolved)}: not among the genes (--target-map names it)."


def _score_cells(
    pred: Source,
    truth: Source,
    names: Sequence[str],
    columns: Columns,
    options: ScoreOptions,
    rule: TargetRule,
    progress: Progress,
) -> tuple[list[ContextResult], list[str]]:
    truths = options.remembered(
        "2026 cells", lambda: read_truth(truth, columns, options, put_off=needs_de(names))
    )
    matched, notes = match_prediction(
        pred,
        columns,
        options,
        panels=[(t.context, t.perturbations) for t in truths],
        genes=truths[0].genes,
        put_off=needs_de(names),
    )
    results = []
    for context, cells in zip(truths, matched, strict=True):
        shown = replace(context, cells=_with_progress(context.cells, progress, f"truth {context.context}"))
        real = options.remembered(
            ("2026 truth", context.context),
            lambda shown=shown: measure_real(shown, need_de=needs_de(names), threads=options.threads),
        )
        cells = _with_progress(cells, progress, f"prediction {context.context}")
        results.append(score_context(cells, real, names, rule, threads=options.threads, truth=context))
    return results, notes


def _score_bundle(
    pred: Source,
    bundle: TruthBundle | JoinedBundles,
    names: Sequence[str],
    columns: Columns,
    options: ScoreOptions,
    rule: TargetRule,
    progress: Progress,
) -> tuple[list[ContextResult], list[str]]:
    if needs_cells(names):
        raise UsageError(
            "single-cell diagnostics need the real cells: give --truth REAL.h5ad instead of a bundle."
        )
    sides = bundle.sides()
    matched, notes = match_prediction(
        pred,
        columns,
        options,
        panels=[(side.context, side.perturbations) for side in sides],
        genes=sides[0].genes,
        put_off=needs_de(names),
    )
    results = []
    for real, cells in zip(sides, matched, strict=True):
        cells = _with_progress(cells, progress, f"prediction {real.context}")
        results.append(score_context(cells, real, names, rule, threads=options.threads))
    return results, notes


def _with_progress(cells: Cells, progress: Progress, text: str) -> Cells:
    """The same cells, which tell how far they are read."""
    return replace(cells, on_rows=lambda done, total: progress(done, total, text.strip()))


def score_context(
    cells: Cells,
    real: RealSide,
    names: Sequence[str],
    rule: TargetRule,
    *,
    threads: int | None = None,
    truth: TruthCells | None = None,
) -> ContextResult:
    """The metrics of one context; `truth` is needed for the single-cell diagnostics only."""
    want_de, want_bulk = needs_de(names), needs_bulk(names)
    pred = measure_pred(cells, real, need_de=want_de, threads=threads)
    extra = None
    if needs_cells(names):
        from .cell_cov import cell_diagnostics

        if truth is None:
            raise UsageError("single-cell diagnostics need the real cells, not a bundle.")
        extra = cell_diagnostics(truth, cells, rule)
    tests = None
    if want_de and real.de is not None and pred.de is not None:
        tests = de_panel(real.perturbations, real.genes, real.de, pred.de, rule)
    values = measure(
        names,
        real.perturbations,
        bulks=bulk_panel(real, pred, rule) if want_bulk else None,
        tests=tests,
        extra=extra,
    )
    n_cells = real.bulks.n_cells
    return ContextResult(real.context, values, n_cells[:-1], pred.bulks.n_cells, int(n_cells[-1]), real.genes)


def assemble(
    edition: Edition,
    names: Sequence[str],
    results: Sequence[ContextResult],
    scored: Sequence[ContextScores],
    *,
    notes: Sequence[str],
    parameters: Mapping[str, Any],
) -> ScoreResult:
    """The result over all contexts: tables, means over contexts, values per context as strata, the overall score."""
    per_context = {r.context: {name: metric_value(name, r) for name in names} for r in results}
    score, reason = competition_score(scored)
    left_out = [
        f"{s.context + ': ' if s.context else ''}{column.name} leaves out {metric}: {why}."
        for s in scored
        for column in s.columns
        for metric, why in column.left_out.items()
    ]
    return ScoreResult(
        per_perturbation=_per_perturbation(names, results),
        metrics={name: _over_contexts([per_context[r.context][name] for r in results]) for name in names},
        strata={f"context={context}": values for context, values in per_context.items()}
        if len(results) > 1
        else {},
        score=score,
        score_reason=reason,
        parameters=parameters,
        notes=(*notes, *left_out),
        tables={"score_columns": score_table(scored), "leaderboard": leaderboard(scored)},
    )


def metric_value(name: str, result: ContextResult) -> MetricValue:
    """One metric of one context, with its coverage and the cell-weighted mean."""
    entry, values = ENTRIES[name], result.values
    per = values.per_perturbation.get(name)
    value = finite_or_none(values.aggregate[name])
    cell_weighted = std = None
    if per is not None and value is not None:
        known = ~np.isnan(per)
        cell_weighted = float(np.average(per[known], weights=result.n_cells_truth[known]))
        std = float(per[known].std(ddof=1)) if known.sum() > 1 else None
    n_total, n = len(values.perturbations), values.n_used[name]
    return MetricValue(
        value=value,
        n=n,
        n_total=n_total,
        better=entry.better,
        perfect=entry.perfect,
        cell_weighted=cell_weighted,
        std=std,
        reason=None if n == n_total else f"no value for {n_total - n:,} of {n_total:,}: {entry.nulls}",
    )


def _over_contexts(values: Sequence[MetricValue]) -> MetricValue:
    """The mean over contexts; null when one context has no value."""
    first = values[0]
    if len(values) == 1:
        return first
    known = [v.value for v in values if v.value is not None]
    complete = len(known) == len(values)
    reasons = sorted({v.reason for v in values if v.reason})
    return MetricValue(
        value=float(np.mean(known)) if complete else None,
        n=sum(v.n for v in values),
        n_total=sum(v.n_total for v in values),
        better=first.better,
        perfect=first.perfect,
        reason="; ".join(reasons) or None,
    )


def _per_perturbation(names: Sequence[str], results: Sequence[ContextResult]) -> pd.DataFrame:
    import pandas as pd

    shown = [name for name in names if name != NORM]
    frames = [
        pd.DataFrame(
            {
                "context": r.context,
                "perturbation": list(r.values.perturbations),
                "n_cells_truth": r.n_cells_truth,
                "n_cells_pred": r.n_cells_pred,
                **{name: r.values.per_perturbation[name] for name in shown},
            }
        )
        for r in results
    ]
    return pd.concat(frames, ignore_index=True)


def _parameters(columns: Columns, rule: TargetRule, ends: Mapping[str, Ends]) -> dict[str, Any]:
    return {
        "perturbation_column": columns.perturbation,
        "control_label": columns.control,
        "target_genes": rule.describe(),
        "references": {context or "all": end.origin for context, end in ends.items()},
    }
