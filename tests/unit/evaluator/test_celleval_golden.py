"""Every number of the golden panel in the 2025 specification."""

from __future__ import annotations

import numpy as np
import pytest
from unit.evaluator.celleval_golden import GENES, LABELS, TARGETS, golden_counts, write_cells
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval.pairing import open_pairs
from vcbench.evaluator.celleval.pipeline import build_panel, score_celleval
from vcbench.evaluator.celleval.rules import Rules
from vcbench.evaluator.score_options import ScoreOptions

PER_TARGET = {
    "overlap_at_N": (0, 0, 0.333333333),
    "precision_at_N": (0, 0, 0.5),
    "de_spearman_sig": (1, 1, 1),
    "de_direction_match": (1, 1, 0.666666667),
    "de_spearman_lfc_sig": (1, 1, 0.5),
    "de_sig_genes_recall": (0, 0, 0.333333333),
    "de_nsig_counts_real": (2, 2, 3),
    "de_nsig_counts_pred": (1, 1, 2),
    "pr_auc": (0.583333333, 0.583333333, 0.513888889),
    "roc_auc": (0.833333333, 0.833333333, 0.566666667),
    "pearson_delta": (0.658038318, 0.299819261, 0.446172178),
    "mse": (0.294769198, 0.646696627, 0.48886013),
    "mae": (0.391297668, 0.491111964, 0.485694885),
    "mse_delta": (0.187695906, 0.691797912, 0.477461487),
    "mae_delta": (0.29080677, 0.509864151, 0.409948409),
    "discrimination_score_l1": (1, 0.666666667, 0.666666667),
    "discrimination_score_l2": (1, 0.666666667, 0.333333333),
    "discrimination_score_cosine": (1, 0.666666667, 0.666666667),
    "pearson_edistance": (-0.560616027,) * 3,
}
P = {
    ("g0", "g0"): (-2.4847085, 1.694355651e-03, 6.943440955e-03),
    ("g0", "g1"): (0.8950333, 1.735860239e-03, 6.943440955e-03),
    ("g0", "g2"): (1.2502825, 1.907244098e-02, 5.085984261e-02),
    ("g3", "g3"): (-2.1615403, 1.061080018e-02, 4.244320071e-02),
    ("g3", "g4"): (1.4280153, 5.072912660e-03, 4.058330128e-02),
    ("g3", "g7"): (0.0, 1.0, 1.0),
    ("g5", "g5"): (-2.4088293, 4.636047867e-03, 1.236279431e-02),
    ("g5", "g6"): (0.8512512, 1.735860239e-03, 6.943440955e-03),
    ("g5", "g7"): (np.inf, 1.819738288e-05, 1.455790631e-04),
}
GLOBAL_FDR = {
    ("g0", "g0"): 0.010415155,
    ("g0", "g1"): 0.010415155,
    ("g0", "g2"): 0.057217307,
    ("g3", "g3"): 0.03637989,
    ("g3", "g4"): 0.020291653,
    ("g5", "g5"): 0.020291653,
    ("g5", "g6"): 0.010415155,
    ("g5", "g7"): 4.3673714e-04,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    with (
        H5ad(write_cells(folder / "pred.h5ad", golden_counts("pred"), LABELS)) as pred,
        H5ad(write_cells(folder / "real.h5ad", golden_counts("real"), LABELS)) as truth,
    ):
        yield pred, truth


def score(files, edition_id, profile, **options):
    edition = load_edition(edition_id)
    return score_celleval(
        *files,
        edition=edition,
        profile=edition.profile(profile),
        options=ScoreOptions(**options),
        progress=lambda *_: None,
    )


def panel(files, edition_id):
    edition = load_edition(edition_id)
    pairs, _ = open_pairs(*files, edition=edition, options=ScoreOptions(), progress=lambda *_: None)
    return build_panel(pairs[0].pred, pairs[0].truth, Rules.of(edition), with_de=True)


def test_panel_is_the_specified_one():
    assert golden_counts("real").sum() == 2102 and golden_counts("pred").sum() == 2210
    assert golden_counts("real")[0].tolist() == [2, 9, 3, 10, 4, 11, 5, 0]
    assert golden_counts("pred")[0].tolist() == [5, 8, 11, 1, 4, 7, 10, 0]


def test_detection_and_medians(files):
    result = score(files, "celleval-0.8", "vcc")
    verdicts = {entry["file"]: entry for entry in result.parameters["matrices"]}
    assert verdicts["truth"]["kind"] == verdicts["pred"]["kind"] == "counts"
    assert (verdicts["truth"]["median_total"], verdicts["pred"]["median_total"]) == (48.5, 52.0)


@pytest.mark.parametrize("key", P)
def test_de_table_of_0_8(files, key):
    table = panel(files, "celleval-0.8").truth.table
    at = (TARGETS.index(key[0]), GENES.index(key[1]))
    lfc, p, fdr = P[key]
    assert table.log2_fold_change[at] == pytest.approx(lfc, rel=2e-7)
    assert table.p_value[at] == pytest.approx(p, rel=1e-9)
    assert table.fdr[at] == pytest.approx(fdr, rel=1e-9)


@pytest.mark.parametrize("key", GLOBAL_FDR)
def test_de_table_of_0_6(files, key):
    table = panel(files, "vcc2025").truth.table
    at = (TARGETS.index(key[0]), GENES.index(key[1]))
    assert table.p_value[at] == pytest.approx(P[key][1], rel=1e-6)
    assert table.fdr[at] == pytest.approx(GLOBAL_FDR[key], rel=2e-7)


def test_fold_changes_of_0_6(files):
    change = panel(files, "vcc2025").truth.table.fold_change
    assert change is not None
    assert change[0, 0] == pytest.approx(0.17866039, rel=2e-7)
    assert change[0, 1] == pytest.approx(1.8596532, rel=2e-7)
    assert change[1, 7] == 1.0
    assert change[2, 7] == 20.0


@pytest.mark.parametrize("metric", PER_TARGET)
def test_metrics_of_0_8(files, metric):
    table = score(files, "celleval-0.8", "full").per_perturbation
    assert table["perturbation"].tolist() == list(TARGETS)
    assert table[metric].to_numpy() == pytest.approx(
        PER_TARGET[metric], abs=2e-6 if metric == "pearson_edistance" else 2e-7
    )


@pytest.mark.parametrize("metric", [m for m in PER_TARGET if m != "pearson_edistance"])
def test_metrics_of_0_6(files, metric):
    edition = load_edition("vcc2025")
    chosen = edition.profiles["vcc"].model_copy(update={"metrics": (metric,)})
    result = score_celleval(
        *files, edition=edition, profile=chosen, options=ScoreOptions(), progress=lambda *_: None
    )
    assert result.per_perturbation[metric].to_numpy() == pytest.approx(
        PER_TARGET[metric], abs=2e-6 if metric == "pearson_edistance" else 2e-7
    )
