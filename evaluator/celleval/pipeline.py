"""Score a prediction against a truth as cell-eval does: measure both sides, compute the columns, aggregate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import MetricError, UnknownName
from ..kernels.threads import numba_threads
from ..metrics.spec import MetricSpec, family_metrics
from ..scorecard import MetricValue, ScoreResult, finite_or_none
from . import clustering
from .measure import measure
from .overall import Overall, overall_score
from .pairing import Pair, Progress, open_pairs
from .panel import Panel, PanelSide
from .rules import Rules
from .side import Side
from .tables import aggregate_table, results_table

if TYPE_CHECKING:
    import pandas as pd

    from ...data_specs.sources import Source
    from ...data_specs.spec_models import Edition, Profile
    from ..score_options import ScoreOptions
    from .bundle import CellevalBundle, CellevalTruth

Columns = dict[str, np.ma.MaskedArray]


@dataclass(frozen=True)
class ContextColumns:
    """One context measured: a column per metric, reasons of wholly null ones, cells, and the verdict on each matrix."""

    context: str
    targets: tuple[str, ...]
    cells_truth: np.ndarray
    cells_pred: np.ndarray
    columns: Columns
    reasons: dict[str, str]
    matrices: list[dict[str, Any]]


def score_celleval(
    pred: Source,
    truth: Source | CellevalTruth,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    progress: Progress,
) -> ScoreResult:
    """Every metric of the profile, per perturbation and aggregated, and the overall score when it has a baseline.

    The tables `results` and `agg_results` have cell-eval's own layout. A metric whose mean is undefined is null
    with its reason; several contexts are scored one by one and appear as strata. A truth bundle brings the baseline
    and the data ceiling (table `ceiling`) with it.

    Raises
    ------
    InvalidFile
        The files cannot be compared (see `pairing.open_pairs`), or the baseline table is unusable (E578).
    UnknownName
        The profile names a metric that cell-eval does not have.
    MetricError
        A metric failed on valid input.
    """
    from .bundle import CellevalTruth, score_bundles

    rules = Rules.of(edition)
    specs = choose_metrics(profile.metrics)
    parts = truth.parts if isinstance(truth, CellevalTruth) else {}
    with numba_threads(options.threads):
        if isinstance(truth, CellevalTruth):
            scored, warnings = score_bundles(pred, truth, specs, edition, options, progress)
        else:
            pairs, warnings = open_pairs(pred, truth, edition=edition, options=options, progress=progress)
            scored = [_score_pair(pair, specs, rules, options, progress) for pair in pairs]
    joined = {name: np.ma.concatenate([part.columns[name] for part in scored]) for name in specs}
    reasons = {name: text for part in scored for name, text in part.reasons.items()}
    cells = np.concatenate([part.cells_truth for part in scored])
    metrics = {
        name: metric_value(spec, joined[name], cells, reasons.get(name)) for name, spec in specs.items()
    }
    strata = _strata(scored, specs) if len(scored) > 1 else {}
    score, reason, terms = _overall(edition, metrics, strata, options, parts)
    targets = [target for part in scored for target in part.targets]
    tables: dict[str, pd.DataFrame] = {
        "results": results_table(targets, joined),
        "agg_results": aggregate_table(joined),
    }
    if len(scored) > 1:
        tables["results"].insert(0, "context", np.array(_contexts(scored), dtype=object))
    if terms is not None:
        tables["from_baseline"] = terms
    parameters = {
        "rules": rules.to_dict(),
        "matrices": [verdict for part in scored for verdict in part.matrices],
    }
    if parts:
        parameters["references"] = {context or "all": part.references for context, part in parts.items()}
        ceilings = {context or "all": part.ceiling(list(specs)) for context, part in parts.items()}
        parameters["ceiling"] = {context: found for context, found in ceilings.items() if found}
        if parameters["ceiling"]:
            tables["ceiling"] = _ceiling_table(parameters["ceiling"])
    return ScoreResult(
        per_perturbation=_per_perturbation(scored, joined),
        metrics=metrics,
        strata=strata,
        score=score,
        score_reason=reason,
        parameters=parameters,
        tables=tables,
        issues=tuple(warnings),
    )


def _overall(
    edition: Edition,
    metrics: Mapping[str, MetricValue],
    strata: Mapping[str, Mapping[str, MetricValue]],
    options: ScoreOptions,
    parts: Mapping[str, CellevalBundle],
) -> Overall:
    """The overall score; with a bundle per context, the mean over contexts, each against its own baseline."""
    if "baseline" in options.references or len(parts) < 2:
        references = dict(options.references)
        for part in parts.values():
            if part.baseline is not None:
                references.setdefault("baseline", part.baseline)
        return overall_score(edition, metrics, references)
    scores, tables = [], []
    for context, part in parts.items():
        baseline = {} if part.baseline is None else {"baseline": part.baseline}
        score, reason, terms = overall_score(edition, strata[f"context={context}"], baseline)
        if score is None or terms is None:
            return None, f"context {context}: {reason}", None
        terms.insert(0, "context", context)
        scores.append(score)
        tables.append(terms)
    import pandas as pd

    return math.fsum(scores) / len(scores), None, pd.concat(tables, ignore_index=True)


def _ceiling_table(ceilings: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {"context": context, "metric": name, "ceiling": value}
        for context, values in ceilings.items()
        for name, value in values.items()
    ]
    return pd.DataFrame(rows)


def needs_de(specs: Mapping[str, MetricSpec]) -> bool:
    """Whether any of the metrics reads DE tables."""
    return any("de" in spec.needs for spec in specs.values())


def choose_metrics(names: Sequence[str]) -> dict[str, MetricSpec]:
    """The specs of `names`, in that order. Raises `UnknownName`."""
    known = family_metrics("celleval")
    for name in names:
        if name not in known:
            raise UnknownName("cell-eval metric", name, list(known), "vcbench list metrics")
    return {name: known[name] for name in names}


def build_panel(pred: Side, truth: Side, rules: Rules, *, with_de: bool) -> Panel:
    """Both sides measured, with DE tables if asked."""
    sides = [PanelSide.of(side, measure(side, rules, with_de=with_de), rules) for side in (pred, truth)]
    return Panel(truth.targets, truth.source.genes, sides[0], sides[1], rules)


def compute_columns(panel: Panel, specs: Mapping[str, MetricSpec]) -> tuple[Columns, dict[str, str]]:
    """The column of every metric, and why a column is wholly null.

    Raises `MetricError` when a metric fails on valid input.
    """
    columns: Columns = {}
    reasons: dict[str, str] = {}
    for name, spec in specs.items():
        reason = _unavailable(name, panel)
        if reason:
            columns[name], reasons[name] = np.ma.masked_all(panel.n_targets, dtype=np.float64), reason
            continue
        try:
            columns[name] = spec.compute(panel)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            raise MetricError(f"metric {name}: {error}") from error
    return columns, reasons


def _unavailable(name: str, panel: Panel) -> str:
    if name != "clustering_agreement":
        return ""
    missing = clustering.missing_libraries()
    if missing:
        return f"needs {' and '.join(missing)}, not installed (best effort, part of no score)"
    if panel.n_targets < clustering.MIN_TARGETS:
        return f"needs {clustering.MIN_TARGETS} perturbations, {panel.n_targets} given"
    return ""


def _score_pair(
    pair: Pair, specs: Mapping[str, MetricSpec], rules: Rules, options: ScoreOptions, progress: Progress
) -> ContextColumns:
    progress(0, 2, "group means and rank sums")
    with_de = needs_de(specs)
    truth = options.remembered(
        ("cell-eval truth", pair.context, pair.truth.targets),
        lambda: PanelSide.of(pair.truth, measure(pair.truth, rules, with_de=with_de), rules),
    )
    pred = PanelSide.of(pair.pred, measure(pair.pred, rules, with_de=with_de), rules)
    panel = Panel(pair.truth.targets, pair.truth.source.genes, pred, truth, rules)
    verdicts = [side_verdict(pair.context, side) for side in (pair.truth, pair.pred)]
    return score_panel(pair.context, panel, specs, verdicts, progress)


def score_panel(
    context: str,
    panel: Panel,
    specs: Mapping[str, MetricSpec],
    matrices: list[dict[str, Any]],
    progress: Progress,
) -> ContextColumns:
    """The columns of a measured panel."""
    progress(1, 2, "metrics")
    columns, reasons = compute_columns(panel, specs)
    progress(2, 2, "metrics")
    sizes = [side.measured.sizes[:-1] for side in (panel.truth, panel.pred)]
    return ContextColumns(context, panel.targets, sizes[0], sizes[1], columns, reasons, matrices)


def metric_value(
    spec: MetricSpec, column: np.ma.MaskedArray, cells: np.ndarray, reason: str | None
) -> MetricValue:
    """The mean of a column as cell-eval takes it: nulls are skipped, one NaN makes it undefined."""
    present = ~np.ma.getmaskarray(column)
    values = np.asarray(column.data, dtype=np.float64)
    defined = present & np.isfinite(values)
    n, n_total = int(defined.sum()), len(values)
    mean = float(values[present].mean()) if present.any() else math.nan
    weighted = float(np.average(values[defined], weights=cells[defined])) if n else math.nan
    spread = float(values[defined].std(ddof=1)) if n > 1 else math.nan
    value = finite_or_none(mean)
    if value is None and reason is None:
        reason = _why_undefined(spec, n, int(present.sum()), n_total, values[defined])
    return MetricValue(
        value=value,
        n=n,
        n_total=n_total,
        better=spec.better,
        perfect=spec.perfect,
        cell_weighted=finite_or_none(weighted) if value is not None else None,
        std=finite_or_none(spread),
        reason=reason,
    )


def _why_undefined(spec: MetricSpec, n: int, n_present: int, n_total: int, values: np.ndarray) -> str:
    if n_present == 0:
        return f"no perturbation has a value ({spec.nulls})"
    text = f"NaN for {n_present - n} of {n_total} perturbations ({spec.nulls}); cell-eval's mean is then NaN"
    return f"{text}; mean of the others {values.mean():.6g}" if n else text


def _contexts(scored: Sequence[ContextColumns]) -> list[str]:
    return [part.context for part in scored for _ in part.targets]


def _per_perturbation(scored: Sequence[ContextColumns], columns: Columns) -> pd.DataFrame:
    import pandas as pd

    head: dict[str, Any] = {
        "context": _contexts(scored),
        "perturbation": [target for part in scored for target in part.targets],
        "n_cells_truth": np.concatenate([part.cells_truth for part in scored]),
        "n_cells_pred": np.concatenate([part.cells_pred for part in scored]),
    }
    return pd.DataFrame({**head, **{name: column.filled(np.nan) for name, column in columns.items()}})


def _strata(
    scored: Sequence[ContextColumns], specs: Mapping[str, MetricSpec]
) -> dict[str, dict[str, MetricValue]]:
    return {
        f"context={part.context}": {
            name: metric_value(spec, part.columns[name], part.cells_truth, part.reasons.get(name))
            for name, spec in specs.items()
        }
        for part in scored
    }


def side_verdict(context: str, side: Side) -> dict[str, Any]:
    """What was decided about one matrix, for records."""
    return {
        "context": context,
        "file": side.role,
        "kind": side.scale.kind,
        "decided_by": side.scale.decided_by,
        "dtype": str(side.scale.dtype),
        "median_total": side.scale.median_total,
        "maximum": side.scan.maximum,
    }
