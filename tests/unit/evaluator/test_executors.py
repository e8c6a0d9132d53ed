"""Work of other processes: parts merge to the bits of the whole, dead workers cost nothing but time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import standard_h5ad
from executor_tasks import Here, always_dies, dies_once, double, fails, square
from hypothesis import given, settings
from hypothesis import strategies as st
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import InvalidFile, MetricError, ShapeError, UsageError, WorkersLost
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.issues import make_issue
from vcbench.data_specs.memory_source import MemorySource
from vcbench.evaluator.calibration.run import calibrate
from vcbench.evaluator.cli import cli
from vcbench.evaluator.executors import MOST_TRIES, open_executor
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.scoring import Scorer, score
from vcbench.evaluator.truth import build_truth
from vcbench.evaluator.vcc2026.cells import Cells
from vcbench.evaluator.vcc2026.panel import Columns, read_truth
from vcbench.evaluator.vcc2026.partial import divide, files_of, measure_divided, measure_part, merge_parts
from vcbench.evaluator.vcc2026.sides import measure_groups
from vcc2026_panels import golden, random_panel, write


def same(a, b):
    """Equal to the last bit, NaN included."""
    for name in ("n_cells", "sums", "bulk", "noise", "mean_cpm"):
        np.testing.assert_array_equal(getattr(a[0], name), getattr(b[0], name))
    assert (a[1] is None) == (b[1] is None)
    for name in ("genes", "log2_fold_change", "p_value", "p_adj") if a[1] is not None else ():
        np.testing.assert_array_equal(getattr(a[1], name), getattr(b[1], name))


def plain(card):
    """A ScoreCard without what names the run."""
    left = card.model_dump()
    for name in ("timings_s", "provenance"):
        del left[name]
    return left


# ---- parts and their merge ----


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    arms = random_panel(5, n_genes=70, cells=(40, 35, 30, 25, 33, 28, 31), n_control=50)
    return {arm: write(adata, folder / f"{arm}.h5ad") for arm, adata in arms.items()}


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    n_groups=st.integers(1, 12),
    n_parts=st.integers(1, 6),
    block=st.integers(200, 4000),
)
def test_any_division_gives_the_bits_of_the_whole(seed, n_groups, n_parts, block, tmp_path_factory):
    rng = np.random.default_rng(seed)
    n, n_genes = int(rng.integers(3 * n_groups, 90) + 30), 25
    x = rng.poisson(rng.gamma(1, 4, n_genes), (n, n_genes)).astype(np.float32)
    path = standard_h5ad(
        tmp_path_factory.mktemp("any") / "x.h5ad",
        perturbations=(),
        controls=n,
        x=x,
        genes=[f"g{i}" for i in range(n_genes)],
    )
    groups = rng.integers(-1, n_groups + 1, n)
    groups[-3:] = n_groups
    with H5ad(path) as file:
        cells = Cells(file, groups.astype(np.int64), block)
        for need_de in (True, False):
            whole = measure_groups(cells, n_groups + 1, n_genes, need_de=need_de, threads=1)
            parts = measure_divided(cells, n_groups + 1, n_genes, Here(n_parts), need_de=need_de, threads=1)
            same(whole, parts)


@pytest.mark.parametrize("n_parts", [1, 2, 5, 50])
def test_a_prediction_against_the_control_of_another_file(n_parts, panel):
    with H5ad(panel["real"]) as real, H5ad(panel["pred"]) as pred:
        options = ScoreOptions(pert_col="target")
        columns = Columns("target", "non-targeting", None)
        (truth,), (entry,) = read_truth(real, columns, options), read_truth(pred, columns, options)
        n = len(truth.perturbations)
        bulks, _ = measure_groups(truth.cells, n + 1, len(truth.genes), need_de=True)
        control = truth.cells.with_groups(np.where(truth.cells.groups == n, 0, -1))
        cells = entry.cells.with_groups(np.where(entry.cells.groups == n, -1, entry.cells.groups))
        arguments = {"need_de": True, "control": control, "real": bulks}
        whole = measure_groups(cells, n, len(truth.genes), **arguments)
        here = Here(n_parts)
        same(whole, measure_divided(cells, n, len(truth.genes), here, **arguments))
        assert len(here.seen) == min(n_parts, n)


def test_division_is_complete_even_and_keeps_neighbours():
    groups = np.repeat([3, 0, 2, 1, 4], [10, 10, 10, 10, 10])
    parts = divide(groups, 5, 2)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4] and [len(p) for p in parts] == [2, 3]
    assert set(parts[0]) == {3, 0}
    # Groups without rows are in some part too.
    assert sorted(np.concatenate(divide(np.array([0, 0, -1]), 4, 3)).tolist()) == [0, 1, 2, 3]


def test_incomplete_parts_are_refused(panel):
    here = Here(3)
    with H5ad(panel["real"]) as real:
        (truth,) = read_truth(real, Columns("target", "non-targeting", None), ScoreOptions(pert_col="target"))
        n = len(truth.perturbations)
        measure_divided(truth.cells, n + 1, len(truth.genes), here, need_de=True)
    parts = [measure_part(task) for task in here.seen[:2]]
    with pytest.raises(ShapeError, match="of 8 groups"):
        merge_parts(parts, [np.array([0, 1, 7]), np.array([2, 3, 7])], n + 1)


def test_values_that_are_no_counts_are_found_by_the_part_that_reads_them(tmp_path):
    arms = random_panel(6)
    x = arms["pred"].X.toarray().astype(np.float64)
    x[-1, 3] = 1.5
    arms["pred"].X = x
    paths = {arm: write(arms[arm], tmp_path / f"{arm}.h5ad") for arm in ("real", "pred")}
    with pytest.raises(InvalidFile) as caught:
        score(paths["pred"], paths["real"], edition="vcc2026", pert_col="target", executor=Here(3))
    assert [issue.code for issue in caught.value.issues] == ["E586"]


def test_objects_in_memory_stay_here():
    assert files_of(MemorySource(random_panel(1)["real"])) is None
    here = Here(2)
    arms = random_panel(1)
    found = score(arms["pred"], arms["real"], edition="vcc2026", pert_col="target", executor=here)
    assert here.seen == [] and found.card.metrics["pds_cosine"].value is not None


# ---- whole runs ----


@pytest.mark.parametrize("n_workers", [1, 3])
def test_score_and_bundle_are_those_of_one_process(n_workers, tmp_path):
    paths = {arm: write(golden(arm), tmp_path / f"{arm}.h5ad") for arm in ("real", "pred")}
    options = {"edition": "vcc2026", "pert_col": "target"}
    alone = score(paths["pred"], paths["real"], **options)
    here = Here(n_workers)
    divided = score(paths["pred"], paths["real"], executor=here, **options)
    assert len(here.seen) == 2 * n_workers
    assert plain(alone.card) == plain(divided.card)
    pd.testing.assert_frame_equal(
        alone.result.per_perturbation, divided.result.per_perturbation, check_exact=True
    )
    bundles = [
        build_truth(paths["real"], tmp_path / name, executor=executor, **options)
        for name, executor in (("alone", None), ("divided", here))
    ]
    assert bundles[0].sha256 == bundles[1].sha256
    cards = [
        score(paths["pred"], tmp_path / name, executor=executor, **options).card
        for name, executor in (("alone", None), ("divided", here))
    ]
    assert cards[0].metrics == cards[1].metrics and cards[0].score == cards[1].score is not None


def test_entries_of_other_editions_are_one_task_each(tmp_path):
    labels = ("G000", "G001", "G002")
    real = standard_h5ad(tmp_path / "real.h5ad", perturbations=labels, cells=20, controls=25)
    preds = [
        standard_h5ad(tmp_path / f"p{i}.h5ad", perturbations=labels, cells=10 + i, controls=5)
        for i in range(3)
    ]
    (tmp_path / "broken.h5ad").write_text("no file")
    here = Here(2)
    with Scorer(real, edition="core", executor=here) as scorer:
        outcomes = list(scorer.score_all([*preds, tmp_path / "broken.h5ad"]))
    assert len(here.seen) == 4 and [Path(pred).name for pred, _ in outcomes][:2] == ["p0.h5ad", "p1.h5ad"]
    for pred, outcome in outcomes[:3]:
        assert plain(outcome.card) == plain(score(pred, real, edition="core").card)
    assert isinstance(outcomes[3][1], InvalidFile) and outcomes[3][1].issues[0].code == "E003"


@pytest.mark.parametrize(("edition", "column"), [("core", "perturbation"), ("vcc2026", "target")])
def test_calibration_is_that_of_one_process(edition, column, tmp_path):
    if edition == "core":
        real = standard_h5ad(
            tmp_path / "real.h5ad", perturbations=("G000", "G001", "G002"), cells=24, controls=30
        )
    else:
        real = write(golden("real"), tmp_path / "real.h5ad")
    here = Here(2)
    alone = calibrate(real, edition=edition, options=ScoreOptions(pert_col=column, seed=3))
    divided = calibrate(real, edition=edition, options=ScoreOptions(pert_col=column, seed=3, executor=here))
    assert alone.to_text() == divided.to_text() and len(here.seen) == 5
    with pytest.raises(UsageError, match="by their paths"):
        arms = golden("real")
        calibrate(arms, edition="vcc2026", options=ScoreOptions(pert_col="target", executor=here))


def test_workers_may_run_in_another_folder(tmp_path, monkeypatch):
    labels = ("G000", "G001")
    for name, cells in (("real", 20), ("p", 10), ("q", 11)):
        standard_h5ad(tmp_path / f"{name}.h5ad", perturbations=labels, cells=cells, controls=15)
    (tmp_path / "elsewhere").mkdir()

    class Elsewhere(Here):
        def map(self, function, tasks, *, done=None, files=()):
            monkeypatch.chdir(tmp_path / "elsewhere")
            return super().map(function, tasks, done=done, files=files)

    monkeypatch.chdir(tmp_path)
    with Scorer("real.h5ad", edition="core", executor=Elsewhere(2)) as scorer:
        outcomes = dict(scorer.score_all(["p.h5ad", "q.h5ad"]))
    assert [outcome.card.name for outcome in outcomes.values()] == ["p", "q"]


def test_one_entry_of_another_edition_says_that_it_is_not_divided(tmp_path, capsys):
    real = standard_h5ad(tmp_path / "r.h5ad", perturbations=("G000", "G001"), cells=10, controls=10)
    words = ["score", str(real), "--truth", str(real), "--edition", "core", "--executor", "processes:2"]
    assert run(cli, words) == 0
    assert "one entry of this edition is scored here" in capsys.readouterr().err


# ---- executors ----


def test_texts(capsys):
    with open_executor("local") as found:
        assert found is None
    for text in ("processes:0", "processes:x", "cluster", "dask:", "dask://127.0.0.1:9"):
        with pytest.raises(UsageError), open_executor(text):
            pass


def test_processes_return_in_order_and_pass_errors_on():
    seen = []
    with open_executor("processes:2") as pool:
        assert pool.n_workers == 2 and pool.threads >= 1
        assert pool.map(square, range(7), done=lambda done, total: seen.append((done, total))) == [
            i * i for i in range(7)
        ]
        assert sorted(seen) == [(i, 7) for i in range(1, 8)]
        with pytest.raises(MetricError, match="task 1 has no value"):
            pool.map(fails, range(4))
        with pytest.raises(InvalidFile) as caught:
            pool.map(fails, [make_issue("E001", where="x", file="x", found="nothing", expected="a file")])
        assert caught.value.issues[0].code == "E001"
        assert pool.map(double, [2]) == [4]


def test_a_dead_process_costs_nothing_but_time(tmp_path):
    with open_executor("processes:2") as pool:
        tasks = [(i, tmp_path / f"{i}" if i == 2 else None) for i in range(5)]
        assert pool.map(dies_once, tasks) == [0, 10, 20, 30, 40]
        assert (tmp_path / "2").exists()
        (tmp_path / "count").write_text("")
        with pytest.raises(WorkersLost, match=f"{MOST_TRIES} times"):
            pool.map(always_dies, [tmp_path / "count"])
        assert len((tmp_path / "count").read_text()) == MOST_TRIES


def test_command_with_processes(tmp_path, capsys):
    paths = {arm: write(golden(arm), tmp_path / f"{arm}.h5ad") for arm in ("real", "pred")}
    words = ["score", paths["pred"], "--truth", paths["real"], "--edition", "vcc2026", "--pert-col", "target"]
    tables = []
    for name, executor in (("a", "local"), ("b", "processes:2")):
        done = run(
            cli, [str(word) for word in [*words, "--executor", executor, "-o", tmp_path / name, "--quiet"]]
        )
        assert done == 0
        tables.append((tmp_path / name / "per_perturbation.csv").read_bytes())
    assert tables[0] == tables[1]
    assert run(cli, [str(word) for word in [*words, "--executor", "everywhere"]]) == 2
    assert "processes:N" in capsys.readouterr().err
