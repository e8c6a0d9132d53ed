"""The five metrics of Open Problems: row-wise errors and similarities of two tables, averaged over rows.

`compute(t, p)` takes truth and prediction, float64, shape (n_rows, n_genes), both finite and with the same genes, and
returns one value per row, float64, shape (n_rows,). Similarities are NaN where a row of either table has none (a
constant row; for the cosine a row of zeros); the pipeline counts those rows as 0, as the task does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from .spec import MetricSpec, register

SOURCE = "openproblems-bio/task_perturbation_prediction; Szalata et al., NeurIPS Datasets and Benchmarks 2024"


def rowwise_rmse(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Root mean squared difference of each row."""
    return np.sqrt(np.mean((t - p) ** 2, axis=1))


def rowwise_mae(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each row."""
    return np.mean(np.abs(t - p), axis=1)


def rowwise_cosine(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows; NaN where one is all zeros."""
    length = np.sqrt(np.sum(t * t, axis=1)) * np.sqrt(np.sum(p * p, axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length > 0, np.sum(t * p, axis=1) / length, np.nan)


def rowwise_pearson(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Correlation of each pair of rows; NaN where one is constant."""
    # A constant row minus its rounded mean is not exactly 0, so constancy is decided on the values.
    constant = (np.ptp(t, axis=1) == 0) | (np.ptp(p, axis=1) == 0)
    r = rowwise_cosine(t - t.mean(axis=1, keepdims=True), p - p.mean(axis=1, keepdims=True))
    return np.where(constant, np.nan, r)


def rowwise_spearman(t: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Correlation of the average ranks of each pair of rows; NaN where one is constant."""
    from scipy.stats import rankdata

    return rowwise_pearson(rankdata(t, axis=1), rankdata(p, axis=1))


def _add(
    name: str,
    title: str,
    formula: str,
    better: Literal["higher", "lower"],
    compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    error = better == "lower"
    register(
        MetricSpec(
            name=name,
            version=1,
            family="openproblems",
            title=title,
            formula=formula,
            source=SOURCE,
            better=better,
            perfect=0.0 if error else 1.0,
            needs=frozenset(),
            nulls="never" if error else "never; a row without a value counts as 0",
            scope="perturbation",
            compute=compute,
        )
    )


_add("mean_rowwise_rmse", "mean row-wise RMSE", "mean_i sqrt(mean_g (T - P)^2)", "lower", rowwise_rmse)
_add("mean_rowwise_mae", "mean row-wise MAE", "mean_i mean_g |T - P|", "lower", rowwise_mae)
_add(
    "mean_rowwise_pearson",
    "mean row-wise Pearson correlation",
    "mean_i corr(T_i, P_i)",
    "higher",
    rowwise_pearson,
)
_add(
    "mean_rowwise_spearman",
    "mean row-wise Spearman correlation",
    "mean_i corr(rank(T_i), rank(P_i)), average ranks",
    "higher",
    rowwise_spearman,
)
_add(
    "mean_rowwise_cosine",
    "mean row-wise cosine similarity",
    "mean_i sum_g T P / (|T_i| |P_i|)",
    "higher",
    rowwise_cosine,
)
