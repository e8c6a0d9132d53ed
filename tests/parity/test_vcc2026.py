"""Edition vcc2026 against cell-eval2 0.20.0 with pdex 0.3.0: values, anchors, baselines, scores, fingerprints."""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from parity.official import number, tool_python
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.profiles import resolve_profile
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.truth import build_truth
from vcbench.evaluator.vcc2026.bundle import read_bundle
from vcbench.evaluator.vcc2026.fingerprints import source_fingerprint
from vcbench.evaluator.vcc2026.pipeline import score_vcc2026
from vcc2026_panels import CONTROL, golden, random_panel

pytestmark = pytest.mark.parity
EDITION = load_edition("vcc2026")
TOLERANCE = 1e-9
COUNTS = ("de_wilcoxon_nsig_counts_real", "de_wilcoxon_nsig_counts_pred")


@dataclass(frozen=True)
class Panel:
    """`arms` holds real, pred and, for panels with ends, base; `cell` also asks for the single-cell diagnostics."""

    arms: dict
    ends: bool = True
    no_target_genes: bool = False
    cell: bool = False
    files: dict[str, Path] = field(default_factory=dict)


def _as(arms, **changes):
    out = dict(arms)
    for arm, change in changes.items():
        out[arm] = out[arm].copy()
        out[arm].X = change(out[arm].X)
    return out


def make_panels() -> dict[str, Panel]:
    """Panels of different shape, storage and depth."""
    dense_csc = _as(
        random_panel(2, n_genes=90, cells=(30, 45, 28, 33, 51, 26), n_control=70),
        real=lambda x: x.toarray().astype(np.float64),
        pred=lambda x: sp.csc_matrix(x).astype(np.int32),
    )
    return {
        "golden": Panel({arm: golden(arm) for arm in ("real", "pred", "base")}),
        "default": Panel(random_panel(1)),
        "dense_and_csc": Panel(dense_csc),
        "many_targets": Panel(
            random_panel(3, n_genes=140, cells=(24,) * 14, n_control=120, depth=3.0, effect=0.9)
        ),
        "large_groups": Panel(
            random_panel(4, n_genes=70, cells=(130, 70, 65, 60), n_control=90, depth=2.0, effect=0.7),
            cell=True,
        ),
        "tiny_groups": Panel(
            random_panel(5, n_genes=50, cells=(1, 2, 12, 9, 14), n_control=15, depth=20.0, effect=1.5),
            ends=False,
        ),
        "no_target_genes": Panel(
            random_panel(6, n_genes=64, cells=(40, 38, 36), targets=False), no_target_genes=True
        ),
        "one_perturbation": Panel(random_panel(7, cells=(60,), effect=1.0), ends=False, no_target_genes=True),
    }


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    root = tmp_path_factory.mktemp("panels")
    made = make_panels()
    for name, panel in made.items():
        for arm, adata in panel.arms.items():
            panel.files[arm] = root / f"{name}_{arm}.h5ad"
            adata.copy().write_h5ad(panel.files[arm])
    return made


@pytest.fixture(scope="module")
def official(panels, tmp_path_factory):
    """The official results of all panels, from one process."""
    python = tool_python("VCBENCH_PARITY_PYTHON", "cell_eval2")
    folder = tmp_path_factory.mktemp("official")
    job = {
        "panels": [
            {
                "name": name,
                "pred": str(panel.files["pred"]),
                "truth": str(panel.files["real"]),
                "baseline": str(panel.files["base"]) if panel.ends else None,
                "column": "target",
                "control": CONTROL,
                "no_target_genes": panel.no_target_genes,
                "profiles": ["full", "vcc2026", *(["cell"] if panel.cell else [])],
                "arms": ["tile", "dispersed"] if panel.ends else [],
            }
            for name, panel in panels.items()
        ]
    }
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parent / "run_celleval2.py"
    command = [python, str(script), str(folder / "job.json"), str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())["panels"]


def options(panel: Panel) -> ScoreOptions:
    return ScoreOptions(pert_col="target", no_target_genes=panel.no_target_genes)


def run(panel: Panel, profile: str, truth=None):
    with H5ad(panel.files["pred"]) as pred, H5ad(panel.files["real"]) as real:
        return score_vcc2026(
            pred,
            truth or real,
            edition=EDITION,
            profile=resolve_profile(EDITION, profile),
            options=options(panel),
            progress=lambda *_: None,
        )


def agree(mine: float | None, theirs, *, what: object) -> None:
    theirs, mine = number(theirs), float("nan") if mine is None else mine
    assert math.isnan(mine) == math.isnan(theirs), (what, mine, theirs)
    if not math.isnan(mine):
        assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE), what


PANELS = tuple(make_panels())
WITH_ENDS = tuple(name for name, panel in make_panels().items() if panel.ends)


@pytest.mark.parametrize("profile", ["vcc2026", "full"])
@pytest.mark.parametrize("name", PANELS)
def test_every_value_of_every_perturbation(name, profile, panels, official):
    theirs = official[name]["values"][profile]
    result = run(panels[name], profile)
    assert set(result.metrics) == set(theirs["aggregate"])
    assert len(result.metrics) == {"vcc2026": 10, "full": 54}[profile]
    table = result.per_perturbation.set_index("perturbation")
    for metric, value in result.metrics.items():
        agree(value.value, theirs["aggregate"][metric], what=(name, metric))
        if metric not in table:
            continue
        column = theirs["per"].get(metric, {})
        assert set(column) <= set(table.index)
        for label, mine in table[metric].items():
            agree(float(mine), column.get(label), what=(name, metric, label))
        if metric in COUNTS:
            assert table[metric].tolist() == [column[label] for label in table.index]


