"""Build a truth bundle: measure the real cells, run the baseline arm and the replicate splits."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import UsageError
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition, Profile
from ..score_options import ScoreOptions
from .anchors import BASE_SEED, N_SPLITS, SEED_DERIVATION, Anchor, group_order, replicate_anchor
from .baselines import (
    MAX_RESIDUAL,
    MIN_CELLS,
    BaselineKind,
    Emission,
    context_mean,
    dispersed_side,
    generic_response,
    tiled_side,
)
from .bundle import ANCHOR_FILE, BASELINE_FILE, SPLITS_FILE, ContextBundle, TruthBundle, write_bundle
from .catalog import ENTRIES, resolve
from .columns import Ends, score_contexts
from .fingerprints import perturbations_fingerprint, source_fingerprint
from .measure import PanelValues, measure
from .panel import Columns, TruthCells, match_prediction, read_truth
from .parameters import check_parameters
from .pipeline import target_rule
from .sides import PredSide, RealSide, bulk_panel, de_panel, measure_pred, measure_real
from .targets import TargetRule

if TYPE_CHECKING:
    from ..pipelines import Progress


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to make the two ends.

    `baseline`: `context-mean` (as the challenge describes its own), `generic` (cell-eval2's), or None with
    `baseline_source` as the ready-made arm; `emission`: one mean cell for all (`tile`), or scaled control cells
    (`dispersed`, seeded by `baseline_seed`). `anchor` False leaves out the replicate splits.
    """

    baseline: BaselineKind | None = "context-mean"
    emission: Emission = "tile"
    baseline_seed: int = 0
    exclude_target_gene: bool = True
    min_cells: int = MIN_CELLS
    max_residual: float = MAX_RESIDUAL
    anchor: bool = True
    base_seed: int = BASE_SEED
    n_splits: int = N_SPLITS


