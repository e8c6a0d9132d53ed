"""Edition vcc2026 on whole panels: an exact copy, the mean response, permuted labels, a sign flip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vcbench.data_specs.memory_source import MemorySource
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.profiles import resolve_profile
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.vcc2026.expression import (
    BulkPanel,
    expr_distance_unbiased,
    expr_mse_unbiased_capped,
    expr_mse_unbiased_capped_norm,
    pds_cosine,
)
from vcbench.evaluator.vcc2026.pipeline import score_vcc2026
from vcbench.evaluator.vcc2026.targets import TargetRule
from vcc2026_panels import CONTROL, random_panel

EDITION = load_edition("vcc2026")
RATIO = "expr_mse_unbiased_capped_norm"
FIDELITY, REACH = "de_wilcoxon_direction_fidelity_yield_raw", "de_wilcoxon_direction_reach_raw"
JACCARD, NMAE = "de_wilcoxon_sig_jaccard", "de_wilcoxon_lfc_nmae"
RELAXED = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


def truth(seed: int):
    """Real cells with clear effects: at least ten significant genes in every perturbation."""
    return random_panel(seed, n_genes=80, cells=(60, 60, 60, 60), n_control=120, depth=12.0, effect=1.2)[
        "real"
    ]


def score(pred, real, **options):
    return score_vcc2026(
        MemorySource(pred, name="pred"),
        MemorySource(real, name="real"),
        edition=EDITION,
        profile=resolve_profile(EDITION, "vcc2026"),
        options=ScoreOptions(pert_col="target", **options),
        progress=lambda *_: None,
    )


def relabelled(adata, names):
    out = adata.copy()
    out.obs["target"] = [names.get(label, label) for label in adata.obs["target"]]
    return out


def cycle(adata):
    labels = sorted(set(adata.obs["target"]) - {CONTROL})
    return dict(zip(labels, [*labels[1:], labels[0]], strict=True))


@RELAXED
@given(SEEDS)
def test_an_exact_copy_is_perfect(seed):
    real = truth(seed)
    metrics = score(real, real).metrics
    assert all(value.n == value.n_total == 4 for value in metrics.values())
    for name in ("pds_cosine", FIDELITY, REACH, JACCARD):
        assert metrics[name].value == 1.0, name
    assert metrics[NMAE].value == 0.0
    # The error of a copy is nothing but its claimed noise, which is subtracted.
    assert metrics[RATIO].value <= 0.0 and metrics["expr_mse_unbiased"].value < 0.0


@RELAXED
@given(SEEDS)
def test_the_mean_response_cannot_tell_perturbations_apart(seed):
    real = truth(seed)
    labels = real.obs["target"].to_numpy()
    rng = np.random.default_rng(seed)
    pool = rng.permutation(np.flatnonzero(labels != CONTROL))[:60]
    pred = real.copy()
    x = pred.X.toarray()
    shared = x[pool].copy()
    for label in set(labels) - {CONTROL}:
        x[np.flatnonzero(labels == label)] = shared
    pred.X = x
    result = score(pred, real, no_target_genes=True)
    assert result.metrics["pds_cosine"].value == pytest.approx(0.5, abs=1e-12)
    # The predictions show no spread between perturbations, so their noise is not subtracted.
    per = result.per_perturbation
    assert (per["expr_mse_unbiased_capped"] > per["expr_mse_unbiased"]).all()


@RELAXED
@given(SEEDS)
def test_permuted_labels(seed):
    real = truth(seed)
    names = cycle(real)
    straight = score(real, real, no_target_genes=True).metrics
    wrong = score(relabelled(real, names), real, no_target_genes=True).metrics
    assert wrong["pds_cosine"].value < 1.0 and wrong[RATIO].value > straight[RATIO].value
    assert wrong[JACCARD].value < 1.0 and wrong[NMAE].value > 0.1
    both = score(relabelled(real, names), relabelled(real, names), no_target_genes=True)
    table = both.per_perturbation.set_index("perturbation")
    plain = score(real, real, no_target_genes=True).per_perturbation.set_index("perturbation")
    for label, other in names.items():
        assert table.loc[other, "expr_distance_unbiased"] == pytest.approx(
            plain.loc[label, "expr_distance_unbiased"], rel=1e-12
        )
    for name, value in both.metrics.items():
        assert value.value == pytest.approx(straight[name].value, rel=1e-12, abs=1e-12), name


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 8), st.floats(0.0, 0.2))
def test_a_sign_flip_of_every_effect(seed, n, noise):
    rng = np.random.default_rng(seed)
    control = rng.normal(3, 1, 6)
    effects = rng.normal(size=(n, 6))
    panel = BulkPanel(
        tuple(f"p{i}" for i in range(n)),
        tuple("ABCDEF"),
        control + effects,
        control - effects,
        control,
        control,
        np.full(n, noise),
        np.zeros(n),
        0.0,
        TargetRule({}, True),
    )
    # The own truth lies in the opposite direction: no other one is further.
    assert pds_cosine(panel).tolist() == [0.0] * n
    size = np.square(effects).sum(axis=1)
    assert expr_mse_unbiased_capped(panel) == pytest.approx((4 * size - noise) / 6)
    assert expr_distance_unbiased(panel) == pytest.approx((size - noise) / 6)
    if (size - noise).sum() > 0.1:
        ratio = expr_mse_unbiased_capped_norm(expr_mse_unbiased_capped(panel), expr_distance_unbiased(panel))
        assert ratio == pytest.approx((4 * size - noise).sum() / (size - noise).sum())
