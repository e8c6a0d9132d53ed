"""Everything the metrics need of the truth and of a prediction, computed once per side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bulks import Bulks, measure_bulks
from .cells import Cells
from .de import DETable, control_bulk_last, de_table
from .de_pair import DEPanel
from .expression import BulkPanel
from .targets import TargetRule

if TYPE_CHECKING:
    from .panel import TruthCells


@dataclass(frozen=True)
class RealSide:
    """One context of the truth.

    Arrays have one row per perturbation, sorted by label, and the control as the last row. `control` holds the
    control cells under group 0; `de` is None when no metric needs it.
    """

    context: str
    perturbations: tuple[str, ...]
    genes: tuple[str, ...]
    bulks: Bulks
    control: Cells
    de: DETable | None


@dataclass(frozen=True)
class PredSide:
    """The prediction of one context: one row per perturbation of the truth; tested against the truth's control."""

    bulks: Bulks
    de: DETable | None


def measure_real(truth: TruthCells, *, need_de: bool, threads: int | None = None) -> RealSide:
    """The truth's side from its cells."""
    n = len(truth.perturbations)
    bulks = measure_bulks([truth.cells], n + 1, len(truth.genes))
    table = None
    if need_de:
        table = de_table([truth.cells], n_cells=bulks.n_cells, mean_cpm=bulks.mean_cpm, threads=threads)
    control = truth.cells.with_groups(np.where(truth.cells.groups == n, 0, -1))
    return RealSide(truth.context, truth.perturbations, truth.genes, bulks, control, table)


def measure_pred(cells: Cells, real: RealSide, *, need_de: bool, threads: int | None = None) -> PredSide:
    """The prediction's side; `cells.groups` are positions in the truth's perturbations."""
    n = len(real.perturbations)
    bulks = measure_bulks([cells], n, len(real.genes))
    table = None
    if need_de:
        n_cells, mean_cpm = control_bulk_last(bulks, real.bulks)
        control = real.control.with_groups(np.where(real.control.groups == 0, n, -1))
        table = de_table([cells, control], n_cells=n_cells, mean_cpm=mean_cpm, threads=threads)
    return PredSide(bulks, table)


def bulk_panel(real: RealSide, pred: PredSide, rule: TargetRule) -> BulkPanel:
    """Both sides' bulks; changes are measured from the truth's control."""
    control = real.bulks.bulk[-1]
    return BulkPanel(
        perturbations=real.perturbations,
        genes=real.genes,
        real=real.bulks.bulk[:-1],
        pred=pred.bulks.bulk,
        real_control=control,
        pred_control=control,
        real_noise=real.bulks.noise[:-1],
        pred_noise=pred.bulks.noise,
        control_noise=float(real.bulks.noise[-1]),
        target_rule=rule,
    )


def de_panel(
    perturbations: tuple[str, ...], genes: tuple[str, ...], real: DETable, pred: DETable, rule: TargetRule
) -> DEPanel:
    """Both sides' tests."""
    return DEPanel(perturbations, genes, real, pred, rule)
