"""Cell distances against naive versions; the common space against an exact PCA."""

import numpy as np
import pytest
from core_support import cell_file, draw_cells, log_normalized
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.core import space as spaces
from vcbench.evaluator.core.pairing import match
from vcbench.evaluator.metrics import distribution
from vcbench.evaluator.metrics.base import Null
from vcbench.evaluator.score_options import ScoreOptions

GENES = [f"G{i:03d}" for i in range(120)]
KEYS = [("K562", "control"), ("K562", "G001"), ("K562", "G002")]


@pytest.fixture
def clouds():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (37, 5)), rng.normal(0.4, 1.3, (23, 5))


def test_energy_distance_by_loops(clouds):
    p, t = clouds
    cross = np.mean([[np.linalg.norm(a - b) for b in t] for a in p])
    own = [np.mean([[np.linalg.norm(a - b) for b in x] for a in x]) for x in (p, t)]
    assert distribution.energy_distance(p, t) == pytest.approx(2 * cross - sum(own), abs=1e-12)


def test_mmd_by_loops(clouds):
    p, t = clouds

    def kernel(a, b, gamma):
        return np.exp(-gamma * cdist(a, b) ** 2 / 1.7**2).mean()

    expected = np.mean([kernel(p, p, g) + kernel(t, t, g) - 2 * kernel(p, t, g) for g in (2.0, 0.1)])
    assert distribution.mmd(p, t, [2.0, 0.1], 1.7) == pytest.approx(expected, abs=1e-12)


def test_blocks_do_not_matter(clouds, monkeypatch):
    p, t = clouds
    whole = distribution.energy_distance(p, t), distribution.mmd(p, t, [1.0], 1.0)
    monkeypatch.setattr(distribution, "_BLOCK", 7)
    assert (distribution.energy_distance(p, t), distribution.mmd(p, t, [1.0], 1.0)) == pytest.approx(
        whole, abs=1e-13
    )


@pytest.mark.parametrize("n", [2, 3, 30, 61])
def test_median_by_histograms_is_exact(n, monkeypatch):
    monkeypatch.setattr(distribution, "_BLOCK", 8)
    x = np.random.default_rng(n).normal(size=(n, 3)).round(1)
    assert distribution.median_distance(x, held=3) == np.median(pdist(x))


def test_median_of_one_cell_is_none():
    assert distribution.median_distance(np.zeros((1, 3))) is None


def plain_transport(cost, epsilon):
    """Entropic transport cost (dual value) by the textbook iteration on a dense kernel."""
    n, m = cost.shape
    kernel, u, v = np.exp(-cost / epsilon), np.ones(n), np.ones(m)
    for _ in range(5000):
        u = 1 / n / (kernel @ v)
        v = 1 / m / (kernel.T @ u)
    return epsilon * (np.log(u * n).mean() + np.log(v * m).mean())


def test_sinkhorn_equals_the_plain_iteration(clouds):
    p, t = clouds
    scale, blur = 3.0, 0.5

    def value(a, b):
        return plain_transport(cdist(a, b) ** 2 / (2 * scale**2), blur**2)

    expected = value(p, t) - value(p, p) / 2 - value(t, t) / 2
    assert distribution.sinkhorn_divergence(p, t, blur=blur, scale=scale) == pytest.approx(expected, abs=1e-8)


def test_sinkhorn_of_itself_is_zero_and_says_when_it_fails(clouds, monkeypatch):
    p, t = clouds
    assert distribution.sinkhorn_divergence(p, p, blur=0.1, scale=2.0) == 0.0
    mirrored = distribution.sinkhorn_divergence(p, p[::-1], blur=0.1, scale=2.0)
    assert mirrored == pytest.approx(0.0, abs=1e-7)
    monkeypatch.setattr(distribution, "_SINKHORN_ROUNDS", 1)
    failed = distribution.sinkhorn_divergence(p, t, blur=0.1, scale=2.0)
    assert isinstance(failed, Null) and "did not converge" in failed.reason


@pytest.fixture
def side(tmp_path):
    x, labels, contexts = draw_cells(
        np.random.default_rng(3), {KEYS[0]: 60, KEYS[1]: 50, KEYS[2]: 45}, len(GENES)
    )
    path = cell_file(tmp_path / "a.h5ad", x, labels, contexts, GENES)
    with H5ad(path) as file:
        pair = match(file, file, edition=load_edition("core"), options=ScoreOptions())
        yield pair.truth, log_normalized(x), np.array(labels)


@pytest.mark.parametrize("block_bytes", [1, 4000, 2**26])
def test_exact_space_equals_sklearn(side, block_bytes):
    truth, dense, labels = side
    fitted = spaces.fit_space(truth, n_components=50, seed=0, block_bytes=block_bytes)
    found = fitted.project(truth, KEYS[1:], block_bytes=block_bytes)
    expected = PCA(50, svd_solver="full").fit(dense)
    for (_, name), cells in zip(KEYS[1:], found, strict=True):
        theirs = expected.transform(dense[labels == name])
        np.testing.assert_allclose(cdist(cells, cells), cdist(theirs, theirs), atol=1e-9)


def test_lanczos_equals_the_factorisation(side, monkeypatch):
    truth, _, _ = side
    factored = spaces.fit_space(truth, n_components=12, seed=0, block_bytes=2**20)
    monkeypatch.setattr(spaces, "FACTORED_GENES", 10)
    found = spaces.fit_space(truth, n_components=12, seed=0, block_bytes=2**20)
    np.testing.assert_allclose(np.abs(np.sum(found.axes * factored.axes, axis=0)), 1.0, atol=1e-10)


def test_iterated_space_is_near_the_exact_one_and_repeatable(side, monkeypatch):
    truth, _, _ = side
    exact = spaces.fit_space(truth, n_components=3, seed=0, block_bytes=2**20)
    monkeypatch.setattr(spaces, "EXACT_GENES", 10)
    found = [spaces.fit_space(truth, n_components=3, seed=1, block_bytes=b) for b in (2000, 2**20)]
    np.testing.assert_array_equal(found[0].axes, found[1].axes)
    np.testing.assert_allclose(found[0].axes.T @ found[0].axes, np.eye(3), atol=1e-12)
    overlap = np.linalg.svd(exact.axes.T @ found[0].axes)[1]
    assert overlap.min() > 0.99
