"""Everything the metrics need of the truth and of a prediction, computed once per side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .bulks import Bulks, Jackknife, finished_bulks, first_pass, measure_bulks
from .cells import Cells
from .de import DETable, de_table
from .de_pair import DEPanel
from .expression import BulkPanel
from .targets import TargetRule

if TYPE_CHECKING:
    import scipy.sparse as sp

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
    bulks, table = measure_groups(truth.cells, n + 1, len(truth.genes), need_de=need_de, threads=threads)
    control = truth.cells.with_groups(np.where(truth.cells.groups == n, 0, -1))
    return RealSide(truth.context, truth.perturbations, truth.genes, bulks, control, table)


def measure_pred(cells: Cells, real: RealSide, *, need_de: bool, threads: int | None = None) -> PredSide:
    """The prediction's side; `cells.groups` are positions in the truth's perturbations."""
    n = len(real.perturbations)
    bulks, table = measure_groups(
        cells, n, len(real.genes), need_de=need_de, control=real.control, real=real.bulks, threads=threads
    )
    return PredSide(bulks, table)


def measure_groups(
    cells: Cells,
    n_groups: int,
    n_genes: int,
    *,
    need_de: bool,
    control: Cells | None = None,
    real: Bulks | None = None,
    threads: int | None = None,
) -> tuple[Bulks, DETable | None]:
    """Bulks of the groups, and their tests against the last group, or against `control` (group 0) measured in `real`.

    The cells are read twice, and once more for every further block of genes that the tests' memory needs. With an
    executor its workers measure them, to the same bits.
    """
    if cells.executor is not None:
        from .partial import measure_divided

        found = measure_divided(
            cells,
            n_groups,
            n_genes,
            cells.executor,
            need_de=need_de,
            control=control,
            real=real,
            threads=threads,
        )
        if found is not None:
            return found
    if not need_de:
        return measure_bulks([cells], n_groups, n_genes, threads=threads), None
    first = first_pass([cells], n_groups, n_genes, with_counts=True, threads=threads)
    jackknife = Jackknife(first, threads=threads)

    def on_block(part: int, rows: sp.csr_array, codes: np.ndarray, totals: np.ndarray) -> None:
        if part == 0:
            jackknife.add(rows, codes, totals)

    if control is None or real is None:
        table = de_table(
            [cells],
            n_cells=first.n_cells,
            mean_cpm=first.mean_cpm,
            first=first,
            on_block=on_block,
            threads=threads,
        )
        return finished_bulks(first, jackknife), table
    tested = control.with_groups(np.where(control.groups == 0, n_groups, -1))
    both = first.joined(first_pass([tested], n_groups + 1, n_genes, with_counts=True, threads=threads))
    table = de_table(
        [cells, tested],
        n_cells=np.append(first.n_cells, real.n_cells[-1]),
        mean_cpm=np.vstack([first.mean_cpm, real.mean_cpm[-1]]),
        first=both,
        on_block=on_block,
        threads=threads,
    )
    return finished_bulks(first, jackknife), table


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
