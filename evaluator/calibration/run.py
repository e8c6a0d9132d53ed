"""Calibrate the metrics of an edition on one truth: score references made of its own cells against half of them."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile, UsageError, VCBenchError
from ...data_specs.h5ad import H5ad
from ...data_specs.hashing import file_sha256
from ...data_specs.issues import has_errors
from ...data_specs.joined_source import JoinedSource
from ...data_specs.memory_source import MemorySource
from ...data_specs.remote import absolute_text, input_path, is_path_like
from ...data_specs.spec_models import Edition, Profile
from ...data_specs.specs import load_edition
from ...data_specs.split_file import Split, read_split
from ..bundles import Bundle, is_bundle
from ..pipelines import Progress, load_pipeline
from ..probes.rows import grouped_rows
from ..profiles import resolve_profile
from ..score_options import ScoreOptions
from ..scorecard import MetricValue, ScoreResult
from ..scoring import VERSIONED
from ..truth_files import CONTEXT_COLUMN, holds_tables, listed_truths
from ..uncertainty.paired import PairedMetric, compare_paired
from ..validation import validate
from .file import Calibration, MetricCalibration
from .halves import PartMoments, Parts, Reliability, part_moments, reliabilities, split_parts
from .references import REFERENCES, ReferenceMaker

ALPHA = 0.05
ONE_VALUE = "one value for the whole panel: no test"
NO_REFERENCE = "not made: a context has one perturbation only"


def calibrate(
    truth: Any,
    *,
    edition: str | Edition = "core",
    profile: str | None = None,
    split: str | os.PathLike[str] | Split | None = None,
    options: ScoreOptions | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """What every metric of a profile can tell apart on this truth.

    The cells of each perturbation and of the controls are halved at random. One half is the truth; of the other half
    five predictions are made: no change, the mean of the other perturbations, another perturbation's cells, its own
    cells (the replicate), and own cells shrunken towards the mean as far as their noise asks (interpolated duplicate).

    Parameters
    ----------
    truth, edition, profile
        As `scoring.score` takes them; real cells, no bundle.
    split
        Calibrate the perturbations of one part (`options.subset`); the mean is then that of the training ones.
    options
        Columns, seed, threads and memory; an executor's workers score one reference each.

    Returns
    -------
    Calibration
        The same for equal seeds, whatever the memory and threads.

    Raises
    ------
    InvalidFile
        The truth cannot be scored.
    UsageError
        The edition scores tables, the truth is a bundle, or no perturbation has enough cells.
    """
    rules = load_edition(edition) if isinstance(edition, str) else edition
    if holds_tables(rules):
        raise UsageError(
            f"edition {rules.id} scores tables of differential expression; they have no cells to make halves of."
        )
    chosen = resolve_profile(rules, profile)
    options = options or ScoreOptions()
    if split is not None:
        options = replace(options, split=split if isinstance(split, Split) else read_split(split))
    if options.split is not None and rules.scoring.pipeline == "vcc2026":
        raise UsageError("edition vcc2026 scores every perturbation of the truth; --split is not used.")
    items = listed_truths(truth)
    with ExitStack() as stack:
        source, options = _opened(items, rules, options, stack)
        record = _record(items)
        tell = progress or (lambda done, total, text: None)
        tell(0, len(REFERENCES) + 1, "halving the truth")
        parts, found, made = _halved(source, rules, options)
        results: dict[str, ScoreResult | str] = {}
        if options.executor is not None:
            tasks = [
                ReferenceTask(_paths(items), rules, chosen, replace(options, executor=None), name)
                for name in REFERENCES
            ]
            done, opened = partial(tell, text="references"), [path for _, path in _paths(items)]
            results = dict(
                zip(
                    REFERENCES,
                    options.executor.map(score_reference, tasks, done=done, files=opened),
                    strict=True,
                )
            )
        for number, name in enumerate(REFERENCES if not results else ()):
            tell(number + 1, len(REFERENCES) + 1, name.replace("_", " "))
            results[name] = _scored(made, name, rules, chosen, options)
        rows = reliabilities(found)
    return Calibration(
        edition=rules.id,
        profile=profile or rules.scoring.default_profile,
        truth=record,
        metrics=judged(results, chosen.metrics, by_context=rules.scoring.pipeline == "vcc2026"),
        perturbations=_rows(rows, made),
        reliability=_by_tier(rows),
        left_out={f"{context}/{name}": why for (context, name), why in parts.left_out.items()},
        parameters=_parameters(options, found.target_sum, parts.grouped.kind),
        seeds={"root": options.seed},
        versions={
            **{package: version(package) for package in VERSIONED},
            "python": platform.python_version(),
        },
    )


@dataclass(frozen=True)
class ReferenceTask:
    """One reference for a worker: the truth by its paths, the rules, and the reference's name."""

    items: tuple[tuple[str | None, str], ...]
    edition: Edition
    profile: Profile
    options: ScoreOptions
    name: str


