"""Means, additive models and transfer between contexts against numbers worked out by hand."""

import numpy as np
import pytest
from baseline_data import CONTROL, EFFECTS, answer, effect_of, fitted, five_genes, two_contexts
from vcbench.data_specs.errors import ModelError, UsageError


def test_no_change_is_the_control_mean():
    data = five_genes()
    prediction = fitted("no-change", data).predict([("A", "T1"), ("A", "unknown")], data.control_means)
    np.testing.assert_array_equal(prediction.profiles, np.stack([CONTROL, CONTROL]))
    assert prediction.status == ("predicted", "predicted")


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("equal", [-0.5, -0.25, 0.5, 0.75, 0.25]), ("cell", [-0.25, -0.375, 0.25, 0.875, 0.375])],
)
@pytest.mark.parametrize("form", ["absolute", "delta"])
def test_mean_by_hand(weighting, expected, form):
    data = five_genes()
    model = fitted("mean", data, weighting=weighting, form=form)
    np.testing.assert_allclose(effect_of(model, data, "anything"), expected, atol=1e-14)


def test_weightings_agree_on_equal_groups():
    from dataclasses import replace

    data = five_genes()
    even = replace(data, n_cells=np.array([7, 7]))
    for form in ("absolute", "delta"):
        equal, cell = (fitted("mean", even, weighting=w, form=form) for w in ("equal", "cell"))
        np.testing.assert_allclose(effect_of(equal, even, "T1"), effect_of(cell, even, "T1"), atol=1e-14)
    unequal = [effect_of(fitted("mean", data, weighting=w), data, "T1") for w in ("equal", "cell")]
    assert np.abs(unequal[0] - unequal[1]).max() > 0.1


def test_mean_forms_differ_between_contexts():
    data = two_contexts()
    absolute, delta = fitted("mean", data, form="absolute"), fitted("mean", data, form="delta")
    np.testing.assert_allclose(effect_of(absolute, data, "T2", context="B"), 3 * EFFECTS["T1"], atol=1e-14)
    expected = (4 * EFFECTS["T1"] + EFFECTS["T2"]) / 3
    np.testing.assert_allclose(effect_of(delta, data, "T2", context="B"), expected, atol=1e-14)


def test_absolute_mean_falls_back_in_a_context_without_training_rows():
    data = two_contexts()
    model = fitted("mean", data, form="absolute")
    new = {"C": CONTROL + 2}
    prediction = model.predict([("C", "T1")], new)
    assert prediction.status == ("fallback",) and "'C'" in prediction.reason[0]
    expected = CONTROL + 2 + (4 * EFFECTS["T1"] + EFFECTS["T2"]) / 3
    np.testing.assert_allclose(prediction.profiles[0], expected, atol=1e-14)


def test_context_mean_weighs_cells():
    data = two_contexts()
    expected = (10 * EFFECTS["T1"] + 30 * EFFECTS["T2"]) / 40
    np.testing.assert_allclose(effect_of(fitted("context-mean", data), data, "any"), expected, atol=1e-14)


def test_perturbation_mean_over_contexts():
    data = two_contexts()
    model = fitted("perturbation-mean", data)
    np.testing.assert_allclose(effect_of(model, data, "T1"), 2 * EFFECTS["T1"], atol=1e-14)
    np.testing.assert_allclose(effect_of(model, data, "T2", context="B"), EFFECTS["T2"], atol=1e-14)
    status, reason = answer(model, data, "T3")
    assert status == "fallback" and "global mean" in reason
    expected = (4 * EFFECTS["T1"] + EFFECTS["T2"]) / 3
    np.testing.assert_allclose(effect_of(model, data, "T3"), expected, atol=1e-14)


def test_perturbation_mean_weighs_near_contexts_more():
    data = two_contexts()
    model = fitted("perturbation-mean", data, tau=0.5)
    # The control profiles differ by 1 everywhere, so the far context weighs exp(-1 / 0.5).
    weight = np.exp(-2.0)
    expected = (1 + 3 * weight) / (1 + weight) * EFFECTS["T1"]
    np.testing.assert_allclose(effect_of(model, data, "T1"), expected, atol=1e-13)
    tiny = fitted("perturbation-mean", data, tau=1e-9)
    np.testing.assert_allclose(effect_of(tiny, data, "T1", context="B"), 3 * EFFECTS["T1"], atol=1e-13)


def test_shrinkage_by_leaving_a_context_out():
    data = two_contexts()
    model = fitted("perturbation-mean", data, shrinkage="loco")
    t1, t2 = EFFECTS["T1"], EFFECTS["T2"]
    guesses = [(3 * t1, t1), (3 * t1, t2), (t1, 3 * t1)]  # held out: A/T1, A/T2 (mean of B), B/T1
    s = sum(g @ d for g, d in guesses) / sum(g @ g for g, _ in guesses)
    np.testing.assert_allclose(effect_of(model, data, "T1"), s * 2 * t1, atol=1e-13)
    assert any(f"{s:.4f}" in note for note in model.notes)
    with pytest.raises(ModelError, match="two contexts"):
        fitted("perturbation-mean", five_genes(), shrinkage="loco")


