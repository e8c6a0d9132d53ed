"""Rank sums against scipy, exactly; gathering of gene columns; the exact small-sample distribution."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, rankdata
from vcbench.data_specs.errors import ShapeError, UsageError
from vcbench.evaluator.kernels.exact_rank_sum import exact_p, upper_tail
from vcbench.evaluator.kernels.gene_major import GeneMajorBuffer, gene_blocks
from vcbench.evaluator.kernels.ranksum import MAX_POOLED_CELLS, GeneColumns, rank_sums
from vcbench.evaluator.kernels.threads import numba_threads

N_GROUPS, CONTROL = 5, 2


def columns_of(x: np.ndarray, groups: np.ndarray) -> GeneColumns:
    csc = sp.csc_array(x)
    return GeneColumns(csc.data, groups[csc.indices].astype(np.uint16), csc.indptr.astype(np.int64))


def by_scipy(x: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    two_u = np.zeros((N_GROUPS, x.shape[1]), dtype=np.int64)
    ties = np.zeros_like(two_u)
    for group in range(N_GROUPS):
        for gene in range(x.shape[1]):
            if group == CONTROL:
                continue
            a, b = x[groups == group, gene], x[groups == CONTROL, gene]
            ranks = rankdata(np.concatenate([a, b]).astype(np.float64))
            two_u[group, gene] = round(2 * ranks[: len(a)].sum()) - len(a) * (len(a) + 1)
            _, counts = np.unique(np.concatenate([a, b]), return_counts=True)
            ties[group, gene] = (counts.astype(np.int64) ** 3 - counts).sum()
    return two_u, ties


def sample(kind: str, dtype: type, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = 150
    groups = np.concatenate([np.arange(N_GROUPS), rng.integers(0, N_GROUPS, n - N_GROUPS)])
    x = rng.normal(0, 1, (n, 6)) * (rng.random((n, 6)) < 0.6)
    if kind == "positive":
        x = np.abs(x)
    elif kind == "tied":
        x = np.round(x)
    elif kind == "nearly equal":
        x = 1 + np.round(x, 1) * 1e-12
    elif kind == "dense":
        x = np.abs(rng.normal(0, 1, (n, 6))) + 0.1
    elif kind == "silent":
        x[:] = 0
    return x.astype(dtype), groups


@pytest.mark.parametrize("kind", ["signed", "positive", "tied", "nearly equal", "dense", "silent"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_scipy_ranks(kind, dtype):
    x, groups = sample(kind, dtype, 1)
    two_u, ties = rank_sums(columns_of(x, groups), np.bincount(groups), CONTROL)
    expected_u, expected_ties = by_scipy(x, groups)
    np.testing.assert_array_equal(two_u, expected_u)
    np.testing.assert_array_equal(ties, expected_ties)


def test_statistic_is_that_of_mannwhitneyu():
    x, groups = sample("tied", np.float64, 3)
    two_u, _ = rank_sums(columns_of(x, groups), np.bincount(groups), CONTROL)
    for group in (0, 1, 3, 4):
        statistic = mannwhitneyu(x[groups == group], x[groups == CONTROL]).statistic
        np.testing.assert_array_equal(two_u[group], 2 * statistic)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_small_sample(data):
    values = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 1e-300, 0.5, 0.5000001, 7.0])
    n = data.draw(st.integers(5, 25))
    groups = np.array(
        [*range(N_GROUPS), *data.draw(st.lists(st.integers(0, 4), min_size=n - 5, max_size=n - 5))]
    )
    x = np.array(data.draw(st.lists(values, min_size=n, max_size=n))).reshape(-1, 1)
    two_u, ties = rank_sums(columns_of(x, groups), np.bincount(groups), CONTROL)
    expected_u, expected_ties = by_scipy(x, groups)
    np.testing.assert_array_equal(two_u, expected_u)
    np.testing.assert_array_equal(ties, expected_ties)


def test_stored_zeros_count_as_zeros():
    groups = np.array([0, 0, 1, 1, 1])
    stored = GeneColumns(np.array([0.0, 2.0, -0.0]), np.array([0, 0, 1]), np.array([0, 3]))
    absent = GeneColumns(np.array([2.0]), np.array([0]), np.array([0, 1]))
    for found, expected in zip(
        rank_sums(stored, np.bincount(groups), 1), rank_sums(absent, np.bincount(groups), 1), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_hand_computed():
    # control 1, 2, 2; group 2, 3: U1 = (1 + 2 * 0.5) + 3 = 5, ties: one block of three
    columns = GeneColumns(np.array([1.0, 2, 2, 2, 3]), np.array([1, 1, 1, 0, 0]), np.array([0, 5]))
    two_u, ties = rank_sums(columns, np.array([2, 3]), 1)
    assert two_u.tolist() == [[10], [0]]
    assert ties.tolist() == [[24], [0]]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_gene_blocks_do_not_matter(threads):
    x, groups = sample("positive", np.float32, 5)
    sizes = np.bincount(groups)
    expected = rank_sums(columns_of(x, groups), sizes, CONTROL)
    rows = sp.csr_array(x)
    stored = np.bincount(rows.indices, minlength=x.shape[1])
    for limit in (1, 200, 10**6):
        found = [np.empty((N_GROUPS, x.shape[1]), dtype=np.int64) for _ in range(2)]
        for start, stop in gene_blocks(stored, max_values=limit):
            buffer = GeneMajorBuffer(stored, start, stop, dtype=x.dtype, n_groups=N_GROUPS, threads=threads)
            for low in range(0, len(x), 37):
                buffer.add(sp.csr_array(rows[low : low + 37]), groups[low : low + 37])
            parts = rank_sums(buffer.columns(), sizes, CONTROL, threads=threads)
            for whole, part in zip(found, parts, strict=True):
                whole[:, start:stop] = part
        for whole, reference in zip(found, expected, strict=True):
            np.testing.assert_array_equal(whole, reference)


def test_rows_left_out_are_not_gathered():
    rows = sp.csr_array(np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0]]))
    buffer = GeneMajorBuffer(np.array([1, 2]), 0, 2, dtype=np.dtype(np.float64), n_groups=2)
    buffer.add(rows, np.array([1, -1, 0]))
    columns = buffer.columns()
    assert columns.values.tolist() == [1.0, 2.0, 5.0]
    assert columns.codes.tolist() == [1, 1, 0]


def test_gene_blocks_cover_all_genes():
    assert gene_blocks(np.array([5, 5, 30, 0, 1]), max_values=10) == [(0, 2), (2, 3), (3, 5)]
    assert gene_blocks(np.array([], dtype=int), max_values=10) == []


def test_a_buffer_that_is_not_filled_is_refused():
    buffer = GeneMajorBuffer(np.array([2]), 0, 1, dtype=np.dtype(np.float32), n_groups=1)
    buffer.add(sp.csr_array(np.array([[1.0]], dtype=np.float32)), np.array([0]))
    with pytest.raises(ShapeError, match="other values"):
        buffer.columns()
    with pytest.raises(ShapeError, match="float64"):
        buffer.add(sp.csr_array(np.array([[1.0]])), np.array([0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.array([1, 2])}, "float32 or float64"),
        ({"codes": np.array([0])}, "disagree"),
        ({"indptr": np.array([0, 1])}, "disagree"),
    ],
)
def test_columns_that_do_not_fit(change, message):
    parts = {"values": np.array([1.0, 2.0]), "codes": np.array([0, 1]), "indptr": np.array([0, 2])}
    with pytest.raises(ShapeError, match=message):
        rank_sums(GeneColumns(**(parts | change)), np.array([1, 1]), 1)


def test_impossible_groups():
    columns = GeneColumns(np.array([1.0]), np.array([0]), np.array([0, 1]))
    with pytest.raises(ShapeError, match="control index"):
        rank_sums(columns, np.array([1, 1]), 2)
    with pytest.raises(ShapeError, match="at most"):
        rank_sums(columns, np.array([MAX_POOLED_CELLS, 1]), 1)


def test_thread_counts():
    with pytest.raises(UsageError, match="0 threads"), numba_threads(0):
        pass
    with numba_threads(1) as n_threads:
        assert n_threads == 1
    with numba_threads(10**6) as n_threads:
        assert n_threads >= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 4), (8, 9), (2, 60), (12, 3)])
def test_exact_p_is_scipys(shape):
    rng = np.random.default_rng(sum(shape))
    for _ in range(10):
        x, y = rng.random(shape[0]), rng.random(shape[1])
        result = mannwhitneyu(x, y, method="exact")
        found = exact_p(np.array([2 * result.statistic]), *shape)
        assert found[0] == pytest.approx(result.pvalue, rel=1e-12)


def test_exact_tail_is_a_symmetric_distribution():
    tail = upper_tail(4, 6)
    assert tail[0] == 1.0 and len(tail) == 25
    pmf = -np.diff(np.append(tail, 0.0))
    np.testing.assert_allclose(pmf, pmf[::-1], atol=1e-15)
    assert pmf[0] == pytest.approx(1 / 210)
