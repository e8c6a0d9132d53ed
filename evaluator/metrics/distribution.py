"""Distances between predicted and true cells of a perturbation, in the common PCA space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Null, Value
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..core.row import CoreRow

_BLOCK = 2048
# Distances held at once while the median is selected exactly.
_HELD = 2**22
_SINKHORN_ROUNDS, _ROUND_STEPS, _SINKHORN_TOLERANCE = 200, 20, 1e-10
_OVER_RELAXATION, _ANNEALING = 1.8, 0.9


def _distance_blocks(x: np.ndarray, y: np.ndarray, metric: str) -> Iterator[np.ndarray]:
    from scipy.spatial.distance import cdist

    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            yield cdist(x[i : i + _BLOCK], y[j : j + _BLOCK], metric)  # type: ignore[call-overload]


def mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs; the zero diagonal counts when `x` is `y`."""
    return sum(float(block.sum()) for block in _distance_blocks(x, y, "euclidean")) / (len(x) * len(y))


def energy_distance(pred: np.ndarray, truth: np.ndarray) -> float:
    """2 E|P - T| - E|P - P'| - E|T - T'|, all pairs including the zero diagonals. Rows are cells.

    Examples
    --------
    >>> energy_distance(np.array([[0.0], [2.0]]), np.array([[1.0]]))
    1.0
    """
    return 2.0 * mean_distance(pred, truth) - mean_distance(pred, pred) - mean_distance(truth, truth)


def median_distance(x: np.ndarray, *, held: int = _HELD) -> float | None:
    """Exact median of the Euclidean distances of all pairs i < j; None with fewer than two rows.

    At most about `held` distances are in memory at once: larger sets are narrowed down by histograms.
    """
    n_pairs = len(x) * (len(x) - 1) // 2
    if n_pairs == 0:
        return None
    if n_pairs <= held:
        from scipy.spatial.distance import pdist

        return float(np.median(pdist(x)))
    low, high = (n_pairs - 1) // 2, n_pairs // 2
    return 0.5 * (_kth_distance(x, low, held) + _kth_distance(x, high, held))


def _upper_pairs(x: np.ndarray) -> Iterator[np.ndarray]:
    from scipy.spatial.distance import cdist

    for i in range(0, len(x), _BLOCK):
        for j in range(i, len(x), _BLOCK):
            block = cdist(x[i : i + _BLOCK], x[j : j + _BLOCK])
            yield block[np.triu_indices(len(block), 1)] if i == j else block.ravel()


def _kth_distance(x: np.ndarray, k: int, held: int) -> float:
    low = 0.0
    high = max(float(block.max(initial=0.0)) for block in _upper_pairs(x))
    for _ in range(64):
        edges = np.linspace(low, high, 4097)
        below, counts = 0, np.zeros(4096, dtype=np.int64)
        for block in _upper_pairs(x):
            below += int((block < low).sum())
            counts += np.histogram(block[(block >= low) & (block <= high)], edges)[0]
        ends = below + np.cumsum(counts)
        bin_ = int(np.searchsorted(ends, k, side="right"))
        low, high = float(edges[bin_]), float(edges[bin_ + 1])
        if counts[bin_] <= held or high <= np.nextafter(low, np.inf):
            break
    inside, below = [], 0
    for block in _upper_pairs(x):
        below += int((block < low).sum())
        inside.append(block[(block >= low) & (block <= high)])
    return float(np.sort(np.concatenate(inside))[k - below])


def mmd(pred: np.ndarray, truth: np.ndarray, gammas: Sequence[float], scale: float) -> float:
    """Mean over gammas of mean K(P,P) + mean K(T,T) - 2 mean K(P,T), K = exp(-gamma |a - b|^2 / scale^2).

    Biased V-statistic, diagonals included, no square root.
    """

    def kernel_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        totals = np.zeros(len(gammas))
        for block in _distance_blocks(x, y, "sqeuclidean"):
            scaled = block / scale**2
            totals += [np.exp(-gamma * scaled).sum() for gamma in gammas]
        return totals / (len(x) * len(y))

    return float(
        np.mean(kernel_means(pred, pred) + kernel_means(truth, truth) - 2.0 * kernel_means(pred, truth))
    )


def sinkhorn_divergence(pred: np.ndarray, truth: np.ndarray, *, blur: float, scale: float) -> Value:
    """Debiased entropic transport OT(P,T) - OT(P,P)/2 - OT(T,T)/2 with uniform weights, to about 1e-7.

    Cost |a - b|^2 / (2 scale^2), regularisation blur^2. Null when an iteration does not settle; 0 for equal arrays.
    """
    if np.array_equal(pred, truth):
        return 0.0
    terms = [
        _transport(_cost(x, y, scale), blur**2, symmetric=x is y)
        for x, y in ((pred, truth), (pred, pred), (truth, truth))
    ]
    if any(term is None for term in terms):
        steps = _SINKHORN_ROUNDS * _ROUND_STEPS
        return Null(f"Sinkhorn iterations did not converge in {steps:,} steps")
    cross, self_pred, self_truth = (float(term) for term in terms if term is not None)
    return cross - 0.5 * self_pred - 0.5 * self_truth


def _cost(x: np.ndarray, y: np.ndarray, scale: float) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(x, y, "sqeuclidean") / (2.0 * scale**2)


