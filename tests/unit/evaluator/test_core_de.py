"""DE of the edition: Welch t, BH, ranking, and the cases without variance or cells."""

import numpy as np
import pytest
from scipy import stats
from vcbench.evaluator.core.de import benjamini_hochberg, de_table, rank_by_magnitude, welch


def groups(seed, n=7, ref_n=11, genes=30):
    rng = np.random.default_rng(seed)
    return rng.normal(1, 0.5, (n, genes)), rng.normal(1.2, 0.8, (ref_n, genes))


def moments(x):
    return x.mean(axis=0), x.var(axis=0, ddof=1), len(x)


@pytest.mark.parametrize("seed", range(3))
def test_welch_equals_scipy(seed):
    x, ref = groups(seed)
    t, p = welch(*moments(x), *moments(ref))
    expected = stats.ttest_ind(x, ref, equal_var=False)
    np.testing.assert_allclose(t, expected.statistic, rtol=1e-12)
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-9)


def test_groups_without_variance():
    x = np.array([[1.0, 2.0, 0.0, 3.0]] * 3)
    ref = np.array([[1.0, 1.0, 0.0, 3.0], [1.0, 1.0, 0.0, 4.0]])
    t, p = welch(*moments(x), *moments(ref))
    assert list(t[:3]) == [0.0, np.inf, 0.0]
    assert list(p[:3]) == [1.0, 0.0, 1.0]
    expected = stats.ttest_ind(x[:, 3], ref[:, 3], equal_var=False)
    assert (t[3], p[3]) == pytest.approx((expected.statistic, expected.pvalue))


def test_equal_constants_of_unequal_groups_are_no_difference():
    x, ref = np.full((3, 1), 0.1), np.full((7, 1), 0.1)
    t, p = welch(np.array([x.sum() / 3]), np.zeros(1), 3, np.array([ref.sum() / 7]), np.zeros(1), 7)
    assert (t[0], p[0]) == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_bh_equals_scipy(seed):
    p = np.random.default_rng(seed).uniform(size=50) ** 3
    p[:4] = p[4]
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)


def test_ranking_ignores_noise_and_breaks_ties_by_position():
    values = np.array([2.0, -3.0, 3.0 * (1 + 1e-13), 0.0, np.inf, -2.0 * (1 - 1e-13), -np.inf])
    assert list(rank_by_magnitude(values)) == [4, 6, 1, 2, 0, 5, 3]


def test_ranking_keeps_real_differences():
    assert list(rank_by_magnitude(np.array([1.0, 1.0 + 1e-8]))) == [1, 0]


def test_one_cell_gives_no_table():
    x, ref = groups(0, n=1)
    with np.errstate(invalid="ignore"):
        variance = np.full(30, np.nan)
    assert de_table(x[0], variance, 1, *moments(ref), alpha=0.05) is None
    assert de_table(*moments(ref), x[0], variance, 1, alpha=0.05) is None


def test_ranked_leaves_out_and_keeps_order():
    x, ref = groups(1)
    table = de_table(*moments(x), *moments(ref), alpha=0.05)
    assert table is not None
    order = list(np.argsort(-np.abs(table.t)))
    assert list(table.ranked()) == order
    assert list(table.ranked(exclude=np.array(order[:2]))) == order[2:]
    assert table.n_significant == int((table.q < 0.05).sum())
