"""Build a truth bundle of a cell-eval edition: measure the real cells, the baseline and the data ceiling."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.h5ad import H5ad
from ...data_specs.issues import first_of, make_issue, sort_issues
from ...data_specs.remote import input_path
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition, Profile
from ...data_specs.temporary import temporary_folder, temporary_path
from ..bundles import new_bundle, open_bundle
from ..kernels.threads import numba_threads
from ..reference_files import read_perturbation_list
from ..score_options import ScoreOptions
from . import checks
from .baseline import write_mean_baseline
from .bundle import (
    BASELINE_FILE,
    CEILING_FILE,
    CEILING_RESULTS,
    DE,
    DISTANCES,
    MEASURED,
    CellevalBundle,
)
from .ceiling import Ceiling, side_ceiling
from .edistance import energy_distances
from .measure import measure
from .pairing import open_contexts, open_prediction
from .panel import Panel, PanelSide
from .pipeline import choose_metrics, compute_columns, needs_de, side_verdict
from .rules import Rules
from .score_rule import PUBLISHED, read_aggregate
from .side import Side
from .tables import aggregate_table

if TYPE_CHECKING:
    from ..pipelines import Progress


@dataclass(frozen=True, kw_only=True)
class CellevalBuildOptions:
    """What the bundle holds beside the real side.

    Attributes
    ----------
    train
        Training cells: the baseline is their mean response, scored against the real cells.
    perts
        CSV with the label column and `n_cells`: the baseline's cells per perturbation; None: as many as are real.
    baseline
        The path of a baseline's `agg_results.csv`, or `published`; not together with `train`.
    ceiling, ceiling_seed
        Whether to score one half of the real cells against the other, and the seed of the halves.
    profile_name
        What the record calls the profile.
    """

    train: Source | None = None
    perts: str | os.PathLike[str] | None = None
    baseline: str | os.PathLike[str] | None = None
    ceiling: bool = True
    ceiling_seed: int = 0
    profile_name: str = ""


def build_celleval_bundle(
    truth: Source,
    path: str | os.PathLike[str],
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    build: CellevalBuildOptions,
    progress: Progress | None = None,
    force: bool = False,
) -> CellevalBundle:
    """Measure the real cells of one context and write the bundle.

    Raises
    ------
    InvalidFile
        The real or the training cells cannot be used (E565 to E577), or the baseline's table cannot (E578).
    MetricError
        The ceiling needs two cells of the control and of some perturbation.
    UsageError
        Several contexts, two baselines, or values that the edition does not publish.
    """
    report = progress or (lambda done, total, text: None)
    rules, specs = Rules.of(edition), choose_metrics(profile.metrics)
    if build.train is not None and build.baseline is not None:
        raise UsageError("give the baseline once: its values (--baseline), or the training cells (--train).")
    with numba_threads(options.threads):
        context, side = _only_context(truth, edition, options)
        report(0, 3, "real cells")
        real = PanelSide.of(side, measure(side, rules, with_de=needs_de(specs)), rules)
        distances = energy_distances(side) if "pearson_edistance" in specs else None
        real = replace(real, stored_distances=distances)
        ceiling = None
        if build.ceiling:
            report(1, 3, "data ceiling")
            column = options.pert_col or edition.file.perturbation_column
            ceiling = side_ceiling(side, column, edition=edition, profile=profile, seed=build.ceiling_seed)
        report(2, 3, "baseline")
        baseline = _baseline(
            truth,
            real,
            edition=edition,
            profile=profile,
            options=options,
            build=build,
            folder=temporary_folder(Path(path), None),
        )
    with new_bundle(path, edition=edition, force=force) as part:
        _write_side(part.path, real)
        if ceiling is not None:
            _write_ceiling(part.path, ceiling)
        part.record.update(
            {
                "genes": [str(gene) for gene in truth.genes],
                "contexts": [{"context": context, "perturbations": list(side.targets)}],
                "profile": build.profile_name,
                "metrics": list(specs),
                "rules": rules.to_dict(),
                "matrix": side_verdict(context, side),
                "source": {"name": truth.name, "n_obs": truth.n_obs},
                "options": {
                    "perturbation_column": options.pert_col or edition.file.perturbation_column,
                    "control": options.control or edition.file.control_label,
                    "context_column": options.context_col or edition.file.context_column,
                    "matrix": options.matrix,
                },
                "ceiling": None
                if ceiling is None
                else {"seed": build.ceiling_seed, "dropped": list(ceiling.dropped)},
                "baseline": {"kind": "none", "metrics": []},
            }
        )
        if baseline is not None:
            part.record["baseline"], text = baseline
            (part.path / BASELINE_FILE).write_text(text, encoding="utf-8")
    bundle = open_bundle(path, edition=edition)
    assert isinstance(bundle, CellevalBundle)
    return bundle


def _only_context(truth: Source, edition: Edition, options: ScoreOptions) -> tuple[str, Side]:
    sides = open_contexts(truth, edition=edition, options=options)
    if len(sides) > 1:
        raise UsageError(
            f"{truth.name} holds {len(sides)} contexts; build one bundle of each and score with --truth CONTEXT=BUNDLE."
        )
    return sides[0]


def _write_side(folder: Path, real: PanelSide) -> None:
    arrays: dict[str, Any] = {name: getattr(real.measured, name) for name in MEASURED}
    if real.de is not None:
        arrays |= {f"de_{name}": getattr(real.de, name) for name in DE}
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
    if real.stored_distances is not None:
        np.save(folder / DISTANCES, real.stored_distances, allow_pickle=False)


def _write_ceiling(folder: Path, ceiling: Ceiling) -> None:
    ceiling.results.to_csv(folder / CEILING_RESULTS, index=False)
    with (folder / CEILING_FILE).open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(ceiling.values)
        writer.writerow("NaN" if value != value else repr(value) for value in ceiling.values.values())


def _baseline(
    truth: Source,
    real: PanelSide,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    build: CellevalBuildOptions,
    folder: Path,
) -> tuple[dict[str, Any], str] | None:
    """(record, `agg_results.csv` as text) of the baseline; None without one."""
    if build.train is not None:
        return _mean_response(
            truth, real, edition=edition, profile=profile, options=options, build=build, folder=folder
        )
    if build.baseline is None:
        return None
    if str(build.baseline) == PUBLISHED:
        values = edition.score.published_baseline
        if not values:
            raise UsageError(f"no baseline values are published for edition {edition.id}.")
        return {"kind": PUBLISHED, "metrics": list(values)}, _aggregate_text(values)
    members = [name for name in edition.score.members if name in profile.metrics] or [
        name for name, spec in choose_metrics(profile.metrics).items() if spec.better != "none"
    ]
    values = read_aggregate(build.baseline, members, edition_id=edition.id)
    return {"kind": Path(build.baseline).name, "metrics": members}, _aggregate_text(values)


def _aggregate_text(values: Mapping[str, float]) -> str:
    cells = ("NaN" if value != value else repr(float(value)) for value in values.values())
    return f"statistic,{','.join(values)}\nmean,{','.join(cells)}\n"


def _mean_response(
    truth: Source,
    real: PanelSide,
    *,
    edition: Edition,
    profile: Profile,
    options: ScoreOptions,
    build: CellevalBuildOptions,
    folder: Path,
) -> tuple[dict[str, Any], str]:
    """The organisers' comparator: cells of the training mean, scored as a prediction of the real cells."""
    train, side = build.train, real.side
    assert train is not None and side is not None
    issues = checks.gene_issues(train, truth)
    if issues:
        raise InvalidFile(sort_issues(issues))
    alone = replace(options, context_col=None, split=None)
    counts = _cell_counts(truth, side, edition=edition, options=options, perts=build.perts)
    rules, specs = Rules.of(edition), choose_metrics(profile.metrics)
    with temporary_path(folder, ".h5ad") as file:
        write_mean_baseline(train, file, counts=counts, edition=edition, options=alone)
        with H5ad(file) as arm:
            sides, _ = open_prediction(
                arm,
                truth,
                {"": side.targets},
                context_column=None,
                edition=edition,
                options=replace(alone, matrix="log1p"),
                progress=lambda *_: None,
            )
            measured = measure(sides[""], rules, with_de=needs_de(specs))
            pred = PanelSide.of(sides[""], measured, rules)
            columns, _ = compute_columns(Panel(side.targets, truth.genes, pred, real, rules), specs)
    record = {
        "kind": "mean response of training cells",
        "metrics": list(specs),
        "train": train.name,
        "n_cells": dict(counts),
        "n_cells_from": "real cells" if build.perts is None else input_path(build.perts).name,
    }
    return record, aggregate_table(columns).to_csv(index=False)


def _cell_counts(
    truth: Source,
    side: Side,
    *,
    edition: Edition,
    options: ScoreOptions,
    perts: str | os.PathLike[str] | None,
) -> dict[str, int]:
    """The baseline's cells per perturbation: those of the list, real ones where it has no count.

    Raises `InvalidFile` when the list names other perturbations than the real cells (E568), or cannot be read.
    """
    real = {target: int(n) for target, n in zip(side.targets, side.sizes, strict=False)}
    if perts is None:
        return real
    column = options.pert_col or edition.file.perturbation_column
    control = options.control or edition.file.control_label
    columns = tuple(dict.fromkeys((column, edition.file.perturbation_column)))
    listed = read_perturbation_list(input_path(perts), columns=columns, control=control).expected(None)
    missing, extra = sorted(set(real) - set(listed)), sorted(set(listed) - set(real))
    if missing or extra:
        found = f"missing {first_of(missing)}, extra {first_of(extra)}"
        expected = f"the {len(real):,} perturbations of {truth.name}"
        where, file = f"{input_path(perts).name}:{column}", shlex.quote(str(truth.path))
        raise InvalidFile([make_issue("E568", where=where, found=found, expected=expected, file=file)])
    return {label: real[label] if n is None else n for label, n in listed.items()}
