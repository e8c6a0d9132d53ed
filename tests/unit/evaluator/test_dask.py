"""A Dask cluster of three worker processes: the bits of one process, also when a worker is killed at work."""

import os
import signal
import threading
import time

import pytest
from executor_tasks import dies_once, fails, square
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import MetricError, UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.executors import open_executor
from vcbench.evaluator.scoring import score
from vcc2026_panels import golden, random_panel, write

distributed = pytest.importorskip("distributed", reason='needs Dask: pip install "vcbench[dask]"')
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    ) as found:
        yield found


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    arms = random_panel(4, n_genes=600, cells=(150,) * 12, n_control=400)
    return {arm: write(adata, folder / f"{arm}.h5ad") for arm, adata in arms.items()}


def address(cluster):
    return f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"


def values(scored):
    table = scored.result.per_perturbation
    return scored.card.metrics, {name: table[name].tolist() for name in table.columns}


def test_command_gives_the_bytes_of_one_process(cluster, tmp_path):
    paths = {arm: write(golden(arm), tmp_path / f"{arm}.h5ad") for arm in ("real", "pred")}
    words = ["score", paths["pred"], "--truth", paths["real"], "--edition", "vcc2026", "--pert-col", "target"]
    for name, executor in (("alone", "local"), ("cluster", address(cluster))):
        more = ["--executor", executor, "-o", tmp_path / name, "--quiet"]
        assert run(cli, [str(word) for word in [*words, *more]]) == 0
    for table in ("per_perturbation.csv", "aggregate.csv"):
        assert (tmp_path / "alone" / table).read_bytes() == (tmp_path / "cluster" / table).read_bytes()


def test_a_killed_worker_changes_nothing_but_time(cluster, panel):
    arguments = {"edition": "vcc2026", "pert_col": "target"}
    expected = values(score(panel["pred"], panel["real"], **arguments))
    killed = []

    def kill_the_first_at_work():
        with distributed.Client(cluster, set_as_default=False) as client:
            pids = client.run(os.getpid)
            until = time.monotonic() + 30
            while not killed and time.monotonic() < until:
                busy = [worker for worker, tasks in client.processing().items() if tasks and worker in pids]
                if busy:
                    os.kill(pids[busy[0]], signal.SIGKILL)
                    killed.append(busy[0])

    killer = threading.Thread(target=kill_the_first_at_work)
    with open_executor(address(cluster)) as executor:
        assert executor.n_workers == 3
        killer.start()
        found = values(score(panel["pred"], panel["real"], executor=executor, **arguments))
        killer.join()
    assert killed and str(found) == str(expected)


def test_errors_of_tasks_are_final_and_dead_workers_are_not(cluster, tmp_path):
    cluster_ready(cluster)
    with open_executor(address(cluster)) as executor:
        with pytest.raises(MetricError, match="task 1 has no value"):
            executor.map(fails, range(3))
        assert executor.map(dies_once, [(i, tmp_path / "died" if i == 1 else None) for i in range(4)]) == [
            0,
            10,
            20,
            30,
        ]
    assert (tmp_path / "died").exists()


def test_files_that_workers_do_not_see_are_named_before_any_work(cluster, tmp_path):
    cluster_ready(cluster)
    (tmp_path / "seen").touch()
    with open_executor(address(cluster)) as executor:
        files = [tmp_path / "seen", "s3://bucket/truth.h5ad"]
        assert executor.map(square, [2], files=files) == [4]
        with pytest.raises(UsageError, match=r"entry\.h5ad: worker tcp"):
            executor.map(square, [2], files=[*files, tmp_path / "entry.h5ad"])


def cluster_ready(cluster):
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
