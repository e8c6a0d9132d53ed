"""Differential-expression tables: p, FDR and fold change of every (target, gene), as one pdex generation gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.exact_rank_sum import exact_p
from ..kernels.jit import compiled
from .measure import Measured
from .rules import Rules

_EXACT_MAX = 8


@dataclass(frozen=True)
class DeTable:
    """One side's table. All arrays have shape (n_targets, n_genes).

    Attributes
    ----------
    p_value, fdr
        float64.
    fold_change
        float64 ratio of means, only where the generation clips it (0.6), else None.
    log2_fold_change
        float64; infinite where one mean is 0.
    significant
        float32(fdr) < float32(alpha).
    """

    p_value: np.ndarray
    fdr: np.ndarray
    log2_fold_change: np.ndarray
    fold_change: np.ndarray | None
    significant: np.ndarray

    @property
    def fdr32(self) -> np.ndarray:
        """FDR as cell-eval compares it, float32."""
        return self.fdr.astype(np.float32)

    @property
    def lfc32(self) -> np.ndarray:
        """log2 fold change as cell-eval ranks it, float32."""
        return self.log2_fold_change.astype(np.float32)

    def ranked(self, target: int) -> np.ndarray:
        """Significant genes of a target by falling absolute log2 fold change, ties in gene order."""
        genes = np.flatnonzero(self.significant[target])
        size = np.abs(self.log2_fold_change[target, genes].astype(np.float32))
        return genes[np.argsort(-size, kind="stable")]


def de_table(measured: Measured, rules: Rules) -> DeTable:
    """The table of one side from its means and rank sums."""
    assert measured.de_mean is not None and measured.two_u is not None and measured.ties is not None
    p = _p_values(measured, rules)
    fdr = _adjusted(p, rules)
    ratio, log_ratio = _fold_changes(measured.de_mean, rules)
    significant = fdr.astype(np.float32) < np.float32(rules.alpha)
    return DeTable(p, fdr, log_ratio, ratio, significant)


def _p_values(measured: Measured, rules: Rules) -> np.ndarray:
    two_u, ties = measured.two_u, measured.ties
    assert two_u is not None and ties is not None and measured.de_mean is not None
    n2 = int(measured.sizes[-1])
    float32 = rules.p_dtype == "data" and measured.de_mean.dtype == np.float32
    p = np.empty(two_u.shape)
    for target in range(len(two_u)):
        n1 = int(measured.sizes[target])
        values = asymptotic_p(two_u[target], ties[target], n1, n2, float32=float32)
        if rules.exact_small_samples and min(n1, n2) <= _EXACT_MAX:
            untied = ties[target] == 0
            if untied.any():
                exact = exact_p(two_u[target, untied], n1, n2)
                values[untied] = exact.astype(np.float32) if float32 else exact
        p[target] = values
    return p


def asymptotic_p(
    two_u: np.ndarray, ties: np.ndarray, n1: int, n2: int, *, float32: bool = False
) -> np.ndarray:
    """Two-sided p of doubled U statistics: normal approximation, tie and continuity correction, clipped to [0, 1].

    p is 1 where everything is tied. With `float32` every step is taken in single precision, as scipy does on
    float32 data (so p underflows near 1e-45). float64, shape of `two_u`.
    """
    from scipy.special import ndtr

    real = np.float32 if float32 else np.float64
    n = n1 + n2
    u = (np.maximum(two_u, 2 * n1 * n2 - two_u) / 2.0).astype(real)
    scale, cells, pairs = real(n1 * n2 / 12.0), real(n + 1.0), real(n * (n - 1.0))
    variance = scale * (cells - ties.astype(real) / pairs)
    testable = variance > 0
    z = (u[testable] - real(n1 * n2 / 2.0) - real(0.5)) / np.sqrt(variance[testable])
    p = np.ones(two_u.shape)
    p[testable] = np.clip(real(2.0) * ndtr(-z), 0.0, 1.0)
    return p


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """FDR of p-values (any shape, all together), capped at 1."""
    values = p.ravel()
    order = np.argsort(values, kind="stable")
    adjusted = values[order] * (len(values) / np.arange(1, len(values) + 1))
    adjusted = np.minimum.accumulate(adjusted[::-1])[::-1]
    out = np.empty(len(values))
    out[order] = np.minimum(adjusted, 1.0)
    return out.reshape(p.shape)


def _adjusted(p: np.ndarray, rules: Rules) -> np.ndarray:
    if rules.fdr_scope == "global":
        return benjamini_hochberg(p)
    return np.stack([benjamini_hochberg(row) for row in p])


def _fold_changes(means: np.ndarray, rules: Rules) -> tuple[np.ndarray | None, np.ndarray]:
    """(ratio or None, log2 ratio) of expm1 means against the control's."""
    if rules.fold_change_clip is not None:
        natural = np.expm1(means)
        return _clipped_fold_changes(natural[:-1], natural[-1], rules.fold_change_clip)
    natural = np.empty_like(means)
    _expm1(means.ravel(), natural.ravel())
    targets = natural[:-1].astype(np.float64) + rules.epsilon
    control = natural[-1].astype(np.float64) + rules.epsilon
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.log2(targets / control)
    log_ratio[np.isnan(log_ratio)] = 0.0
    return None, log_ratio


def _clipped_fold_changes(
    targets: np.ndarray, control: np.ndarray, clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios in the dtype of the means with 0/0 = 1, x/0 = clip, 0/x = 1/clip; and their log2."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (targets / control).astype(np.float64)
    silent = np.broadcast_to(control == 0, targets.shape)
    ratio[silent] = clip
    ratio[(targets == 0) & ~silent] = 1.0 / clip
    ratio[(targets == 0) & silent] = 1.0
    return ratio, np.log2(ratio)


@compiled()
def _expm1(values, out):  # pragma: no cover - compiled
    """expm1 as compiled code takes it; numpy's vectorised one may differ in the last bit."""
    for i in range(len(values)):
        out[i] = np.expm1(values[i])
