"""Cells for training: what is read, held out, paired, made dense, and how validation rows are scored."""

import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from vcbench.baselines.data import load_training_data
from vcbench.baselines.deep_data import load_cells
from vcbench.baselines.training.config import TrainingConfig
from vcbench.baselines.training.data import held_out_cells, pair_controls
from vcbench.baselines.training.selection import chosen_validation, validation_set
from vcbench.data_specs.errors import InvalidFile, ShapeError, UsageError
from vcbench.data_specs.split_file import Split

LABELS = ["G000", "G001", "G002", "G003"]
ROLES = {"G000": "train", "G001": "train", "G002": "validation", "G003": "test"}
SPLIT = Split({(c, p): (ROLES[p], "") for c in "AB" for p in LABELS})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "data.h5ad"
    return standard_h5ad(path, perturbations=LABELS, contexts=("A", "B"), cells=25, controls=30)


def test_unusable_values_are_refused_where_they_would_train(tmp_path):
    labels = ["control"] * 4 + ["G000"] * 3 + ["G003"] * 3
    for name, row, codes in (("train", 5, ["E614"]), ("test", 8, [])):
        x = np.ones((10, len(GENES)), dtype=np.float32)
        x[row, 3] = np.nan
        path = tmp_path / f"{name}.h5ad"
        standard_h5ad(path, perturbations=["G000", "G003"], cells=3, controls=4, x=x)
        split = Split({("K562", "G000"): ("train", ""), ("K562", "G003"): ("test", "")})
        if not codes:
            assert load_cells(path, split).x.shape[0] == labels.index("G003")
            continue
        with pytest.raises(InvalidFile) as caught:
            load_cells(path, split)
        assert [issue.code for issue in caught.value.issues] == codes


def test_cells_of_the_split_are_read_and_test_rows_are_not(file):
    cells = load_cells(file, SPLIT)
    assert {label for _, label in cells.keys} == {"control", "G000", "G001", "G002"}
    assert cells.train_keys == tuple((c, p) for c in "AB" for p in ("G000", "G001"))
    assert cells.validation_keys == (("A", "G002"), ("B", "G002")) and not cells.held_out.any()
    assert cells.x.shape == (2 * (30 + 3 * 25), len(GENES)) and cells.x.dtype == np.float32
    assert cells.x.indices.dtype == np.int32
    assert len(cells.train_rows) == 100 and len(cells.control_rows) == 60
    expected = load_training_data(file, SPLIT)
    found = cells.training_data
    assert found.keys == expected.keys and (found.n_cells == expected.n_cells).all()
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-6, atol=1e-7)
    for context in "AB":
        np.testing.assert_allclose(
            found.control_means[context], expected.control_means[context], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("storage", ["dense", "csc"])
def test_other_storages_give_the_same_cells(file, tmp_path, storage):
    import anndata as ad

    other = ad.read_h5ad(file)
    other.X = other.X.toarray() if storage == "dense" else other.X.tocsc()
    other.write_h5ad(tmp_path / "other.h5ad")
    expected, found = load_cells(file, SPLIT), load_cells(tmp_path / "other.h5ad", SPLIT)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found.x, name), getattr(expected.x, name))
    assert found.keys == expected.keys and (found.codes == expected.codes).all()


def test_moments_are_those_of_numpy(file):
    cells = load_cells(file, SPLIT)
    rows = cells.rows_of(("B", "G001"))
    dense = cells.x[rows].toarray().astype(np.float64)
    mean, variance = cells.moments(rows)
    np.testing.assert_allclose(mean, dense.mean(0), rtol=1e-13)
    np.testing.assert_allclose(variance, dense.var(0, ddof=1), rtol=1e-12, atol=1e-15)
    assert np.isnan(cells.moments(rows[:1])[1]).all()


def test_validation_none_leaves_validation_rows_out_and_cells_holds_some_out(file):
    none = load_cells(file, SPLIT, validation="none")
    assert none.validation_keys == () and not none.held_out.any() and ("A", "G002") not in none.keys
    kept = load_cells(file, SPLIT, validation="cells")
    assert kept.validation_keys == () and kept.held_out.sum() == 4 * 2 and len(kept.train_rows) == 92
    assert not kept.held_out[kept.control_rows].any()
    whole = load_cells(file, None)
    assert len(whole.train_keys) == 8 and whole.held_out.sum() == 8 * 2
    assert "16 training cells are held out" in whole.notes[-1]


def test_counts_are_read_as_they_are(file, tmp_path):
    cells = load_cells(file, SPLIT, space="counts")
    assert (
        cells.space == "counts" and (cells.x.data == np.rint(cells.x.data)).all() and cells.x.data.max() > 2
    )
    logged = standard_h5ad(tmp_path / "log.h5ad", perturbations=LABELS, contexts=("A", "B"), kind="log1p")
    with pytest.raises(UsageError, match="holds log1p values; the model reads raw counts"):
        load_cells(logged, SPLIT, space="counts")


