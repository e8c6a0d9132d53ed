"""The pipeline of edition `core`: match the files, collect what the metrics need once, measure every row, aggregate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data_specs.errors import MetricError, UnknownName, UsageError
from ...data_specs.labels import CONTROL, targets_of
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition, Profile
from ..bulk import GroupMoments
from ..metrics.base import Null, Value
from ..metrics.spec import MetricSpec, family_metrics
from ..score_options import ScoreOptions
from ..scorecard import ScoreResult
from .aggregate import aggregate, effect_tier, stratified, subgroups
from .de import DeTable, de_table
from .pairing import Key, Pair, match
from .row import NO_CELLS, Cells, CoreRow
from .space import fit_space, sorted_moments

FAMILY = "core"


@dataclass(frozen=True)
class Bulks:
    """Moments of both sides. Rows of `truth` follow `truth_keys`, of `pred` `pred_keys`; genes are sorted."""

    truth_keys: dict[Key, int]
    truth: GroupMoments
    pred_keys: dict[Key, int]
    pred: GroupMoments

    def de_of(self, pair: Pair, key: Key, alpha: float, *, predicted: bool = False) -> DeTable | None:
        """DE of the true (or predicted) cells of a row against the truth's controls of its context."""
        moments, i = (self.pred, self.pred_keys[key]) if predicted else (self.truth, self.truth_keys[key])
        c = self.truth_keys[key[0], CONTROL]
        return de_table(
            moments.mean[i],
            moments.variance[i],
            int(moments.n[i]),
            self.truth.mean[c],
            self.truth.variance[c],
            int(self.truth.n[c]),
            alpha=alpha,
        )


def score_core(
    pred: Source,
    truth: Source,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    progress: Callable[[int, int, str], None],
) -> ScoreResult:
    """Score a prediction by edition `core`; see `pipelines.Pipeline`.

    Raises
    ------
    InvalidFile
        The files do not fit together (codes E015, E212, E550 to E563).
    UnknownName
        The profile names a metric that its family does not have.
    MetricError
        A metric gave a value that is not a number.
    UsageError
        An option that this edition has no use for: references, no_target_genes or target_map.
    """
    _refuse_foreign(options, edition)
    family = profile.family or FAMILY
    specs = _specs(family, profile)
    parameters = edition.scoring.parameters
    pair = match(pred, truth, edition=edition, options=options)
    progress(0, 1, "reading the truth and the prediction")
    bulks = collect_bulks(pair, options)
    predicted = [key for key in pair.evaluated if key not in pair.refused]
    alpha = float(parameters["de_alpha"])
    de = options.remembered(
        ("core de", pair.evaluated), lambda: {key: bulks.de_of(pair, key, alpha) for key in pair.evaluated}
    )
    if family == "gears":
        from .gears_rows import gears_rows

        rows: Iterator[Any] = gears_rows(pair, bulks, predicted, de, options)
    elif family == "cellot":
        from .cellot_rows import cellot_rows

        rows = cellot_rows(pair, bulks, predicted, de, parameters, options, profile.metrics)
    else:
        needs = frozenset[str]().union(*(spec.needs for spec in specs))
        rows = _core_rows(pair, bulks, predicted, de, needs, parameters, options)
    values = _measure(specs, pair, predicted, rows, progress)
    return _result(pair, bulks, specs, values, de, parameters, options)


def _refuse_foreign(options: ScoreOptions, edition: Edition) -> None:
    given = {
        f"--reference {', '.join(options.references)} (or --baseline)": options.references,
        "--no-target-genes": options.no_target_genes,
        "--target-map": options.target_map,
    }
    unused = [option for option, value in given.items() if value]
    if unused:
        raise UsageError(f"edition {edition.id} has no use for {', '.join(unused)}.")


def _specs(family: str, profile: Profile) -> list[MetricSpec]:
    known = family_metrics(family)
    for name in profile.metrics:
        if name not in known:
            raise UnknownName("metric", name, sorted(known), "vcbench list metrics")
    return [known[name] for name in profile.metrics]


