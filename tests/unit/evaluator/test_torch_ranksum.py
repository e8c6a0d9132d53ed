"""Rank sums with torch: equal to numba's and scipy's to the last bit, on the CPU and (marked gpu) on CUDA."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, rankdata
from vcbench.data_specs.errors import ShapeError, UsageError
from vcbench.evaluator.kernels import devices
from vcbench.evaluator.kernels.devices import torch_device
from vcbench.evaluator.kernels.rank_buffer import HostRankBuffer, rank_buffer, values_at_a_time

torch = pytest.importorskip("torch", reason="needs the extra vcbench[train]")

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    ],
)
on_devices = pytest.mark.parametrize("device", ["torch-cpu", GPU])
DTYPES = (np.float32, np.float64, np.uint32)


def panel(rng, dtype, *, n_cells=60, n_genes=7, n_groups=4, values=6, negative=True):
    """Sparse rows with many ties and group codes (-1: left out)."""
    dense = rng.integers(0, values, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.6)
    if dtype != np.uint32:
        dense = dense / 4 - (dense == 1) * negative
    rows = sp.csr_array(dense.astype(dtype))
    groups = rng.integers(-1, n_groups, n_cells)
    return rows, groups


def sums(rows, groups, n_groups, control, device, *, genes=None, block=17, start=0, stop=None):
    """Rank sums of rows that come in blocks of `block`."""
    chosen = rows[groups >= 0]
    stored = np.bincount(chosen.indices, minlength=rows.shape[1])
    stored = stored if genes is None else stored[genes]
    stop = len(stored) if stop is None else stop
    buffer = rank_buffer(
        stored, start, stop, dtype=rows.data.dtype, n_groups=n_groups, device=device, genes=genes
    )
    for low in range(0, rows.shape[0], block):
        buffer.add(rows[low : low + block], groups[low : low + block])
    sizes = np.bincount(groups[groups >= 0], minlength=n_groups)
    return buffer.rank_sums(sizes, control)


@on_devices
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_scipy(device, dtype):
    rows, groups = panel(np.random.default_rng(3), dtype)
    two_u, ties = sums(rows, groups, 4, 3, device)
    dense = rows.toarray().astype(float)
    for group in range(3):
        for gene in range(dense.shape[1]):
            own, control = dense[groups == group, gene], dense[groups == 3, gene]
            assert two_u[group, gene] == 2 * mannwhitneyu(own, control).statistic
            counts = np.unique(rankdata(np.concatenate([own, control])), return_counts=True)[1]
            assert ties[group, gene] == (counts**3 - counts).sum()
    assert not two_u[3].any() and not ties[3].any()


@on_devices
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    n_cells=st.integers(1, 50),
    n_groups=st.integers(2, 9),
    values=st.integers(2, 40),
    block=st.integers(1, 60),
)
def test_equals_the_compiled_kernel_whatever_the_blocks(
    device, seed, dtype, n_cells, n_groups, values, block
):
    rng = np.random.default_rng(seed)
    rows, groups = panel(rng, dtype, n_cells=n_cells, n_groups=n_groups, values=values)
    control = int(rng.integers(n_groups))
    genes = np.flatnonzero(rng.random(rows.shape[1]) < 0.7)
    expected = sums(rows, groups, n_groups, control, "cpu", genes=genes)
    found = sums(rows, groups, n_groups, control, device, genes=genes, block=block)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.int64
        np.testing.assert_array_equal(ours, theirs)
    if len(genes) > 1:
        halves = [
            sums(rows, groups, n_groups, control, device, genes=genes, start=a, stop=b)
            for a, b in ((0, 1), (1, len(genes)))
        ]
        for part, whole in enumerate(expected):
            np.testing.assert_array_equal(np.hstack([half[part] for half in halves]), whole)


@on_devices
def test_extreme_values(device):
    """Infinities, the smallest numbers, both zeros and the largest rank; genes without a value."""
    tiny = np.nextafter(0.0, 1.0)
    data = np.array([np.inf, -np.inf, tiny, -tiny, 0.0, -0.0, 1.0, 1.0])
    columns = np.array([0, 0, 0, 0, 0, 0, 0, 2])
    rows = sp.csr_array((data, columns, np.arange(9)), shape=(8, 3))
    groups = np.array([0, 1, 0, 1, 0, 1, 1, 0])
    for ours, theirs in zip(sums(rows, groups, 2, 1, device), sums(rows, groups, 2, 1, "cpu"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ranks = sp.csr_array((np.array([2**32 - 1, 5, 0], np.uint32), ([0, 1, 2], [0, 0, 0])), shape=(3, 1))
    codes = np.array([0, 1, 1])
    for ours, theirs in zip(sums(ranks, codes, 2, 1, device), sums(ranks, codes, 2, 1, "cpu"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_devices
def test_many_groups_take_genes_in_turns(device, monkeypatch):
    from vcbench.evaluator.kernels import torch_ranksum

    monkeypatch.setattr(torch_ranksum, "_WORD_LIMIT", 120)
    rows, groups = panel(np.random.default_rng(5), np.float64, values=9)
    for ours, theirs in zip(sums(rows, groups, 4, 0, device), sums(rows, groups, 4, 0, "cpu"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_devices
def test_misuse(device):
    rows, groups = panel(np.random.default_rng(1), np.float32)
    stored = np.full(rows.shape[1], 1)
    buffer = rank_buffer(stored, 0, len(stored), dtype=np.dtype(np.float32), n_groups=4, device=device)
    with pytest.raises(ShapeError, match="float64"):
        buffer.add(rows.astype(np.float64), groups)
    buffer.add(rows, groups)
    with pytest.raises(ShapeError, match="than were counted"):
        buffer.rank_sums(np.array([20, 20, 20, 20]), 3)
    buffer = rank_buffer(np.zeros(2, int), 0, 2, dtype=np.dtype(np.float32), n_groups=2, device=device)
    with pytest.raises(ShapeError, match="at most 2,097,151"):
        buffer.rank_sums(np.array([2_000_000, 200_000]), 1)
    with pytest.raises(ShapeError, match="uint32"):
        rank_buffer(stored, 0, 1, dtype=np.dtype(np.int16), n_groups=2, device=device)


def test_device_names(monkeypatch):
    assert torch_device("cpu") is None
    assert torch_device("torch-cpu") == torch.device("cpu")
    assert isinstance(
        rank_buffer(np.ones(1, int), 0, 1, dtype=np.dtype(np.float32), n_groups=2), HostRankBuffer
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device("auto") is None
    with pytest.raises(UsageError, match="no CUDA device; use --device cpu"):
        torch_device("cuda")
    for wrong in ("gpu", "cuda:", "cuda:x", "mps"):
        with pytest.raises(UsageError, match="give one of"):
            torch_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch_device("auto") == torch.device("cuda", 0)
    assert torch_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="2 CUDA devices"):
        torch_device("cuda:2")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert torch_device("auto") is None
    with pytest.raises(UsageError, match="pip install"):
        torch_device("cuda")


def test_less_memory_means_fewer_values():
    few, many = (values_at_a_time(n, np.dtype(np.float32), 5, "torch-cpu") for n in (2**20, 2**24))
    assert 1 <= few < many < values_at_a_time(2**24, np.dtype(np.float32), 5)
    assert set(devices.DEVICES) == {"cpu", "cuda", "auto", "torch-cpu"}
