"""The engine: ranks of whole matrices, words of hard values, equal results for any storage, threads and memory."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.container_write import write_vcc2025
from vcbench.data_specs.memory_source import MemorySource
from vcbench.evaluator import memory
from vcbench.evaluator.cli import cli
from vcbench.evaluator.kernels.ranksum import GeneColumns, rank_sums
from vcbench.evaluator.scoring import score
from vcbench.evaluator.vcc2026.bulks import first_pass
from vcbench.evaluator.vcc2026.cells import Cells, HeldRows
from vcbench.evaluator.vcc2026.de import de_table
from vcbench.evaluator.vcc2026.rank_keys import PartCounts, dense_ranks, rank_tables
from vcc2026_panels import CONTROL, random_panel

GENES = 60


@pytest.fixture(scope="module")
def arms():
    return random_panel(3)


@pytest.fixture(scope="module")
def files(arms, tmp_path_factory):
    """Both arms as CSR, CSC and dense files."""
    folder = tmp_path_factory.mktemp("engine")
    out = {}
    for arm in ("real", "pred"):
        for name, make in {
            "csr": sp.csr_matrix,
            "csc": sp.csc_matrix,
            "dense": lambda x: x.toarray(),
        }.items():
            adata = arms[arm].copy()
            adata.X = make(sp.csr_matrix(adata.X))
            out[arm, name] = folder / f"{arm}_{name}.h5ad"
            adata.write_h5ad(out[arm, name])
    return out


# ---- ranks ----


def test_dense_ranks_are_scipys():
    values = np.round(np.random.default_rng(0).random(500), 2)
    assert dense_ranks(values).tolist() == rankdata(values, method="dense").tolist()
    assert dense_ranks(np.empty(0)).tolist() == []


def test_rank_tables_keep_order_and_ties_over_parts():
    rng = np.random.default_rng(1)
    matrices = [sp.csr_array(rng.poisson(1.0, (20, 15)).astype(np.float32)) for _ in range(2)]
    divisors = [np.asarray(m.sum(axis=1, dtype=np.float64)).ravel() / 1e6 for m in matrices]
    noted = []
    for matrix, own in zip(matrices, divisors, strict=True):
        part = PartCounts()
        for low in (0, 7):
            block = sp.csr_array(matrix[low : low + 7 if low == 0 else 20])
            rows = np.zeros(block.shape[0], np.int64)
            assert part.add(block, rows, own[low : low + len(rows)], 2)
        noted.append(part)
    tables = rank_tables(noted)
    ranks, values = [], []
    for matrix, own, table in zip(matrices, divisors, tables, strict=True):
        for number, (low, high) in enumerate([(0, 7), (7, 20)]):
            block = sp.csr_array(matrix[low:high])
            ranks.append(table.ranked(number, block, 2).data)
            values.append(np.log1p(block.data / np.repeat(own[low:high], np.diff(block.indptr))))
    assert np.concatenate(ranks).tolist() == rankdata(np.concatenate(values), method="dense").tolist()


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0**21])
def test_values_that_are_no_small_counts_are_not_ranked_by_table(value):
    block = sp.csr_array(np.array([[1.0, value], [2.0, 3.0]]))
    assert not PartCounts().add(block, np.array([0, 0]), np.ones(2), 1)


def test_rows_left_out_are_not_looked_at():
    block = sp.csr_array(np.array([[1.0, 0.5], [2.0, 3.0]]))
    assert PartCounts().add(block, np.array([-1, 0]), np.ones(2), 1)


def test_ranks_and_logarithms_give_the_same_tests(arms):
    labels = arms["real"].obs["target"].to_numpy()
    names = [*sorted(set(labels) - {CONTROL}), CONTROL]
    cells = Cells(MemorySource(arms["real"]), np.array([names.index(label) for label in labels]))
    tables = []
    for with_counts in (True, False):
        first = first_pass([cells], len(names), GENES, with_counts=with_counts)
        assert (first.counts[0] is not None) == with_counts
        tables.append(de_table([cells], n_cells=first.n_cells, mean_cpm=first.mean_cpm, first=first))
    for name in ("genes", "log2_fold_change", "p_value", "p_adj"):
        assert np.array_equal(*(getattr(table, name) for table in tables)), name


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: np.where(rng.random(400) < 0.01, 1e300, 1 + rng.integers(0, 90, 400) * 2.0**-52),
        lambda rng: 1 + rng.integers(0, 9, 400) * 2.0**-50,
        lambda rng: rng.choice([-1e300, -1e-300, 1e-300, 1e300, 5e-324], 400),
        lambda rng: rng.integers(1, 2**32, 400).astype(np.uint32),
        lambda rng: rng.integers(1, 5, 400).astype(np.uint32),
        lambda rng: np.exp(rng.normal(0, 30, 400)).astype(np.float32),
    ],
    ids=["far_value", "last_bits", "whole_range", "ranks", "few_ranks", "wide_float32"],
)
def test_hard_values_are_ranked_exactly(make):
    rng = np.random.default_rng(7)
    values, groups = make(rng), rng.integers(0, 3, 400)
    columns = GeneColumns(values, groups.astype(np.uint16), np.array([0, 400]))
    two_u, ties = rank_sums(columns, np.bincount(groups), 1)
    for group in (0, 2):
        pooled = np.concatenate([values[groups == group], values[groups == 1]])
        n = int((groups == group).sum())
        assert two_u[group, 0] == round(2 * rankdata(pooled)[:n].sum()) - n * (n + 1)
        _, counts = np.unique(pooled, return_counts=True)
        assert ties[group, 0] == (counts.astype(np.int64) ** 3 - counts).sum()


def test_held_rows_are_given_in_blocks():
    rows = sp.csr_array(np.random.default_rng(0).poisson(1.0, (30, 8)).astype(np.float32))
    source = HeldRows(rows, name="held")
    blocks = list(source.row_blocks(max_bytes=100))
    assert len(blocks) > 3 and [b.start for b in blocks[1:]] == [b.stop for b in blocks[:-1]]
    assert np.array_equal(np.concatenate([b.matrix.toarray() for b in blocks]), rows.toarray())


# ---- the same numbers ----


def numbers(scored):
    return {name: value.value for name, value in scored.card.metrics.items()}


EDITIONS = [("vcc2026", "full"), ("celleval-0.8", "vcc"), ("vcc2025", "vcc")]


@pytest.fixture(scope="module", params=EDITIONS, ids=lambda e: e[0])
def edition(request, files):
    name, profile = request.param
    chosen = {"edition": name, "pert_col": "target", "profile": profile}
    return chosen, score(files["pred", "csr"], files["real", "csr"], **chosen)


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": 2}, {"block_bytes": 1}, {"block_bytes": 5000}, {"memory": 1}],
    ids=str,
)
def test_threads_blocks_and_memory_change_no_bit(files, edition, options):
    chosen, whole = edition
    found = score(files["pred", "csr"], files["real", "csr"], **chosen, **options)
    assert numbers(found) == numbers(whole)
    pd.testing.assert_frame_equal(
        found.result.per_perturbation, whole.result.per_perturbation, check_exact=True
    )


@pytest.mark.parametrize("storage", ["csc", "dense"])
def test_storage_changes_no_bit(files, edition, storage):
    chosen, whole = edition
    found = score(files["pred", storage], files["real", storage], **chosen)
    assert numbers(found) == numbers(whole)


def test_a_packed_entry_gives_the_same_bits(files, tmp_path):
    entry = tmp_path / "entry.vcc"
    write_vcc2025(files["pred", "csr"], entry)
    found, plain = (
        score(pred, files["real", "csr"], edition="vcc2026", pert_col="target")
        for pred in (entry, files["pred", "csr"])
    )
    assert numbers(found) == numbers(plain)


# ---- memory and estimates ----


def test_budgets():
    assert memory.column_bytes(None) == memory.DEFAULT_COLUMN_BYTES
    held = memory.resident_bytes()
    assert held > 2**24
    assert memory.column_bytes(1) == memory.SMALLEST_COLUMN_BYTES
    left = memory.column_bytes(held + memory.RESERVE_BYTES + 2**30)
    assert 0 < left < 2**30 + 2**28
    assert memory.block_bytes(None) == memory.block_bytes(2**40) > memory.block_bytes(2**28) >= 2**20


def test_a_dry_run_estimates_and_writes_nothing(files, tmp_path, capsys):
    args = [str(files["pred", "csr"]), "--truth", str(files["real", "csr"]), "--edition", "vcc2026"]
    options = ["--pert-col", "target", "--dry-run", "-o", str(tmp_path / "card")]
    assert run(cli, ["score", *args, *options, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["role"] for entry in found["inputs"]] == ["prediction", "truth"]
    assert found["inputs"][1]["n_stored"] > 0 and found["memory_bytes"] > 0 and found["seconds"] > 0
    assert run(cli, ["score", *args, *options]) == 0
    assert "peak memory" in capsys.readouterr().out
    build = ["truth", "build", args[2], *args[3:], *options[:3], "-o", str(tmp_path / "bundle")]
    assert run(cli, build) == 0
    assert "time: about" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_less_memory_means_more_blocks(files):
    from vcbench.evaluator.estimate import estimate_score

    whole = estimate_score(files["pred", "csr"], files["real", "csr"], edition="vcc2026", pert_col="target")
    assert whole.gene_blocks == 1 and whole.inputs[0].n_groups == 5


def test_kernels_work_where_nothing_can_be_cached(tmp_path):
    code = (
        "import numba.core.caching as c\n"
        "(getattr(c, 'CacheImpl', None) or c._CacheImpl)._locator_classes = []\n"
        "from vcbench.evaluator.kernels.blocks import first_entry\n"
        "import numpy as np\n"
        "assert first_entry(np.array([1, 4, 9]), 0, 3, 5) == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_progress_tells_rows(files):
    told = []
    score(
        files["pred", "csr"],
        files["real", "csr"],
        edition="vcc2026",
        pert_col="target",
        progress=lambda done, total, text: told.append((done, total, text)),
    )
    n_obs = ad.read_h5ad(files["real", "csr"], backed="r").n_obs
    assert {text for *_, text in told} == {"truth", "prediction"}
    assert (n_obs, n_obs, "truth") in told
