"""The evaluation of CellOT: moments, correlations, MMD, k-NN mixing and transport cost of predicted and true cells."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal

import numpy as np

from .base import Null, Value
from .distribution import _cost, _row_update, _transport_potentials, mmd, sinkhorn_divergence
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..core.cellot_rows import CellotRow

Values = dict[str, Value]
TRAINING_GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)
EVALUATION_GAMMAS = tuple(float(gamma) for gamma in np.logspace(1, -3, 50))
NEIGHBOURS, NEIGHBOUR_SETS = 250, (50, 100)
# Upstream leaves distances out from so many features on.
MOST_FEATURES = 1000
SINKHORN_BLUR, WASSERSTEIN_EPSILON = 0.1, 0.5
TRANSPORT = ("sinkhorn", "wasserstein")
_MANY = Null(f"{MOST_FEATURES:,} features or more")


def pearson(x: np.ndarray, y: np.ndarray) -> Value:
    """Pearson correlation; null where one side is constant or has fewer than two values."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Null("fewer than two distinct values: no correlation")
    a, b = x - x.mean(), y - y.mean()
    norms = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return min(1.0, max(-1.0, float(np.sum(a * b) / norms)))


def _agreement(name: str, p: np.ndarray, t: np.ndarray) -> Values:
    """`l2_`, `r_` (Pearson) and `r2_` (its square) of two vectors over features."""
    r = pearson(p, t)
    return {
        f"l2_{name}": float(np.linalg.norm(p - t)),
        f"r_{name}": r,
        f"r2_{name}": r if isinstance(r, Null) else r * r,
    }


def mean_values(p: np.ndarray, t: np.ndarray) -> Values:
    """Agreement of two mean profiles, shape (k,)."""
    return _agreement("means", p, t)


def moment_values(pred: np.ndarray, truth: np.ndarray) -> Values:
    """Agreement of means, standard deviations (ddof 1) and feature-feature correlations of cells, (n, k) and (m, k).

    Pairs of features that are undefined on one side are left out.
    """
    out = mean_values(pred.mean(axis=0), truth.mean(axis=0))
    if min(len(pred), len(truth)) < 2:
        few = Null("fewer than 2 cells")
        return out | {
            f"{s}_{name}": few for s in ("l2", "r", "r2") for name in ("stds", "feature_correlations")
        }
    out |= _agreement("stds", pred.std(axis=0, ddof=1), truth.std(axis=0, ddof=1))
    if pred.shape[1] >= MOST_FEATURES:
        return out | {f"{s}_feature_correlations": _MANY for s in ("l2", "r", "r2")}
    upper = np.triu_indices(pred.shape[1], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, t = (np.atleast_2d(np.corrcoef(cells.T))[upper] for cells in (pred, truth))
    known = np.isfinite(p) & np.isfinite(t)
    return out | _agreement("feature_correlations", p[known], t[known])


def distance_values(pred: np.ndarray, truth: np.ndarray) -> Values:
    """MMD with both sets of gammas and k-NN mixing of cells (n, k) and (m, k)."""
    if pred.shape[1] >= MOST_FEATURES:
        names = ("mmd", "mmd_training", *(f"enrichment_k{k}" for k in NEIGHBOUR_SETS))
        return dict.fromkeys(names, _MANY)
    return {
        "mmd": mmd(pred, truth, EVALUATION_GAMMAS, 1.0),
        "mmd_training": mmd(pred, truth, TRAINING_GAMMAS, 1.0),
        **enrichment(pred, truth),
    }


def transport_values(pred: np.ndarray, truth: np.ndarray, names: Collection[str]) -> Values:
    """Those of `sinkhorn` and `wasserstein` that are in `names`; slow."""
    if pred.shape[1] >= MOST_FEATURES:
        return dict.fromkeys(TRANSPORT, _MANY)
    found: Values = {}
    if "sinkhorn" in names:
        found["sinkhorn"] = sinkhorn_divergence(pred, truth, blur=SINKHORN_BLUR, scale=1.0)
    if "wasserstein" in names:
        found["wasserstein"] = entropic_cost(pred, truth, WASSERSTEIN_EPSILON)
    return found


def enrichment(pred: np.ndarray, truth: np.ndarray) -> Values:
    """Share of predicted cells among the first 50 and 100 neighbours of a predicted cell: 0.5 mixed, 1 apart.

    Equal numbers of both sides are pooled (the first rows of the larger one); at most 250 neighbours beside the cell
    itself, which upstream assumes to come first.
    """
    from scipy.spatial.distance import cdist

    n = min(len(pred), len(truth))
    if n < 2:
        return dict.fromkeys((f"enrichment_k{k}" for k in NEIGHBOUR_SETS), Null("fewer than 2 cells"))
    pooled = np.concatenate([pred[:n], truth[:n]])
    n_neighbours = min(NEIGHBOURS + 1, n)
    distances = cdist(pred[:n], pooled)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, 1:n_neighbours]
    own = nearest < n
    return {f"enrichment_k{k}": float(own[:, :k].mean()) for k in NEIGHBOUR_SETS}