@pytest.mark.parametrize("name", [name for name, panel in make_panels().items() if panel.cell])
def test_single_cell_diagnostics(name, panels, official):
    theirs = official[name]["values"]["cell"]
    result = run(panels[name], "cell")
    table = result.per_perturbation.set_index("perturbation")
    for metric, values in theirs["per"].items():
        for label, value in values.items():
            assert table.loc[label, metric] == pytest.approx(number(value), abs=1e-6, nan_ok=True), (
                metric,
                label,
            )
        assert int(table[metric].notna().sum()) == sum(not math.isnan(number(v)) for v in values.values())


@pytest.fixture(scope="module")
def bundles(panels, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    out = {}
    for name in WITH_ENDS:
        panel = panels[name]
        out[name] = build_truth(
            panel.files["real"],
            root / name,
            pert_col="target",
            baseline=str(panel.files["base"]),
            no_target_genes=panel.no_target_genes,
        )
    return out


@pytest.mark.parametrize("name", WITH_ENDS)
def test_anchors_and_baseline_file(name, bundles, official):
    ends = bundles[name].ends[""]
    theirs = official[name]
    assert set(ends.ones) == set(theirs["anchor"])
    for metric, row in theirs["anchor"].items():
        agree(ends.ones[metric], row["replicate"], what=(name, metric, "replicate"))
    for metric, value in theirs["baseline"].items():
        agree(ends.zeros[metric], value, what=(name, metric, "baseline"))
    split = (bundles[name].path / "context_0" / "anchor_agg.csv").read_text().splitlines()
    rows = {line.split(",")[0]: line.split(",") for line in split[1:]}
    for metric, row in theirs["anchor"].items():
        agree(float(rows[metric][2]), row["replicate_sd"], what=(name, metric, "sd"))
        assert rows[metric][5] == (
            "" if row["n_perturbations_min"] is None else str(row["n_perturbations_min"])
        )
        assert rows[metric][7] == row["estimator"]


@pytest.mark.parametrize("name", WITH_ENDS)
def test_score_columns_against_a_bundle(name, panels, bundles, official):
    result = run(panels[name], "vcc2026", read_bundle(bundles[name].path, edition="vcc2026"))
    table = result.tables["score_columns"]
    theirs = official[name]["scores"]
    compared = 0
    for column in ("from_baseline", "from_replicate", "low-random_high-1_v10"):
        part = table[table["column"] == column].set_index("metric")["score"]
        for metric, row in theirs.items():
            if metric == "avg_score" and column == "from_baseline":
                continue
            agree(float(part[metric]), row[column], what=(name, column, metric))
            compared += 1
    assert compared == 6 + 7 + 7
    agree(result.score, theirs["avg_score"]["from_replicate"], what=(name, "score"))


@pytest.mark.parametrize("emission", ["tile", "dispersed"])
@pytest.mark.parametrize("name", WITH_ENDS)
def test_generic_baselines(name, emission, panels, official, tmp_path):
    panel = panels[name]
    if panel.no_target_genes:
        pytest.skip("cell-eval2's generic baseline needs target genes")
    bundle = build_truth(
        panel.files["real"],
        tmp_path / "b",
        pert_col="target",
        baseline="generic",
        emission=emission,
        anchor=False,
    )
    zeros = bundle.ends[""].zeros
    for metric, value in official[name]["arms"][emission].items():
        agree(zeros[metric], value, what=(name, emission, metric))


@pytest.mark.parametrize("name", PANELS)
def test_fingerprints(name, panels, official):
    with H5ad(panels[name].files["real"]) as real:
        for key, strict in (("strict", True), ("loose", False)):
            assert source_fingerprint(real, "target", strict=strict) == official[name]["fingerprint"][key]


def test_files_that_the_official_tool_refuses_are_read_alike(panels, tmp_path):
    """Stored zeros and unused categories change nothing here."""
    panel = panels["default"]
    dirty = panel.arms["pred"].copy()
    x = sp.csr_matrix(dirty.X)
    extra = sp.csr_matrix(
        (np.zeros(len(dirty)), (np.arange(len(dirty)), np.arange(len(dirty)) % x.shape[1])), x.shape
    )
    dirty.X = sp.csr_matrix(
        (
            np.concatenate([x.tocoo().data, extra.data]),
            (
                np.concatenate([x.tocoo().row, extra.tocoo().row]),
                np.concatenate([x.tocoo().col, extra.tocoo().col]),
            ),
        ),
        shape=x.shape,
    ).astype(np.float32)
    dirty.obs["target"] = dirty.obs["target"].astype("category").cat.add_categories(["never"])
    path = tmp_path / "dirty.h5ad"
    dirty.write_h5ad(path)
    with H5ad(path) as source:
        assert source.matrix.n_stored > int((x != 0).sum())
    again = Panel(panel.arms, files={**panel.files, "pred": path})
    clean = run(panel, "full").metrics
    assert {n: v.value for n, v in run(again, "full").metrics.items()} == {
        n: v.value for n, v in clean.items()
    }
