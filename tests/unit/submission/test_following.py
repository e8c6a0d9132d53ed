"""Rows that are looked at while they are written give what a pass over the written file finds."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from vcbench.data_specs.h5ad import H5ad
from vcbench.evaluator.checks.value_scan import scan_values
from vcbench.submission.following import Following
from vcbench.submission.pack_rows import FileRows, write_rows


class Given:
    """Rows as blocks, with what packing should put right: a stored zero, an unsorted row, a repeated entry."""

    def __init__(self, blocks):
        self._blocks = blocks
        n = sum(b.shape[0] for b in blocks)
        self.perturbation, self.context = np.full(n, "A", object), np.full(n, "", object)

    def blocks(self):
        yield from self._blocks


def untidy():
    rng = np.random.default_rng(3)
    whole = sp.csr_array(rng.poisson(0.7, (40, 9)).astype(np.float32))
    odd = sp.csr_array(rng.random((7, 9)).astype(np.float32))
    parts = (np.array([0, 2, 3, 1], np.float32), np.array([5, 4, 4, 8], np.int32), np.array([0, 3, 4, 4]))
    return [whole, sp.csr_array(parts, shape=(3, 9)), odd]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_scan_while_writing_is_that_of_the_file(threads, tmp_path):
    path = tmp_path / "a.h5ad"
    facts, seen = write_rows(
        path, [Given(untidy())], genes=list("abcdefghi"), obs={}, uns={}, cap=0.9, threads=threads
    )
    with H5ad(path) as file:
        reread = scan_values(file, cap=0.9)
    assert facts == {"n_rows": 50, "n_stored": reread.n_values}
    assert seen.n_stored_zeros == seen.n_duplicates == 0
    assert seen.fractional.count and seen.above_cap.count
    for item in dataclasses.fields(seen):
        np.testing.assert_array_equal(getattr(seen, item.name), getattr(reread, item.name), err_msg=item.name)


def test_a_file_of_no_rows_in_order(tmp_path):
    write_rows(tmp_path / "a.h5ad", [Given(untidy()[:1])], genes=list("abcdefghi"), obs={}, uns={})
    with H5ad(tmp_path / "a.h5ad") as file:
        empty = np.empty(0, object)
        rows = FileRows(file, np.empty(0, np.int64), np.arange(9), empty, empty)
        facts, seen = write_rows(tmp_path / "b.h5ad", [rows], genes=list("abcdefghi"), obs={}, uns={})
    assert facts == {"n_rows": 0, "n_stored": 0} and not len(seen.totals)


@pytest.mark.parametrize("waiting", [0, 2])
def test_an_error_of_the_work_reaches_the_caller_and_later_blocks_are_dropped(waiting):
    done = []

    def work(rows, start):
        if start == 1:
            raise ValueError("row 1")
        done.append(start)

    with pytest.raises(ValueError, match="row 1"), Following(work, waiting=waiting) as following:
        for start in range(5):
            following.at(sp.csr_array((1, 1)), start)
    assert done == [0]
