"""The data ceiling of cell-eval 0.8.2: how well half of the true cells predicts the other half, at full depth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...data_specs.errors import MetricError
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition, Profile
from ..kernels.threads import numba_threads
from ..score_options import ScoreOptions
from .pairing import open_alone
from .pipeline import build_panel, choose_metrics, compute_columns, needs_de
from .rules import Rules
from .side import Side
from .tables import aggregate, results_table

if TYPE_CHECKING:
    import pandas as pd

# Bounded reliabilities, for which the Spearman-Brown correction has a meaning.
CORRECTED = (
    "pearson_delta",
    *(f"discrimination_score_{distance}" for distance in ("l1", "l2", "cosine")),
    *(f"{kind}_at_{k}" for kind in ("overlap", "precision") for k in ("N", 50, 100, 200, 500)),
    "de_spearman_sig",
    "de_direction_match",
    "de_spearman_lfc_sig",
    "de_sig_genes_recall",
    "pr_auc",
    "roc_auc",
)


@dataclass(frozen=True)
class Ceiling:
    """`results`: raw scores of half against half, as `results.csv`. `values`: the corrected mean of every metric, NaN
    where there is no ceiling. `dropped`: perturbations with fewer than two cells."""

    results: pd.DataFrame
    values: dict[str, float]
    dropped: tuple[str, ...]


def data_ceiling(
    truth: Source, *, edition: Edition, profile: Profile, options: ScoreOptions, seed: int = 0
) -> Ceiling:
    """The ceiling of every metric of the profile, from the true cells alone.

    Each label's cells, the control's included, are permuted by one generator and cut into two halves of
    floor(n / 2); the normal pipeline scores one half against the other. A mean r above 0 becomes 2 r / (1 + r).

    Raises
    ------
    InvalidFile
        The file cannot be used.
    MetricError
        The control, or every perturbation, has fewer than two cells.
    """
    with numba_threads(options.threads):
        side = open_alone(truth, edition=edition, options=options)
        column = options.pert_col or edition.file.perturbation_column
        return side_ceiling(side, column, edition=edition, profile=profile, seed=seed)


def side_ceiling(side: Side, column: str, *, edition: Edition, profile: Profile, seed: int = 0) -> Ceiling:
    """The ceiling of an opened side; `column` holds its labels. As `data_ceiling`."""
    rules, specs = Rules.of(edition), choose_metrics(profile.metrics)
    first, second, dropped = disjoint_halves(side, column, seed)
    panel = build_panel(second, first, rules, with_de=needs_de(specs))
    columns, _ = compute_columns(panel, specs)
    values = {name: _corrected(name, aggregate(column)["mean"]) for name, column in columns.items()}
    return Ceiling(results_table(panel.targets, columns), values, dropped)


def disjoint_halves(side: Side, column: str, seed: int) -> tuple[Side, Side, tuple[str, ...]]:
    """Two sides over the same file with floor(n / 2) cells of every label each, and the labels that were dropped.

    Labels are drawn in the order of the stored categories, sorted where the column is plain text.
    """
    rng = np.random.default_rng(seed)
    names = [*side.targets, None]
    kept = tuple(name for i, name in enumerate(side.targets) if side.sizes[i] >= 2)
    if side.sizes[-1] < 2:
        raise MetricError("the control has fewer than 2 cells, so it cannot be split in two halves.")
    if not kept:
        raise MetricError("no perturbation has 2 cells, so none can be split in two halves.")
    position = {name: i for i, name in enumerate(kept)} | {None: len(kept)}
    halves = [np.full(side.source.n_obs, -1, dtype=np.int32) for _ in range(2)]
    for group in _draw_order(side, column):
        rows = rng.permutation(np.flatnonzero(side.groups == group))
        half = len(rows) // 2
        if half:
            halves[0][rows[:half]] = position[names[group]]
            halves[1][rows[half : 2 * half]] = position[names[group]]
    first, second = (side.with_groups(groups, kept) for groups in halves)
    return first, second, tuple(name for name in side.targets if name not in position)


def _draw_order(side: Side, column: str) -> list[int]:
    labels = side.source.labels(column).values()
    first_row = [int(np.argmax(side.groups == group)) for group in range(len(side.targets) + 1)]
    by_name = {str(labels[row]): group for group, row in enumerate(first_row)}
    categories = side.source.stored_categories(column)
    order = sorted(by_name) if categories is None else categories
    return [by_name[name] for name in order if name in by_name]


def _corrected(name: str, mean: float | None) -> float:
    if name not in CORRECTED or mean is None or not mean > 0:
        return math.nan
    return 2.0 * mean / (1.0 + mean)