def collect_bulks(pair: Pair, options: ScoreOptions) -> Bulks:
    """One pass over each file: moments of the evaluated rows, the training rows and the controls of all contexts.

    Raises `MetricError` when a mean is not finite.
    """
    controls = [key for key in pair.truth.keys if key[1] == CONTROL]
    truth_keys = sorted({*pair.evaluated, *pair.train, *controls})
    pred_keys = [key for key in pair.evaluated if key not in pair.refused]
    truth = options.remembered(
        ("core moments", tuple(truth_keys)),
        lambda: sorted_moments(pair.truth, truth_keys, block_bytes=options.block_bytes),
    )
    pred = sorted_moments(pair.pred, pred_keys, block_bytes=options.block_bytes)
    for side, moments in ((pair.truth, truth), (pair.pred, pred)):
        if not np.isfinite(moments.mean).all():
            raise MetricError(f"{side.source.name}: X holds values that are not finite.")
    return Bulks(
        {key: i for i, key in enumerate(truth_keys)}, truth, {key: i for i, key in enumerate(pred_keys)}, pred
    )


def _core_rows(
    pair: Pair,
    bulks: Bulks,
    predicted: list[Key],
    de: Mapping[Key, DeTable | None],
    needs: frozenset[str],
    parameters: Mapping[str, Any],
    options: ScoreOptions,
) -> Iterator[CoreRow]:
    has_cells = pair.pred.rows == "cell"
    references = training_references(pair, bulks)
    cells: list[Cells | Null] = [NO_CELLS] * len(predicted)
    if has_cells and "cells" in needs and predicted:
        space = options.remembered(
            ("core space", pair.truth.keys),
            lambda: fit_space(
                pair.truth,
                n_components=int(parameters["pca_components"]),
                seed=options.seed,
                block_bytes=options.block_bytes,
            ),
        )
        ours = space.project(pair.pred, predicted, block_bytes=options.block_bytes)
        theirs = options.remembered(
            ("core cells", tuple(predicted)),
            lambda: space.project(pair.truth, predicted, block_bytes=options.block_bytes),
        )
        cells = [Cells(p, t) for p, t in zip(ours, theirs, strict=True)]
    position = {str(gene): i for i, gene in enumerate(pair.genes)}
    alpha = float(parameters["de_alpha"])
    for i, key in enumerate(predicted):
        targets = [position[name] for name in targets_of(key[1]) if name in position]
        yield CoreRow(
            y=bulks.truth.mean[bulks.truth_keys[key]],
            p=bulks.pred.mean[bulks.pred_keys[key]],
            c=bulks.truth.mean[bulks.truth_keys[key[0], CONTROL]],
            reference=references[key[0]],
            de=de[key],
            pred_de=bulks.de_of(pair, key, alpha, predicted=True) if has_cells else None,
            has_cells=has_cells,
            targets=np.array(targets, dtype=np.int64),
            cells=cells[i],
            parameters=parameters,
        )


def training_references(pair: Pair, bulks: Bulks) -> dict[str, np.ndarray | Null]:
    """Systema's reference of each evaluated context: equal-weight mean of its training perturbations' bulks, (G,)."""
    out: dict[str, np.ndarray | Null] = {}
    for context in {context for context, _ in pair.evaluated}:
        rows = [bulks.truth_keys[key] for key in pair.train if key[0] == context]
        out[context] = (
            bulks.truth.mean[rows].mean(axis=0)
            if rows
            else Null("no split, or no training perturbation of the context in the truth: no reference")
        )
    return out


def _measure(
    specs: list[MetricSpec],
    pair: Pair,
    predicted: list[Key],
    rows: Iterator[Any],
    progress: Callable[[int, int, str], None],
) -> list[list[Value]]:
    """`values[m][i]`: metric m of evaluated row i."""
    by_key: dict[Key, list[Value]] = {}
    for done, (key, row) in enumerate(zip(predicted, rows, strict=True)):
        progress(done, len(predicted), f"{key[0]}/{key[1]}")
        by_key[key] = [_value(spec, key, row) for spec in specs]
    refused = [Null("refused by the model")] * len(specs)
    return [[by_key.get(key, refused)[m] for key in pair.evaluated] for m in range(len(specs))]


