"""Feature tables, GO components and graphs, z-scoring; every problem of a table is a coded issue."""

import gzip

import numpy as np
import pytest
from vcbench.baselines.features import (
    FeatureTable,
    feature_source,
    go_components,
    read_feature_table,
    standardized,
)
from vcbench.baselines.go_graph import incidence, jaccard_edges, spectral_embedding, top_per_row
from vcbench.data_specs.errors import InvalidFile, ModelError, UsageError


def random_terms(n_genes=60, n_terms=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((n_genes, n_terms)) < 0.15
    x[np.arange(n_genes), rng.integers(0, n_terms, n_genes)] = True
    return {f"G{i:03d}": {f"t{j:02d}" for j in np.flatnonzero(row)} for i, row in enumerate(x)}, x


@pytest.mark.parametrize("ending", ["tsv", "csv", "parquet"])
def test_tables_read_alike(tmp_path, ending):
    path = tmp_path / f"f.{ending}"
    if ending == "parquet":
        pd = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
        pd.DataFrame({"gene": ["A", "B"], "x": [1.5, -2.0], "y": [0, 3]}).to_parquet(path)
    else:
        mark = "\t" if ending == "tsv" else ","
        path.write_text(
            "\n".join(mark.join(row) for row in (["gene", "x", "y"], ["A", "1.5", "0"], ["B", "-2", "3"]))
        )
    table = feature_source(path).table
    assert list(table.names) == ["A", "B"]
    np.testing.assert_array_equal(table.values, [[1.5, 0], [-2, 3]])
    vector, missing = table.label("A+B+C")
    np.testing.assert_array_equal(vector, [-0.5, 3])
    assert missing == ["C"]


@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        ("gene\tx\nA\t1\nB\tone\n", "E663", "'B'"),
        ("gene\tx\nA\t1\nB\tnan\n", "E663", "'B'"),
        ("gene\tx\nA\t1\nB\t1\t2\n", "E663", "'B'"),
        ("gene,x\nA,1\n", "E662", "1 column"),
        ("gene\tx\nA\t1\nA\t2\n", "E664", "'A'"),
        ("gene\tx\n", "E665", "no rows"),
        ("", "E665", "no rows"),
    ],
)
def test_one_defect_each(tmp_path, text, code, found):
    path = tmp_path / "f.tsv"
    path.write_text(text)
    with pytest.raises(InvalidFile) as caught:
        read_feature_table(path)
    by_code = {issue.code: issue for issue in caught.value.issues}
    assert found in by_code[code].found
    assert str(path) in by_code[code].where or path.name in by_code[code].where


