"""Edition core on five genes, every value worked out by hand."""

import numpy as np
import pytest
from core_support import cell_file, mean_file
from vcbench.evaluator.scoring import score

GENES = ("G1", "G2", "G3", "G4", "G5")
# d = (2, 0, 1, -3, 0) and e = (1, 0, 0, -2, 1); each group has two cells at mean +- 0.1, so |t| = |d| / sqrt(0.02).
CONTROL = np.array([1.5, 2.5, 1.5, 4.5, 1.5])
TRUTH = np.array([3.5, 2.5, 2.5, 1.5, 1.5])
PRED = np.array([2.5, 2.5, 1.5, 2.5, 2.5])
EXPECTED = {
    "mse": 4 / 5,
    "rmse": np.sqrt(4 / 5),
    "mae": 4 / 5,
    "l2": 2.0,
    "pearson": -0.2 / np.sqrt(2.8 * 0.8),
    "pearson_delta": 8 / np.sqrt(14 * 6),
    "cosine_delta": 8 / np.sqrt(14 * 6),
    "r2": 1 - 4 / 2.8,
    "r2_delta": 1 - 4 / 14,
    "mse_top20_de": 4 / 5,
    "mse_top20_de_no_target": 3 / 4,
    "l2_top20_de_no_target": np.sqrt(3),
    # significant: G4, G1, G3; predicted by |e|: G4, then G1 before G5 (a tie, by symbol)
    "top20_overlap": 2 / 3,
    "topk_overlap": 2 / 3,
    "topk_precision": 2 / 3,
    "direction_accuracy": 2 / 3,
    "opposite_direction": 0.0,
    "direction_accuracy_top20": 2 / 3,
}


@pytest.fixture
def scored(tmp_path):
    cells = np.concatenate([[mean - 0.1, mean + 0.1] for mean in (CONTROL, TRUTH)])
    labels, contexts = ["control", "control", "G4", "G4"], ["K562"] * 4
    truth = cell_file(tmp_path / "truth.h5ad", cells, labels, contexts, GENES, kind="log1p")
    pred = mean_file(tmp_path / "pred.h5ad", {("K562", "G4"): PRED}, GENES)
    return score(pred, truth)


@pytest.mark.parametrize("name", EXPECTED)
def test_value(scored, name):
    assert scored.card.metrics[name].value == pytest.approx(EXPECTED[name], abs=1e-9)


def test_description_of_the_row(scored):
    row = scored.result.per_perturbation.iloc[0]
    assert (row["n_de"], row["effect_tier"], row["stratum"]) == (3, "1-9", "single")
    assert (row["n_cells_truth"], row["n_cells_pred"], row["status"]) == (2, 0, "predicted")


def test_means_have_no_cell_distances(scored):
    for name in ("edistance", "mmd"):
        value = scored.card.metrics[name]
        assert (value.value, value.n, value.n_total) == (None, 0, 1)
        assert value.reason == "prediction has no cells (1 of 1)"


def test_no_overall_score(scored):
    assert scored.card.score is None
    assert scored.card.score_reason == "edition core has no overall score"
