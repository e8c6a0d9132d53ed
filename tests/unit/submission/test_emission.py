"""Emission: each rule by hand on a tiny pool, expectations against sums, group means within Monte-Carlo bounds."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from vcbench.data_specs.errors import ShapeError, UsageError
from vcbench.submission import emission_rules
from vcbench.submission.control_pool import ControlPool
from vcbench.submission.emission import GroupEmission, amplify, choose_mode, emit_cells, group_seed
from vcbench.submission.emission_rules import MODES, solve_counts, solve_scale, solve_thin, stochastic_round
from vcbench.submission.emission_solve import binomial_log, poisson_log

NAMES = {"context": "K562", "perturbation": "A"}


def log_means(x, target_sum):
    x = np.asarray(x, dtype=float)
    return np.log1p(x / x.sum(axis=1, keepdims=True) * target_sum)


@pytest.fixture(scope="module")
def screen():
    """600 control cells of 150 genes (two silent), and the change r of each gene."""
    rng = np.random.default_rng(3)
    means = rng.gamma(0.6, 6.0, 150)
    means[:2] = 0
    totals = rng.lognormal(0, 0.25, 600)
    counts = rng.poisson(totals[:, None] * rng.gamma(5, means / 5, (600, 150)))
    counts[counts.sum(axis=1) == 0, 5] = 1
    return ControlPool(sp.csr_array(counts), float(np.median(counts.sum(axis=1))))


def test_pool_statistics_by_hand():
    pool = ControlPool(sp.csr_array([[2, 0, 2], [0, 0, 0], [1, 0, 0]]), 8.0)
    assert pool.n_cells == 2 and pool.n_genes == 3 and pool.small
    np.testing.assert_allclose(pool.totals, [4, 1])
    np.testing.assert_allclose(pool.log_mean, [(math.log1p(4) + math.log1p(8)) / 2, 0, math.log1p(4) / 2])
    np.testing.assert_allclose(pool.mean_counts, [1.5, 0, 1])
    assert (pool.median_total, pool.median_detected) == (2.5, 1.5)


@pytest.mark.parametrize(
    ("counts", "target_sum", "message"),
    [
        ([[0.5, 1]], 1.0, "fractions"),
        ([[-1, 1]], 1.0, "negative"),
        ([[np.nan, 1]], 1.0, "not finite"),
        ([[0, 0]], 1.0, "no control cell"),
        ([[1, 1]], 0.0, "target_sum"),
    ],
)
def test_pool_refuses(counts, target_sum, message):
    with pytest.raises(UsageError, match=message):
        ControlPool(sp.csr_array(np.array(counts, dtype=float)), target_sum)


def test_tile_repeats_the_profile():
    group = emit_cells(
        np.array([0.0, 1.5, 2.0]),
        None,
        n_cells=4,
        mode="tile",
        rng_seed=0,
        space="log1p",
        target_sum=10.0,
        **NAMES,
    )
    assert group.rows.dtype == np.float32 and group.rows.nnz == 8
    np.testing.assert_array_equal(group.rows.toarray(), np.tile(np.float32([0, 1.5, 2]), (4, 1)))
    assert group.report.max_abs_error == 0


def test_tile_as_counts_rounds_around_the_mean_count():
    pool = ControlPool(sp.csr_array([[4, 4, 2]]), 5.0)
    rate = np.array([0.25, 3.0, 1.6])
    profile = np.log1p(rate / 10 * 5)
    x = emit_cells(profile, pool, n_cells=4000, mode="tile", rng_seed=0, **NAMES).rows.toarray()
    assert (
        set(np.unique(x[:, 0])) == {0, 1}
        and set(np.unique(x[:, 1])) <= {2, 3, 4}
        and set(np.unique(x[:, 2])) == {1, 2}
    )
    np.testing.assert_allclose(x.mean(axis=0), rate, atol=0.04)


def test_shift_adds_the_change_and_clips_at_zero():
    pool = ControlPool(sp.csr_array([[2, 6, 0]]), 8.0)
    base = np.log1p([2.0, 6.0, 0.0])
    profile = np.array([base[0] - 0.5, base[1] - 3.0, 0.25])
    x = emit_cells(profile, pool, n_cells=2, mode="shift", rng_seed=0, space="log1p", **NAMES).rows.toarray()
    np.testing.assert_allclose(x, np.tile([base[0] - 0.5, 0.0, 0.25], (2, 1)), rtol=1e-6)
    counts = emit_cells(profile, pool, n_cells=3000, mode="shift", rng_seed=0, **NAMES).rows.toarray()
    np.testing.assert_allclose(counts.mean(axis=0), np.expm1([base[0] - 0.5, 0.0, 0.25]), atol=0.05)
    assert (counts == np.rint(counts)).all()


def test_scale_of_one_cell_by_hand():
    """One control cell (2, 6, 2): doubling gene 0 and keeping the total 10 gives 4 : 6 : 2 of 12."""
    pool = ControlPool(sp.csr_array([[2, 6, 2]]), 10.0)
    wanted = np.array([4, 6, 2]) / 12 * 10
    x = emit_cells(np.log1p(wanted), pool, n_cells=3, mode="scale", rng_seed=0, space="log1p", **NAMES)
    np.testing.assert_allclose(x.rows.toarray(), np.tile(np.log1p(wanted), (3, 1)), rtol=1e-3)
    assert x.report.implied_total == pytest.approx(1.0, abs=1e-3)
    assert x.report.max_factor == pytest.approx(wanted[0] / 2, rel=1e-3)


def test_counts_of_one_total_by_hand():
    """With one library size the share solves E ln(1 + Poisson(10 p)) = profile."""
    pool = ControlPool(sp.csr_array([[5, 5]]), 10.0)
    rates = np.array([2.5, 7.5])
    profile = np.array([poisson_log(0.0, rate, 1.0)[0] for rate in rates])
    found = solve_counts(profile, pool)
    np.testing.assert_allclose(found.share * 10, rates, rtol=1e-3)
    assert found.implied_total == pytest.approx(1.0, rel=1e-3)
    x = emit_cells(profile, pool, n_cells=5000, mode="counts", rng_seed=0, **NAMES).rows.toarray()
    np.testing.assert_allclose(x.mean(axis=0), rates, atol=4 * np.sqrt(rates.max() / 5000))
    np.testing.assert_allclose(x.var(axis=0), rates, rtol=0.1)


def test_thin_of_one_cell_by_hand():
    """Gene 0 halves (binomial), gene 1 doubles (Poisson added); the totals stay equal on average."""
    pool = ControlPool(sp.csr_array([[40, 20, 40]]), 100.0)
    factor = np.array([0.5, 2.0, 1.0])
    profile = np.array([binomial_log(40.0, 0.5, 1.0)[0], poisson_log(20.0, 20.0, 1.0)[0], math.log1p(40)])
    found = solve_thin(profile, pool)
    np.testing.assert_allclose(found.factor, factor, rtol=1e-3)
    x = emit_cells(profile, pool, n_cells=4000, mode="thin", rng_seed=0, **NAMES).rows.toarray()
    np.testing.assert_allclose(x.mean(axis=0), [20, 40, 40], rtol=0.02)
    assert (x[:, 0] <= 40).all() and (x[:, 1] >= 20).all()


@pytest.mark.parametrize(
    ("base", "rate", "scale"), [(0, 0.0, 1.0), (0, 0.3, 2.0), (3, 2.5, 0.1), (0, 39.0, 1.0), (5, 80.0, 0.5)]
)
def test_poisson_expectation_equals_the_sum(base, rate, scale):
    from scipy.stats import poisson

    k = np.arange(400)
    exact = (poisson.pmf(k, rate) * np.log1p((base + k) * scale)).sum()
    value, slope = poisson_log(float(base), rate, scale)
    assert value == pytest.approx(exact, abs=1e-5 if rate > 40 else 1e-11)
    step = 1e-4
    change = (poisson.pmf(k, rate + step) * np.log1p((base + k) * scale)).sum() - exact
    assert slope == pytest.approx(change / step, rel=1e-2 if rate > 40 else 2e-3)


@pytest.mark.parametrize(
    ("n", "share"), [(1, 0.3), (7, 0.5), (30, 0.999999), (60, 0.01), (300, 0.9), (1000, 1e-5)]
)
@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_binomial_expectation_equals_the_sum(n, share, scale):
    from scipy.stats import binom

    k = np.arange(n + 1)
    exact = (binom.pmf(k, n, share) * np.log1p(k * scale)).sum()
    value, slope = binomial_log(float(n), share, scale)
    assert value == pytest.approx(exact, abs=2e-5 if n * share > 40 else 1e-10)
    other = (binom.pmf(k, n, share * (1 - 1e-4)) * np.log1p(k * scale)).sum()
    assert slope == pytest.approx((exact - other) / (share * 1e-4), rel=5e-3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=20), st.integers(0, 5))
def test_stochastic_rounding_is_down_or_up_and_keeps_whole_numbers(values, seed):
    values = np.array(values)
    rounded = stochastic_round(values, np.random.default_rng(seed))
    assert ((rounded == np.floor(values)) | (rounded == np.ceil(values))).all()


def test_stochastic_rounding_keeps_the_mean():
    draws = stochastic_round(np.full(40_000, 2.3), np.random.default_rng(0))
    assert draws.mean() == pytest.approx(2.3, abs=4 * math.sqrt(0.21 / 40_000))


def expected_scale_means(pool, factor, share):
    """The expectation over the whole pool, cell by cell, in plain numpy."""
    x = pool.counts.toarray()
    scaled = x * np.nan_to_num(factor)
    values = scaled * (pool.totals * (1 - share.sum()) / scaled.sum(axis=1))[:, None]
    low, s = np.floor(values), pool.scales[:, None]
    return ((1 - values + low) * np.log1p(low * s) + (values - low) * np.log1p((low + 1) * s)).mean(axis=0)


def consistent_profile(pool, seed=1):
    """A profile that scaled control cells have: every factor is known."""
    factor = np.exp(np.random.default_rng(seed).normal(0, 0.4, pool.n_genes))
    return expected_scale_means(pool, factor, np.zeros(pool.n_genes)), factor


def test_scale_solution_reproduces_a_reachable_profile(screen):
    profile, factor = consistent_profile(screen)
    found = solve_scale(profile, screen, rounded=True)
    assert found.implied_total == pytest.approx(1.0, abs=1e-3)
    again = expected_scale_means(screen, found.factor, found.share)
    expressed = profile > 0
    np.testing.assert_allclose(again[expressed], profile[expressed], rtol=2e-3)
    ratio = found.factor[expressed] / factor[expressed]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)


def test_scale_identity_is_the_control_itself(screen):
    profile = screen.log_mean
    found = solve_scale(profile, screen, rounded=True)
    expressed = profile > 0
    np.testing.assert_allclose(found.factor[expressed], 1.0, rtol=2e-3)


@pytest.mark.parametrize("mode", ["scale", "counts", "thin"])
def test_group_mean_reproduces_the_profile_within_monte_carlo_bounds(mode, screen):
    """The profile is made consistent with the rule (total over target sum of 1), then 6,000 cells are drawn."""
    profile, _ = consistent_profile(screen)
    if mode != "scale":
        profile = reachable_by(mode, profile, screen)
    group = emit_cells(profile, screen, n_cells=6000, mode=mode, rng_seed=11, **NAMES)
    logs = log_means(group.rows.toarray(), screen.target_sum)
    error = np.abs(logs.mean(axis=0) - profile)
    bound = 5 * logs.std(axis=0) / math.sqrt(6000) + 0.01 * profile + 1e-9
    assert (error <= bound).all()
    assert group.report.max_abs_error == pytest.approx(error.max(), rel=1e-4)
    assert group.report.library_median == pytest.approx(screen.median_total, rel=0.05)


def reachable_by(mode, profile, pool):
    solution = (solve_counts if mode == "counts" else solve_thin)(profile, pool)
    if mode == "counts":
        from vcbench.submission.emission_solve import share_means, total_nodes

        return share_means(solution.share, total_nodes(pool.totals), pool.target_sum)
    x = emission_rules._Thin(pool, "counts", solution)
    draws = np.tile(np.arange(pool.n_cells), 40)
    rngs = [np.random.default_rng(s) for s in (1, 2)]
    return log_means(x.cells(draws, *rngs).toarray(), pool.target_sum).mean(axis=0)


def test_scale_keeps_library_sizes_and_sparsity(screen):
    profile, _ = consistent_profile(screen)
    group = emit_cells(profile, screen, n_cells=3000, mode="scale", rng_seed=1, **NAMES)
    totals = np.asarray(group.rows.sum(axis=1)).ravel()
    assert np.median(totals) == pytest.approx(screen.median_total, rel=0.03)
    zeros_control = (screen.counts.toarray() == 0).mean()
    zeros = (group.rows.toarray() == 0).mean()
    assert zeros_control - 0.01 <= zeros <= zeros_control + 0.08
    silent = screen.mean_counts == 0
    assert group.rows.toarray()[:, silent].sum() == 0


def test_silent_genes_switch_on_by_the_counts_rule(screen):
    profile, _ = consistent_profile(screen)
    profile[0] = 0.7
    group = emit_cells(profile, screen, n_cells=6000, mode="scale", rng_seed=1, **NAMES)
    logs = log_means(group.rows.toarray(), screen.target_sum)[:, 0]
    assert logs.mean() == pytest.approx(0.7, abs=5 * logs.std() / math.sqrt(6000) + 0.01)
    assert (group.report.n_silent, group.report.n_capped) == (1, 0)
    assert group.report.share_by_counts_rule > 0


def test_factors_beyond_the_cap_use_the_counts_rule(screen):
    profile, _ = consistent_profile(screen)
    rare = int(np.flatnonzero((screen.mean_counts > 0) & (screen.mean_counts < 0.05))[0])
    profile[rare] = 2.0
    group = emit_cells(profile, screen, n_cells=4000, mode="scale", rng_seed=1, **NAMES)
    assert group.report.n_capped == 1
    assert group.report.max_factor is not None and group.report.max_factor <= emission_rules.MAX_FACTOR
    assert log_means(group.rows.toarray(), screen.target_sum)[:, rare].mean() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("space", ["counts", "log1p"])
def test_output_is_clean_and_exact_in_number(mode, space, screen):
    profile, _ = consistent_profile(screen)
    group = emit_cells(profile, screen, n_cells=37, mode=mode, rng_seed=5, space=space, **NAMES)
    rows = group.rows
    assert rows.shape == (37, 150) and rows.dtype == np.float32 and rows.has_sorted_indices
    assert np.isfinite(rows.data).all() and (rows.data > 0).all()
    if space == "counts":
        assert (rows.data == np.rint(rows.data)).all()
    assert group.report.n_cells == 37


@pytest.mark.parametrize("mode", MODES)
def test_block_size_does_not_change_cells(mode, screen):
    profile, _ = consistent_profile(screen)
    profile[0] = 0.3

    def cells(block_rows):
        group = GroupEmission(profile, screen, n_cells=23, mode=mode, rng_seed=2, **NAMES)
        return sp.vstack(list(group.blocks(block_rows))).toarray(), group.report()

    whole, report = cells(100)
    for block_rows in (1, 5):
        part, other = cells(block_rows)
        np.testing.assert_array_equal(part, whole)
        assert other.n_silent == report.n_silent
        assert other.max_abs_error == pytest.approx(report.max_abs_error, rel=1e-9)


def test_groups_draw_independently_of_order_and_of_each_other(screen):
    profile, _ = consistent_profile(screen)

    def draw(name, seed=0, context="K562"):
        group = emit_cells(
            profile, screen, n_cells=5, mode="scale", rng_seed=seed, context=context, perturbation=name
        )
        return group.rows.toarray()

    first = draw("A")
    other = draw("B")
    np.testing.assert_array_equal(draw("A"), first)
    for different in (other, draw("A", seed=1), draw("A", context="RPE1")):
        assert (different != first).any()


def test_names_cannot_be_confused_in_the_seed():
    assert group_seed(1, "a", "bc").entropy != group_seed(1, "ab", "c").entropy
    assert group_seed(1, "a", "b").entropy == group_seed(1, "a", "b").entropy


def test_guard_counts_large_factors(screen):
    profile, _ = consistent_profile(screen)
    assert (
        emit_cells(
            screen.log_mean, screen, n_cells=5, mode="scale", rng_seed=0, **NAMES
        ).report.n_factors_outside_guard
        == 0
    )
    strong = profile.copy()
    gene = int(np.argmax(screen.log_mean))
    strong[gene] = screen.log_mean[gene] + math.log(12)
    report = emit_cells(strong, screen, n_cells=5, mode="scale", rng_seed=0, **NAMES).report
    assert report.n_factors_outside_guard >= 1


def test_amplify_scales_the_change_and_flags_extremes():
    profile, flagged = amplify(np.array([1.0, 3.0]), np.array([2.0, 2.0]), 2.0)
    np.testing.assert_allclose(profile, [0.0, 4.0])
    assert [flagged, amplify(profile, profile, 4.5)[1], amplify(profile, profile, 0.2)[1]] == [
        False,
        True,
        True,
    ]
    with pytest.raises(UsageError, match="positive"):
        amplify(profile, profile, 0.0)


def test_negative_profile_values_become_zero_and_are_counted(screen):
    profile, _ = consistent_profile(screen)
    profile[[4, 9]] = -0.2
    group = emit_cells(profile, screen, n_cells=20, mode="scale", rng_seed=0, **NAMES)
    assert group.report.n_negative_clipped == 2
    assert group.rows.toarray()[:, [4, 9]].sum() == 0


def test_refusals(screen):
    good = screen.log_mean
    options = {"n_cells": 3, "mode": "scale", "rng_seed": 0, **NAMES}
    with pytest.raises(UsageError, match="A in K562: the profile has 1 values that are not finite"):
        emit_cells(np.where(np.arange(150) == 3, np.nan, good), screen, **options)
    with pytest.raises(UsageError, match="at least one"):
        emit_cells(good, screen, **{**options, "n_cells": 0})
    with pytest.raises(ShapeError, match="149 genes"):
        emit_cells(good[1:], screen, **options)
    with pytest.raises(UsageError, match="--controls"):
        emit_cells(good, None, target_sum=10.0, **options)
    with pytest.raises(UsageError, match="target sum"):
        emit_cells(good, None, space="log1p", **{**options, "mode": "tile"})
    logs = ControlPool(sp.csr_array([[0.5, 1.5]]), 10.0, "log1p")
    with pytest.raises(UsageError, match="as counts"):
        emit_cells(np.ones(2), logs, **options)


def test_log_controls_serve_shift_in_log_space():
    logs = ControlPool(sp.csr_array([[0.5, 1.5], [1.5, 0.5]]), 10.0, "log1p")
    profile = np.array([1.25, 1.0])
    x = emit_cells(
        profile, logs, n_cells=500, mode="shift", rng_seed=0, space="log1p", **NAMES
    ).rows.toarray()
    assert {tuple(row) for row in np.round(x, 6).tolist()} == {(0.75, 1.5), (1.75, 0.5)}


def test_default_mode_and_its_reason(screen):
    small = ControlPool(screen.counts[:20], screen.target_sum)
    logs = ControlPool(sp.csr_array([[0.5, 1.5]]), 10.0, "log1p")
    assert choose_mode("scale", screen, "counts")[0] == "scale"
    assert choose_mode("scale", small, "counts") == (
        "counts",
        "counts: only 20 control cells (fewer than 500), too few to resample.",
    )
    assert choose_mode("tile", None, "log1p")[0] == "tile"
    assert choose_mode("scale", logs, "log1p")[0] == "shift"
    assert choose_mode("tile", small, "counts", "thin") == ("thin", "thin: asked for.")
    with pytest.raises(UsageError, match="--controls"):
        choose_mode("scale", None, "counts")
    with pytest.raises(UsageError, match="no emission mode"):
        choose_mode("scale", screen, "counts", "smear")  # type: ignore[arg-type]
