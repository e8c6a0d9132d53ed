"""GEARS graphs: golden edge sets, brute force, strict thresholds, constant genes, the normalisation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.gears.gears_golden import edge_dict, golden, needs_golden, terms
from vcbench.baselines.gears.graphs import (
    Graph,
    coexpression_graph,
    empty_graph,
    go_graph,
    vocabulary,
)
from vcbench.data_specs.errors import ModelError, ShapeError


@needs_golden
def test_coexpression_edges_equal_upstream():
    z = golden()
    part = dict(zip(z["data/conditions"], z["data/split"], strict=True))
    used = np.array([part[c] == "train" and "ctrl" in c for c in z["data/condition"]])
    found = coexpression_graph(sp.csr_array(z["data/X"][used]), n_similar=20, above=0.4)
    expected = edge_dict(z["graph/coexpress_edges"], z["graph/coexpress_weight"])
    mine = edge_dict(found.edges, found.weights)
    assert mine.keys() == expected.keys()
    assert max(abs(mine[e] - w) for e, w in expected.items()) < 2e-5


@needs_golden
def test_go_edges_equal_upstream():
    z, annotation = golden(), terms()
    genes = vocabulary(annotation, reversed(list(annotation)))
    assert list(genes) == [str(g) for g in z["data/vocabulary"]]
    found = go_graph(annotation, genes, n_similar=20, above=0.1)
    assert edge_dict(found.edges, found.weights) == edge_dict(z["graph/go_edges"], z["graph/go_weight"])


def test_vocabulary_needs_terms():
    assert list(vocabulary({"B": ["t"], "A": ["t"], "C": []}, ["C", "B", "A", "B", "D"])) == ["A", "B"]


def _jaccard_by_hand(annotation, genes, k, above):
    found = {}
    for target, t in enumerate(genes):
        similar = []
        for source, s in enumerate(genes):
            a, b = annotation[s], annotation[t]
            value = len(a & b) / len(a | b)
            if value > above:
                similar.append((-value, source))
        for value, source in sorted(similar)[: k + 1]:
            found[source, target] = np.float32(-value)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=5), min_size=2, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
)
def test_go_graph_equals_set_arithmetic(sets, k, above):
    annotation = {f"G{i:02d}": {f"t{t}" for t in members} for i, members in enumerate(sets)}
    genes = sorted(annotation)
    found = go_graph(annotation, genes, n_similar=k, above=above)
    assert edge_dict(found.edges, found.weights) == _jaccard_by_hand(annotation, genes, k, above)


def test_go_threshold_is_strict():
    annotation = {"A": {"1", "2"}, "B": {"2", "3"}, "C": {"9"}}
    third = go_graph(annotation, ["A", "B", "C"], n_similar=5, above=1 / 3)
    assert set(edge_dict(third.edges, third.weights)) == {(0, 0), (1, 1), (2, 2)}
    below = go_graph(annotation, ["A", "B", "C"], n_similar=5, above=0.33)
    assert set(edge_dict(below.edges, below.weights)) == {(0, 0), (1, 1), (2, 2), (0, 1), (1, 0)}
    assert list(below.n_neighbours) == [1, 1, 0]


def test_go_graph_refuses_genes_without_terms_and_disorder():
    with pytest.raises(ModelError, match=r"1 genes .* \(first: B\)"):
        go_graph({"A": {"t"}}, ["A", "B"], n_similar=2, above=0.1)
    with pytest.raises(ModelError, match="sorted"):
        go_graph({"A": {"t"}, "B": {"t"}}, ["B", "A"], n_similar=2, above=0.1)


def test_coexpression_equals_numpy_and_skips_constant_genes():
    rng = np.random.default_rng(3)
    base = rng.poisson(2.0, size=(60, 3)).astype(float)
    cells = np.column_stack([base, base[:, 0] + rng.poisson(0.3, 60), -base[:, 1], np.full(60, 2.0)])
    found = coexpression_graph(sp.csr_array(cells), n_similar=2, above=0.4)
    reference = np.abs(np.corrcoef(cells[:, :5], rowvar=False))
    expected = {}
    for target in range(5):
        for source in np.argsort(-reference[target], kind="stable")[:3]:
            if reference[target, source] > 0.4:
                expected[int(source), target] = reference[target, source]
    mine = edge_dict(found.edges, found.weights)
    assert mine.keys() == expected.keys()
    assert all(abs(mine[e] - w) < 1e-6 for e, w in expected.items())
    assert not (found.edges == 5).any()
    assert found.n_neighbours[4] == 1


def test_coexpression_tiles_do_not_matter(monkeypatch):
    cells = sp.csr_array(np.random.default_rng(0).poisson(1.0, size=(40, 9)).astype(float))
    whole = coexpression_graph(cells, n_similar=3, above=0.05)
    monkeypatch.setattr("vcbench.baselines.gears.graphs._GENES_PER_TILE", 4)
    monkeypatch.setattr("vcbench.baselines.gears.graphs._CELLS_PER_BLOCK", 7)
    tiled = coexpression_graph(cells, n_similar=3, above=0.05)
    assert np.array_equal(whole.edges, tiled.edges)
    np.testing.assert_allclose(whole.weights, tiled.weights, rtol=1e-6)


def test_coexpression_needs_two_cells():
    with pytest.raises(ModelError, match="at least two cells; there are 1"):
        coexpression_graph(sp.csr_array(np.ones((1, 4))), n_similar=2, above=0.4)


def test_normalisation_by_hand():
    # Node 0 has its own self-loop of 0.5; 1 and 2 get one of weight 1; edges 0 -> 1 (0.5) and 2 -> 1 (0.25).
    graph = Graph(4, np.array([[0, 0, 2], [0, 1, 1]]), np.array([0.5, 0.5, 0.25], dtype=np.float32))
    degree = np.array([0.5, 1.75, 1.0, 1.0])
    expected = np.zeros((4, 4))
    for source, target, weight in [(0, 0, 0.5), (0, 1, 0.5), (2, 1, 0.25), (1, 1, 1), (2, 2, 1), (3, 3, 1)]:
        expected[target, source] = weight / np.sqrt(degree[source] * degree[target])
    np.testing.assert_allclose(graph.normalised().toarray(), expected, rtol=1e-15)
    assert np.array_equal(empty_graph(3).normalised().toarray(), np.eye(3))


def test_graph_refuses_wrong_edges():
    with pytest.raises(ShapeError, match="leaves the 2 nodes"):
        Graph(2, np.array([[0], [2]]), np.ones(1, dtype=np.float32))
    with pytest.raises(ShapeError, match="do not fit"):
        Graph(2, np.array([[0], [1]]), np.ones(2, dtype=np.float32))
