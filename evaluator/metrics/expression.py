"""Errors and correlations of mean profiles, over all genes and over the top DE genes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .base import Null, Value
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..core.row import CoreRow, View

# A spread this small against the mean square is rounding of a constant.
_CONSTANT_RTOL = 1e-12
CONSTANT = Null("constant vector: undefined")
NO_CHANGE = Null("no change from the reference: undefined")


def mse(y: np.ndarray, p: np.ndarray) -> float:
    """Mean squared difference."""
    return float(np.mean((y - p) ** 2))


def rmse(y: np.ndarray, p: np.ndarray) -> float:
    """Square root of the mean squared difference."""
    return float(np.sqrt(mse(y, p)))


def mae(y: np.ndarray, p: np.ndarray) -> float:
    """Mean absolute difference."""
    return float(np.mean(np.abs(y - p)))


def l2(y: np.ndarray, p: np.ndarray) -> float:
    """Euclidean distance."""
    return float(np.sqrt(np.sum((y - p) ** 2)))


def pearson(x: np.ndarray, y: np.ndarray) -> Value:
    """Pearson correlation; null when either vector is constant or has fewer than two entries."""
    if _is_constant(x) or _is_constant(y):
        return CONSTANT
    a, b = x - x.mean(), y - y.mean()
    r = float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return min(1.0, max(-1.0, r))


def r2(y: np.ndarray, p: np.ndarray) -> Value:
    """1 - SS_res / SS_tot with the truth `y`; null when it is constant."""
    if _is_constant(y):
        return CONSTANT
    return float(1.0 - np.sum((y - p) ** 2) / np.sum((y - y.mean()) ** 2))


def cosine(x: np.ndarray, y: np.ndarray) -> Value:
    """Cosine similarity; null when either vector is all zero."""
    if not x.any() or not y.any():
        return NO_CHANGE
    return min(1.0, max(-1.0, float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))))


def _is_constant(x: np.ndarray) -> bool:
    if len(x) < 2:
        return True
    return bool(np.mean((x - x.mean()) ** 2) <= _CONSTANT_RTOL * np.mean(x * x))


def _against_reference(view: View) -> Value:
    if isinstance(view.d_ref, Null) or isinstance(view.e_ref, Null):
        return view.d_ref if isinstance(view.d_ref, Null) else CONSTANT
    return pearson(view.d_ref, view.e_ref)


class _Base(NamedTuple):
    name: str
    title: str
    formula: str
    better: Literal["higher", "lower"]
    perfect: float
    nulls: str
    of_view: Callable[[View], Value]


_NEVER = "Never, for a predicted row."
_CONSTANT = "When either vector is constant over the genes (zero variance)."
_BASES = (
    _Base("mse", "Mean squared error", "mean_g (y - p)^2", "lower", 0.0, _NEVER, lambda v: mse(v.y, v.p)),
    _Base(
        "rmse",
        "Root mean squared error",
        "sqrt(mean_g (y - p)^2)",
        "lower",
        0.0,
        _NEVER,
        lambda v: rmse(v.y, v.p),
    ),
    _Base("mae", "Mean absolute error", "mean_g |y - p|", "lower", 0.0, _NEVER, lambda v: mae(v.y, v.p)),
    _Base(
        "pearson",
        "Pearson correlation of expression",
        "corr_g(y, p)",
        "higher",
        1.0,
        _CONSTANT,
        lambda v: pearson(v.y, v.p),
    ),
    _Base(
        "pearson_delta",
        "Pearson correlation of the change from control",
        "corr_g(d, e), d = y - c, e = p - c",
        "higher",
        1.0,
        _CONSTANT,
        lambda v: pearson(v.d, v.e),
    ),
    _Base(
        "pearson_delta_perturbed_ref",
        "Pearson correlation of the change from the mean training perturbation",
        "corr_g(y - m, p - m), m = equal-weight mean of the bulks of the split's training perturbations of the context",
        "higher",
        1.0,
        _CONSTANT + " Without a split, or without training cells of the context in the truth.",
        _against_reference,
    ),
    _Base(
        "r2",
        "Coefficient of determination of expression",
        "1 - sum (y - p)^2 / sum (y - mean_g y)^2",
        "higher",
        1.0,
        "When y is constant over the genes.",
        lambda v: r2(v.y, v.p),
    ),
    _Base(
        "r2_delta",
        "Coefficient of determination of the change from control",
        "1 - sum (d - e)^2 / sum (d - mean_g d)^2",
        "higher",
        1.0,
        "When d is constant over the genes.",
        lambda v: r2(v.d, v.e),
    ),
    _Base(
        "cosine_delta",
        "Cosine similarity of the change from control",
        "d.e / (|d| |e|)",
        "higher",
        1.0,
        "When d or e is zero on all genes.",
        lambda v: cosine(v.d, v.e),
    ),
    _Base("l2", "Euclidean distance", "sqrt(sum_g (y - p)^2)", "lower", 0.0, _NEVER, lambda v: l2(v.y, v.p)),
)
_SETS = {
    "": ("", ""),
    "_top20_de": (", top 20 DE genes", " over the 20 genes of largest |Welch t| in the truth"),
    "_top20_de_no_target": (
        ", top 20 DE genes without the target",
        " over the 20 genes of largest |Welch t| in the truth among genes that are not perturbed",
    ),
}
_SOURCES = {
    "pearson_delta_perturbed_ref": "Vinas Torne et al., Systema, Nature Biotechnology 2025",
}


def _compute(base: _Base, suffix: str) -> Callable[[CoreRow], Value]:
    def value(row: CoreRow) -> Value:
        view = row.views[suffix]
        if isinstance(view, Null):
            return view
        if not len(view.y):
            return Null("no gene left after removing the target")
        return base.of_view(view)

    return value


for _suffix, (_title, _genes) in _SETS.items():
    for _base in _BASES:
        _needs = {"bulk"} | ({"de"} if _suffix else set())
        if _base.name == "pearson_delta_perturbed_ref":
            _needs.add("train_reference")
        register(
            MetricSpec(
                name=_base.name + _suffix,
                version=1,
                family="core",
                title=_base.title + _title,
                formula=_base.formula + _genes,
                source=_SOURCES.get(
                    _base.name, "field standard; Roohani et al., GEARS, Nature Biotechnology 2024"
                ),
                better=_base.better,
                perfect=_base.perfect,
                needs=frozenset(_needs),
                nulls=_base.nulls + (" With fewer than 2 true or control cells." if _suffix else ""),
                scope="perturbation",
                compute=_compute(_base, _suffix),
            )
        )