def test_held_out_cells_are_a_tenth_of_each_group_whatever_the_order():
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2, 3], [40, 25, 9, 30])
    names = np.array([f"cell{i}" for i in range(len(codes))])
    wanted = np.array([False, True, True, True])
    first = held_out_cells(names.tolist(), codes, wanted)
    assert np.bincount(codes[first], minlength=4).tolist() == [0, 2, 0, 3]
    order = rng.permutation(len(codes))
    again = held_out_cells(names[order].tolist(), codes[order], wanted)
    assert set(names[first]) == set(names[order][again])
    assert not held_out_cells([], np.empty(0, dtype=np.int64), wanted).any()


def test_controls_come_from_the_same_context_and_pair_with_themselves(file):
    cells = load_cells(file, SPLIT)
    rows = np.concatenate([cells.train_rows, cells.control_rows[:5]])
    pairs = pair_controls(cells, rows, np.random.default_rng(1))
    assert cells.is_control[pairs].all() and (pairs[-5:] == cells.control_rows[:5]).all()
    assert (cells.context_codes[pairs] == cells.context_codes[rows]).all()
    assert len(set(pairs[:50])) > 15
    assert (pairs == pair_controls(cells, rows, np.random.default_rng(1))).all()


def test_validation_values_are_the_evaluators(file):
    from vcbench.evaluator.metrics.expression import mse, pearson

    cells = load_cells(file, SPLIT)
    rows = validation_set(cells)
    assert rows.keys == (("A", "G002"), ("B", "G002")) and all(len(top) == 20 for top in rows.top)
    perfect = rows.scores(rows.means)
    assert (
        perfect["mse"] == 0 and perfect["pearson_delta"] == pytest.approx(1) and perfect["mse_top20_de"] == 0
    )
    guess = rows.means + np.random.default_rng(2).normal(0, 0.1, rows.means.shape)
    found = rows.scores(guess)
    expected = np.mean([mse(y, p) for y, p in zip(rows.means, guess, strict=True)])
    assert found["mse"] == pytest.approx(expected, rel=1e-12)
    changes = [pearson(y - c, p - c) for y, p, c in zip(rows.means, guess, rows.controls, strict=True)]
    assert found["pearson_delta"] == pytest.approx(np.mean(changes), rel=1e-12)
    top = [mse(y[t], p[t]) for y, p, t in zip(rows.means, guess, rows.top, strict=True)]
    assert found["mse_top20_de"] == pytest.approx(np.mean(top), rel=1e-12)
    unchanged = rows.scores(rows.controls)
    assert np.isnan(unchanged["pearson_delta"]) and unchanged["mse"] > 0
    with pytest.raises(ShapeError):
        rows.scores(guess[:1])
    assert validation_set(cells, keys=[]).scores(np.empty((0, len(GENES)))) == {}


def test_top_genes_rank_by_welch_t(file):
    from scipy.stats import ttest_ind

    cells = load_cells(file, SPLIT, validation="cells")
    rows = validation_set(cells)
    assert rows.keys == cells.train_keys
    own = cells.x[cells.rows_of(("A", "G000"), held_out=True)].toarray().astype(float)
    controls = cells.x[cells.rows_of(("A", "control"))].toarray().astype(float)
    t = np.nan_to_num(np.abs(ttest_ind(own, controls, equal_var=False).statistic))
    assert set(rows.top[0][:5]) <= set(np.argsort(-t)[:8])


def test_auto_validates_on_perturbations_where_the_split_has_them():
    config = TrainingConfig()
    assert (
        chosen_validation(config, [("A", "x")]) == "perturbations"
        and chosen_validation(config, []) == "cells"
    )
    assert chosen_validation(TrainingConfig(validation="none"), [("A", "x")]) == "none"


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_device_rows_are_the_dense_rows(where, dtype):
    torch = pytest.importorskip("torch", reason="deep models need the extra vcbench[train]")
    from vcbench.baselines.training.device_matrix import DeviceMatrix, csr_bytes
    from vcbench.baselines.training.protocol import Placement

    rng = np.random.default_rng(4)
    dense = (rng.random((9, 13)) * (rng.random((9, 13)) < 0.3)).astype(np.float32)
    dense[4] = 0
    x = sp.csr_array(dense)
    matrix = DeviceMatrix(x, Placement(torch.device("cpu"), getattr(torch, dtype)), where=where)
    for rows in ([3, 4, 3, 8, 0], [4], [], list(range(9))):
        wanted = np.array(rows, dtype=np.int64)
        found = matrix.rows(wanted)
        assert found.dtype == getattr(torch, dtype) and matrix.where == where
        np.testing.assert_array_equal(found.numpy(), dense[wanted].astype(dtype))
    assert csr_bytes(x) == x.nnz * 6 and csr_bytes(sp.csr_array((1, 40_000))) == 0
