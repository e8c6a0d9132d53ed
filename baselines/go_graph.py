"""GO term incidence, Jaccard similarity of term sets, and the spectral embedding of their graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import ModelError

JACCARD_ABOVE = 0.1
N_SIMILAR = 20
_DENSE_UP_TO = 500


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
    from .set_overlap import jaccard_pairs

    genes, matrix = incidence(terms)
    position = {str(gene): i for i, gene in enumerate(genes)}
    chosen = sorted({c for c in candidates if c in position})
    rows = np.array([position[c] for c in chosen], dtype=np.int64)
    sizes = np.diff(matrix.indptr).astype(np.int64)
    # Item to candidate lists: the transpose of the candidates' incidence.
    members = sp.csr_array(matrix[rows].T)
    members.sort_indices()
    parts = (
        matrix.indptr.astype(np.int64),
        matrix.indices.astype(np.int64),
        members.indptr.astype(np.int64),
        members.indices.astype(np.int64),
        sizes,
        sizes[rows],
        float(above),
    )
    ends = np.zeros(len(genes) + 1, dtype=np.int64)
    jaccard_pairs(*parts, ends, np.empty(0, dtype=np.int64), np.empty(0))
    columns, values = np.empty(ends[-1], dtype=np.int64), np.empty(ends[-1])
    jaccard_pairs(*parts, ends, columns, values)
    similar = sp.csr_array((values, columns, ends), shape=(len(genes), len(chosen)))
    itself = np.repeat(np.arange(len(genes)), np.diff(ends)) == rows[columns]
    similar.data[itself] = 0.0
    similar.eliminate_zeros()
    return genes, np.array(chosen, dtype=np.str_), similar


def top_per_row(matrix: Any, k: int) -> Any:
    """The k largest stored entries of each row of a CSR with sorted columns; ties go to the smaller column."""
    ends = matrix.indptr
    best = [
        low + np.sort(np.argsort(-matrix.data[low:high], kind="stable")[:k]) for low, high in pairwise(ends)
    ]
    chosen = np.concatenate(best) if best else np.empty(0, dtype=np.int64)
    kept = np.concatenate([[0], np.cumsum([len(row) for row in best])]).astype(np.int64)
    return sp.csr_array((matrix.data[chosen], matrix.indices[chosen], kept), shape=matrix.shape)


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