def test_large_shrinkage_is_refused_and_medium_flagged():
    with pytest.raises(UsageError, match="below 10"):
        fitted("perturbation-mean", two_contexts(), shrinkage=10)
    assert fitted("perturbation-mean", two_contexts(), shrinkage=5).amplified
    assert not fitted("perturbation-mean", two_contexts(), shrinkage=1.5).amplified


def test_additive_sums_the_singles():
    data = five_genes()
    model = fitted("additive", data)
    np.testing.assert_allclose(effect_of(model, data, "T1+T2"), EFFECTS["T1"] + EFFECTS["T2"], atol=1e-14)
    assert answer(model, data, "T1+T3") == ("refused", "no training single of T3")
    assert np.isnan(effect_of(model, data, "T1+T3")).all()


def test_additive_with_mean_delta_for_missing_parts():
    data = five_genes()
    model = fitted("additive", data, missing="mean-delta")
    mean = (EFFECTS["T1"] + EFFECTS["T2"]) / 2
    np.testing.assert_allclose(effect_of(model, data, "T1+T3"), EFFECTS["T1"] + mean, atol=1e-14)
    np.testing.assert_allclose(effect_of(model, data, "T3+X"), 2 * mean, atol=1e-14)
    status, reason = answer(model, data, "T3+X")
    assert status == "fallback" and "T3, X" in reason


def test_scaled_additive_slope():
    data = five_genes(("T1", "T2", "T1+T2"))
    total = EFFECTS["T1"] + EFFECTS["T2"]
    slope = total @ EFFECTS["T1+T2"] / (total @ total)
    model = fitted("additive", data, scaled=True)
    np.testing.assert_allclose(effect_of(model, data, "T1+T2"), slope * total, atol=1e-14)
    np.testing.assert_allclose(effect_of(model, data, "T1"), EFFECTS["T1"], atol=1e-14)
    with pytest.raises(ModelError, match="training combination"):
        fitted("additive", five_genes(), scaled=True)


def test_additive_borrows_singles_from_other_contexts_and_says_so():
    data = two_contexts()
    model = fitted("additive", data)
    status, reason = answer(model, data, "T1+T2", context="B")
    assert status == "predicted" and reason == "effect of T2 from other contexts"
    expected = 3 * EFFECTS["T1"] + EFFECTS["T2"]
    np.testing.assert_allclose(effect_of(model, data, "T1+T2", context="B"), expected, atol=1e-14)


def test_matching_mean_averages():
    data = five_genes()
    model = fitted("matching-mean", data)
    np.testing.assert_allclose(
        effect_of(model, data, "T1+T2"), (EFFECTS["T1"] + EFFECTS["T2"]) / 2, atol=1e-14
    )
    cell_mean = (10 * EFFECTS["T1"] + 30 * EFFECTS["T2"]) / 40
    np.testing.assert_allclose(effect_of(model, data, "T1+T3"), (EFFECTS["T1"] + cell_mean) / 2, atol=1e-14)
    status, reason = answer(model, data, "T1+T3")
    assert status == "fallback" and "T3" in reason


def test_transfer_recovers_a_linear_relation():
    from dataclasses import replace

    from baseline_data import random_panel

    data = random_panel(contexts=("A", "B"), n_singles=12, doubles=False)
    effects = data.effects
    in_a = np.array([context == "A" for context, _ in data.keys])
    b_effects = 2 * effects[in_a] + 0.3
    means = data.means.copy()
    means[~in_a] = data.control_means["B"] + b_effects
    keep = np.array([key != ("B", "G011") for key in data.keys])
    train = replace(
        data,
        keys=tuple(key for key, kept in zip(data.keys, keep, strict=True) if kept),
        means=means[keep],
        n_cells=data.n_cells[keep],
        sampling_variance=None,
    )
    # Eleven shared perturbations span eleven of the twelve source directions only, so leave-out is not exact;
    # every shared perturbation is.
    model = fitted("transfer", train, source="A", target="B", ridge=0.0)
    np.testing.assert_allclose(effect_of(model, train, "G003", context="B"), b_effects[3], atol=1e-9)
    assert answer(model, train, "G011", context="B") == ("predicted", "")
    assert answer(model, train, "G020", context="B")[0] == "refused"
    assert answer(model, train, "G003", context="A")[0] == "fallback"
    same = fitted("transfer", train, ridge=0.0)
    np.testing.assert_array_equal(same.weights, model.weights)


def test_transfer_ridge_equals_scikit_learn():
    from baseline_data import random_panel
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    data = random_panel(contexts=("A", "B"), n_singles=12, doubles=False)
    model = fitted("transfer", data, source="A", target="B", n_components=4, ridge=0.1)
    in_a = np.array([context == "A" for context, _ in data.keys])
    source, target = PCA(4, svd_solver="full"), PCA(4, svd_solver="full")
    x, y = source.fit_transform(data.effects[in_a]), target.fit_transform(data.effects[~in_a])
    expected = target.inverse_transform(Ridge(alpha=0.1).fit(x, y).predict(x))
    got = np.stack([effect_of(model, data, label, context="B") for _, label in np.array(data.keys)[in_a]])
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_transfer_needs_to_know_its_contexts():
    with pytest.raises(ModelError, match="training contexts: A"):
        fitted("transfer", five_genes())
    with pytest.raises(ModelError, match="two shared"):
        fitted("transfer", two_contexts())
