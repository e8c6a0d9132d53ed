"""Embeddings from training data, and random ones that depend on names alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..go_graph import fix_signs

FULL_SVD_UP_TO = 5000


def gene_scores(pseudobulk: np.ndarray, n_components: int) -> tuple[np.ndarray, str]:
    """PCA scores of genes over conditions, and the solver used.

    Parameters
    ----------
    pseudobulk
        Mean profiles, shape (n_conditions, G). Genes are the samples: each condition is centred over genes, not
        scaled.

    Returns
    -------
    float64, shape (G, K) with K = min(n_components, G, n_conditions): a full SVD up to 5,000 genes or conditions,
    ARPACK with a fixed start above. The entry of largest size of each component is positive.
    """
    centered = (pseudobulk - pseudobulk.mean(axis=1, keepdims=True)).T
    rank = min(n_components, *centered.shape)
    if min(centered.shape) <= FULL_SVD_UP_TO or rank == min(centered.shape):
        left, singular, _ = np.linalg.svd(centered, full_matrices=False)
        return fix_signs(left[:, :rank] * singular[:rank]), "full SVD"
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).standard_normal(min(centered.shape))
    found: Any = svds(centered, k=rank, v0=start, solver="arpack")
    order = np.argsort(-found[1], kind="stable")
    return fix_signs(found[0][:, order] * found[1][order]), "ARPACK"


def random_vector(name: str, n_dims: int, seed: int) -> np.ndarray:
    """A standard normal vector that depends on the name and the seed alone, shape (n_dims,)."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).standard_normal(n_dims)
