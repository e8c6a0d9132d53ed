"""The six scored members on hand-computed examples of five genes, and how they answer to copies, means and flips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vcbench.data_specs.errors import MetricError
from vcbench.evaluator.vcc2026.bulks import log_bulk
from vcbench.evaluator.vcc2026.de import DETable, adjust, rank_sum_p
from vcbench.evaluator.vcc2026.de_direction import (
    direction_fidelity_yield_raw,
    direction_reach_raw,
    lfc_nmae,
    sig_jaccard,
)
from vcbench.evaluator.vcc2026.de_lists import average_precision, ranked_auc, spearman
from vcbench.evaluator.vcc2026.de_pair import DEPanel
from vcbench.evaluator.vcc2026.expression import (
    BulkPanel,
    claimed_noise_share,
    discrimination,
    expr_distance_unbiased,
    expr_mse_unbiased,
    expr_mse_unbiased_capped,
    expr_mse_unbiased_capped_norm,
    pds_cosine,
)
from vcbench.evaluator.vcc2026.targets import TargetRule, read_target_map

GENES = ("A", "B", "C", "D", "E")
NO_TARGETS = TargetRule({}, True)


def table(folds, p_adj, *, genes=None, p_value=None):
    folds, p_adj = np.atleast_2d(np.array(folds, float)), np.atleast_2d(np.array(p_adj, float))
    columns = np.arange(folds.shape[1]) if genes is None else np.array(genes)
    return DETable(
        columns, folds, p_adj / 10 if p_value is None else np.atleast_2d(np.array(p_value, float)), p_adj
    )


def pair(real, pred, *, label="A", rule=None, names=GENES):
    panel = DEPanel((label,), names, real, pred, rule or TargetRule())
    return panel.without_own[0]


def bulk_panel(
    real, pred, control, *, noise=0.0, pred_noise=0.0, control_noise=0.0, labels=("A", "B"), rule=None
):
    real, pred = np.array(real, float), np.array(pred, float)
    n = len(real)
    return BulkPanel(
        labels[:n],
        GENES[: real.shape[1]],
        real,
        pred,
        np.array(control, float),
        np.array(control, float),
        np.full(n, float(noise)),
        np.full(n, float(pred_noise)),
        float(control_noise),
        rule or TargetRule(),
    )


# ---- direction fidelity, reach, jaccard, nmae ----


def test_fidelity_by_hand():
    # A is its own gene. Confirmed: B, C, D (3). Called: B right, C wrong, E right (2 right of 3 called).
    real = table([-3, 2, 1, -1, 0.5], [0.001, 0.01, 0.02, 0.03, 0.5])
    pred = table([-3, 1, -1, -1, 0.2], [0.001, 0.01, 0.02, 0.3, 0.04])
    assert direction_fidelity_yield_raw(pair(real, pred)) == pytest.approx(2 / 3)
    # Without its own gene left out: 4 confirmed, 4 called, 3 right.
    assert direction_fidelity_yield_raw(pair(real, pred, rule=NO_TARGETS)) == pytest.approx(3 / 4)


def test_fidelity_counts_the_larger_of_calls_and_confirmed():
    real = table([0, 2, 1, -1, 0.5], [1, 0.01, 0.5, 0.5, 0.5])
    pred = table([0, 1, 1, -1, -0.2], [1, 0.01, 0.02, 0.01, 0.04])
    # One confirmed, four called of which B, C, D are right.
    assert direction_fidelity_yield_raw(pair(real, pred)) == pytest.approx(3 / 4)
    nothing = table([0] * 5, [1] * 5)
    assert math.isnan(direction_fidelity_yield_raw(pair(nothing, nothing)))
    assert direction_fidelity_yield_raw(pair(real, nothing)) == 0.0


def test_reach_walks_in_the_predictions_order():
    real = table([9, 2, 1, -1, 0.5], [0.001] * 5)
    # Own gene A left out; the prediction's order is B (right), C (right), D (wrong), E (right).
    pred = table([9, 1, 1, 1, 1], [0.001, 0.002, 0.003, 0.004, 0.2])
    # Shares 1, 1, 2/3, 3/4: 90 % is last reached after two of four confirmed genes.
    assert direction_reach_raw(pair(real, pred)) == pytest.approx(2 / 4)
    # A call comes before a gene with the same p_adj rank order that is not called: E last even with a tiny p value.
    early = table([9, 1, 1, 1, 1], [0.001, 0.002, 0.003, 0.004, 0.06], p_value=[[0.1, 0.1, 0.1, 0.1, 1e-9]])
    assert direction_reach_raw(pair(real, early)) == pytest.approx(2 / 4)


def test_reach_purity_of_nine_in_ten_counts():
    n = 11
    names = tuple(f"g{i:02d}" for i in range(n))
    real = table(np.ones(n), np.full(n, 0.001))
    signs = np.ones(n)
    signs[5] = -1
    pred = table(signs, np.linspace(0.001, 0.04, n))
    # Places 6 to 9 have less than 90 %; the tenth has exactly 9 of 10, the eleventh 10 of 11.
    assert direction_reach_raw(pair(real, pred, label="none", rule=NO_TARGETS, names=names)) == 1.0
    pred = table(signs[:10], np.linspace(0.001, 0.04, 10))
    real = table(np.ones(10), np.full(10, 0.001))
    assert direction_reach_raw(pair(real, pred, label="none", rule=NO_TARGETS, names=names[:10])) == 1.0


def test_jaccard_by_hand():
    real = table([1] * 5, [0.001, 0.01, 0.02, 0.5, 0.5])
    pred = table([1] * 5, [0.5, 0.01, 0.5, 0.03, 0.5])
    # Without A: {B, C} and {B, D}.
    assert sig_jaccard(pair(real, pred)) == pytest.approx(1 / 3)
    nothing = table([1] * 5, [1] * 5)
    assert sig_jaccard(pair(nothing, nothing)) == 1.0
    assert sig_jaccard(pair(real, nothing)) == 0.0


def test_p_adj_of_exactly_alpha_is_not_significant():
    at = table([1] * 5, [0.05, 0.05, 0.05, np.nextafter(0.05, 0), 0.05])
    assert pair(at, at).real.n_significant == 1


def test_nmae_by_hand_needs_ten_genes():
    folds = np.arange(1.0, 12.0)
    names = tuple(f"g{i}" for i in range(11))
    real = table(folds, np.full(11, 0.01))
    shifted = table(folds + 0.5, np.full(11, 0.5))
    one = pair(real, shifted, label="g0", names=names)
    # Ten genes remain without the own one: mean error 0.5, mean size (2 + ... + 11) / 10 = 6.5.
    assert lfc_nmae(one) == pytest.approx(0.5 / 6.5)
    nine = table(folds, [0.01] * 10 + [0.5])
    assert math.isnan(lfc_nmae(pair(nine, shifted, label="g0", names=names)))
    # A gene that the prediction did not test counts as no change.
    missing = DETable(
        np.arange(10), shifted.log2_fold_change[:, :10], shifted.p_value[:, :10], shifted.p_adj[:, :10]
    )
    assert lfc_nmae(pair(real, missing, label="g0", names=names)) == pytest.approx((9 * 0.5 + 11) / 10 / 6.5)


def test_nmae_of_five_genes_is_omitted():
    # Five genes, four without the own one: fewer than the ten that an error of fold changes needs.
    real = table([9, 2, 1, -1, 0.5], [0.001] * 5)
    assert math.isnan(lfc_nmae(pair(real, real)))


def test_nmae_leaves_five_insignificant_genes_out():
    # Fifteen genes: ten significant with a fold change of 2, five not; predicted 1 on nine and infinite on one.
    folds, p_adj = [2.0] * 10 + [7.0] * 5, [0.01] * 10 + [0.5] * 5
    names = tuple(f"g{i}" for i in range(15))
    pred = table([1.0] * 9 + [np.inf] + [0.0] * 5, [0.5] * 15)
    one = pair(table(folds, p_adj), pred, label="none", rule=NO_TARGETS, names=names)
    # Nine errors of 1, and one of 2 because an infinite prediction counts as no change; mean size 2.
    assert lfc_nmae(one) == pytest.approx((9 * 1 + 2) / 10 / 2)


def test_nan_fold_change_is_never_significant():
    real = table([np.nan, 1, 1, 1, 1], [0.001] * 5)
    assert pair(real, real).real.n_significant == 4


# ---- discrimination and the error ratio ----


def test_pds_cosine_by_hand():
    # Targets A and B are left out of C, D, E; control is 0.
    real = [[9, 0, 1, 0, 0], [0, 9, 0, 1, 0]]
    pred = [[0, 9, 2, 0, 0], [9, 0, 3, 1, 0]]
    panel = bulk_panel(real, pred, [0] * 5)
    # A: angle 0 to A, right to B. B points to A more than to B: last of two.
    assert pds_cosine(panel).tolist() == [1.0, 0.0]


def test_discrimination_ranks_ties_in_the_middle_and_nan_last():
    assert discrimination(np.array([[1.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])).tolist() == [
        0.75,
        0.5,
        0.5,
    ]
    assert discrimination(np.array([[np.nan, 1.0], [1.0, 0.0]])).tolist() == [0.0, 1.0]
    assert discrimination(np.array([[0.3]])).tolist() == [1.0]


def test_all_predictions_equal_average_to_one_half():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(7, 5))
    panel = bulk_panel(
        real, np.tile(rng.normal(size=5), (7, 1)), np.zeros(5), labels=tuple("tuvwxyz"), rule=NO_TARGETS
    )
    assert pds_cosine(panel).mean() == pytest.approx(0.5, abs=1e-15)


def test_every_gene_a_target_is_refused():
    panel = bulk_panel([[1, 2], [3, 4]], [[1, 2], [3, 4]], [0, 0])
    with pytest.raises(MetricError, match="every gene is the target"):
        pds_cosine(panel)


def test_errors_by_hand():
    # Own genes: A for the first, B for the second; four genes enter each.
    real = [[5, 1, 0, 0, 0], [0, 5, 2, 0, 0]]
    pred = [[0, 2, 0, 1, 0], [1, 0, 2, 0, 0]]
    panel = bulk_panel(real, pred, [0] * 5, noise=0.4, pred_noise=0.8, control_noise=0.2)
    # Squared errors without own genes: 1 + 1 = 2 and 1.
    assert expr_mse_unbiased(panel) == pytest.approx([(2 - 1.2) / 4, (1 - 1.2) / 4])
    # Distances from control without own genes: 1 and 4.
    assert expr_distance_unbiased(panel) == pytest.approx([(1 - 0.6) / 4, (4 - 0.6) / 4])
    # Claim: 2 * 0.4 / 4 = 0.2. Spread: C has means (0, 2), D (1, 0), E (0, 0): 0.25 * (2 + 0.5) = 0.625; share 1.
    assert claimed_noise_share(panel) == 1.0
    assert expr_mse_unbiased_capped(panel) == pytest.approx([(2 - 0.8) / 4, (1 - 0.8) / 4])
    ratio = expr_mse_unbiased_capped_norm(expr_mse_unbiased_capped(panel), expr_distance_unbiased(panel))
    assert ratio == pytest.approx((0.3 + 0.05) / (0.1 + 0.85))


def test_noise_that_shows_no_spread_is_not_subtracted():
    same = [[0, 2, 0, 1, 0], [1, 0, 0, 1, 0]]
    panel = bulk_panel([[5, 1, 0, 0, 0], [0, 5, 2, 0, 0]], same, [0] * 5, noise=0.4, pred_noise=0.8)
    # A and B have one contributor each; C, D, E are equal in both predictions.
    assert claimed_noise_share(panel) == 0.0
    assert expr_mse_unbiased_capped(panel)[0] == pytest.approx((2 - 0.4) / 4)


def test_one_perturbation_shows_no_spread():
    panel = bulk_panel([[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 6]], [0] * 5, noise=0.5, pred_noise=0.5)
    assert claimed_noise_share(panel) == 0.0
    assert pds_cosine(panel).tolist() == [1.0]


def test_a_truth_without_signal_is_refused_in_words():
    with pytest.raises(MetricError, match="no further from control than noise"):
        expr_mse_unbiased_capped_norm(np.array([0.1, 0.2]), np.array([0.1, -0.3]))
    with pytest.raises(MetricError, match="no perturbation has both"):
        expr_mse_unbiased_capped_norm(np.array([np.nan]), np.array([1.0]))


def test_bulk_of_an_empty_group_is_zero():
    assert log_bulk(np.array([[0.0, 0.0], [1.0, 3.0]])) == pytest.approx(
        np.log1p(np.array([[0, 0], [12500.0, 37500.0]]))
    )


# ---- copies, flips, permutations ----

FOLDS = st.lists(st.floats(-4, 4, allow_nan=False).filter(lambda x: abs(x) > 1e-3), min_size=12, max_size=12)
P_VALUES = st.lists(st.floats(1e-6, 0.9), min_size=12, max_size=12)


@settings(max_examples=40, deadline=None)
@given(FOLDS, P_VALUES)
def test_exact_copy_and_sign_flip(folds, p_values):
    names = tuple(f"g{i}" for i in range(12))
    real = table(folds, adjust(np.array([p_values])))
    flipped = table(-np.array(folds), adjust(np.array([p_values])))
    copy = pair(real, real, label="x", rule=NO_TARGETS, names=names)
    flip = pair(real, flipped, label="x", rule=NO_TARGETS, names=names)
    assert sig_jaccard(copy) == 1.0 and sig_jaccard(flip) == 1.0
    if copy.real.n_significant:
        assert direction_fidelity_yield_raw(copy) == 1.0 and direction_reach_raw(copy) == 1.0
        assert direction_fidelity_yield_raw(flip) == 0.0 and direction_reach_raw(flip) == 0.0
    if copy.real.n_significant >= 10:
        assert lfc_nmae(copy) == 0.0 and lfc_nmae(flip) == pytest.approx(2.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 9))
def test_permuted_labels_permute_discrimination(seed, n):
    rng = np.random.default_rng(seed)
    real, pred = rng.normal(size=(n, 5)), rng.normal(size=(n, 5))
    order = rng.permutation(n)
    labels = tuple(f"p{i}" for i in range(n))
    straight = pds_cosine(bulk_panel(real, pred, np.zeros(5), labels=labels, rule=NO_TARGETS))
    shuffled = pds_cosine(bulk_panel(real[order], pred[order], np.zeros(5), labels=labels, rule=NO_TARGETS))
    assert shuffled == pytest.approx(straight[order])
    copy = pds_cosine(bulk_panel(real, real, np.zeros(5), labels=labels, rule=NO_TARGETS))
    assert copy.tolist() == [1.0] * n


# ---- parts against independent libraries ----


def test_parts_agree_with_scipy_and_sklearn():
    from scipy.stats import mannwhitneyu, spearmanr
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(3)
    truth, score = rng.random(80) < 0.3, np.round(rng.normal(size=80), 1)
    assert average_precision(truth, score) == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    assert ranked_auc(truth, score) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)
    x, y = np.round(rng.normal(size=30), 1), np.round(rng.normal(size=30), 1)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    u = mannwhitneyu(x, y, method="asymptotic", use_continuity=True)
    _, counts = np.unique(np.concatenate([x, y]), return_counts=True)
    ties = int((counts**3 - counts).sum())
    p = rank_sum_p(np.array([[int(2 * u.statistic)]]), np.array([[ties]]), np.array([[30]]), 30)
    assert p[0, 0] == pytest.approx(u.pvalue, rel=1e-12)


def test_p_is_one_without_variance():
    assert rank_sum_p(np.array([[9]]), np.array([[6**3 - 6]]), np.array([[3]]), 3).tolist() == [[1.0]]


# ---- own genes ----


def test_own_genes_by_name_map_and_declaration(tmp_path):
    index = {"A": 0, "B": 1}
    columns, resolved = TargetRule({"x": "B", "y": None}).own_genes(("A", "x", "y", "z"), index)
    assert columns.tolist() == [0, 1, -1, -1] and resolved == 3
    with pytest.raises(MetricError, match="none of the 1 perturbation labels"):
        TargetRule().own_genes_checked(("A-1",), index, where="the gene axis")
    assert TargetRule({}, True).own_genes_checked(("A-1",), index, where="the gene axis").tolist() == [-1]
    file = tmp_path / "map.csv"
    file.write_text("label,gene\nA-1,A\ndrug,\n")
    assert read_target_map(file) == {"A-1": "A", "drug": None}
