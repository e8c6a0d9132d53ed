"""No metric is silently dropped: a failing one fails the run with its reason, in every pipeline and command."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from unit.evaluator.celleval_golden import LABELS, golden_counts, write_cells
from vcbench.data_specs.cli_support import run as run_command
from vcbench.data_specs.errors import InvalidFile, MetricError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.metrics import spec as registry
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth
from vcbench.evaluator.vcc2026.de_direction import DIRECTION_METRICS
from vcbench.evaluator.vcc2026.expression import EXPRESSION_METRICS
from vcc2026_panels import random_panel

FIDELITY = "direction_fidelity_yield_raw"


def fails(*_):
    raise ValueError("numbers that make no sense")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    out = {
        ("celleval", side): write_cells(folder / f"{side}.h5ad", golden_counts(side), LABELS)
        for side in ("real", "pred")
    }
    for side, adata in random_panel(3, n_genes=40).items():
        adata = adata.copy()
        adata.obs = adata.obs.rename(columns={"target": "target_gene"})
        out["vcc2026", side] = folder / f"panel_{side}.h5ad"
        adata.write_h5ad(out["vcc2026", side])
    return out


def arguments(files, pipeline, edition, *more):
    pred, real = (str(files[pipeline, side]) for side in ("pred", "real"))
    return ["score", pred, "--truth", real, "--edition", edition, *more]


@pytest.mark.parametrize(("edition", "metric"), [("vcc2025", "mae"), ("celleval-0.8", "pr_auc")])
def test_cell_eval_editions(edition, metric, files, monkeypatch, tmp_path, capsys):
    spec = registry.family_metrics("celleval")[metric]
    monkeypatch.setitem(registry._REGISTRY, ("celleval", metric), replace(spec, compute=fails))
    with pytest.raises(MetricError, match=f"metric {metric}: numbers that make no sense"):
        score(files["celleval", "pred"], files["celleval", "real"], edition=edition)
    card = tmp_path / "card"
    assert run_command(cli, arguments(files, "celleval", edition, "-o", str(card))) != 0
    captured = capsys.readouterr()
    assert metric in captured.err and "no sense" in captured.err and "score:" not in captured.out
    assert not card.exists()
    with pytest.raises(MetricError, match=metric):
        build_truth(files["celleval", "real"], tmp_path / "b", edition=edition)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("table", "key", "metric"),
    [
        (EXPRESSION_METRICS, "pds_cosine", "pds_cosine"),
        (DIRECTION_METRICS, FIDELITY, f"de_wilcoxon_{FIDELITY}"),
    ],
)
def test_edition_of_2026(table, key, metric, files, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(table, key, fails)
    with pytest.raises(MetricError, match=f"metric {metric}: numbers that make no sense"):
        score(files["vcc2026", "pred"], files["vcc2026", "real"], edition="vcc2026")
    card = tmp_path / "card"
    assert run_command(cli, arguments(files, "vcc2026", "vcc2026", "-o", str(card))) != 0
    assert metric in capsys.readouterr().err and not card.exists()
    with pytest.raises(MetricError, match=metric):
        build_truth(files["vcc2026", "real"], tmp_path / "b", edition="vcc2026", baseline="generic")
    assert not (tmp_path / "b").exists()


def test_infinite_values_of_2026_are_named(files, monkeypatch):
    monkeypatch.setitem(
        EXPRESSION_METRICS, "pds_cosine", lambda panel: np.full(len(panel.perturbations), np.inf)
    )
    with pytest.raises(MetricError, match="pds_cosine: infinite for 4 perturbations"):
        score(files["vcc2026", "pred"], files["vcc2026", "real"], edition="vcc2026")


@pytest.mark.parametrize(("pipeline", "edition"), [("celleval", "celleval-0.8"), ("vcc2026", "vcc2026")])
def test_every_metric_of_the_profile_stands_in_the_result_with_its_coverage(pipeline, edition, files, capsys):
    assert run_command(cli, arguments(files, pipeline, edition, "--profile", "full")) == 0
    printed = capsys.readouterr().out
    scored = score(files[pipeline, "pred"], files[pipeline, "real"], edition=edition, profile="full").card
    assert len(scored.metrics) == {"celleval-0.8": 28, "vcc2026": 54}[edition]
    for name, value in scored.metrics.items():
        line = next(line for line in printed.splitlines() if line.split()[:1] == [name])
        assert f"{value.n}/{value.n_total}" in line
        assert value.value is not None or value.reason


# ---- truths are checked with the same codes as predictions ----


def drop_label_column(file: h5py.File) -> None:
    del file["obs/target_gene"]
    file["obs"].attrs["column-order"] = np.array([], dtype=object).astype(h5py.string_dtype())


def set_first(value):
    def change(file: h5py.File) -> None:
        file["X/data"][0] = value

    return change


def break_structure(file: h5py.File) -> None:
    file["X/indptr"][1] = 10**6


@pytest.mark.parametrize("side", ["real", "pred"])
@pytest.mark.parametrize(
    ("pipeline", "edition", "change", "codes"),
    [
        ("celleval", "vcc2025", set_first(np.nan), {"E571", "E301"}),
        ("celleval", "celleval-0.8", set_first(-2), {"E572", "E303"}),
        ("celleval", "vcc2025", drop_label_column, {"E567", "E201"}),
        ("celleval", "vcc2025", break_structure, {"E008"}),
        ("vcc2026", "vcc2026", set_first(np.nan), {"E588"}),
        ("vcc2026", "vcc2026", set_first(-2), {"E585"}),
        ("vcc2026", "vcc2026", set_first(0.5), {"E586"}),
        ("vcc2026", "vcc2026", drop_label_column, {"E582"}),
        ("vcc2026", "vcc2026", break_structure, {"E008"}),
    ],
)
def test_defects_of_either_file_are_coded(side, pipeline, edition, change, codes, files, tmp_path):
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(files[pipeline, side].read_bytes())
    with h5py.File(broken, "r+") as file:
        change(file)
    pair = {name: files[pipeline, name] for name in ("pred", "real")} | {side: broken}
    with pytest.raises(InvalidFile) as caught:
        score(pair["pred"], pair["real"], edition=edition)
    found = caught.value.issues
    assert codes & {issue.code for issue in found}, found
    assert all(issue.where.startswith("broken.h5ad") for issue in found if issue.severity == "error")
    if side == "real":
        with pytest.raises(InvalidFile) as caught:
            build_truth(broken, tmp_path / "bundle", edition=edition)
        assert codes & {issue.code for issue in caught.value.issues}
