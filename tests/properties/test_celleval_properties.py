"""Edition celleval-0.8: an exact copy, the mean response, permuted labels, a sign flip; and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vcbench.data_specs.memory_source import MemorySource
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval.pipeline import score_celleval
from vcbench.evaluator.score_options import ScoreOptions

EDITION = load_edition("celleval-0.8")
TARGETS = tuple(f"G{i}" for i in range(6))
N_GENES, CELLS, CONTROLS = 40, 25, 60
RELAXED = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def source(x, labels, name: str) -> MemorySource:
    """An in-memory source of log1p cells."""
    import anndata
    import pandas as pd

    obs = pd.DataFrame({"target_gene": pd.Categorical(labels)}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(x.shape[1])])
    return MemorySource(anndata.AnnData(X=x, obs=obs, var=var), name=name)


def cells(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """log1p cells with clear, different effects of each target."""
    rng = np.random.default_rng(seed)
    labels = np.array([t for t in TARGETS for _ in range(CELLS)] + ["non-targeting"] * CONTROLS, dtype=object)
    base = rng.gamma(2.0, 2.0, N_GENES)
    rates = np.tile(base, (len(labels), 1))
    for k, target in enumerate(TARGETS):
        rows = labels == target
        changed = rng.choice(N_GENES, 10, replace=False)
        rates[np.ix_(rows, changed)] *= np.exp(rng.choice([-1.5, 1.5], 10) * (1 + 0.1 * k))
    x = np.log1p(rng.poisson(rates) * 0.7).astype(np.float32)
    return x, labels


def score(pred, truth, *, profile: str = "full", **options):
    return score_celleval(
        pred,
        truth,
        edition=EDITION,
        profile=EDITION.profile(profile),
        options=ScoreOptions(**options),
        progress=lambda *_: None,
    )


def values(result) -> np.ndarray:
    table = result.per_perturbation
    return table[list(result.metrics)].to_numpy(dtype=float)


@RELAXED
@given(st.integers(0, 10**6))
def test_an_exact_copy_is_perfect(seed):
    x, labels = cells(seed)
    result = score(source(x, labels, "pred"), source(x, labels, "truth"))
    n_significant = result.per_perturbation["de_nsig_counts_real"]
    assert (n_significant > 1).all(), "the panel must have DE genes for this test to mean anything"
    constant_counts = n_significant.nunique() == 1
    for name, metric in result.metrics.items():
        if name == "clustering_agreement" or (name == "de_spearman_sig" and constant_counts):
            continue
        if name.startswith(("overlap", "precision")):
            assert metric.value == 1.0, name
        elif metric.perfect is not None:
            assert metric.value == pytest.approx(metric.perfect, abs=1e-12), name
    counts = result.metrics
    assert counts["de_nsig_counts_real"].value == counts["de_nsig_counts_pred"].value


@RELAXED
@given(st.integers(0, 10**6))
def test_the_mean_response_cannot_tell_targets_apart(seed):
    x, labels = cells(seed)
    control = labels == "non-targeting"
    mean = np.mean([x[labels == target].mean(axis=0) for target in TARGETS], axis=0)
    pred = x.copy()
    pred[~control] = mean
    # Targets without a gene of their own name: no gene is left out, so the ranks are exactly 0 to N - 1.
    renamed = np.array([label if label == "non-targeting" else f"x{label}" for label in labels], dtype=object)
    result = score(source(pred, renamed, "pred"), source(x, renamed, "truth"), profile="anndata")
    n = len(TARGETS)
    for distance in ("l1", "l2", "cosine"):
        ranks = np.sort(result.per_perturbation[f"discrimination_score_{distance}"])
        np.testing.assert_allclose(ranks, np.arange(1, n + 1) / n)
        assert result.metrics[f"discrimination_score_{distance}"].value == pytest.approx((n + 1) / (2 * n))


@RELAXED
@given(st.integers(0, 10**6))
def test_permuted_labels_of_the_prediction(seed):
    """Each target predicted as another one: its nearest truth is the other one, so nobody finds itself first."""
    x, labels = cells(seed)
    follower = dict(zip(TARGETS, (*TARGETS[1:], TARGETS[0]), strict=True))
    moved = np.array([follower.get(label, label) for label in labels], dtype=object)
    copy, wrong = source(x, labels, "truth"), source(x, moved, "pred")
    result = score(wrong, copy)
    assert (result.per_perturbation["discrimination_score_l1"] < 1).all()
    assert result.metrics["mae"].value > 0
    renamed = source(x, moved, "truth")
    again = score(source(x, moved, "pred"), renamed)
    assert again.metrics["discrimination_score_l1"].value == 1.0


@RELAXED
@given(st.integers(0, 10**6))
def test_a_sign_flip_of_the_effect(seed):
    x, labels = cells(seed)
    control = labels == "non-targeting"
    base = x[control].mean(axis=0)
    flipped = x.copy()
    for target in TARGETS:
        rows = labels == target
        flipped[rows] -= 2 * (x[rows].mean(axis=0) - base)
    # Both groups are lifted alike, so that no value is negative and the changes stay what they are.
    flipped += max(0.0, -float(flipped.min()))
    truth = source(x, labels, "truth")
    result = score(source(flipped, labels, "pred"), truth, profile="anndata")
    np.testing.assert_allclose(result.per_perturbation["pearson_delta"], -1.0, atol=1e-5)
    same = score(truth, truth, profile="anndata")
    assert (same.per_perturbation["pearson_delta"] > 1 - 1e-9).all()


@RELAXED
@given(st.integers(0, 10**6), st.data())
def test_results_do_not_depend_on_storage_blocks_or_threads(seed, data):
    x, labels = cells(seed)
    other, _ = cells(seed + 1)
    x[:, 5] = 0
    expected = values(score(source(other, labels, "pred"), source(x, labels, "truth"), profile="minimal"))
    convert = data.draw(st.sampled_from([sp.csr_matrix, sp.csc_matrix, np.asarray]))
    found = score(
        source(convert(other), labels, "pred"),
        source(convert(x), labels, "truth"),
        profile="minimal",
        block_bytes=data.draw(st.sampled_from([1, 5000, 2**20])),
        threads=data.draw(st.sampled_from([1, 2])),
    )
    np.testing.assert_array_equal(values(found), expected)


@RELAXED
@given(st.integers(0, 10**6))
def test_cell_order_matters_only_in_the_last_digits(seed):
    x, labels = cells(seed)
    other, _ = cells(seed + 1)
    expected = values(score(source(other, labels, "pred"), source(x, labels, "truth")))
    order = np.random.default_rng(seed).permutation(len(labels))
    found = score(source(other, labels, "pred"), source(x[order], labels[order], "truth"))
    np.testing.assert_allclose(values(found), expected, atol=1e-6, equal_nan=True)
