"""The pipeline of edition `openproblems`: match the tables, measure every row, and the control methods beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...data_specs.errors import MetricError, UsageError
from ...data_specs.issues import first_of
from ...data_specs.spec_models import Edition, Profile
from ..metrics.spec import MetricSpec, family_metrics
from ..score_options import ScoreOptions
from ..scorecard import MetricValue, ScoreResult
from .controls import TITLES, control_predictions
from .pairing import TablePair, TableRules, pair_tables, table_rules
from .tables import EffectTable, open_table, read_id_map, table_issue

REFERENCES = ("train", "id_map", "genes")
GENE_CHOICES = ("truth", "intersection")
_DEFAULTS = ScoreOptions()


def score_openproblems(
    pred: EffectTable,
    truth: EffectTable,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    progress: Callable[[int, int, str], None],
) -> ScoreResult:
    """Score a table against the test table; see `pipelines.Pipeline`.

    References: `train` (the training table; four of the control methods need it), `id_map` (the rows to predict) and
    `genes` (`truth`, or `intersection` to score the shared genes). A row without a correlation or cosine counts as 0.
    Table `control_methods` has one line per control method, `official_values` the values rounded as the task writes
    them, `non_finite` the rows that counted as 0.

    Raises
    ------
    InvalidFile
        The tables do not fit together (codes E701, E703 to E710).
    UsageError
        A reference or option that this edition has no use for.
    """
    import pandas as pd

    refuse_foreign(options, edition)
    rules = table_rules(edition)
    given = options.references
    genes = str(given.get("genes", GENE_CHOICES[0]))
    if genes not in GENE_CHOICES:
        raise UsageError(f"--reference genes={genes}: give one of {', '.join(GENE_CHOICES)}.")
    id_map = read_id_map(given["id_map"]) if "id_map" in given else None
    pair = pair_tables(pred, truth, rules, id_map=id_map, intersection=genes == "intersection")
    train = (
        open_table(given["train"], name="training table", layers=(rules.layer,)) if "train" in given else None
    )
    specs = [family_metrics("openproblems")[name] for name in profile.metrics]
    progress(0, 1 + len(TITLES), pred.name)
    rows = {spec.name: _rows(spec, pair.truth, pair.pred) for spec in specs}
    metrics = {spec.name: _aggregate(spec, rows[spec.name]) for spec in specs}
    counted = {name: np.where(np.isnan(values), 0.0, values) for name, values in rows.items()}
    table = pd.DataFrame(
        {
            "context": [cell_type for cell_type, _ in pair.keys],
            "perturbation": [compound for _, compound in pair.keys],
            "n_cells_truth": 0,
            "n_cells_pred": 0,
            **counted,
        }
    )
    silent = pd.DataFrame(
        [
            {"context": key[0], "perturbation": key[1], "metric": name}
            for name, values in rows.items()
            for key, value in zip(pair.keys, values, strict=True)
            if math.isnan(value)
        ]
    )
    issues = list(pair.issues)
    if len(silent):
        affected = silent[["context", "perturbation"]].drop_duplicates()
        found = f"{first_of(affected.agg('/'.join, axis=1))} of {len(pair.keys):,} rows"
        issues.append(
            table_issue("W705", pred.path, f"/layers/{rules.prediction_layer}", found, "rows that vary")
        )
    values = {name: value.value for name, value in metrics.items()}
    return ScoreResult(
        per_perturbation=table,
        metrics=metrics,
        strata=_by_cell_type(specs, rows, pair),
        score_reason=f"edition {edition.id} has no overall score",
        parameters={
            **edition.scoring.parameters,
            "genes": genes,
            "rows_matched_by": pair.matched_by,
            "n_rows": len(pair.keys),
            "n_genes": len(pair.genes),
            "n_missing_values": pair.n_missing,
            "n_rows_without_value": {
                name: int(np.isnan(found).sum()) for name, found in rows.items() if np.isnan(found).any()
            },
            "training_table": None if train is None else train.name,
        },
        tables={
            "control_methods": control_table(specs, pair, train, rules, options.seed, progress),
            "official_values": official_values(values, rules.digits),
            **({"non_finite": silent} if len(silent) else {}),
        },
        issues=tuple(issues),
    )


def refuse_foreign(options: ScoreOptions, edition: Edition) -> None:
    """Raises `UsageError` for options that tables have no use for, and unknown references."""
    names = (
        "split",
        "subset",
        "pert_col",
        "control",
        "context_col",
        "matrix",
        "no_target_genes",
        "target_map",
    )
    unused = [
        f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != getattr(_DEFAULTS, name)
    ]
    unused += [f"--reference {name}" for name in options.references if name not in REFERENCES]
    if unused:
        raise UsageError(
            f"edition {edition.id} has no use for {', '.join(unused)}; its references are {', '.join(REFERENCES)}."
        )


def control_table(
    specs: list[MetricSpec],
    pair: TablePair,
    train: EffectTable | None,
    rules: TableRules,
    seed: int,
    progress: Callable[[int, int, str], None],
) -> Any:
    """A data frame with one line per control method: `method`, each metric (NaN without a value), `reason`."""
    import pandas as pd

    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    methods = control_predictions(pair.keys, pair.genes, pair.truth, train, rules, rng)
    lines = []
    for done, (name, method) in enumerate(methods.items(), start=1):
        progress(done, 1 + len(methods), name)
        values = (
            {spec.name: math.nan for spec in specs}
            if method.values is None
            else {s.name: _aggregate(s, _rows(s, pair.truth, method.values)).value for s in specs}
        )
        lines.append({"method": name, **values, "reason": method.reason})
    return pd.DataFrame(lines)


def _rows(spec: MetricSpec, truth: np.ndarray, pred: np.ndarray) -> np.ndarray:
    values = spec.compute(truth, pred)
    if spec.better == "lower" and not np.isfinite(values).all():
        raise MetricError(
            f"metric {spec.name!r} has {int((~np.isfinite(values)).sum())} rows without a number."
        )
    return values


def _aggregate(spec: MetricSpec, values: np.ndarray) -> MetricValue:
    """The mean over all rows, those without a value as 0; `n` counts rows with a value."""
    known = ~np.isnan(values)
    return MetricValue(
        value=float(np.where(known, values, 0.0).mean()),
        n=int(known.sum()),
        n_total=len(values),
        better=spec.better,
        perfect=spec.perfect,
        std=float(np.where(known, values, 0.0).std(ddof=1)) if len(values) > 1 else None,
        reason=None if known.all() else f"{int((~known).sum())} rows without a value count as 0",
    )


def _by_cell_type(
    specs: list[MetricSpec], rows: Mapping[str, np.ndarray], pair: TablePair
) -> dict[str, dict[str, MetricValue]]:
    names = np.array([cell_type for cell_type, _ in pair.keys], dtype=object)
    return {
        f"context={name}": {s.name: _aggregate(s, rows[s.name][names == name]) for s in specs}
        for name in sorted(set(names))
    }


def official_values(values: Mapping[str, float | None], digits: int) -> Any:
    """The values as the task writes them, a data frame `metric`, `value`.

    Errors and similarities are written by two components; each rounds its values to `digits` significant digits of
    its largest one, so small values lose more of theirs.
    """
    import pandas as pd

    errors = {"mean_rowwise_rmse", "mean_rowwise_mae"}
    out: dict[str, float] = {}
    for part in (errors, set(values) - errors):
        own = {name: float(value) for name, value in values.items() if name in part and value is not None}
        largest = max((abs(value) for value in own.values()), default=0.0)
        places = max(0, digits - math.ceil(math.log10(largest))) if largest > 0 else digits
        out |= {name: round(value, places) for name, value in own.items()}
    return pd.DataFrame({"metric": list(values), "value": [out.get(name, math.nan) for name in values]})