def score_reference(task: ReferenceTask) -> ScoreResult | str:
    """The result of a task's reference, or why there is none; the halves are drawn as in any other process."""
    with ExitStack() as stack:
        source, options = _opened(task.items, task.edition, task.options, stack)
        _, _, made = _halved(source, task.edition, replace(options, threads=options.threads or 1))
        return _scored(made, task.name, task.edition, task.profile, options)


def _paths(items: Sequence[tuple[str | None, Any]]) -> tuple[tuple[str | None, str], ...]:
    for _, item in items:
        if not is_path_like(item):
            raise UsageError(
                "an executor's workers open files by their paths; give the path of the real h5ad."
            )
    return tuple((context, absolute_text(item)) for context, item in items)


def _halved(
    source: Any, edition: Edition, options: ScoreOptions
) -> tuple[Parts, PartMoments, ReferenceMaker]:
    parts = split_parts(
        grouped_rows(source, edition, options), seed=options.seed, split=options.split, subset=options.subset
    )
    found = part_moments(parts)
    made = ReferenceMaker(
        found,
        seed=options.seed,
        with_controls=edition.scoring.pipeline == "celleval",
        max_log1p=edition.panel.max_log1p,
    )
    return parts, found, made


def _opened(
    items: Sequence[tuple[str | None, Any]], edition: Edition, options: ScoreOptions, stack: ExitStack
) -> tuple[Any, ScoreOptions]:
    """The truth as one source, and the options with the column of its contexts."""
    sources = []
    for context, item in items:
        is_path = is_path_like(item)
        if isinstance(item, Bundle) or (is_path and is_bundle(item)):
            raise UsageError("a truth bundle holds no cells to make halves of; calibrate with the real file.")
        if edition.scoring.pipeline == "core":
            report = validate(
                item,
                edition=edition,
                pert_col=options.pert_col,
                control=options.control,
                context_col=options.context_col,
                matrix=options.matrix,
                block_bytes=options.block_bytes,
            )
            if has_errors(report.issues):
                raise InvalidFile(report.issues)
        opened = stack.enter_context(H5ad(item)) if is_path else MemorySource(item, name="truth")
        sources.append((context, opened))
    if len(sources) == 1 and sources[0][0] is None:
        return sources[0][1], options
    column = options.context_col or edition.file.context_column or CONTEXT_COLUMN
    if edition.file.context_column is None:
        options = replace(options, context_col=column)
    return JoinedSource(sources, context_column=column), options


def _record(items: Sequence[tuple[str | None, Any]]) -> dict[str, Any]:
    hashes = {}
    for context, item in items:
        is_path = is_path_like(item)
        name = context or (input_path(item).name if is_path else "truth")
        hashes[f"truth:{name}"] = file_sha256(item) if is_path else None
    if len(items) == 1:
        return {"sha256": next(iter(hashes.values()))}
    return {"sha256": None, "parts": dict(sorted(hashes.items()))}


def _scored(
    made: ReferenceMaker, name: Any, edition: Edition, profile: Profile, options: ScoreOptions
) -> ScoreResult | str:
    """The result of scoring one reference, or why there is none."""
    source = made.reference(name)
    if source is None:
        return NO_REFERENCE
    try:
        return load_pipeline(edition.scoring.pipeline)(
            source,
            made.truth(),
            edition=edition,
            profile=profile,
            options=options,
            progress=lambda done, total, text: None,
        )
    except InvalidFile:
        raise
    except VCBenchError as error:
        # A metric that a reference leaves undefined (no significant gene at all) fails the run of an entry; here it
        # is an answer: this reference has no values.
        return str(error)


