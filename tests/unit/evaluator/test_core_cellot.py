"""The metrics of CellOT equal the values that its evaluation gave, and the profile scores cells and means."""

import numpy as np
import pytest
from core_support import cell_file, mean_file
from vcbench.evaluator.metrics import cellot
from vcbench.evaluator.metrics.base import Null
from vcbench.evaluator.scoring import score

R, C = np.arange(60)[:, None], np.arange(3)[None, :]
PRED = np.cos(0.7 * R + 1.3 * C)
TRUTH = np.cos(0.7 * R + 0.2 + 1.1 * C) + 0.1


def test_moments_equal_upstream():
    found = cellot.moment_values(PRED, TRUTH)
    golden = {
        "l2_means": 0.1645898338,
        "l2_stds": 0.0034070386,
        "r_means": 0.9997522612,
        "r_stds": 0.9994659465,
        "l2_feature_correlations": 0.3661495290,
        "r_feature_correlations": 0.9999999140,
    }
    for name, value in golden.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    for name in ("means", "stds", "feature_correlations"):
        assert found[f"r2_{name}"] == pytest.approx(found[f"r_{name}"] ** 2)


def test_distances_equal_upstream():
    found = cellot.distance_values(PRED, TRUTH)
    assert found["mmd"] == pytest.approx(0.013874663123, abs=1e-11)
    assert found["mmd_training"] == pytest.approx(0.010471459341, abs=1e-11)
    # With 60 cells a side only 59 neighbours exist.
    assert found["enrichment_k50"] == pytest.approx(0.493, abs=5e-4)
    assert found["enrichment_k100"] == pytest.approx(0.4870056497, abs=1e-9)
    costs = cellot.transport_values(PRED, TRUTH, ["wasserstein", "sinkhorn"])
    assert 0 < costs["sinkhorn"] < costs["wasserstein"]


def test_transport_costs_of_points():
    """One point a side: the plan is known, so is the cost."""
    a, b = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert cellot.entropic_cost(a, b, 0.5) == pytest.approx(25.0)
    x = np.array([[0.0], [10.0]])
    # Far apart: the plan is the diagonal; close together the entropy mixes it and the cost is biased.
    assert cellot.entropic_cost(x, x + 0.5, 0.5) == pytest.approx(0.25, abs=1e-9)
    near = np.array([[0.0], [0.1]])
    assert cellot.entropic_cost(near, near, 0.5) == pytest.approx(0.005, rel=0.05)


def test_what_has_no_value():
    constant = cellot.moment_values(np.ones((5, 3)), np.ones((5, 3)))
    assert isinstance(constant["r_means"], Null) and constant["l2_means"] == 0.0
    assert isinstance(constant["r_feature_correlations"], Null)
    one = cellot.moment_values(PRED[:1], TRUTH)
    assert isinstance(one["l2_stds"], Null) and isinstance(one["l2_means"], float)
    wide = np.zeros((3, 1000))
    assert all(isinstance(value, Null) for value in cellot.distance_values(wide, wide).values())
    values = cellot.averaged([{"a": 1.0, "b": Null("x")}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": Null("x")}])
    assert values == {"a": 2.0, "b": 2.0}
    assert cellot.averaged([{"b": Null("x")}])["b"] == Null("x")


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cellot")
    genes = [f"G{i:02d}" for i in range(12)]
    rng = np.random.default_rng(0)
    labels = ["control"] * 40 + ["G01"] * 130 + ["G02"] * 30
    x = rng.poisson(4.0, (len(labels), len(genes))).astype(float)
    x[40:170, 3] += 6
    truth = cell_file(folder / "truth.h5ad", x, labels, ["K"] * len(labels), genes)
    copy = rng.permutation(np.arange(40, 170))
    pred_labels = ["G01"] * 130 + ["G02"] * 20
    pred_x = np.concatenate([x[copy], x[:20]])
    pred = cell_file(folder / "pred.h5ad", pred_x, pred_labels, ["K"] * 150, genes)
    return folder, genes, truth, pred, x


def values(path, truth, **options):
    result = score(path, truth, edition="core", profile="cellot", **options)
    return result.result.per_perturbation.set_index("perturbation"), result.card


def test_profile_scores_cells(panel):
    _, _, truth, pred, _ = panel
    table, card = values(pred, truth, seed=5)
    shown = [name for name in cellot.NAMES if name != "sinkhorn"]
    assert {*shown, *(f"{name}_top50" for name in shown)} <= set(table.columns)
    # G01 is the truth in another order: draws of 100 of 130 cells differ by sampling alone.
    assert 0 < table.loc["G01", "mmd"] < 0.05 and table.loc["G01", "r_means"] > 0.99
    assert table.loc["G02", "l2_means"] > table.loc["G01", "l2_means"]
    assert card.metrics["mmd"].n == 2
    again, _ = values(pred, truth, seed=5)
    np.testing.assert_array_equal(again[shown], table[shown])
    other, _ = values(pred, truth, seed=6)
    assert other.loc["G01", "mmd"] != table.loc["G01", "mmd"]


def test_all_cells_are_taken_where_both_sides_are_as_many(panel):
    folder, genes, truth, _, x = panel
    rng = np.random.default_rng(1)
    pred_x = np.concatenate([rng.poisson(4.0, (130, 12)), rng.poisson(4.0, (30, 12))]).astype(float)
    path = cell_file(folder / "equal.h5ad", pred_x, ["G01"] * 130 + ["G02"] * 30, ["K"] * 160, genes)
    table, _ = values(path, truth)
    logged = [np.log1p(cells / cells.sum(axis=1, keepdims=True) * 80.0) for cells in (pred_x[130:], x[170:])]
    expected = cellot.moment_values(*logged) | cellot.distance_values(*logged)
    for name, value in expected.items():
        assert table.loc["G02", name] == pytest.approx(value, rel=1e-9), name


def test_profile_scores_means(panel):
    folder, genes, truth, _, x = panel
    logged = np.log1p(x / x.sum(axis=1, keepdims=True) * 80.0)
    profiles = {("K", "G01"): logged[40:170].mean(axis=0), ("K", "G02"): logged[:40].mean(axis=0)}
    table, card = values(mean_file(folder / "mean.h5ad", profiles, genes), truth)
    assert table.loc["G01", "l2_means"] == pytest.approx(0.0, abs=1e-5)
    assert table.loc["G02", "l2_means"] == pytest.approx(
        np.linalg.norm(logged[:40].mean(axis=0) - logged[170:].mean(axis=0)), abs=1e-5
    )
    assert card.metrics["mmd"].n == 0 and "no cells" in str(card.metrics["mmd"].reason)
