"""Loading training data: pseudobulk of training rows only, variances, correlations, and what is refused."""

import numpy as np
import pytest
from builders import GENES, standard_h5ad
from vcbench.baselines.data import TrainingCells, load_control_means, load_means, load_training_data
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.standard import MatrixMeta

LABELS = ("G000", "G001", "G002", "G000+G001")


@pytest.fixture
def path(tmp_path):
    return standard_h5ad(tmp_path / "a.h5ad", contexts=("A", "B"))


def logs(path):
    """Log-normalised cells and their keys, computed densely."""
    with H5ad(path) as file:
        x = np.concatenate([block.matrix.toarray() for block in file.row_blocks()]).astype(np.float64)
        keys = list(zip(file.labels("context").values(), file.labels("perturbation").values(), strict=True))
    return np.log1p(x / x.sum(axis=1, keepdims=True) * 80.0), np.array(["/".join(key) for key in keys])


def test_means_counts_and_variances(path):
    x, keys = logs(path)
    data = load_training_data(path, None)
    assert data.keys == tuple(sorted((c, p) for c in "AB" for p in LABELS))
    assert data.target_sum == 80.0 and data.extras["dataset_id"] == "test"
    assert "No split" in data.notes[0]
    for i, (context, label) in enumerate(data.keys):
        cells, controls = x[keys == f"{context}/{label}"], x[keys == f"{context}/control"]
        np.testing.assert_allclose(data.means[i], cells.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(data.effects[i], cells.mean(axis=0) - controls.mean(axis=0), atol=1e-12)
        variance = cells.var(axis=0, ddof=1) / len(cells) + controls.var(axis=0, ddof=1) / len(controls)
        np.testing.assert_allclose(data.sampling_variance[i], variance, atol=1e-11)
    assert (data.n_cells == 12).all()


def test_split_leaves_rows_out_and_keeps_all_controls(path):
    rows = {(c, p): ("test" if c == "B" else "train", "") for c in "AB" for p in LABELS[:3]}
    rows[("A", "G002")] = ("validation", "")
    data = load_training_data(path, Split(rows))
    assert data.keys == (("A", "G000"), ("A", "G001"))
    assert set(data.control_means) == {"A", "B"}
    assert data.notes == ("2 row(s) of the file are not in the split and were left out.",)


def test_unassigned_cells_belong_to_nothing(tmp_path):
    path = standard_h5ad(tmp_path / "u.h5ad", perturbations=("G000", "unassigned"))
    assert load_training_data(path, None).keys == (("K562", "G000"),)


@pytest.mark.parametrize("block_bytes", [1, 4000, 2**26])
def test_correlations_equal_numpy(path, block_bytes, monkeypatch):
    x, keys = logs(path)
    used = np.array([key != "A/G001" for key in keys])
    cells = TrainingCells(path, used, MatrixMeta("counts", 80.0))
    blocks = H5ad.row_blocks
    monkeypatch.setattr(H5ad, "row_blocks", lambda self: blocks(self, max_bytes=block_bytes))
    found = cells.gene_correlations(np.array([3, 0, 17]))
    np.testing.assert_allclose(found, np.corrcoef(x[used].T)[[3, 0, 17]], atol=1e-11)
    monkeypatch.setattr(H5ad, "row_blocks", blocks)
    np.testing.assert_array_equal(found, cells.gene_correlations(np.array([3, 0, 17])))


def test_constant_genes_correlate_with_nothing(tmp_path):
    x = np.random.default_rng(0).integers(1, 5, (20 + 4 * 12, 40)).astype(np.float32)
    x[:, 7] = 0
    path = standard_h5ad(tmp_path / "a.h5ad", x=x)
    found = load_training_data(path, None).cells.gene_correlations(np.array([7, 8]))
    assert (found[0] == 0).all() and found[1, 7] == 0 and found[1, 8] == pytest.approx(1.0)


def test_means_of_chosen_rows(path):
    x, keys = logs(path)
    found = load_means(path, [("B", "G001"), ("A", "control"), ("A", "NOPE")])
    assert found.keys == (("A", "control"), ("B", "G001"))
    np.testing.assert_allclose(found.means[1], x[keys == "B/G001"].mean(axis=0), atol=1e-12)
    genes, controls = load_control_means(path, target_sum=80.0)
    assert list(genes) == list(GENES) and set(controls) == {"A", "B"}
    np.testing.assert_array_equal(controls["A"], found.means[0])


def codes(caught):
    return sorted({issue.code for issue in caught.value.issues})


def written(path, *, obs, uns=None, n=6):
    import scipy.sparse as sp

    with write_h5ad_stream(path, genes=GENES, obs=obs, uns=uns or {}) as writer:
        writer.append(sp.csr_array(np.ones((n, 40), dtype=np.float32)))
    return path


def test_files_that_are_not_standard(tmp_path, path):
    from vcbench.data_specs.standard import StandardMeta

    labels = {"perturbation": ["control"] * 3 + ["A"] * 3, "context": ["K"] * 6}
    plain = written(tmp_path / "plain.h5ad", obs=labels)
    meta = StandardMeta("d", MatrixMeta("counts", 40.0))
    no_context = written(
        tmp_path / "nc.h5ad", obs={"perturbation": labels["perturbation"]}, uns=meta.to_uns()
    )
    no_sum = written(
        tmp_path / "ns.h5ad", obs=labels, uns=StandardMeta("d", MatrixMeta("counts", None)).to_uns()
    )
    means = written(
        tmp_path / "m.h5ad",
        obs=labels,
        uns=StandardMeta("d", MatrixMeta("log1p", 40.0), rows="mean").to_uns(),
    )
    for file, found in (
        (plain, "uns"),
        (no_context, "context"),
        (no_sum, "target_sum"),
        (means, "mean profiles"),
    ):
        with pytest.raises(InvalidFile) as caught:
            load_training_data(file, None)
        assert codes(caught) == ["E671"] and found in caught.value.issues[0].found


def test_contexts_without_control_and_missing_rows_together(tmp_path):
    from vcbench.data_specs.standard import StandardMeta

    uns = StandardMeta("d", MatrixMeta("counts", 40.0)).to_uns()
    obs = {
        "perturbation": ["control", "control", "A", "A", "A", "A"],
        "context": ["K", "K", "K", "K", "L", "L"],
    }
    file = written(tmp_path / "a.h5ad", obs=obs, uns=uns)
    with pytest.raises(InvalidFile) as caught:
        load_training_data(file, None)
    assert codes(caught) == ["E672"] and "'L'" in caught.value.issues[0].found
    split = Split({("K", "A"): ("test", ""), ("L", "A"): ("train", ""), ("K", "B"): ("train", "")})
    with pytest.raises(InvalidFile) as caught:
        load_training_data(file, split)
    assert codes(caught) == ["E672", "E673"]
    with pytest.raises(InvalidFile) as caught:
        load_training_data(file, Split({("K", "A"): ("test", "")}))
    assert codes(caught) == ["E676"]


def test_controls_of_another_scale_are_refused(tmp_path):
    path = standard_h5ad(tmp_path / "l.h5ad", kind="log1p", target_sum=80.0)
    with pytest.raises(InvalidFile) as caught:
        load_control_means(path, target_sum=100.0)
    assert codes(caught) == ["E675"]
    bare = standard_h5ad(tmp_path / "b.h5ad", controls=0)
    with pytest.raises(InvalidFile) as caught:
        load_control_means(bare, target_sum=80.0)
    assert codes(caught) == ["E675"]
