"""The two graphs of GEARS as edge lists, and their normalised matrices. numpy and scipy only.

Source: Roohani, Huang, Leskovec, Nature Biotechnology 2024 (doi 10.1038/s41587-023-01905-6).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError, ShapeError

_CELLS_PER_BLOCK = 2048
_GENES_PER_TILE = 4096


@dataclass(frozen=True)
class Graph:
    """Directed weighted edges over `n_nodes` nodes.

    Attributes
    ----------
    edges
        int64, shape (2, n_edges): row 0 sources, row 1 targets; sorted by target, then source.
    weights
        float32, shape (n_edges,), not normalised.
    """

    n_nodes: int
    edges: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        if self.edges.ndim != 2 or self.edges.shape[0] != 2 or self.edges.shape[1] != len(self.weights):
            raise ShapeError(f"edges {self.edges.shape} do not fit {len(self.weights)} weights")
        if self.edges.size and (self.edges.min() < 0 or self.edges.max() >= self.n_nodes):
            raise ShapeError(f"an edge leaves the {self.n_nodes} nodes of the graph")

    @property
    def n_neighbours(self) -> np.ndarray:
        """Edges into each node from other nodes, int64, shape (n_nodes,)."""
        source, target = self.edges
        return np.bincount(target[source != target], minlength=self.n_nodes).astype(np.int64)

    def normalised(self) -> Any:
        """The propagation matrix, float64 CSR of shape (n_nodes, n_nodes), entry [target, source].

        Every node gets a self-loop (an existing one keeps its weight, a missing one weighs 1); with d the sum of the
        weights into a node, the entry is w / sqrt(d_source d_target), and 0 where d is 0.
        """
        source, target = self.edges
        looped = np.zeros(self.n_nodes, dtype=bool)
        looped[source[source == target]] = True
        missing = np.flatnonzero(~looped)
        rows, columns = np.concatenate([target, missing]), np.concatenate([source, missing])
        weights = np.concatenate([self.weights.astype(np.float64), np.ones(len(missing))])
        degree = np.bincount(rows, weights=weights, minlength=self.n_nodes)
        scale = np.divide(1.0, np.sqrt(degree), out=np.zeros(self.n_nodes), where=degree > 0)
        shape = (self.n_nodes, self.n_nodes)
        return sp.csr_array((weights * scale[rows] * scale[columns], (rows, columns)), shape=shape)


def empty_graph(n_nodes: int) -> Graph:
    """A graph without edges."""
    return Graph(n_nodes, np.empty((2, 0), dtype=np.int64), np.empty(0, dtype=np.float32))


def vocabulary(terms: Mapping[str, Collection[str]], candidates: Iterable[str]) -> np.ndarray:
    """The candidates that have at least one GO term, sorted, each once."""
    return np.array(sorted({gene for gene in candidates if terms.get(gene)}), dtype=np.str_)


def go_graph(
    terms: Mapping[str, Collection[str]], genes: Sequence[str] | np.ndarray, *, n_similar: int, above: float
) -> Graph:
    """The perturbation graph: genes linked by the Jaccard similarity of their GO terms.

    Ordered pairs, a gene with itself included, whose similarity is greater than `above`; each target keeps its
    `n_similar` + 1 most similar sources (ties: the earlier in `genes`).

    Parameters
    ----------
    terms
        Terms of each gene; genes outside `genes` are ignored.
    genes
        The nodes, sorted, each with at least one term.

    Raises
    ------
    ModelError
        A gene without terms, or genes that are not sorted and unique.
    """
    from ..go_graph import jaccard_edges, top_per_row

    nodes = [str(gene) for gene in genes]
    if nodes != sorted(set(nodes)):
        raise ModelError("the genes of the GO graph must be sorted and unique.")
    bare = [gene for gene in nodes if not terms.get(gene)]
    if bare:
        raise ModelError(f"{len(bare)} genes of the GO graph have no GO term (first: {bare[0]}).")
    if not nodes:
        return empty_graph(0)
    _, _, similar = jaccard_edges({gene: terms[gene] for gene in nodes}, nodes, above=above)
    with_self: Any = sp.csr_array(similar + sp.identity(len(nodes), format="csr") * float(above < 1.0))
    with_self.eliminate_zeros()
    with_self.sort_indices()
    return _from_rows(top_per_row(with_self, n_similar + 1))


def coexpression_graph(
    cells: Any, *, n_similar: int, above: float, contexts: np.ndarray | None = None
) -> Graph:
    """The gene graph: measured genes linked by the absolute Pearson correlation of their expression.

    Each target keeps its `n_similar` + 1 most correlated genes, itself included, and of these the ones above
    `above` (strictly). A gene that is constant over the cells has no edge.

    Parameters
    ----------
    cells
        log1p expression, CSR, shape (n_cells, G): control cells and training cells with one perturbed gene. Not
        modified. The result does not depend on the order of the cells beyond rounding.
    contexts
        Context of each cell, int64 from 0, shape (n_cells,): genes are then centred within contexts, so that
        differences between contexts make no edges.

    Raises
    ------
    ModelError
        Fewer than two cells.
    """
    n_cells, n_genes = cells.shape
    if n_cells < 2:
        raise ModelError(f"co-expression needs at least two cells; there are {n_cells}.")
    rows = sp.csr_array(cells)
    codes = np.zeros(n_cells, dtype=np.int64) if contexts is None else contexts
    means, scale = _centres(rows, codes)
    kept: list[Graph] = []
    for first in range(0, n_genes, _GENES_PER_TILE):
        tile = slice(first, min(n_genes, first + _GENES_PER_TILE))
        product = np.zeros((tile.stop - tile.start, n_genes))
        for start in range(0, n_cells, _CELLS_PER_BLOCK):
            part = slice(start, start + _CELLS_PER_BLOCK)
            block = (rows[part].toarray() - means[codes[part]]) * scale
            product += block[:, tile].T @ block
        correlation = np.minimum(np.abs(product), 1.0)
        kept.append(_strongest(correlation, first, n_genes, n_similar + 1, above))
    edges = np.concatenate([graph.edges for graph in kept], axis=1)
    return Graph(n_genes, edges, np.concatenate([graph.weights for graph in kept]))


def _centres(rows: Any, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of each context, shape (n_contexts, G), and 1 / root of the squares about them, 0 for constant genes."""
    n = np.bincount(codes)
    hot = sp.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(n), len(codes)))
    wide = rows.astype(np.float64)
    means = (hot @ wide).toarray() / np.maximum(n, 1)[:, None]
    square = np.asarray(wide.power(2).sum(axis=0)).ravel()
    spread = square - (n[:, None] * means**2).sum(axis=0)
    varies = spread > 1e-10 * np.maximum(square, 1e-300)
    return means, np.where(varies, 1.0 / np.sqrt(np.where(varies, spread, 1.0)), 0.0)


def _strongest(values: np.ndarray, first: int, n_genes: int, k: int, above: float) -> Graph:
    sources, targets, weights = [], [], []
    for row, line in enumerate(values):
        strong = np.flatnonzero(line > above)
        best = np.sort(strong[np.argsort(-line[strong], kind="stable")[:k]])
        sources.append(best)
        targets.append(np.full(len(best), first + row))
        weights.append(line[best])
    edges = np.stack([np.concatenate(sources), np.concatenate(targets)]).astype(np.int64)
    return Graph(n_genes, edges, np.concatenate(weights).astype(np.float32))


def _from_rows(matrix: Any) -> Graph:
    targets = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    edges = np.stack([matrix.indices, targets]).astype(np.int64)
    return Graph(matrix.shape[0], edges, matrix.data.astype(np.float32))