def test_all_defects_at_once(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_text("gene\tx\nA\tone\nB\t1\nB\t2\n")
    with pytest.raises(InvalidFile) as caught:
        read_feature_table(path)
    assert {issue.code for issue in caught.value.issues} == {"E663", "E664"}


def test_unreadable_sources(tmp_path):
    for text in ("missing.tsv", "go:missing.gmt", str(tmp_path)):
        with pytest.raises(InvalidFile) as caught:
            feature_source(text)
        assert [issue.code for issue in caught.value.issues] == ["E661"]
    (tmp_path / "b.csv").write_bytes(b"gene,x\n\xff\xfe,1\n")
    with pytest.raises(InvalidFile, match="E661"):
        feature_source(tmp_path / "b.csv").table  # noqa: B018
    (tmp_path / "f.xlsx").write_text("x")
    with pytest.raises(UsageError, match=r"\.tsv, \.csv or \.parquet"):
        feature_source(tmp_path / "f.xlsx").table  # noqa: B018


def test_source_record_has_the_hash(tmp_path):
    import hashlib

    path = tmp_path / "go.gmt.gz"
    path.write_bytes(gzip.compress(b"t\td\tA\tB\nu\td\tB\tC\nv\td\tA\tD\n"))
    source = feature_source(f"go:{path}")
    assert source.record() == {
        "kind": "go",
        "file": "go.gmt.gz",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert source.terms["B"] == {"t", "u"}
    with pytest.raises(ModelError, match="go:FILE"):
        feature_source(path).terms  # noqa: B018


def test_components_equal_scikit_learn():
    from sklearn.decomposition import PCA

    terms, x = random_terms()
    table = go_components(terms, 7)
    expected = PCA(7, svd_solver="full").fit_transform(x.astype(float))
    np.testing.assert_allclose(np.abs(table.values), np.abs(expected), atol=1e-9)
    largest = table.values[np.abs(table.values).argmax(axis=0), np.arange(7)]
    assert (largest > 0).all()
    shuffled = dict(reversed(terms.items()))
    np.testing.assert_array_equal(go_components(shuffled, 7).values, table.values)
    assert go_components(terms, 500).n_dims == 39
    with pytest.raises(ModelError, match="too few"):
        go_components({"A": {"t"}})


def test_truncated_components_equal_the_full_ones():
    from vcbench.baselines.features import _truncated_scores

    terms, x = random_terms(80, 70, seed=4)
    _, matrix = incidence(terms)
    scores = _truncated_scores(matrix, x.mean(axis=0), 5)
    full = go_components(terms, 5).values
    np.testing.assert_allclose(np.abs(scores), np.abs(full), atol=1e-8)


def test_jaccard_equals_sets():
    terms, _ = random_terms()
    candidates = ["G003", "G010", "NOPE", "G059"]
    genes, chosen, similar = jaccard_edges(terms, candidates, above=0.1)
    assert list(chosen) == ["G003", "G010", "G059"]
    expected = np.zeros((60, 3))
    for i, gene in enumerate(genes):
        for j, other in enumerate(chosen):
            value = len(terms[gene] & terms[other]) / len(terms[gene] | terms[other])
            expected[i, j] = value if value > 0.1 and gene != other else 0.0
    np.testing.assert_allclose(similar.toarray(), expected, atol=1e-15)


def test_top_per_row_keeps_the_largest_and_the_first_of_ties():
    import scipy.sparse as sp

    x = np.array([[0.5, 0.9, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_array_equal(
        top_per_row(sp.csr_array(x), 2).toarray(), [[0.5, 0.9, 0, 0], [0, 0, 0, 0], [0, 0, 0.3, 0.4]]
    )


def test_spectral_embedding_separates_two_groups():
    # Two rings of genes sharing terms, joined by one gene: the first coordinate tells the rings apart.
    terms = {f"A{i}": {"a", f"a{i}", f"a{(i + 1) % 6}"} for i in range(6)}
    terms |= {f"B{i}": {"b", f"b{i}", f"b{(i + 1) % 6}"} for i in range(6)}
    terms |= {"M": {"a", "b"}, "LONE": {"z"}}
    genes, coordinates = spectral_embedding(terms)
    assert "LONE" not in genes and coordinates.shape == (13, 2)
    np.testing.assert_allclose(coordinates.std(axis=0, ddof=1), 1.0)
    first = dict(zip(genes, coordinates[:, 0], strict=True))
    signs = {name: np.sign(value) for name, value in first.items() if name != "M"}
    assert len({signs[f"A{i}"] for i in range(6)}) == 1 and signs["A0"] == -signs["B0"] == -signs["B5"]
    with pytest.raises(ModelError, match="connected genes"):
        spectral_embedding({"A": {"t"}, "B": {"t"}})


def test_standardized_uses_distinct_training_targets():
    table = FeatureTable(np.array(["A", "B", "C", "D"]), np.array([[1.0, 5], [3, 5], [5, 5], [100, 7]]))
    out = standardized(table, ["A", "A+B", "B+C", "UNKNOWN"])
    spread = np.std([1, 3, 5])
    np.testing.assert_allclose(out.values[:, 0], (table.values[:, 0] - 3) / spread)
    np.testing.assert_array_equal(out.values[:, 1], [0, 0, 0, 2])  # constant over training targets
    with pytest.raises(ModelError, match="'UNKNOWN'"):
        standardized(table, ["UNKNOWN"])


def test_rounding_noise_is_no_spread():
    values = np.array([[1.0, 1e-17], [3, -1e-17], [5, 3e-17], [4, 0.2]])
    out = standardized(FeatureTable(np.array(["A", "B", "C", "D"]), values), ["A", "B", "C"])
    np.testing.assert_allclose(out.values[:, 1], values[:, 1], atol=1e-16)


def test_doses_share_their_compound_features():
    table = FeatureTable(np.array(["JQ1"]), np.array([[2.0]]))
    assert table.label("JQ1@10nM")[0] == table.label("JQ1@1uM")[0] == [2.0]
