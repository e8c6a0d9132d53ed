"""Score a prediction against a truth as cell-eval does: measure both sides, compute the columns, aggregate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import MetricError, UnknownName
from ..kernels.threads import numba_threads
from ..metrics.spec import MetricSpec, family_metrics
from ..scorecard import MetricValue, ScoreResult, finite_or_none
from . import clustering
from .measure import measure
from .overall import overall_score
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

Columns = dict[str, np.ma.MaskedArray]


def score_celleval(
    pred: Source,
    truth: Source,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    progress: Progress,
) -> ScoreResult:
    """Every metric of the profile, per perturbation and aggregated, and the overall score when it has a baseline.

    The tables `results` and `agg_results` have cell-eval's own layout. A metric whose mean is undefined is null
    with its reason; several contexts are scored one by one and appear as strata.

    Raises
    ------
    InvalidFile
        The files cannot be compared (see `pairing.open_pairs`), or the baseline table is unusable (E578).
    UnknownName
        The profile names a metric that cell-eval does not have.
    MetricError
        A metric failed on valid input.
    """
    rules = Rules.of(edition)
    specs = choose_metrics(profile.metrics)
    with numba_threads(options.threads):
        pairs, warnings = open_pairs(pred, truth, edition=edition, options=options, progress=progress)
        scored = [(pair, *_score_pair(pair, specs, rules, progress)) for pair in pairs]
    joined = {name: np.ma.concatenate([columns[name] for _, columns, _ in scored]) for name in specs}
    reasons = {name: text for _, _, found in scored for name, text in found.items()}
    cells = np.concatenate([pair.truth.sizes[:-1] for pair in pairs])
    metrics = {
        name: metric_value(spec, joined[name], cells, reasons.get(name)) for name, spec in specs.items()
    }
    score, reason, terms = overall_score(edition, metrics, options.references)
    targets = [target for pair in pairs for target in pair.truth.targets]
    tables: dict[str, pd.DataFrame] = {
        "results": results_table(targets, joined),
        "agg_results": aggregate_table(joined),
    }
    if len(pairs) > 1:
        tables["results"].insert(0, "context", np.array(_contexts(pairs), dtype=object))
    if terms is not None:
        tables["from_baseline"] = terms
    return ScoreResult(
        per_perturbation=_per_perturbation(pairs, joined),
        metrics=metrics,
        strata=_strata(scored, specs) if len(pairs) > 1 else {},
        score=score,
        score_reason=reason,
        parameters=_parameters(pairs, rules),
        tables=tables,
        issues=tuple(warnings),
    )


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
    pair: Pair, specs: Mapping[str, MetricSpec], rules: Rules, progress: Progress
) -> tuple[Columns, dict[str, str]]:
    with_de = any("de" in spec.needs for spec in specs.values())
    progress(0, 2, "group means and rank sums")
    panel = build_panel(pair.pred, pair.truth, rules, with_de=with_de)
    progress(1, 2, "metrics")
    result = compute_columns(panel, specs)
    progress(2, 2, "metrics")
    return result


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


def _contexts(pairs: Sequence[Pair]) -> list[str]:
    return [pair.context for pair in pairs for _ in pair.truth.targets]


def _per_perturbation(pairs: Sequence[Pair], columns: Columns) -> pd.DataFrame:
    import pandas as pd

    head: dict[str, Any] = {
        "context": _contexts(pairs),
        "perturbation": [target for pair in pairs for target in pair.truth.targets],
        "n_cells_truth": np.concatenate([pair.truth.sizes[:-1] for pair in pairs]),
        "n_cells_pred": np.concatenate([pair.pred.sizes[:-1] for pair in pairs]),
    }
    return pd.DataFrame({**head, **{name: column.filled(np.nan) for name, column in columns.items()}})


def _strata(
    scored: Sequence[tuple[Pair, Columns, dict[str, str]]], specs: Mapping[str, MetricSpec]
) -> dict[str, dict[str, MetricValue]]:
    return {
        f"context={pair.context}": {
            name: metric_value(spec, columns[name], pair.truth.sizes[:-1], reasons.get(name))
            for name, spec in specs.items()
        }
        for pair, columns, reasons in scored
    }


def _parameters(pairs: Sequence[Pair], rules: Rules) -> dict[str, Any]:
    """The rules, and the verdict on each matrix."""
    verdicts = [
        {
            "context": pair.context,
            "file": side.role,
            "kind": side.scale.kind,
            "decided_by": side.scale.decided_by,
            "dtype": str(side.scale.dtype),
            "median_total": side.scale.median_total,
            "maximum": side.scan.maximum,
        }
        for pair in pairs
        for side in (pair.truth, pair.pred)
    ]
    return {"rules": rules.to_dict(), "matrices": verdicts}
