"""Highly variable genes by normalised dispersion, from sums over blocks of cells.

Source: Satija et al., Nature Biotechnology 2015 (doi 10.1038/nbt.3192), as scanpy's flavour `seurat` computes it.
"""

from __future__ import annotations

import numpy as np

from .state import FilterState

N_BINS = 20


def dispersion_ranks(state: FilterState) -> np.ndarray:
    """Rank of every gene by normalised dispersion over the cells left, 0 the most variable, shape (n_vars,).

    Genes that are gone or do not vary rank behind all others; genes with equal dispersion share the best rank of
    theirs. Means and variances are of scaled counts, float64.
    """
    n_genes = state.file.n_vars
    sums, squares, n = np.zeros(n_genes), np.zeros(n_genes), 0
    for rows, values in state.blocks("scaled"):
        sums += np.bincount(values.indices, values.data, minlength=n_genes)
        squares += np.bincount(values.indices, values.data**2, minlength=n_genes)
        n += len(rows)
    ranks = np.full(n_genes, n_genes, dtype=np.int64)
    if n < 2:
        return ranks
    mean = sums / n
    variance = np.maximum(squares - n * mean**2, 0.0) / (n - 1)
    left = np.flatnonzero(state.genes)
    normalised = normalised_dispersion(mean[left], variance[left])
    varies = np.isfinite(normalised)
    order = np.sort(-normalised[varies])
    ranks[left[varies]] = np.searchsorted(order, -normalised[varies], side="left")
    return ranks


def normalised_dispersion(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """z score of ln(variance / mean) within one of 20 equal bins of ln(1 + mean); NaN where the variance is 0.

    A varying gene alone in its bin gets 1, as in scanpy.
    """
    out = np.full(len(mean), np.nan)
    varies = np.flatnonzero((mean > 0) & (variance > 0))
    if not len(varies):
        return out
    level = np.log1p(mean)
    dispersion = np.log(variance[varies] / mean[varies])
    # Silent genes belong to the range of the bins; a mean on an edge belongs to the bin below.
    edges = np.linspace(level.min(), level.max(), N_BINS + 1)
    bins = np.clip(np.searchsorted(edges, level[varies], side="left") - 1, 0, N_BINS - 1)
    for number in np.unique(bins):
        members = bins == number
        own = dispersion[members]
        spread = own.std(ddof=1) if len(own) > 1 else 0.0
        alone = 1.0 if len(own) == 1 else 0.0
        out[varies[members]] = (own - own.mean()) / spread if spread > 0 else alone
    return out
