"""Upstream's validation metrics: R2 of means and variances per category, kNN purity, and their sum `cpa_metric`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

MOST_NEIGHBOURS = 30


def category_r2(predicted: Tensor, truth: Tensor, categories: Tensor, mask: Tensor | None = None) -> Tensor:
    """R2 across genes per category: of the means of `predicted` (n, G), against the means of `truth`; and of variances.

    Float, shape (2,): averages over the categories of the batch of both R2; undefined ones (one cell) count as 0.
    `mask`, (n_categories, G) with 0 and 1, multiplies both sides as upstream does.
    """
    return _mean_r2(
        [
            (p.mean(dim=0), t.mean(dim=0), _variance(p), _variance(t))
            for p, t in _groups(predicted, truth, categories)
        ],
        categories,
        mask,
    )


def gaussian_r2(
    mean: Tensor, variance: Tensor, truth: Tensor, categories: Tensor, mask: Tensor | None = None
) -> Tensor:
    """As `category_r2` for Gaussian parameters: the variance is the mean of the predicted variances."""
    rows = []
    for (m, t), (v, _) in zip(
        _groups(mean, truth, categories), _groups(variance, truth, categories), strict=True
    ):
        rows.append((m.mean(dim=0), t.mean(dim=0), v.mean(dim=0), _variance(t)))
    return _mean_r2(rows, categories, mask)


def _variance(x: Tensor) -> Tensor:
    """Unbiased variance of each column; NaN below two rows."""
    return x.var(dim=0) if len(x) > 1 else torch.full_like(x[0], math.nan)


def _groups(predicted: Tensor, truth: Tensor, categories: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = torch.unique(categories)
    return [(predicted[categories == code], truth[categories == code]) for code in found]


def _mean_r2(rows: list[tuple[Tensor, ...]], categories: Tensor, mask: Tensor | None) -> Tensor:
    values = []
    for code, row in zip(torch.unique(categories), rows, strict=True):
        own = row if mask is None else tuple(value * mask[code] for value in row)
        values.append(torch.stack([_r2(own[0], own[1]), _r2(own[2], own[3])]))
    return torch.nan_to_num(torch.stack(values), nan=0.0, posinf=0.0, neginf=0.0).mean(dim=0)


def _r2(predicted: Tensor, truth: Tensor) -> Tensor:
    return 1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()


def knn_purity(points: Tensor, labels: Tensor) -> float:
    """Share of a cell's nearest neighbours with its own label: mean per label, then over labels.

    At most 30 Euclidean neighbours, the cell itself excluded. NaN below two cells.
    """
    k = min(len(points) - 1, MOST_NEIGHBOURS)
    if k < 1:
        return math.nan
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(math.inf)
    neighbours = distances.topk(k, largest=False).indices
    same = (labels[neighbours] == labels.unsqueeze(1)).double().mean(dim=1)
    return float(torch.stack([same[labels == label].mean() for label in torch.unique(labels)]).mean())


def purity(points: Tensor, labels: Mapping[str, Tensor]) -> float:
    """Sum of the kNN purities over label sets."""
    return sum(knn_purity(points, own) for own in labels.values())


def cpa_metric(r2_mean: float, r2_var: float, basal: float, after: float) -> float:
    """r2_mean + r2_var / 2 + exp(purity of z - purity of the basal state)."""
    return r2_mean + 0.5 * r2_var + math.exp(after - basal)
