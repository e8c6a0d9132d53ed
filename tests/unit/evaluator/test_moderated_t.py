"""Moderated t tests against an independent implementation, InMoose's values and the formulas' limits."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from vcbench.data_specs.errors import MetricError, ShapeError
from vcbench.evaluator.openproblems.limma import (
    filter_by_expression,
    fit_contrasts,
    log_cpm,
    moderated_test,
    trigamma_inverse,
    variance_prior,
)

GROUP, DONOR = np.repeat([0, 1, 2], 3), np.tile([0, 1, 2], 3)
DESIGN = np.stack([GROUP == 0, GROUP == 1, GROUP == 2, DONOR == 1, DONOR == 2], axis=1).astype(float)
CONTRASTS = np.array([[-1, 1, 0, 0, 0], [-1, 0, 1, 0, 0]], dtype=float)
# lmFit, contrasts.fit and eBayes of InMoose 0.9.1 on `small_problem`.
INMOOSE = {
    "df_prior": 0.640290877175,
    "s2_prior": 0.019960471805,
    "t": [
        [
            11.239536681,
            34.9715821607,
            3.37837093493,
            7.80814208674,
            -0.66240225057,
            -0.16540682996,
            -0.217729892683,
            3.7746639916,
            -0.284111499858,
            -0.240708386034,
            -2.5852164688,
            4.40093173965,
        ],
        [
            0.39822279415,
            0.0077697360944,
            -1.38683546363,
            0.0849276275805,
            -0.671061103518,
            0.849478734397,
            -0.480649008377,
            3.62175514935,
            -0.517778713007,
            -0.498610228213,
            -3.25533902264,
            -0.187503851259,
        ],
    ],
    "p": [
        [
            0.000153197197552,
            8.42158956444e-07,
            0.0221215229204,
            0.000771577331647,
            0.539182320911,
            0.875585762204,
            0.836886471733,
            0.0148779402243,
            0.788561714369,
            0.820050614805,
            0.0527565015472,
            0.00834009170562,
        ],
        [
            0.708121535025,
            0.994123548407,
            0.228410861477,
            0.93585995158,
            0.534122581597,
            0.437233821504,
            0.652563945588,
            0.0172882794623,
            0.628334403175,
            0.640778413845,
            0.0251474236339,
            0.859185643215,
        ],
    ],
}


def small_problem():
    s, g = np.arange(9)[:, None], np.arange(12)
    wave = (0.2 + 0.15 * g) * np.sin(1.7 * (s + 1) * (g + 1) ** 1.3)
    return np.round(5 + 0.5 * DONOR[:, None] + 1.5 * ((GROUP == 1)[:, None] & (g < 4)) + wave, 3)


def by_hand(y, design, contrasts):
    """lmFit, contrasts.fit and eBayes gene by gene, with normal equations and a root finder for the trigamma."""
    inverse = np.linalg.inv(design.T @ design)
    df = len(y) - design.shape[1]
    beta = inverse @ design.T @ y
    s2 = ((y - design @ beta) ** 2).sum(axis=0) / df
    e = np.log(s2) - special.digamma(df / 2) + np.log(df / 2)
    spread = np.var(e, ddof=1) - special.polygamma(1, df / 2)
    d0 = 2 * optimize.brentq(lambda x: special.polygamma(1, x) - spread, 1e-3, 1e6, xtol=1e-14, rtol=1e-14)
    s0 = np.exp(e.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))
    t = np.array(
        [
            [
                c @ beta[:, i] / np.sqrt(c @ inverse @ c * (d0 * s0 + df * s2[i]) / (d0 + df))
                for i in range(y.shape[1])
            ]
            for c in contrasts
        ]
    )
    return d0, s0, t, 2 * stats.t.sf(np.abs(t), min(d0 + df, df * y.shape[1]))


def test_moderated_t_equals_inmoose():
    test = moderated_test(fit_contrasts(small_problem(), DESIGN, CONTRASTS))
    assert test.prior.df == pytest.approx(INMOOSE["df_prior"], rel=1e-9)
    assert test.prior.s2 == pytest.approx(INMOOSE["s2_prior"], rel=1e-9)
    np.testing.assert_allclose(test.t, INMOOSE["t"], rtol=1e-9)
    np.testing.assert_allclose(test.p, INMOOSE["p"], rtol=1e-9)


def test_moderated_t_equals_an_independent_implementation():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(9, 300)) * np.sqrt(4 * 0.3 / rng.chisquare(4, 300)) + DONOR[:, None]
    test = moderated_test(fit_contrasts(y, DESIGN, CONTRASTS))
    d0, s0, t, p = by_hand(y, DESIGN, CONTRASTS)
    assert test.prior.df == pytest.approx(d0, rel=1e-7) and test.prior.s2 == pytest.approx(s0, rel=1e-7)
    assert 2 < d0 < 8 and test.df_total == pytest.approx(d0 + 4, rel=1e-7)
    np.testing.assert_allclose(test.t, t, rtol=1e-7)
    np.testing.assert_allclose(test.p, p, rtol=1e-6)


def test_the_prior_is_recovered():
    rng = np.random.default_rng(2)
    true = 6 * 0.05 / rng.chisquare(6, 40_000)
    prior = variance_prior(true * rng.chisquare(5, 40_000) / 5, 5)
    assert prior.df == pytest.approx(6, rel=0.06) and prior.s2 == pytest.approx(0.05, rel=0.03)


def test_equal_variances_give_an_infinite_prior():
    s2 = np.array([0.2, 0.21, 0.19, 0.2, 0.22])
    prior = variance_prior(s2, 4)
    assert np.isinf(prior.df) and prior.s2 == pytest.approx(s2.mean())
    y = small_problem()[:, [0] * 5] * np.array([1, 1.01, 0.99, 1, 1.02])
    test = moderated_test(fit_contrasts(y, DESIGN, CONTRASTS))
    assert np.isinf(test.prior.df) and np.ptp(test.s2_post) == 0
    assert test.df_total == 4 * 5
    np.testing.assert_allclose(test.p, 2 * stats.t.sf(np.abs(test.t), 20), rtol=1e-12)


def test_one_gene_has_no_prior_and_an_ordinary_t():
    y = small_problem()[:, :1]
    two = np.concatenate([y[:3], y[3:6]])
    design = np.stack([np.repeat([1, 0], 3), np.repeat([0, 1], 3)], axis=1).astype(float)
    test = moderated_test(fit_contrasts(two, design, np.array([[-1.0, 1.0]])))
    expected = stats.ttest_ind(y[3:6, 0], y[:3, 0])
    assert test.t[0, 0] == pytest.approx(expected.statistic) and test.p[0, 0] == pytest.approx(
        expected.pvalue
    )


@pytest.mark.parametrize("x", [1e-3, 0.1, 0.5, 1.0, 3.0, 40.0, 1e5])
def test_trigamma_inverse(x):
    assert trigamma_inverse(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_extreme_trigammas():
    assert trigamma_inverse(1e9) == pytest.approx(1e9**-0.5) and trigamma_inverse(1e-8) == pytest.approx(1e8)


def test_contrasts_that_cannot_be_estimated_are_nan():
    # The third group sits in a donor of its own: it cannot be told from that donor.
    donor = np.array([0, 0, 1, 1, 0, 1, 2, 2])
    group = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    design = np.concatenate([np.eye(3)[group], np.eye(3)[donor][:, 1:]], axis=1)
    y = np.random.default_rng(0).normal(size=(8, 20))
    fit = fit_contrasts(y, design, CONTRASTS)
    assert list(fit.estimable) == [True, False] and fit.df_residual == 8 - 4
    assert np.isfinite(fit.coefficients[0]).all() and np.isnan(fit.coefficients[1]).all()
    full = np.delete(design, 4, axis=1)
    beta = np.linalg.lstsq(full, y, rcond=None)[0]
    np.testing.assert_allclose(fit.coefficients[0], beta[1] - beta[0], atol=1e-12)


def test_no_degrees_of_freedom_and_wrong_shapes_are_refused():
    with pytest.raises(MetricError, match="no residual degree"):
        fit_contrasts(np.ones((3, 2)), np.eye(3), np.eye(3)[:1])
    with pytest.raises(ShapeError):
        fit_contrasts(np.ones((3, 2)), np.eye(4), np.eye(4)[:1])
    with pytest.raises(MetricError, match="no residual variance"):
        variance_prior(np.array([0.0, 0.0, 1.0]), 3)


def test_zero_variances_are_lifted():
    s2 = np.array([0.0, 0.5, 1.0, 2.0, 0.7])
    lifted = np.array([1e-5 * 0.7, 0.5, 1.0, 2.0, 0.7])
    assert variance_prior(s2, 3) == variance_prior(lifted, 3)


def test_log_cpm_is_vooms():
    counts, sizes = np.array([[0, 10, 300], [5, 0, 1000]]), np.array([2e5, 1e6])
    expected = np.log2((counts + 0.5) / (sizes[:, None] + 1) * 1e6)
    np.testing.assert_allclose(log_cpm(counts, sizes), expected, rtol=1e-14)


def test_the_expression_filter():
    sizes, groups = np.full(6, 1e6), np.array([0, 0, 0, 1, 1, 1])
    counts = np.zeros((6, 4))
    counts[:3, 0] = 10  # at the cutoff in as many samples as a group has
    counts[:2, 1] = 1000  # in one sample too few
    counts[:, 2] = 9.99  # below the cutoff everywhere
    counts[3:, 3] = 40
    np.testing.assert_array_equal(filter_by_expression(counts, sizes, groups), [True, False, False, True])
    many = np.concatenate([np.full((17, 1), 10.0), np.zeros((3, 1))])
    one_group = np.zeros(20, int)
    # 10 + 0.7 * (20 - 10) = 17 samples are enough.
    assert filter_by_expression(many, np.full(20, 1e6), one_group).all()
    many[16] = 0
    assert not filter_by_expression(many, np.full(20, 1e6), one_group).any()
    low = np.full((1, 1), 12.0)
    assert not filter_by_expression(low, np.array([1e6]), np.array([0])).any()
