"""A common space for cells: principal components of the truth's cells in log1p space, fitted while streaming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from ...data_specs.errors import MetricError
from ...data_specs.normalize import to_log1p
from ..bulk import GroupMoments
from .pairing import Key, Side

# Up to this many genes the covariance matrix (8 bytes x genes squared) is formed and solved exactly.
EXACT_GENES = 5000
# Below this a full factorisation is fastest; above, Lanczos iterations to machine precision.
FACTORED_GENES = 1500
CHUNK_ROWS = 1024
OVERSAMPLING, ITERATIONS = 20, 8


@dataclass(frozen=True)
class CellSpace:
    """Principal axes of the truth: `mean` float64 (G,), `axes` float64 (G, k) with orthonormal columns."""

    mean: np.ndarray
    axes: np.ndarray

    def project(self, side: Side, keys: list[Key], *, block_bytes: int) -> list[np.ndarray]:
        """The cells of each key in this space, float64, shape (n_cells, k) each, in file order."""
        codes = side.select(keys)
        parts: list[list[np.ndarray]] = [[] for _ in keys]
        offset = self.mean @ self.axes
        for start, rows in log1p_rows(side, block_bytes):
            part = codes[start : start + rows.shape[0]]
            wanted = np.flatnonzero(part >= 0)
            if not len(wanted):
                continue
            projected = rows[wanted] @ self.axes - offset
            for key in np.unique(part[wanted]):
                parts[key].append(projected[part[wanted] == key])
        width = self.axes.shape[1]
        return [np.concatenate(p) if p else np.zeros((0, width)) for p in parts]


def fit_space(side: Side, *, n_components: int, seed: int, block_bytes: int) -> CellSpace:
    """The first principal components of all labelled rows of `side`, controls included.

    Exact (covariance matrix, eigenvectors) up to `EXACT_GENES` genes; above, subspace iteration with a fixed number
    of passes from a seeded start. Equal for any block size: rows are summed in fixed chunks.

    Raises
    ------
    MetricError
        Fewer than two labelled rows.
    """
    n_rows = int((side.codes >= 0).sum())
    if n_rows < 2:
        raise MetricError("cell distances need at least two labelled cells in the truth.")
    n_genes = len(side.columns)
    n_components = min(n_components, n_genes)
    if n_genes <= EXACT_GENES:
        mean, covariance = _covariance(side, n_rows, block_bytes)
        return CellSpace(mean, _leading_axes(covariance, n_components, n_rows))
    return _subspace_iteration(side, n_rows, n_components, seed, block_bytes)


def _leading_axes(covariance: np.ndarray, n_components: int, n_rows: int) -> np.ndarray:
    """Eigenvectors of the largest eigenvalues, largest first, shape (G, n_components)."""
    n_genes = len(covariance)
    # Lanczos needs more directions with variance than it is asked for.
    if n_genes <= FACTORED_GENES or n_rows <= 2 * n_components:
        _, vectors = scipy.linalg.eigh(covariance, subset_by_index=(n_genes - n_components, n_genes - 1))
    else:
        from scipy.sparse.linalg import eigsh

        start = np.random.default_rng(0).standard_normal(n_genes)
        _, vectors = eigsh(covariance, k=n_components, which="LA", v0=start)
    return np.ascontiguousarray(vectors[:, ::-1])


def _covariance(side: Side, n_rows: int, block_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    n_genes = len(side.columns)
    total, gram = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    for chunk in _labelled_chunks(side, block_bytes):
        dense = chunk.toarray()
        total += dense.sum(axis=0)
        gram += dense.T @ dense
    mean = total / n_rows
    return mean, gram - n_rows * np.outer(mean, mean)


def _subspace_iteration(side: Side, n_rows: int, n_components: int, seed: int, block_bytes: int) -> CellSpace:
    n_genes = len(side.columns)
    width = min(n_components + OVERSAMPLING, n_genes)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_genes, width)))[0]
    mean = np.zeros(n_genes)
    image = basis
    for step in range(ITERATIONS):
        total, product = np.zeros(n_genes), np.zeros((n_genes, width))
        for chunk in _labelled_chunks(side, block_bytes):
            if step == 0:
                total += np.asarray(chunk.sum(axis=0)).ravel()
            product += chunk.T @ (chunk @ basis)
        if step == 0:
            mean = total / n_rows
        image = product - n_rows * np.outer(mean, mean @ basis)
        if step < ITERATIONS - 1:
            basis = np.linalg.qr(image)[0]
    _, vectors = np.linalg.eigh(basis.T @ image)
    return CellSpace(mean, basis @ vectors[:, ::-1][:, :n_components])


def log1p_rows(side: Side, block_bytes: int) -> Iterator[tuple[int, Any]]:
    """(first row, CSR rows) of a side in log1p space, genes in sorted order."""
    back = np.empty(len(side.columns), dtype=np.int32)
    back[side.columns] = np.arange(len(side.columns), dtype=np.int32)
    for block in side.source.row_blocks(max_bytes=block_bytes):
        rows = to_log1p(block.matrix, side.matrix)
        sorted_rows = sp.csr_array((rows.data, back[rows.indices], rows.indptr), shape=rows.shape)
        sorted_rows.sort_indices()
        yield block.start, sorted_rows


def _labelled_chunks(side: Side, block_bytes: int) -> Iterator[Any]:
    """Labelled rows as CSR in fixed chunks of CHUNK_ROWS, so that sums do not depend on the blocks."""
    held: list[Any] = []
    n_held = 0
    for start, rows in log1p_rows(side, block_bytes):
        rows = rows[np.flatnonzero(side.codes[start : start + rows.shape[0]] >= 0)]
        held.append(rows)
        n_held += rows.shape[0]
        if n_held < CHUNK_ROWS:
            continue
        joined: Any = sp.vstack(held, format="csr")
        whole = n_held // CHUNK_ROWS * CHUNK_ROWS
        for low in range(0, whole, CHUNK_ROWS):
            yield joined[low : low + CHUNK_ROWS]
        held, n_held = [joined[whole:]], n_held - whole
    if n_held:
        yield sp.vstack(held, format="csr")


def cells_of_genes(
    side: Side, keys: list[Key], genes: list[np.ndarray], *, block_bytes: int
) -> list[np.ndarray]:
    """For each key its cells' log1p values of the key's own genes, float64, shape (n_cells, len(genes[i]))."""
    codes = side.select(keys)
    parts: list[list[np.ndarray]] = [[] for _ in keys]
    for start, rows in log1p_rows(side, block_bytes):
        part = codes[start : start + rows.shape[0]]
        for key in np.unique(part[part >= 0]):
            parts[key].append(rows[np.flatnonzero(part == key)][:, genes[key]].toarray())
    return [np.concatenate(p) if p else np.zeros((0, len(g))) for p, g in zip(parts, genes, strict=True)]


def sorted_moments(side: Side, keys: list[Key], *, block_bytes: int) -> GroupMoments:
    """Bulk moments of each key, genes in sorted order. See `bulk.group_moments`."""
    from ..bulk import group_moments

    moments = group_moments(side.source, side.select(keys), len(keys), side.matrix, block_bytes=block_bytes)
    return GroupMoments(moments.n, moments.mean[:, side.columns], moments.variance[:, side.columns])
