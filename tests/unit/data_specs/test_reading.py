"""What the reader reads: the header alone on opening, every stored value once in a pass, nothing of unwanted blocks."""

from __future__ import annotations

from collections import Counter

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from builders import counts, standard_h5ad
from vcbench.data_specs.canonical import make_canonical
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.h5ad import H5ad
from vcbench.evaluator.validation import validate


@pytest.fixture
def reads(monkeypatch):
    """Entries read of each dataset of X, by name."""
    seen: Counter[str] = Counter()
    original = h5py.Dataset.__getitem__

    def counted(self, args, **options):
        values = original(self, args, **options)
        if self.name.startswith("/X/"):
            seen[self.name] += np.size(values)
        return values

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    return seen


def test_opening_and_header_checks_read_no_value(tmp_path, reads):
    path = standard_h5ad(tmp_path / "a.h5ad")
    report = validate(path, edition="core", header_only=True)
    assert report.valid and "n_nonzero" not in report.facts
    assert any(entry.what == "values" for entry in report.not_checked)
    assert reads["/X/data"] == reads["/X/indices"] == 0 < reads["/X/indptr"]


@pytest.mark.parametrize("block_bytes", [1, 900, 2**24])
def test_a_pass_reads_every_entry_once(tmp_path, reads, block_bytes):
    path = standard_h5ad(tmp_path / "a.h5ad")
    with H5ad(path) as file:
        n_stored = file.matrix.n_stored
    validate(path, edition="core", block_bytes=block_bytes)
    assert reads["/X/data"] == reads["/X/indices"] == n_stored


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_blocks_without_a_wanted_row_may_be_left_out(tmp_path, reads, make):
    x = counts(90, 40, np.random.default_rng(0))
    path = _written(tmp_path, make(x))
    wanted = np.zeros(90, dtype=bool)
    wanted[[31, 32, 77]] = True
    with H5ad(path) as file:
        blocks = list(file.row_blocks(max_bytes=2000, wanted=wanted))
        n_stored = file.matrix.n_stored
    found = {block.start + i: row for block in blocks for i, row in enumerate(block.matrix.toarray())}
    assert {31, 32, 77} <= set(found)
    assert all(np.array_equal(row, x[number]) for number, row in found.items())
    if make is sp.csr_matrix:
        assert reads["/X/data"] < n_stored / 2


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix])
def test_an_index_outside_is_found_while_reading(tmp_path, make):
    path = _written(tmp_path, make(counts(90, 40, np.random.default_rng(0))))
    with h5py.File(path, "a") as file:
        file["X/indices"][17] = 90
    with H5ad(path) as file, pytest.raises(InvalidFile) as error:
        list(file.row_blocks(max_bytes=500))
    assert [issue.code for issue in error.value.issues] == ["E008"]
    assert "index 90 at entry 17" in error.value.issues[0].render()


def _written(folder, x):
    import anndata as ad
    import pandas as pd

    path = folder / "x.h5ad"
    obs = pd.DataFrame(index=[f"c{i}" for i in range(x.shape[0])])
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(x.shape[1])])).write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("data", "indices", "indptr"),
    [
        ([1.0, 2.0, 3.0], [0, 2, 1], [0, 2, 2, 3]),
        ([1.0, 2.0, 3.0], [2, 0, 1], [0, 2, 2, 3]),
        ([1.0, 2.0, 3.0], [0, 0, 1], [0, 2, 2, 3]),
        ([1.0, 0.0, 3.0], [0, 2, 1], [0, 2, 2, 3]),
        ([1.0, 2.0, 3.0], [1, 0, 1], [0, 1, 1, 3]),
        ([], [], [0, 0, 0, 0]),
    ],
    ids=["canonical", "unsorted", "duplicates", "zero", "falls_at_a_row", "empty"],
)
def test_canonical_form_is_scipys(data, indices, indptr):
    ours, theirs = (
        sp.csr_array(
            (np.array(data, dtype=np.float32), np.array(indices, dtype=np.int32), np.array(indptr)),
            shape=(3, 3),
        )
        for _ in range(2)
    )
    make_canonical(ours)
    theirs.sum_duplicates()
    theirs.eliminate_zeros()
    for name in ("data", "indices", "indptr"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
