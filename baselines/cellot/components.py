"""Principal components of the training cells, as a fixed space for the maps."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import scipy.sparse.linalg as sparse_linalg
import torch

from ..go_graph import fix_signs
from ..training.data import CellData
from .autoencoder import Projection
from .module import CellotModule

EXACT_GENES = 3000


@torch.no_grad()
def fit_projection(module: CellotModule, cells: CellData) -> None:
    """Set mean and axes of a `Projection` from the training cells and controls, held-out cells left out."""
    embedding = cast(Projection, module.embedding)
    rows = np.sort(np.concatenate([cells.train_rows, cells.control_rows]))
    mean, axes = principal_axes(cells.x[rows], embedding.latent)
    embedding.mean.copy_(torch.as_tensor(mean))
    embedding.axes.zero_()
    embedding.axes[:, : axes.shape[1]] = torch.as_tensor(axes).to(embedding.axes)


def principal_axes(x: Any, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G,) and the leading principal axes (G, k) of CSR rows, float64; the largest entry of each is positive."""
    n, n_genes = x.shape
    x = x.astype(np.float64)
    mean = np.asarray(x.sum(axis=0)).ravel() / n
    k = min(n_components, n - 1, n_genes)
    if n_genes <= EXACT_GENES or k >= min(n, n_genes) - 1:
        covariance = (x.T @ x).toarray() - n * np.outer(mean, mean)
        _, vectors = np.linalg.eigh(covariance)
        return mean, fix_signs(vectors[:, ::-1][:, :k])
    linear_operator: Any = sparse_linalg.LinearOperator
    operator = linear_operator(
        (n_genes, n_genes),
        dtype=np.float64,
        matvec=lambda v: x.T @ (x @ v) - n * mean * float(mean @ np.ravel(v)),
    )
    start = np.random.default_rng(0).standard_normal(n_genes)
    values, vectors = sparse_linalg.eigsh(operator, k=k, v0=start)
    return mean, fix_signs(vectors[:, np.argsort(-values, kind="stable")])
