"""Standard errors over cells: the draws, and their agreement with independent experiments."""

import numpy as np
import pandas as pd
import pytest
from builders import standard_h5ad
from executor_tasks import Here
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.standard import MatrixMeta, StandardMeta
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scoring import score
from vcc2026_panels import random_panel, write

LABELS = ("G000", "G001", "G002", "G003", "G004")


def means_file(path, real, shift=0.2):
    with H5ad(real) as file:
        genes = list(file.genes)
    profiles = np.full((len(LABELS), len(genes)), shift)
    obs = {"perturbation": list(LABELS), "context": ["K562"] * len(LABELS)}
    meta = StandardMeta("test", MatrixMeta("log1p", 80.0), rows="mean")
    write_h5ad_dense(path, profiles, genes=genes, obs=obs, uns=meta.to_uns())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    real = standard_h5ad(folder / "real.h5ad", perturbations=LABELS, cells=30, controls=40)
    return means_file(folder / "pred.h5ad", real), real


def noise(pred, real, **options):
    found = score(pred, real, edition="core", intervals=False, cell_resamples=20, **options)
    return (
        found.result.tables["cell_noise"].set_index("metric"),
        found.result.tables["cell_noise_rows"],
        found,
    )


def test_values_stay_and_errors_are_repeatable(files):
    pred, real = files
    table, rows, scored = noise(pred, real)
    plain = score(pred, real, edition="core", intervals=False)
    assert {n: m.value for n, m in plain.card.metrics.items()} == {
        n: m.value for n, m in scored.card.metrics.items()
    }
    assert scored.card.parameters["cell_resamples"] == 20
    assert table.loc["mae", "value"] == scored.card.metrics["mae"].value
    assert 0 < table.loc["mae", "se"] < table.loc["mae", "value"] and table.loc["mae", "draws"] == 20
    assert list(rows["perturbation"]) == list(LABELS) and (rows["mae"] > 0).all()
    again, rows_again, _ = noise(pred, real, block_bytes=3000, threads=1)
    pd.testing.assert_frame_equal(table, again)
    pd.testing.assert_frame_equal(rows, rows_again)
    other, _, _ = noise(pred, real, seed=1)
    assert other.loc["mae", "se"] != table.loc["mae", "se"]


def test_errors_are_those_of_new_experiments(tmp_path):
    """The standard error of one data set against the spread over forty data sets of new cells."""
    import builders

    values, errors = [], []
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rng = np.random.default_rng(seed)
        rates = 1 + (np.arange(40) % 7)
        n = 60 + 5 * 40
        x = rng.poisson(rates * np.where(np.arange(n)[:, None] < 60, 1.0, 1.3), (n, 40)).astype(np.float32)
        real = builders.standard_h5ad(folder / "r.h5ad", perturbations=LABELS, cells=40, controls=60, x=x)
        pred = means_file(folder / "p.h5ad", real, shift=1.0)
        more = {"cell_resamples": 30} if seed < 4 else {}
        found = score(pred, real, edition="core", intervals=False, **more)
        values.append(found.card.metrics["mae"].value)
        if more:
            errors.append(found.result.tables["cell_noise"].set_index("metric").loc["mae", "se"])
    assert 0.6 < np.mean(errors) / np.std(values, ddof=1) < 1.6


def test_predicted_cells_are_drawn_too():
    panel = random_panel(3)
    found = {}
    for kind, pred in (("cells", panel["pred"]), ("itself", panel["real"])):
        scored = score(
            pred, panel["real"], edition="vcc2026", pert_col="target", intervals=False, cell_resamples=10
        )
        found[kind] = scored.result.tables["cell_noise"].set_index("metric")
    # A copy of the truth is perfect; drawn apart, the copies differ.
    assert found["itself"].loc["pds_cosine", "value"] == 1
    assert (found["cells"]["se"].dropna() >= 0).all() and found["cells"].loc[
        "de_wilcoxon_sig_jaccard", "se"
    ] > 0
    assert found["itself"].loc["de_wilcoxon_sig_jaccard", "bias"] < 0


def test_refusals(files, tmp_path):
    pred, real = files
    with pytest.raises(UsageError, match="at least 10"):
        score(pred, real, edition="core", cell_resamples=3)
    from vcc2026_panels import golden, write

    cells, bundle = write(golden("real"), tmp_path / "cells.h5ad"), tmp_path / "bundle"
    words = ["truth", "build", cells, "--edition", "vcc2026", "--pert-col", "target", "-o", bundle, "--quiet"]
    assert run(cli, [str(word) for word in words]) == 0
    with pytest.raises(UsageError, match="no cells to draw"):
        score(cells, bundle, edition="vcc2026", pert_col="target", cell_resamples=10)
    with pytest.raises(UsageError, match="are tables"):
        score(pred, real, edition="openproblems", cell_resamples=10)


def test_command_writes_the_tables(files, tmp_path, capsys):
    pred, real = files
    words = [
        "score",
        pred,
        "--truth",
        real,
        "--edition",
        "core",
        "--cell-resamples",
        "10",
        "-o",
        tmp_path / "card",
    ]
    assert run(cli, [str(word) for word in words]) == 0
    assert "over cells" in capsys.readouterr().out
    assert {"cell_noise.csv", "cell_noise_rows.csv"} <= {path.name for path in (tmp_path / "card").iterdir()}


@pytest.mark.parametrize("n_workers", [1, 3])
def test_draws_are_divided_among_workers(files, tmp_path, n_workers):
    pred, real = files[:2]
    arguments = {"edition": "core", "intervals": False, "cell_resamples": 11, "seed": 4}
    workers = Here(n_workers)
    alone, divided = (score(pred, real, **arguments, executor=who) for who in (None, workers))
    for name in ("cell_noise", "cell_noise_rows"):
        pd.testing.assert_frame_equal(
            alone.result.tables[name], divided.result.tables[name], check_exact=True
        )
    assert [i for task in workers.seen for i in task.numbers] == list(range(11))
    assert len(workers.seen) == min(11, 3 * n_workers) and str(real) in map(str, workers.files)


def test_draws_of_a_panel_are_divided_too(tmp_path):
    arms = random_panel(4, n_genes=60, cells=(30,) * 5, n_control=60)
    paths = {arm: write(adata, tmp_path / f"{arm}.h5ad") for arm, adata in arms.items()}
    arguments = {"edition": "vcc2026", "pert_col": "target", "intervals": False, "cell_resamples": 10}
    found = [
        score(paths["pred"], paths["real"], **arguments, executor=who).result.tables["cell_noise"]
        for who in (None, Here(2))
    ]
    pd.testing.assert_frame_equal(*found, check_exact=True)