def entropic_cost(pred: np.ndarray, truth: np.ndarray, epsilon: float) -> Value:
    """<plan, cost> of entropic transport with uniform weights and cost |a - b|², regularisation `epsilon`.

    Biased: above 0 for equal samples. Null when the iterations do not settle.
    """
    cost = 2.0 * _cost(pred, truth, 1.0)
    found = _transport_potentials(cost, epsilon, symmetric=False)
    if found is None:
        return Null("Sinkhorn iterations did not converge")
    _, f = found
    g = _row_update(cost.T, f, epsilon)
    plan = np.exp((f[:, None] + g[None, :] - cost) / epsilon) / cost.size
    return float(np.sum(plan * cost))


def _mean_of(found: list[Value]) -> Value:
    numbers = [value for value in found if not isinstance(value, Null)]
    return float(np.mean(numbers)) if numbers else found[0]


def averaged(repetitions: list[Values]) -> Values:
    """Mean of each value over repetitions, nulls left out unless all are."""
    return {name: _mean_of([values[name] for values in repetitions]) for name in repetitions[0]}


def _compute(name: str) -> Callable[[CellotRow], Value]:
    def value(row: CellotRow) -> Value:
        return row.values[name]

    return value


_DRAWN = (
    "cells drawn without replacement from each side (the largest of 100, 250, 500 that both have, or all of the "
    "smaller side), mean of 10 draws; log1p space; "
)
_DRAWN_ONCE = _DRAWN.replace("mean of 10 draws", "first draw")
_SETS = {"": "all genes", "_top50": "the 50 top-ranked DE genes of the truth"}
_BASE: tuple[tuple[str, Literal["higher", "lower"], float | None, str], ...] = (
    ("l2_means", "lower", 0.0, "Euclidean distance of mean profiles"),
    ("r_means", "higher", 1.0, "Pearson r of mean profiles (upstream's r2-means)"),
    ("r2_means", "higher", 1.0, "squared Pearson r of mean profiles"),
    ("l2_stds", "lower", 0.0, "Euclidean distance of standard deviations (ddof 1)"),
    ("r_stds", "higher", 1.0, "Pearson r of standard deviations (upstream's r2-stds)"),
    ("r2_stds", "higher", 1.0, "squared Pearson r of standard deviations"),
    (
        "l2_feature_correlations",
        "lower",
        0.0,
        "Euclidean distance of the upper triangles of gene-gene correlations",
    ),
    ("r_feature_correlations", "higher", 1.0, "Pearson r of those (upstream's r2-pairwise_feat_corrs)"),
    ("r2_feature_correlations", "higher", 1.0, "squared Pearson r of those"),
    ("mmd", "lower", 0.0, "biased MMD², mean over 50 gammas from 10 to 0.001, unscaled distances"),
    ("mmd_training", "lower", 0.0, "the same with gammas 2, 1, 0.5, 0.1, 0.01, 0.005"),
    (
        "enrichment_k50",
        "lower",
        None,
        "share of predicted cells among 50 neighbours of predicted cells; 0.5 is mixed",
    ),
    ("enrichment_k100", "lower", None, "the same with 100 neighbours"),
    (
        "sinkhorn",
        "lower",
        0.0,
        "debiased entropic transport, cost |a - b|²/2, regularisation 0.01 (CondOT's)",
    ),
    ("wasserstein", "lower", None, "<plan, cost> of entropic transport, cost |a - b|², regularisation 0.5"),
)

for _suffix, _over in _SETS.items():
    for _name, _better, _perfect, _formula in _BASE:
        register(
            MetricSpec(
                name=_name + _suffix,
                version=1,
                family="cellot",
                title=f"CellOT {_name + _suffix}",
                formula=f"{_formula}; {_DRAWN_ONCE if _name in TRANSPORT else _DRAWN}{_over}",
                source="Bunne, Stark, Gut et al., CellOT, Nature Methods 20:1759 (2023); its evaluation at 522d2b9",
                better=_better,
                perfect=_perfect,
                needs=frozenset({"bulk", "de", "cells"}),
                nulls=(
                    "Everything but means when the prediction has no cells; constant vectors have no correlation; "
                    f"distances and gene-gene correlations of {MOST_FEATURES:,} genes or more; no DE, no top 50."
                ),
                scope="perturbation",
                compute=_compute(_name + _suffix),
            )
        )
NAMES = tuple(name for name, *_ in _BASE)