def judged(
    results: Mapping[str, ScoreResult | str], metrics: Sequence[str], *, by_context: bool = False
) -> dict[str, MetricCalibration]:
    """The calibration of every metric from the results of the references, or the reasons why there are none."""
    scored = {name: found for name, found in results.items() if isinstance(found, ScoreResult)}
    pairs: dict[str, dict[str, PairedMetric]] = {"replicate": {}, "interpolated_duplicate": {}}
    for name, out in pairs.items():
        if name in scored and "mean" in scored:
            first, second = scored[name], scored["mean"]
            compared = compare_paired(
                first.per_perturbation, second.per_perturbation, dict(first.metrics), by_context=by_context
            )
            out.update({found.metric: found for found in compared})
    return {metric: _judged_one(metric, results, scored, pairs) for metric in metrics}


def _judged_one(
    metric: str,
    results: Mapping[str, ScoreResult | str],
    scored: Mapping[str, ScoreResult],
    pairs: Mapping[str, Mapping[str, PairedMetric]],
) -> MetricCalibration:
    values = {name: found.metrics[metric].value for name, found in scored.items() if metric in found.metrics}
    spec = next((found.metrics[metric] for found in scored.values() if metric in found.metrics), None)
    duplicate = pairs["interpolated_duplicate"].get(metric)
    discriminates, reason = _verdict(metric, values, spec, pairs["replicate"].get(metric), results)
    return MetricCalibration(
        **{name: values.get(name) for name in REFERENCES},
        dynamic_range_fraction=_range_fraction(values, spec),
        bound_discrimination=None if duplicate is None or duplicate.p is None else duplicate.wins,
        discriminates=discriminates,
        reason=reason,
    )


def _range_fraction(values: Mapping[str, float | None], spec: MetricValue | None) -> float | None:
    low, high = values.get("mean"), values.get("interpolated_duplicate")
    if spec is None or spec.perfect is None or low is None or high is None or spec.perfect == low:
        return None
    fraction = (high - low) / (spec.perfect - low)
    return fraction if math.isfinite(fraction) else None


def _verdict(
    metric: str,
    values: Mapping[str, float | None],
    spec: MetricValue | None,
    pair: PairedMetric | None,
    results: Mapping[str, ScoreResult | str],
) -> tuple[bool, str]:
    for name in ("replicate", "mean"):
        if values.get(name) is None:
            found = results[name]
            if isinstance(found, str):
                return False, f"the {name} has no value: {found}"
            why = found.metrics[metric].reason or found.metrics[metric].interval_reason
            return False, f"the {name} has no value: {why or 'undefined'}"
    assert spec is not None
    replicate, mean = values["replicate"], values["mean"]
    assert replicate is not None and mean is not None
    if spec.better == "none":
        return False, "neither higher nor lower is better"
    gain = replicate - mean if spec.better == "higher" else mean - replicate
    if pair is None or pair.p is None or pair.difference is None:
        better = "better" if gain > 0 else "no better"
        return gain > 0, f"the replicate is {better} than the mean; {ONE_VALUE}"
    shown = f"p = {pair.p:.2g} over {pair.n} perturbations"
    if gain <= 0:
        return False, f"the replicate is no better than the mean ({shown})"
    if pair.p < ALPHA:
        return True, f"the replicate is better than the mean ({shown})"
    return False, f"the replicate is not better than the mean beyond chance ({shown})"


def _rows(rows: Sequence[Reliability], made: ReferenceMaker) -> list[dict[str, Any]]:
    weights = {made.parts.keys[key]: weight for key, weight in made.weights.items()}
    return [asdict(row) | {"duplicate_weight": weights[row.context, row.perturbation]} for row in rows]


def _by_tier(rows: Sequence[Reliability]) -> dict[str, dict[str, Any]]:
    """Medians over all perturbations and per tier of effect strength; an undefined reliability counts as 0."""
    out = {}
    tiers = sorted({row.effect_tier for row in rows})
    for name in ("all", *(f"effect_tier={tier}" for tier in tiers)):
        chosen = [row for row in rows if name in ("all", f"effect_tier={row.effect_tier}")]
        halves = [row.half_correlation for row in chosen if row.half_correlation is not None]
        out[name] = {
            "n": len(chosen),
            "median_half_correlation": float(np.median(halves)) if halves else None,
            "median_reliability": float(np.median([row.reliability or 0.0 for row in chosen])),
        }
    return out


def _parameters(options: ScoreOptions, target_sum: float, kind: str) -> dict[str, Any]:
    return {
        "subset": options.subset if options.split else None,
        "split": dict(options.split.record) if options.split else None,
        "pert_col": options.pert_col,
        "control": options.control,
        "context_col": options.context_col,
        "matrix": kind,
        "target_sum": target_sum,
        "alpha": ALPHA,
    }
