"""Target overwrite, shrinkage, denoising, strength, and the amplification guard."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_data import CONTROL, EFFECTS, effect_of, fitted, five_genes, random_panel
from vcbench.data_specs.errors import ModelError, UsageError


def profile_of(model, data, label):
    return model.predict([("A", label)], data.control_means).profiles[0]


def test_target_overwrite_in_linear_space():
    data = five_genes()
    plain = profile_of(fitted("mean", data), data, "T3")
    # T1: expm1(1) / expm1(2); T2: expm1(0.5) / expm1(1).
    ratios = [np.expm1(1.0) / np.expm1(2.0), np.expm1(0.5) / np.expm1(1.0)]
    for mode, fold in {
        "zero": 0.0,
        "median-residual": np.median(ratios),
        "mean-fold": np.mean(ratios),
    }.items():
        profile = profile_of(fitted("mean", data, target_overwrite=mode), data, "T3")
        assert profile[2] == pytest.approx(np.log1p(fold * np.expm1(0.5)), abs=1e-14)
        np.testing.assert_array_equal(np.delete(profile, 2), np.delete(plain, 2))
    both = profile_of(fitted("mean", data, target_overwrite="zero"), data, "T3+X")
    assert both[2] == 0 and both[3] == 0
    unmeasured = profile_of(fitted("mean", data, target_overwrite="zero"), data, "NOPE")
    np.testing.assert_array_equal(unmeasured, plain)


def test_overwrite_needs_a_measured_expressed_target():
    data = five_genes()
    silent = replace(data, control_means={"A": np.where([True, True, True, False, False], 0.0, CONTROL)})
    with pytest.raises(ModelError, match="measured gene"):
        fitted("mean", silent, target_overwrite="median-residual")


@pytest.mark.parametrize(
    ("factor", "flagged"), [(0.2, True), (0.25, False), (1.0, False), (4.0, False), (4.1, True)]
)
def test_scale_and_its_flag(factor, flagged):
    data = five_genes()
    model = fitted("additive", data, scale=factor)
    np.testing.assert_allclose(effect_of(model, data, "T1"), factor * EFFECTS["T1"], atol=1e-14)
    assert model.amplified is flagged


@pytest.mark.parametrize("factor", [10.0, 50.0, -0.1, float("nan"), float("inf")])
def test_large_scales_are_refused(factor):
    with pytest.raises(UsageError, match="below 10"):
        fitted("mean", five_genes(), scale=factor)


def test_james_stein_by_hand():
    data = five_genes()
    variance = np.stack([np.full(5, 0.1), np.full(5, 0.4)])
    model = fitted("additive", replace(data, sampling_variance=variance), reliability="james-stein")
    t1, t2 = EFFECTS["T1"], EFFECTS["T2"]
    np.testing.assert_allclose(effect_of(model, data, "T1"), (1 - 0.5 / (t1 @ t1)) * t1, atol=1e-14)
    assert t2 @ t2 < 2.0
    np.testing.assert_array_equal(effect_of(model, data, "T2"), np.zeros(5))  # noise exceeds it
    with pytest.raises(ModelError, match="two cells"):
        fitted("additive", data, reliability="james-stein")


def test_low_rank_is_a_projection_on_training_components():
    from sklearn.decomposition import PCA

    data = random_panel(contexts=("A",), doubles=False)
    model = fitted("additive", data, low_rank=3)
    pca = PCA(3, svd_solver="full").fit(data.effects)
    expected = pca.inverse_transform(pca.transform(data.effects))
    for i, (_, label) in enumerate(data.keys):
        np.testing.assert_allclose(effect_of(model, data, label), expected[i], atol=1e-10)
    with pytest.raises(ModelError, match="low_rank=50"):
        fitted("additive", data, low_rank=50)


def test_strength_follows_control_expression():
    data = random_panel(contexts=("A",), doubles=False)
    control = data.control_means["A"]
    lengths = np.log(np.linalg.norm(data.effects, axis=1))
    slope, intercept = np.polyfit(control[:9], lengths, 1)
    model = fitted("mean", data, strength="control-expression")
    effect = effect_of(model, data, "G020")
    assert np.linalg.norm(effect) == pytest.approx(np.exp(intercept + slope * control[20]), rel=1e-10)
    direction = data.effects.mean(axis=0)
    np.testing.assert_allclose(
        effect / np.linalg.norm(effect), direction / np.linalg.norm(direction), atol=1e-10
    )
    with pytest.raises(ModelError, match="three training"):
        fitted("mean", five_genes(), strength="control-expression")
