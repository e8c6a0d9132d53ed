"""Edition core does not depend on how the same data are written: cell, gene and label order, storage, block size."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from core_support import cell_file, draw_cells, split_of
from hypothesis import given, settings
from hypothesis import strategies as st
from vcbench.evaluator.scoring import score

GENES = [f"G{i:03d}" for i in range(30)]
TRAIN, TEST = [("K", "G001")], [("K", "G002"), ("K", "G003+G004"), ("L", "G002")]
SIZES = {("K", "control"): 12, ("L", "control"): 9} | dict.fromkeys(TRAIN + TEST, 7)
SPLIT = split_of(TRAIN, TEST)
# Sums in another order differ by rounding; the Sinkhorn value is iterated to about 1e-7.
TOLERANCE = {"sinkhorn": 1e-6}


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    for role, seed in (("truth", 0), ("pred", 1)):
        x, labels, contexts = draw_cells(np.random.default_rng(seed), SIZES, len(GENES))
        cell_file(folder / f"{role}.h5ad", x, labels, contexts, GENES)
    data = {role: ad.read_h5ad(folder / f"{role}.h5ad") for role in ("pred", "truth")}
    base = {p: score(data["pred"], data["truth"], split=SPLIT, profile=p) for p in ("full", "gears")}
    return folder, data, {p: scored.result.per_perturbation for p, scored in base.items()}


def rewritten(data, rng, storage, relabel):
    """The same cells in another cell order, gene order, category order and storage."""
    out = data[rng.permutation(data.n_obs)].copy()[:, rng.permutation(data.n_vars)].copy()
    if relabel:
        for column in ("perturbation", "context"):
            categories = rng.permutation([*out.obs[column].cat.categories, "UNUSED"])
            out.obs[column] = out.obs[column].cat.set_categories(categories)
    out.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray()}[storage](out.X)
    return out


def assert_same(found, expected):
    for column in expected.columns:
        if expected[column].dtype.kind == "f":
            limit = TOLERANCE.get(column, 1e-9)
            np.testing.assert_allclose(found[column], expected[column], rtol=0, atol=limit, err_msg=column)
        else:
            pd.testing.assert_series_equal(found[column], expected[column])


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    storages=st.tuples(*[st.sampled_from(["csr", "csc", "dense"])] * 2),
    relabel=st.booleans(),
    block_bytes=st.sampled_from([1, 900, 5000, 2**26]),
    profile=st.sampled_from(["full", "gears"]),
)
def test_rewriting_changes_nothing(panel, seed, storages, relabel, block_bytes, profile):
    _, data, base = panel
    rng = np.random.default_rng(seed)
    pred, truth = (
        rewritten(data[role], rng, storage, relabel)
        for role, storage in zip(("pred", "truth"), storages, strict=True)
    )
    found = score(pred, truth, split=SPLIT, profile=profile, block_bytes=block_bytes)
    assert_same(found.result.per_perturbation, base[profile])


@settings(max_examples=5, deadline=None)
@given(block_bytes=st.integers(1, 20_000), seed=st.integers(0, 5))
def test_blocks_and_gene_order_change_no_bit(panel, block_bytes, seed):
    _, data, base = panel
    genes = np.random.default_rng(seed).permutation(len(GENES))
    pred = data["pred"][:, genes].copy()
    found = score(pred, data["truth"], split=SPLIT, profile="full", block_bytes=block_bytes)
    pd.testing.assert_frame_equal(found.result.per_perturbation, base["full"], check_exact=True)


@settings(max_examples=3, deadline=None)
@given(storage=st.sampled_from(["csr", "csc", "dense"]), block_bytes=st.sampled_from([1, 4000]))
def test_files_equal_objects(panel, storage, block_bytes):
    folder, data, base = panel
    paths = []
    for role in ("pred", "truth"):
        path = folder / f"{role}-{storage}.h5ad"
        if not path.exists():
            rewritten_data = data[role].copy()
            convert = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray()}[storage]
            rewritten_data.X = convert(rewritten_data.X)
            rewritten_data.write_h5ad(path)
        paths.append(path)
    found = score(*paths, split=SPLIT, profile="full", block_bytes=block_bytes).result.per_perturbation
    pd.testing.assert_frame_equal(found, base["full"], check_exact=True)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), cells=st.integers(1, 6), controls=st.integers(1, 8))
def test_identity_is_perfect_or_null(seed, cells, controls):
    sizes = {("K", "control"): controls, ("K", "G001"): cells, ("K", "G002"): cells + 1}
    x, labels, contexts = draw_cells(np.random.default_rng(seed), sizes, 25)
    obs = pd.DataFrame({"perturbation": labels, "context": contexts}, index=[str(i) for i in range(len(x))])
    data = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES[:25]))
    meta = {"kind": "counts", "target_sum": 50.0, "log_base": "e", "pseudocount": 1.0}
    data.uns["vcbench"] = {"schema_version": 1, "rows": "cell", "matrix": meta}
    for name, value in score(data, data).card.metrics.items():
        assert (value.value is None and value.reason) or value.value == pytest.approx(
            value.perfect, abs=1e-9
        ), name
        assert 0 <= value.n <= value.n_total == 2