def _transport(cost: np.ndarray, epsilon: float, *, symmetric: bool) -> float | None:
    """Dual value of entropic transport between uniform weights; None when it does not settle."""
    found = _transport_potentials(cost, epsilon, symmetric=symmetric)
    return None if found is None else found[0]


def _transport_potentials(
    cost: np.ndarray, epsilon: float, *, symmetric: bool
) -> tuple[float, np.ndarray] | None:
    """Dual value and row potentials of entropic transport between uniform weights; None when it does not settle.

    Log-domain updates, annealed from the largest cost: averaged for a cloud against itself, over-relaxed alternating
    ones otherwise. The value is taken at a pair of potentials of which one meets its weights exactly, so it is a
    lower bound that only the remaining distance to the optimum separates from it.
    """
    f, g = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])
    current = max(float(cost.max()), epsilon)
    while current > epsilon:
        f, g = _step(cost, f, g, current, symmetric, 1.0)
        current = max(epsilon, _ANNEALING * current)
    value = -np.inf
    for round_ in range(_SINKHORN_ROUNDS):
        # Over-relaxation saves most steps but is not proven to settle; plain updates are.
        weight = _OVER_RELAXATION if round_ < _SINKHORN_ROUNDS // 2 else 1.0
        for _ in range(_ROUND_STEPS):
            f, g = _step(cost, f, g, epsilon, symmetric, weight)
        best_f = _row_update(cost, g, epsilon)
        before, value = value, float(best_f.mean() + _row_update(cost.T, best_f, epsilon).mean())
        if abs(value - before) < _SINKHORN_TOLERANCE:
            return value, best_f
    return None


def _step(
    cost: np.ndarray, f: np.ndarray, g: np.ndarray, epsilon: float, symmetric: bool, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    if symmetric:
        f = 0.5 * (f + _row_update(cost, f, epsilon))
        return f, f
    f = f + weight * (_row_update(cost, g, epsilon) - f)
    return f, g + weight * (_row_update(cost.T, f, epsilon) - g)


def _row_update(cost: np.ndarray, g: np.ndarray, epsilon: float) -> np.ndarray:
    """The row potentials that meet the row weights, given the column potentials `g`."""
    values = (g[None, :] - cost) / epsilon
    top = values.max(axis=1)
    return epsilon * (np.log(cost.shape[1]) - top - np.log(np.exp(values - top[:, None]).sum(axis=1)))


def _edistance(row: CoreRow) -> Value:
    return row.cells if isinstance(row.cells, Null) else energy_distance(row.cells.pred, row.cells.truth)


def _mmd(row: CoreRow) -> Value:
    if isinstance(row.cells, Null):
        return row.cells
    scale = row.distance_scale
    if isinstance(scale, Null):
        return scale
    return mmd(row.cells.pred, row.cells.truth, _numbers(row.parameters["mmd_gammas"]), scale)


def _sinkhorn(row: CoreRow) -> Value:
    if isinstance(row.cells, Null):
        return row.cells
    scale = row.distance_scale
    if isinstance(scale, Null):
        return scale
    blur = float(row.parameters["sinkhorn_blur"])
    return sinkhorn_divergence(row.cells.pred, row.cells.truth, blur=blur, scale=scale)


def _numbers(values: Any) -> list[float]:
    return [float(v) for v in values]


_SPACE = "Euclidean distances on the first 50 principal components of the truth's cells (with controls) in log1p space."
_SPECS: tuple[tuple[str, str, str, str, str, Callable[[CoreRow], Value]], ...] = (
    (
        "edistance",
        "Energy distance of cells",
        "2 mean|P - T| - mean|P - P'| - mean|T - T'| over all pairs of predicted and true cells, "
        "zero diagonals included. ",
        "Szekely & Rizzo 2013; Peidli et al., scPerturb, Nature Methods 2024",
        "When the prediction has no cells.",
        _edistance,
    ),
    (
        "mmd",
        "Maximum mean discrepancy of cells",
        "mean over gammas of mean K(P,P) + mean K(T,T) - 2 mean K(P,T), K = exp(-gamma |a - b|^2 / s^2), s = median "
        "distance of pairs of true cells of the perturbation; gammas 2, 1, 0.5, 0.1, 0.01, 0.005; V-statistic. ",
        "Gretton et al. 2012; gammas as in CellOT, Bunne et al., Nature Methods 2023",
        "When the prediction has no cells; with fewer than 2 distinct true cells.",
        _mmd,
    ),
    (
        "sinkhorn",
        "Sinkhorn divergence of cells",
        "OT(P,T) - OT(P,P)/2 - OT(T,T)/2, cost |a - b|^2 / (2 s^2), s = median distance of pairs of true cells, "
        "entropic regularisation 0.1^2 (blur 0.1), uniform weights. ",
        "Feydy et al., AISTATS 2019",
        "When the prediction has no cells; with fewer than 2 distinct true cells; when iterations do not converge.",
        _sinkhorn,
    ),
)

for _name, _title, _formula, _source, _nulls, _function in _SPECS:
    register(
        MetricSpec(
            name=_name,
            version=1,
            family="core",
            title=_title,
            formula=_formula + _SPACE,
            source=_source,
            better="lower",
            perfect=0.0,
            needs=frozenset({"cells"}),
            nulls=_nulls,
            scope="perturbation",
            compute=_function,
        )
    )
