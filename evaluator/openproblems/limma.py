"""Moderated t tests: a linear model per gene whose residual variances are shrunk towards a common prior.

The formulas are those of limma's `lmFit`, `contrasts.fit`, `fitFDist`, `squeezeVar` and `eBayes` (Smyth, Statistical
Applications in Genetics and Molecular Biology 2004, doi 10.2202/1544-6115.1027) without its options: one design for all
genes, no observation weights, no mean-variance trend, no robust prior. `filter_by_expression` follows edgeR's
`filterByExpr`. No R was run: the tests compare with an independent implementation on scipy, with the formulas' limits,
and with values of InMoose 0.9.1, a Python port of limma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from ...data_specs.errors import MetricError, ShapeError

# Singular values and contrast components this small against the largest are rounding, not directions of the design.
_RANK_TOLERANCE = 1e-10
_ESTIMABLE_TOLERANCE = 1e-8
# A fixed number of genes at a time bounds the temporaries; results are per gene.
_GENES_AT_ONCE = 2048


@dataclass(frozen=True)
class ContrastFit:
    """Contrasts of a linear model fitted to every gene.

    `coefficients` float64, shape (n_contrasts, n_genes); `unscaled_sd` (n_contrasts,): standard errors per unit of
    residual standard deviation; `sigma2` (n_genes,): residual variances with `df_residual` degrees of freedom.
    Contrasts that the design cannot estimate hold NaN in both, `estimable` (n_contrasts,) says which can.
    """

    coefficients: np.ndarray
    unscaled_sd: np.ndarray
    sigma2: np.ndarray
    df_residual: int
    estimable: np.ndarray


@dataclass(frozen=True)
class VariancePrior:
    """The scaled inverse chi-square prior of the variances: `df` degrees of freedom (may be infinite), scale `s2`."""

    df: float
    s2: float


@dataclass(frozen=True)
class ModeratedTest:
    """Moderated t statistics and two-sided p-values, float64, shape (n_contrasts, n_genes); `df_total` is theirs."""

    t: np.ndarray
    p: np.ndarray
    prior: VariancePrior
    s2_post: np.ndarray
    df_total: float


def log_cpm(counts: np.ndarray, library_sizes: np.ndarray, *, prior_count: float = 0.5) -> np.ndarray:
    """log2 counts per million with a prior count, as limma's `voom` has it: log2((x + p) / (N + 2p) * 1e6).

    Parameters
    ----------
    counts
        Shape (n_samples, n_genes), at least 0. Not modified.
    library_sizes
        Total counts of each sample, shape (n_samples,).

    Examples
    --------
    >>> log_cpm(np.array([[0.0, 1.5]]), np.array([999_999.0]))
    array([[-1.,  1.]])
    """
    return np.log2((counts + prior_count) / (library_sizes + 2 * prior_count)[:, None] * 1e6)


def filter_by_expression(
    counts: np.ndarray,
    library_sizes: np.ndarray,
    groups: np.ndarray,
    *,
    min_count: float = 10.0,
    min_total_count: float = 15.0,
) -> np.ndarray:
    """Genes with enough counts to test, boolean, shape (n_genes,): the rule of edgeR's `filterByExpr`.

    A gene stays when its counts per million reach `min_count` at the median library size in as many samples as the
    smallest group has (of a group above 10, 10 and 70 % of the rest), and its counts reach `min_total_count` in all.

    Parameters
    ----------
    groups
        Group of each sample, int, shape (n_samples,).
    """
    sizes = np.unique(groups, return_counts=True)[1]
    smallest = float(sizes.min())
    if smallest > 10:
        smallest = 10 + (smallest - 10) * 0.7
    cutoff = min_count / np.median(library_sizes) * 1e6
    cpm = counts / np.maximum(library_sizes, 1.0)[:, None] * 1e6
    tolerance = 1e-14
    enough = (cpm >= cutoff).sum(axis=0) >= smallest - tolerance
    return enough & (counts.sum(axis=0) >= min_total_count - tolerance)


def fit_contrasts(y: np.ndarray, design: np.ndarray, contrasts: np.ndarray) -> ContrastFit:
    """Least squares of every gene on `design`, and the wanted contrasts of its coefficients.

    Parameters
    ----------
    y
        Shape (n_samples, n_genes). Not modified.
    design
        Shape (n_samples, n_coefficients); it may lack full rank.
    contrasts
        One combination of coefficients per row, shape (n_contrasts, n_coefficients).

    Raises
    ------
    ShapeError
        The arrays do not fit together.
    MetricError
        No residual degree of freedom is left.
    """
    if y.shape[0] != design.shape[0] or design.shape[1] != contrasts.shape[1]:
        raise ShapeError(f"y {y.shape}, design {design.shape} and contrasts {contrasts.shape} do not fit.")
    # With fewer samples than coefficients only the full matrix holds the directions that cannot be estimated.
    wide = design.shape[1] > design.shape[0]
    left, singular, right = np.linalg.svd(design, full_matrices=wide)
    rank = int((singular > _RANK_TOLERANCE * singular.max()).sum())
    df = len(y) - rank
    if df < 1:
        raise MetricError(f"{len(y)} samples leave no residual degree of freedom beside rank {rank}.")
    basis = left[:, :rank]
    # Coefficients are right / singular times the coordinates of y in the basis, contrasts likewise.
    loadings = (contrasts @ right[:rank].T) / singular[:rank]
    estimable = np.abs(contrasts @ right[rank:].T).max(axis=1, initial=0.0) < _ESTIMABLE_TOLERANCE
    coefficients = np.empty((len(contrasts), y.shape[1]))
    sigma2 = np.empty(y.shape[1])
    for start in range(0, y.shape[1], _GENES_AT_ONCE):
        part = slice(start, start + _GENES_AT_ONCE)
        coordinates = basis.T @ y[:, part]
        coefficients[:, part] = loadings @ coordinates
        residuals = y[:, part] - basis @ coordinates
        sigma2[part] = (residuals**2).sum(axis=0) / df
    coefficients[~estimable] = np.nan
    unscaled = np.where(estimable, np.linalg.norm(loadings, axis=1), np.nan)
    return ContrastFit(coefficients, unscaled, sigma2, df, estimable)


def trigamma_inverse(y: float) -> float:
    """The x > 0 with trigamma(x) = y > 0, by Newton's iteration on 1 / trigamma, which converges from below."""
    if y > 1e7:
        return 1.0 / np.sqrt(y)
    if y < 1e-6:
        return 1.0 / y
    x = 0.5 + 1.0 / y
    for _ in range(50):
        value = float(special.polygamma(1, x))
        step = value * (1.0 - value / y) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def variance_prior(sigma2: np.ndarray, df_residual: float) -> VariancePrior:
    """The prior that best explains the residual variances of all genes, by the moments of their logarithms.

    Infinite degrees of freedom mean that the variances differ no more than chance; the scale is then their mean.
    Zeros are lifted to 1e-5 of the median, as in limma. With one gene there is no prior (0 degrees of freedom).

    Raises
    ------
    MetricError
        More than half of the variances are zero.
    """
    middle = float(np.median(sigma2))
    if middle <= 0:
        raise MetricError("more than half of the genes have no residual variance; no test is possible.")
    if len(sigma2) == 1:
        return VariancePrior(0.0, float(sigma2[0]))
    logs = np.log(np.maximum(sigma2, 1e-5 * middle))
    half = df_residual / 2
    centred = logs - special.digamma(half) + np.log(half)
    excess = float(centred.var(ddof=1) - special.polygamma(1, half))
    if excess <= 0:
        return VariancePrior(float("inf"), float(np.maximum(sigma2, 1e-5 * middle).mean()))
    df = 2 * trigamma_inverse(excess)
    s2 = float(np.exp(centred.mean() + special.digamma(df / 2) - np.log(df / 2)))
    return VariancePrior(df, s2)


def moderated_test(fit: ContrastFit) -> ModeratedTest:
    """Moderated t = coefficient / (unscaled sd * posterior sd), on residual plus prior degrees of freedom.

    The posterior variance is the mean of residual and prior variance weighted by their degrees of freedom; degrees of
    freedom end at those of all genes together. Contrasts that are not estimable stay NaN.
    """
    prior, df = variance_prior(fit.sigma2, fit.df_residual), fit.df_residual
    if np.isinf(prior.df):
        post = np.full_like(fit.sigma2, prior.s2)
    else:
        post = (df * fit.sigma2 + prior.df * prior.s2) / (df + prior.df)
    total = min(df + prior.df, float(df) * len(fit.sigma2))
    t = fit.coefficients / (fit.unscaled_sd[:, None] * np.sqrt(post))
    return ModeratedTest(t, 2 * special.stdtr(total, -np.abs(t)), prior, post, total)