def build_bundle(
    truth: Source,
    path: str | os.PathLike[str],
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    build: BuildOptions | None = None,
    baseline_source: Source | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> TruthBundle:
    """Measure every context of `truth` and write the bundle.

    `baseline_source` is a ready-made baseline prediction (fractional counts allowed); it replaces `build.baseline`.

    Raises
    ------
    InvalidFile
        The truth breaks a scoring rule, or has perturbations of fewer than two cells (E582 to E595).
    MetricError
        A metric cannot be computed, or baseline and replicates define no scale for a scored member.
    """
    check_parameters(edition)
    chosen = build or BuildOptions()
    columns, rule = Columns.of(edition, options), target_rule(options)
    names = resolve(profile.metrics)
    if any(ENTRIES[name].kind == "cells" for name in names):
        raise UsageError("single-cell diagnostics are measured against the real file, not against a bundle.")
    contexts = read_truth(truth, columns, options)
    report = progress or (lambda done, total, text: None)
    arms = _ready_arms(baseline_source, contexts, columns, options)
    steps = [
        _build_context(
            context, arms[i], names, rule, columns, chosen, options, edition, _step(report, i, len(contexts))
        )
        for i, context in enumerate(contexts)
    ]
    record = {
        "source": {
            "name": truth.name,
            "fingerprint": source_fingerprint(truth, columns.perturbation, strict=False),
            "fingerprint_strict": source_fingerprint(truth, columns.perturbation, strict=True),
        },
        "options": {
            "perturbation_column": columns.perturbation,
            "control": columns.control,
            "context_column": columns.context,
            "no_target_genes": options.no_target_genes,
            "target_map": dict(options.target_map) if options.target_map is not None else None,
        },
        "metrics": list(names),
    }
    return write_bundle(path, steps, edition=edition, record=record, force=force)


def _step(report: Progress, done: int, total: int) -> Callable[[str], None]:
    return lambda text: report(done, total, text)


def _ready_arms(
    source: Source | None, contexts: Sequence[TruthCells], columns: Columns, options: ScoreOptions
) -> Sequence[Any]:
    if source is None:
        return [None] * len(contexts)
    cells, _ = match_prediction(
        source,
        columns,
        options,
        panels=[(c.context, c.perturbations) for c in contexts],
        genes=contexts[0].genes,
        allow_fractional=True,
    )
    return cells


def _build_context(
    context: TruthCells,
    arm: Any,
    names: Sequence[str],
    rule: TargetRule,
    columns: Columns,
    build: BuildOptions,
    options: ScoreOptions,
    edition: Edition,
    report: Callable[[str], None],
) -> ContextBundle:
    report(f"truth {context.context}".strip())
    real = measure_real(context, need_de=True, threads=options.threads)
    record: dict[str, Any] = {
        "n_cells": real.bulks.n_cells.tolist(),
        "perturbations_fingerprint": perturbations_fingerprint(real.perturbations),
    }
    tables: dict[str, str] = {}
    values: PanelValues | None = None
    if arm is not None or build.baseline is not None:
        report(f"baseline {context.context}".strip())
        side, facts = _baseline_side(context, arm, real, rule, build, options)
        values = _values(real, side, names, rule)
        tables[BASELINE_FILE] = wide_aggregate(values)
        record["baseline"] = facts
    if build.anchor:
        report(f"replicates {context.context}".strip())
        order = group_order(context, columns.perturbation, columns.control)
        anchor = replicate_anchor(
            context,
            real,
            names,
            rule,
            order=order,
            base_seed=build.base_seed,
            n_splits=build.n_splits,
            threads=options.threads,
        )
        tables[ANCHOR_FILE], tables[SPLITS_FILE] = anchor_tables(anchor)
        labels = [*context.perturbations, columns.control]
        record["anchor"] = {
            "base_seed": build.base_seed,
            "seeds": list(anchor.seeds),
            "seed_derivation": SEED_DERIVATION,
            "group_order": [labels[code] for code in order],
        }
        # Ends that define no scale must fail here, not at the first submission.
        if values is not None:
            checked = Ends(values.aggregate, anchor.replicates)
            score_contexts(edition, [(context.context, values)], {context.context: checked})
    return ContextBundle(real, tables, record)


def _baseline_side(
    context: TruthCells,
    arm: Any,
    real: RealSide,
    rule: TargetRule,
    build: BuildOptions,
    options: ScoreOptions,
) -> tuple[PredSide, dict[str, Any]]:
    if arm is not None:
        return measure_pred(arm, real, need_de=True, threads=options.threads), {
            "kind": "file",
            "file": arm.source.name,
        }
    if build.baseline == "context-mean":
        response = context_mean(real, rule, min_cells=build.min_cells, max_residual=build.max_residual)
    else:
        response = generic_response(real, rule, exclude_target_gene=build.exclude_target_gene)
    facts = {"kind": build.baseline, "emission": build.emission, **response.facts}
    if build.emission == "tile":
        return tiled_side(response, real, need_de=True, threads=options.threads), facts
    side, lost = dispersed_side(
        response, context, real, seed=build.baseline_seed, need_de=True, threads=options.threads
    )
    return side, facts | lost


def _values(real: RealSide, side: PredSide, names: Sequence[str], rule: TargetRule) -> PanelValues:
    assert real.de is not None and side.de is not None
    return measure(
        names,
        real.perturbations,
        bulks=bulk_panel(real, side, rule),
        tests=de_panel(real.perturbations, real.genes, real.de, side.de, rule),
    )


def wide_aggregate(values: PanelValues) -> str:
    """The wide aggregate CSV of cell-eval2: one column per metric, rows count, null_count, mean, std, min, max, median.

    A metric that exists only as an aggregate has its value in `mean` alone.
    """
    names = sorted(values.aggregate)
    rows: dict[str, list[str]] = {
        key: [] for key in ("count", "null_count", "mean", "std", "min", "max", "median")
    }
    for name in names:
        per = values.per_perturbation.get(name)
        known = np.empty(0) if per is None else per[~np.isnan(per)]
        rows["count"].append("" if per is None else str(len(per)))
        rows["null_count"].append("" if per is None else str(len(per) - len(known)))
        rows["mean"].append(_cell(values.aggregate[name]))
        spread = float(known.std(ddof=1)) if len(known) > 1 else np.nan
        rows["std"].append(_cell(spread))
        for key, function in (("min", np.min), ("max", np.max), ("median", np.median)):
            rows[key].append(_cell(float(function(known)) if len(known) else np.nan))
    return _csv([["statistic", *names], *([key, *cells] for key, cells in rows.items())])


def anchor_tables(anchor: Anchor) -> tuple[str, str]:
    """(anchor_agg, anchor_splits) as CSV text with the columns of cell-eval2."""
    header = [
        "metric",
        "replicate",
        "replicate_sd",
        "replicate_min",
        "replicate_max",
        "n_perturbations_min",
        "n_perturbations_max",
        "estimator",
    ]
    rows = [[_cell(getattr(row, name)) for name in header] for row in anchor.rows]
    splits = [
        [str(i), str(seed), name, _cell(value)]
        for i, (seed, split) in enumerate(zip(anchor.seeds, anchor.split_values, strict=True))
        for name, value in sorted(split.items())
    ]
    return _csv([header, *rows]), _csv([["split_index", "seed", "metric", "value"], *splits])


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def _csv(rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
