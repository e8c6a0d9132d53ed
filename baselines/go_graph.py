"""GO term incidence, Jaccard similarity of term sets, and the spectral embedding of their graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import ModelError

JACCARD_ABOVE = 0.1
N_SIMILAR = 20
_DENSE_UP_TO = 500
_ROWS_PER_BLOCK = 2000


def incidence(terms: Mapping[str, Iterable[str]]) -> tuple[np.ndarray, Any]:
    """Genes (sorted) and their 0/1 term incidence, float64 CSR of shape (genes, terms), terms sorted."""
    genes = sorted(gene for gene in terms if terms[gene])
    names = {name: i for i, name in enumerate(sorted({t for gene in genes for t in terms[gene]}))}
    columns = [sorted(names[t] for t in terms[gene]) for gene in genes]
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in columns])]).astype(np.int64)
    indices = np.array([c for row in columns for c in row], dtype=np.int64)
    matrix = sp.csr_array((np.ones(len(indices)), indices, indptr), shape=(len(genes), len(names)))
    return np.array(genes, dtype=np.str_), matrix


def jaccard_edges(
    terms: Mapping[str, Iterable[str]], candidates: Iterable[str], *, above: float = JACCARD_ABOVE
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Jaccard similarity of term sets between all genes and some candidates, where it exceeds `above`.

    Returns
    -------
    Genes (sorted), candidates that have terms (sorted), and a CSR of shape (genes, candidates) without the pairs of
    a gene with itself.
    """
    genes, matrix = incidence(terms)
    position = {str(gene): i for i, gene in enumerate(genes)}
    chosen = sorted({c for c in candidates if c in position})
    columns = np.array([position[c] for c in chosen], dtype=np.int64)
    sizes = np.asarray(matrix.sum(axis=1)).ravel()
    other = sp.csr_array(matrix[columns].T)
    blocks: list[Any] = []
    for low in range(0, len(genes), _ROWS_PER_BLOCK):
        shared: Any = sp.csr_array(matrix[low : low + _ROWS_PER_BLOCK] @ other)
        row = np.repeat(np.arange(shared.shape[0]), np.diff(shared.indptr))
        column = shared.indices
        union = sizes[low + row] + sizes[columns[column]] - shared.data
        similarity = shared.data / union
        keep = (similarity > above) & (low + row != columns[column])
        blocks.append(sp.csr_array((similarity[keep], (row[keep], column[keep])), shape=shared.shape))
    stacked = sp.csr_array(sp.vstack(blocks)) if blocks else sp.csr_array((0, len(columns)))
    stacked.sort_indices()
    return genes, np.array(chosen, dtype=np.str_), stacked


def top_per_row(matrix: Any, k: int) -> Any:
    """The k largest stored entries of each row of a CSR; ties go to the smaller column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    rank = np.arange(len(order)) - matrix.indptr[:-1].astype(np.int64)[row[order]]
    best = order[rank < k]
    out = sp.csr_array((matrix.data[best], (row[best], matrix.indices[best])), shape=matrix.shape)
    out.sort_indices()
    return out


def spectral_embedding(
    terms: Mapping[str, Iterable[str]], *, n_dims: int = 2, n_similar: int = N_SIMILAR
) -> tuple[np.ndarray, np.ndarray]:
    """Genes and their spectral coordinates over the GO Jaccard graph, shape (genes, n_dims), unit variance.

    Every gene keeps its `n_similar` most similar genes above Jaccard 0.1, an edge counts when either end keeps it,
    and the coordinates are the leading non-trivial eigenvectors of the symmetrically normalised adjacency of the
    largest connected component, divided by the square root of the degree. Other genes have no row.

    Raises
    ------
    ModelError
        The largest component has fewer than `n_dims` + 2 genes.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import eigsh

    genes, _, similar = jaccard_edges(terms, terms)
    kept = top_per_row(similar, n_similar)
    graph = sp.csr_array(kept.maximum(kept.T))
    _, component = connected_components(graph, directed=False)
    members = np.flatnonzero(component == np.bincount(component, minlength=1).argmax())
    if len(members) < n_dims + 2:
        raise ModelError(
            f"the GO graph has only {len(members)} connected genes; a spectral embedding needs more."
        )
    graph = graph[members][:, members]
    root = np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    scaling = sp.diags_array(1 / root)
    normalised: Any = scaling @ graph @ scaling
    if len(members) <= _DENSE_UP_TO:
        vectors = np.linalg.eigh(normalised.toarray())[1][:, ::-1]
    else:
        start = np.random.default_rng(0).standard_normal(len(members))
        found: Any = eigsh(normalised, k=n_dims + 1, which="LA", v0=start)
        vectors = found[1][:, np.argsort(-found[0], kind="stable")]
    coordinates = vectors[:, 1 : n_dims + 1] / root[:, None]
    scaled = (coordinates - coordinates.mean(axis=0)) / coordinates.std(axis=0, ddof=1)
    return genes[members], fix_signs(scaled)


def fix_signs(scores: np.ndarray) -> np.ndarray:
    """Scores with the sign of each column chosen so that its entry of largest size is positive."""
    if not scores.size:
        return scores
    largest = scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])]
    return scores * np.where(largest < 0, -1.0, 1.0)
