"""Edition celleval-0.8 against cell-eval 0.8.2 with pdex 0.3.0: every metric, the aggregates and the DE tables."""

from __future__ import annotations

import numpy as np
import pytest
from parity.celleval_panels import PANELS, write_panels
from parity.official import number, run_celleval, tool_python
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval.ceiling import data_ceiling
from vcbench.evaluator.celleval.pairing import open_pairs
from vcbench.evaluator.celleval.pipeline import build_panel, score_celleval
from vcbench.evaluator.celleval.rules import Rules
from vcbench.evaluator.score_options import ScoreOptions

pytestmark = pytest.mark.parity
EDITION = load_edition("celleval-0.8")
METRICS = EDITION.profile("full").metrics
TOLERANCE = dict.fromkeys(METRICS, 1e-6) | {"pearson_edistance": 1e-4}
# Best effort: needs the same scanpy, igraph and thread-dependent graph as the official environment.
NOT_COMPARED = {"clustering_agreement"}


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    return {panel.name: panel for panel in write_panels(tmp_path_factory.mktemp("panels"))}


@pytest.fixture(scope="module")
def official(panels, tmp_path_factory):
    python = tool_python("VCBENCH_PARITY_PYTHON", "cell_eval")
    folder = tmp_path_factory.mktemp("official")
    return run_celleval(python, list(panels.values()), folder, profile="full", tables=True, ceiling=True)


@pytest.fixture(scope="module")
def ours(panels):
    results = {}
    for name, panel in panels.items():
        with H5ad(panel.pred) as pred, H5ad(panel.truth) as truth:
            results[name] = score_celleval(
                pred,
                truth,
                edition=EDITION,
                profile=EDITION.profile("full"),
                options=ScoreOptions(),
                progress=lambda *_: None,
            )
    return results


def _wholly_null(column) -> bool:
    """cell-eval leaves out a column without a single entry; ours keeps it, all null."""
    return column.isna().all()


@pytest.mark.parametrize("name", PANELS)
def test_every_metric_of_every_target(name, panels, official, ours):
    theirs, mine = official["panels"][name]["results"], ours[name].tables["results"]
    order = np.argsort(theirs["perturbation"])
    assert mine["perturbation"].tolist() == [theirs["perturbation"][i] for i in order]
    expected_columns = [c for c in mine.columns[1:] if c in theirs or not _wholly_null(mine[c])]
    assert expected_columns == [c for c in theirs if c != "perturbation"]
    for metric in expected_columns:
        if metric in NOT_COMPARED or metric in panels[name].skip:
            continue
        expected = [theirs[metric][i] for i in order]
        got = mine[metric].tolist()
        assert [v is None for v in got] == [v is None for v in expected], f"{metric}: nulls differ"
        np.testing.assert_allclose(
            [number(v) for v in got],
            [number(v) for v in expected],
            rtol=0,
            atol=TOLERANCE[metric],
            err_msg=metric,
        )


@pytest.mark.parametrize("name", PANELS)
def test_aggregates(name, panels, official, ours):
    theirs, mine = official["panels"][name]["aggregate"], ours[name].tables["agg_results"]
    assert [c for c in mine.columns if c in theirs] == list(theirs)
    assert mine["statistic"].tolist() == theirs["statistic"]
    for metric in list(theirs)[1:]:
        if metric in NOT_COMPARED or metric in panels[name].skip:
            continue
        got, expected = mine[metric].tolist(), theirs[metric]
        assert [v is None for v in got] == [v is None for v in expected], f"{metric}: nulls differ"
        np.testing.assert_allclose(
            [number(v) for v in got],
            [number(v) for v in expected],
            rtol=0,
            atol=TOLERANCE[metric],
            err_msg=metric,
        )


@pytest.mark.parametrize("name", PANELS)
def test_de_tables(name, panels, official):
    with H5ad(panels[name].pred) as pred, H5ad(panels[name].truth) as truth:
        pairs, _ = open_pairs(pred, truth, edition=EDITION, options=ScoreOptions(), progress=lambda *_: None)
        panel = build_panel(pairs[0].pred, pairs[0].truth, Rules.of(EDITION), with_de=True)
    for side, mine in (("real", panel.truth.table), ("pred", panel.pred.table)):
        theirs = official["panels"][name][f"{side}_de"]
        n_genes = mine.p_value.shape[1]
        rows = [panel.targets.index(t) for t in theirs["target"][::n_genes]]
        for column, values, rtol in (("p_value", mine.p_value, 1e-9), ("fdr", mine.fdr, 1e-9)):
            expected = np.array([number(v) for v in theirs[column]]).reshape(-1, n_genes)
            np.testing.assert_allclose(values[rows], expected, rtol=rtol, atol=0, err_msg=f"{side} {column}")
        expected = np.array([number(v) for v in theirs["log2_fold_change"]]).reshape(-1, n_genes)
        np.testing.assert_allclose(mine.log2_fold_change[rows], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PANELS if name != "same_truth_twice"])
def test_ceiling(name, panels, official):
    with H5ad(panels[name].truth) as truth:
        mine = data_ceiling(truth, edition=EDITION, profile=EDITION.profile("full"), options=ScoreOptions())
    raw, corrected = (official["panels"][name][key] for key in ("ceiling_results", "ceiling"))
    order = np.argsort(raw["perturbation"])
    assert mine.results["perturbation"].tolist() == [raw["perturbation"][i] for i in order]
    for metric in sorted(set(raw) - NOT_COMPARED - {"perturbation"}):
        expected = [number(raw[metric][i]) for i in order]
        got = [number(v) for v in mine.results[metric]]
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[metric], err_msg=metric)
        np.testing.assert_allclose(
            mine.values[metric], number(corrected[metric][0]), rtol=0, atol=1e-6, err_msg=metric
        )