def _value(spec: MetricSpec, key: Key, row: Any) -> Value:
    value = spec.compute(row)
    if not isinstance(value, Null) and not np.isfinite(value):
        raise MetricError(f"metric {spec.name!r} of {key[0]}/{key[1]} is {value}, neither a number nor null.")
    return value


def _result(
    pair: Pair,
    bulks: Bulks,
    specs: list[MetricSpec],
    values: list[list[Value]],
    de: Mapping[Key, DeTable | None],
    parameters: Mapping[str, Any],
    options: ScoreOptions,
) -> ScoreResult:
    import pandas as pd

    n_truth = np.array([int(bulks.truth.n[bulks.truth_keys[key]]) for key in pair.evaluated], dtype=np.int64)
    n_pred = [0 if key in pair.refused else int(bulks.pred.n[bulks.pred_keys[key]]) for key in pair.evaluated]
    n_de = [None if (table := de[key]) is None else table.n_significant for key in pair.evaluated]
    strata = subgroups(pair.evaluated, options.split)
    tiers = [effect_tier(n, parameters["de_tiers"]) for n in n_de]
    contexts = [context for context, _ in pair.evaluated]
    status, reason = _status(pair)
    table = pd.DataFrame(
        {
            "context": contexts,
            "perturbation": [name for _, name in pair.evaluated],
            "n_cells_truth": n_truth,
            "n_cells_pred": n_pred if pair.pred.rows == "cell" else [0] * len(n_pred),
            **{
                spec.name: [np.nan if isinstance(v, Null) else v for v in column]
                for spec, column in zip(specs, values, strict=True)
            },
            "stratum": strata,
            "effect_tier": tiers,
            "n_de": pd.array(n_de, dtype="Int64"),
            "status": status,
            "reason": reason,
        }
    )
    nulls = pd.DataFrame(
        [
            {"context": key[0], "perturbation": key[1], "metric": spec.name, "reason": value.reason}
            for spec, column in zip(specs, values, strict=True)
            for key, value in zip(pair.evaluated, column, strict=True)
            if isinstance(value, Null)
        ]
    )
    axes = {"subgroup": strata, "effect_tier": tiers, "context": contexts}
    return ScoreResult(
        per_perturbation=table,
        metrics={s.name: aggregate(s, v, n_truth) for s, v in zip(specs, values, strict=True)},
        strata=stratified(specs, values, n_truth, axes),
        score=None,
        score_reason="edition core has no overall score",
        refused={f"{context}/{name}": why for (context, name), why in pair.refused.items()},
        parameters={
            **parameters,
            "prediction_rows": pair.pred.rows,
            "prediction_matrix": pair.pred.matrix.kind,
            "truth_matrix": pair.truth.matrix.kind,
            "target_sum": pair.target_sum,
            "n_genes": len(pair.genes),
            "n_evaluated": len(pair.evaluated),
            "n_training_perturbations": len(pair.train),
        },
        tables={"nulls": nulls} if len(nulls) else {},
        issues=pair.issues,
    )


def _status(pair: Pair) -> tuple[list[str], list[str]]:
    """`predicted`, `fallback` or `refused` of each evaluated row, and the model's reason ("" where none)."""
    found: dict[Key, tuple[str, str]] = {}
    source = pair.pred.source
    if pair.pred.rows == "mean" and "status" in source.obs_columns:
        states = source.labels("status").values()
        empty = np.full(source.n_obs, "", dtype=object)
        reasons = source.labels("reason").values() if "reason" in source.obs_columns else empty
        for code, state, reason in zip(pair.pred.codes, states, reasons, strict=True):
            if code >= 0:
                found[pair.pred.keys[code]] = (state or "predicted", reason or "")
    entries = [
        ("refused", pair.refused[key]) if key in pair.refused else found.get(key, ("predicted", ""))
        for key in pair.evaluated
    ]
    return [state for state, _ in entries], [reason for _, reason in entries]
