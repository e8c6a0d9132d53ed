"""Everything the metrics of one (context, perturbation) need, computed when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..metrics.base import Null
from .de import DeTable, rank_by_magnitude

# One unit in the last place of float32, and rounding of sums around zero: smaller differences are storage.
_FLOAT32_RTOL, _ROUNDING_ATOL = 2.0**-23, 1e-12
NO_DE = Null("fewer than 2 cells or controls: no DE")
NO_PRED_DE = Null("fewer than 2 predicted cells: no predicted DE")
NO_CELLS = Null("prediction has no cells")


def is_same(mean: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Where two profiles agree to float32 resolution, bool.

    A profile that repeats the control mean is stored as float32; its rounding must read as no change, not as a
    direction for every gene.
    """
    limit = _FLOAT32_RTOL * np.maximum(np.abs(mean), np.abs(reference)) + _ROUNDING_ATOL
    return np.abs(mean - reference) <= limit


def change(mean: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`mean - reference`, exactly 0 where `is_same`."""
    return np.where(is_same(mean, reference), 0.0, mean - reference)


@dataclass(frozen=True)
class View:
    """A row restricted to some genes, float64 arrays of equal length.

    `y`, `p`: true and predicted mean; `d`, `e`: their change from the control mean; `d_ref`, `e_ref`: from the
    Systema reference, or a Null where there is none.
    """

    y: np.ndarray
    p: np.ndarray
    d: np.ndarray
    e: np.ndarray
    d_ref: np.ndarray | Null
    e_ref: np.ndarray | Null


@dataclass(frozen=True)
class Cells:
    """Predicted and true cells of one perturbation in the common space, float64, (n_cells, k)."""

    pred: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class CoreRow:
    """One evaluated (context, perturbation), genes in sorted order.

    Attributes
    ----------
    y, p, c
        Means of the truth, the prediction and the truth's controls of the context, float64, shape (G,).
    reference
        Systema reference: mean of the training perturbations' bulks; a Null where there is none.
    de, pred_de
        DE of the true and of the predicted cells against the truth's controls; None with fewer than two cells.
    has_cells
        Whether the prediction consists of cells.
    targets
        Positions of the perturbed genes.
    cells
        Cells in the common space; a Null when the prediction has none.
    parameters
        `scoring.parameters` of the edition.
    """

    y: np.ndarray
    p: np.ndarray
    c: np.ndarray
    reference: np.ndarray | Null
    de: DeTable | None
    pred_de: DeTable | None
    has_cells: bool
    targets: np.ndarray
    cells: Cells | Null
    parameters: Mapping[str, Any]

    @property
    def n_top(self) -> int:
        """Size of the top set (20)."""
        return int(self.parameters["de_top"])

    @cached_property
    def d(self) -> np.ndarray:
        """True change from control."""
        return change(self.y, self.c)

    @cached_property
    def e(self) -> np.ndarray:
        """Predicted change from control."""
        return change(self.p, self.c)

    @cached_property
    def views(self) -> dict[str, View | Null]:
        """The gene sets of the metric names: `` (all), `_top20_de`, `_top20_de_no_target`."""
        top, rest = NO_DE, NO_DE
        if self.de is not None:
            top = self._view(self.de.ranked()[: self.n_top])
            rest = self._view(self.de.ranked(exclude=self.targets)[: self.n_top])
        return {"": self._view(slice(None)), "_top20_de": top, "_top20_de_no_target": rest}

    def _view(self, genes: np.ndarray | slice) -> View:
        if isinstance(self.reference, Null):
            d_ref = e_ref = self.reference
        else:
            d_ref = change(self.y[genes], self.reference[genes])
            e_ref = change(self.p[genes], self.reference[genes])
        return View(self.y[genes], self.p[genes], self.d[genes], self.e[genes], d_ref, e_ref)

    @cached_property
    def distance_scale(self) -> float | Null:
        """Median distance of pairs of true cells in the common space."""
        from ..metrics.distribution import median_distance

        if isinstance(self.cells, Null):
            return self.cells
        return median_distance(self.cells.truth) or Null(
            "fewer than 2 distinct true cells: no distance scale"
        )

    @cached_property
    def predicted_ranking(self) -> np.ndarray | Null:
        """Genes that the prediction changes, strongest first: by Welch t of its cells, by abs(e) for a mean profile."""
        if self.has_cells:
            return NO_PRED_DE if self.pred_de is None else self.pred_de.ranked(changed=True)
        order = rank_by_magnitude(self.e)
        return order[self.e[order] != 0]
