"""The pseudobulk metrics: errors of bulks, noise-corrected errors, perturbation discrimination.

Every function takes a `BulkPanel` and returns one value per perturbation, float64, shape (n_perturbations,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_specs.errors import MetricError
from .bulks import BULK_TARGET_SUM
from .targets import TargetRule, gene_index

NOISE_CAP = 1.0


@dataclass(frozen=True)
class BulkPanel:
    """Bulks of truth and prediction over the same perturbations, sorted by label.

    Attributes
    ----------
    perturbations, genes
        Names; genes are the full gene axis.
    real, pred
        Bulks, log1p of 5e4-scaled sums, float64, shape (n_perturbations, n_genes).
    real_control, pred_control
        Control bulk that each side is compared with, shape (n_genes,).
    real_noise, pred_noise, control_noise
        Jackknife noise of those bulks, shapes (n_perturbations,), (n_perturbations,), scalar (truth's control).
    target_rule
        How labels find their own gene.
    """

    perturbations: tuple[str, ...]
    genes: tuple[str, ...]
    real: np.ndarray
    pred: np.ndarray
    real_control: np.ndarray
    pred_control: np.ndarray
    real_noise: np.ndarray
    pred_noise: np.ndarray
    control_noise: float
    target_rule: TargetRule

    @cached_property
    def own(self) -> np.ndarray:
        """Column of each perturbation's own gene, or -1. Raises `MetricError` when none resolves."""
        return self.target_rule.own_genes_checked(
            self.perturbations, gene_index(self.genes), where="the gene axis"
        )

    @cached_property
    def genes_kept(self) -> np.ndarray:
        """Genes that enter the noise-corrected errors of each perturbation, shape (n_perturbations,)."""
        return len(self.genes) - (self.own >= 0).astype(np.int64)

    @cached_property
    def real_delta(self) -> np.ndarray:
        """Change from control of the truth, shape (n_perturbations, n_genes)."""
        return self.real - self.real_control

    @cached_property
    def pred_delta(self) -> np.ndarray:
        """Change from control of the prediction, same shape."""
        return self.pred - self.pred_control

    @cached_property
    def squared_error(self) -> np.ndarray:
        """Squared distance of the bulks without the own gene, shape (n_perturbations,)."""
        return self._square_sum(self.pred - self.real)

    @cached_property
    def capped_noise(self) -> np.ndarray:
        """Noise of the prediction, at most that of the truth, shape (n_perturbations,)."""
        return np.minimum(self.pred_noise, NOISE_CAP * self.real_noise)

    def _square_sum(self, difference: np.ndarray) -> np.ndarray:
        square = difference * difference
        rows = np.flatnonzero(self.own >= 0)
        square[rows, self.own[rows]] = 0.0
        return square.sum(axis=1)

    def per_gene(self, total: np.ndarray) -> np.ndarray:
        """`total` divided by the genes that enter; NaN where none does."""
        return np.where(self.genes_kept > 0, total / np.maximum(self.genes_kept, 1), np.nan)


def expr_mae(panel: BulkPanel) -> np.ndarray:
    """Mean over genes of |pred - real|."""
    return _mean_over_genes(np.abs(panel.pred - panel.real))


def expr_mse(panel: BulkPanel) -> np.ndarray:
    """Mean over genes of (pred - real)^2."""
    return _mean_over_genes((panel.pred - panel.real) ** 2)


def delta_mae(panel: BulkPanel) -> np.ndarray:
    """Mean over genes of |pred change - real change|."""
    return _mean_over_genes(np.abs(panel.pred_delta - panel.real_delta))


def delta_mse(panel: BulkPanel) -> np.ndarray:
    """Mean over genes of (pred change - real change)^2."""
    return _mean_over_genes((panel.pred_delta - panel.real_delta) ** 2)


def delta_pearson(panel: BulkPanel) -> np.ndarray:
    """Pearson correlation of the changes over genes.

    NaN where the real change is constant, not finite, or has fewer than two genes; -1 where only the predicted
    change is constant or not finite.
    """
    out = np.empty(len(panel.perturbations))
    for row, (pred, real) in enumerate(zip(panel.pred_delta, panel.real_delta, strict=True)):
        if len(real) < 2 or not np.isfinite(real).all() or np.ptp(real) == 0:
            out[row] = np.nan
        elif not np.isfinite(pred).all() or np.ptp(pred) == 0:
            out[row] = -1.0
        else:
            out[row] = _pearson(pred, real)
    return out


def expr_mse_unbiased(panel: BulkPanel) -> np.ndarray:
    """Squared error without the own gene, minus the noise of both bulks, per gene."""
    return panel.per_gene(panel.squared_error - panel.pred_noise - panel.real_noise)


def expr_mse_unbiased_capped(panel: BulkPanel) -> np.ndarray:
    """Squared error without the own gene, minus the truth's noise and the share of the prediction's that it shows."""
    share = claimed_noise_share(panel)
    return panel.per_gene(panel.squared_error - share * panel.capped_noise - panel.real_noise)


def expr_distance_unbiased(panel: BulkPanel) -> np.ndarray:
    """Squared distance of the truth from its control without the own gene, minus both noise terms, per gene."""
    square = panel._square_sum(panel.real - panel.real_control)
    return panel.per_gene(square - panel.real_noise - panel.control_noise)


def expr_real_mass_ratio(panel: BulkPanel) -> np.ndarray:
    """Sum of the un-logged real bulk over the bulk's target sum: about 1, a check of units."""
    return np.expm1(panel.real).sum(axis=1) / BULK_TARGET_SUM


def claimed_noise_share(panel: BulkPanel) -> float:
    """How much of the noise that the predicted bulks claim is visible as spread between them, in [0, 1].

    The weighted spread of each gene over the predictions that do not target it, summed over genes, over the sum
    of claimed noise; 1 when nothing is claimed.
    """
    # Expression metrics weight a perturbation by 1 / genes that enter; a panel without genes has no weight.
    weight = 1.0 / np.maximum(panel.genes_kept, 1)
    claim = float((weight * panel.capped_noise).sum())
    if not claim > 0:
        return 1.0
    counts = np.repeat(weight[:, None], len(panel.genes), axis=1)
    rows = np.flatnonzero(panel.own >= 0)
    counts[rows, panel.own[rows]] = 0.0
    contributors = (counts > 0).sum(axis=0)
    total = counts.sum(axis=0)
    centred = panel.pred - panel.pred.mean(axis=0)
    s1 = (counts * centred).sum(axis=0)
    s2 = (counts * centred * centred).sum(axis=0)
    enough = (contributors >= 2) & (total > 0)
    spread = np.where(enough, s2 - s1 * s1 / np.where(total > 0, total, 1.0), 0.0)
    return min(1.0, float(np.maximum(spread, 0.0).sum()) / claim)


def expr_mse_unbiased_capped_norm(capped: np.ndarray, distance: np.ndarray) -> float:
    """Sum of `expr_mse_unbiased_capped` over sum of `expr_distance_unbiased`, where both are finite.

    Raises
    ------
    MetricError
        No perturbation has both, or the sum of distances is not positive: the truth holds no more signal than noise.
    """
    both = np.isfinite(capped) & np.isfinite(distance)
    if not both.any():
        raise MetricError(
            "expr_mse_unbiased_capped_norm: no perturbation has both a finite error and distance."
        )
    numerator, denominator = float(capped[both].sum()), float(distance[both].sum())
    if not denominator > 0:
        raise MetricError(
            "expr_mse_unbiased_capped_norm: the truth's perturbations are, after noise correction, no further from "
            f"control than noise (summed distance {denominator:.6g}, must be positive), so the error has no unit. "
            "Too few or too shallow cells, or perturbations without effect on these genes."
        )
    ratio = numerator / denominator
    if not np.isfinite(ratio):
        raise MetricError(
            f"expr_mse_unbiased_capped_norm: {numerator:.6g} / {denominator:.6g} is not finite."
        )
    return ratio


def pds_cosine(panel: BulkPanel) -> np.ndarray:
    """Discrimination by cosine distance of the changes, all targeted genes left out."""
    pred, real = _without_targets(panel)
    norms = np.sqrt((pred * pred).sum(axis=1))[:, None] * np.sqrt((real * real).sum(axis=1))
    dots = np.einsum("pg,qg->pq", pred, real)
    similarity = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return discrimination(np.clip(1.0 - similarity, 0.0, 2.0))


def pds_l1(panel: BulkPanel) -> np.ndarray:
    """Discrimination by Manhattan distance of the changes, all targeted genes left out."""
    from scipy.spatial.distance import cdist

    pred, real = _without_targets(panel)
    return discrimination(cdist(pred, real, "cityblock"))


def pds_l2(panel: BulkPanel) -> np.ndarray:
    """Discrimination by Euclidean distance of the changes, all targeted genes left out."""
    pred, real = _without_targets(panel)
    square = (
        (pred * pred).sum(axis=1)[:, None]
        + (real * real).sum(axis=1)
        - 2 * np.einsum("pg,qg->pq", pred, real)
    )
    return discrimination(np.sqrt(np.maximum(square, 0.0)))


def discrimination(distances: np.ndarray) -> np.ndarray:
    """1 - rank/(n-1) of the true perturbation among all, mid-ranks for ties; 1 for a panel of one.

    `distances[p, q]` is the distance of prediction p from truth q, shape (n, n). NaNs are the furthest of all.
    """
    n = len(distances)
    if n == 1:
        return np.ones(1)
    own = np.diagonal(distances)[:, None]
    closer = (distances < own) | (np.isnan(own) & ~np.isnan(distances))
    tied = (distances == own) | (np.isnan(own) & np.isnan(distances))
    rank = closer.sum(axis=1) + (tied.sum(axis=1) - 1) / 2
    return 1.0 - rank / (n - 1)


def _without_targets(panel: BulkPanel) -> tuple[np.ndarray, np.ndarray]:
    keep = np.ones(len(panel.genes), dtype=bool)
    keep[panel.own[panel.own >= 0]] = False
    if not keep.any():
        raise MetricError("pds: every gene is the target of some perturbation, so none is left to compare.")
    return panel.pred_delta[:, keep], panel.real_delta[:, keep]


def _mean_over_genes(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=1) if values.shape[1] else np.full(len(values), np.nan)


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    bottom = float(np.sqrt((x * x).sum()) * np.sqrt((y * y).sum()))
    return float(np.clip((x * y).sum() / bottom, -1.0, 1.0)) if bottom > 0 else -1.0


EXPRESSION_METRICS: dict[str, Callable[[BulkPanel], np.ndarray]] = {
    "expr_mae": expr_mae,
    "expr_mse": expr_mse,
    "expr_mse_unbiased": expr_mse_unbiased,
    "expr_mse_unbiased_capped": expr_mse_unbiased_capped,
    "expr_distance_unbiased": expr_distance_unbiased,
    "expr_real_mass_ratio": expr_real_mass_ratio,
    "delta_mae": delta_mae,
    "delta_mse": delta_mse,
    "delta_pearson": delta_pearson,
    "pds_l1": pds_l1,
    "pds_l2": pds_l2,
    "pds_cosine": pds_cosine,
}
