"""Edition vcc2025 against cell-eval 0.6.6 with pdex 0.1.26: committed results, and the live tool where it is there."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from parity.celleval_panels import PANELS, uniform, write_panels
from parity.golden_06 import BASELINE, GENERALIST, GOLDEN, VCC, run_06
from parity.official import number, tool_python
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval.pipeline import score_celleval
from vcbench.evaluator.score_options import ScoreOptions

EDITION = load_edition("vcc2025")
RESULTS = json.loads(GOLDEN.read_text(encoding="utf-8"))
# scipy works in single precision on float32 data, so an FDR near 1e-10 may round to another score.
TOLERANCE = dict.fromkeys(GENERALIST, 1e-6)
# Neighbouring FDRs have equal or different float32 logarithms, hence other ties, by the vector unit that numpy uses.
BY_PROCESSOR = {("same_truth_twice", "pr_auc")}


def logarithms_as_in_golden() -> bool:
    """Whether numpy's float32 log10 gives the bits here that it gave where the golden results were made."""
    return zlib.crc32(np.log10(uniform(1, 4096).astype(np.float32)).tobytes()) == 0x1B3B8AD3


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    return {panel.name: panel for panel in write_panels(tmp_path_factory.mktemp("panels"))}


def score(panel, profile, **references):
    with H5ad(panel.pred) as pred, H5ad(panel.truth) as truth:
        return score_celleval(
            pred,
            truth,
            edition=EDITION,
            profile=EDITION.profile(profile),
            options=ScoreOptions(references=references),
            progress=lambda *_: None,
        )


@pytest.fixture(scope="module")
def ours(panels, tmp_path_factory):
    """Per panel: the seven metrics, and the score against the aggregate table of the panel `tiled_mean`."""
    base = tmp_path_factory.mktemp("base") / "agg_results.csv"
    score(panels[BASELINE], "vcc").tables["agg_results"].to_csv(base, index=False)
    return {name: score(panel, "generalist", baseline=base) for name, panel in panels.items()}


@pytest.fixture(scope="module", params=["golden", "live"])
def official(request, panels, tmp_path_factory):
    if request.param == "golden":
        return RESULTS
    python = tool_python("VCBENCH_PARITY06_PYTHON", None)
    return run_06(python, list(panels.values()), tmp_path_factory.mktemp("official"))


def test_golden_results_are_of_the_pinned_tools():
    assert RESULTS["versions"]["cell-eval"] == "0.6.6"
    assert RESULTS["versions"]["pdex"] == "0.1.26"
    assert set(RESULTS["panels"]) == set(PANELS)


@pytest.mark.parity
@pytest.mark.parametrize("name", PANELS)
def test_seven_metrics_of_every_target(name, panels, official, ours):
    skip = set(panels[name].skip)
    if official is RESULTS and not logarithms_as_in_golden():
        skip |= {metric for panel, metric in BY_PROCESSOR if panel == name}
    theirs, mine = official["panels"][name]["results"], ours[name].tables["results"]
    order = np.argsort(theirs["perturbation"])
    assert mine["perturbation"].tolist() == [theirs["perturbation"][i] for i in order]
    for metric in GENERALIST:
        if metric in skip:
            continue
        got = [number(v) for v in mine[metric]]
        expected = [number(theirs[metric][i]) for i in order] if metric in theirs else [np.nan] * len(got)
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[metric], err_msg=metric)


@pytest.mark.parity
@pytest.mark.parametrize("name", PANELS)
def test_leaderboard_score(name, panels, official, ours):
    terms = official["panels"][name]["from_baseline"]
    expected = dict(zip(terms["metric"], map(number, terms["from_baseline"]), strict=True))
    table = ours[name].tables["from_baseline"].set_index("metric")["from_baseline"]
    compared = [m for m in (*VCC, "avg_score") if m not in panels[name].skip]
    if panels[name].skip:
        compared.remove("avg_score")
    else:
        assert ours[name].score == pytest.approx(100 * expected["avg_score"], abs=1e-4)
    for metric in compared:
        assert table[metric] == pytest.approx(expected[metric], abs=1e-6), metric
    assert list(table.index) == terms["metric"]
