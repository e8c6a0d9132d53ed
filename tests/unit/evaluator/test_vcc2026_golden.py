"""The golden vectors of cell-eval2 0.20.0 on the deterministic panel."""

from __future__ import annotations

import numpy as np
import pytest
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.memory_source import MemorySource
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.profiles import resolve_profile
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.vcc2026.anchors import group_order, replicate_anchor, split_seeds
from vcbench.evaluator.vcc2026.catalog import resolve
from vcbench.evaluator.vcc2026.cell_cov import cell_diagnostics
from vcbench.evaluator.vcc2026.fingerprints import source_fingerprint
from vcbench.evaluator.vcc2026.panel import Columns, match_prediction, read_truth
from vcbench.evaluator.vcc2026.pipeline import score_vcc2026
from vcbench.evaluator.vcc2026.scores import column, scale_column
from vcbench.evaluator.vcc2026.sides import measure_real
from vcbench.evaluator.vcc2026.targets import TargetRule
from vcc2026_panels import CONTROL, GENES, draw, golden, golden_counts, mix, write

EDITION = load_edition("vcc2026")
OPTIONS = ScoreOptions(pert_col="target")
COLUMNS = Columns("target", CONTROL, None)
DE = "de_wilcoxon_"

AGGREGATES = {
    "pds_cosine": (0.9444444444444444, 0.5333333333333334),
    "expr_mse_unbiased": (0.09108375766383454, 0.08761382947958145),
    "expr_mse_unbiased_capped": (0.09130288408282558, 0.08921882958357238),
    "expr_distance_unbiased": (0.09790941294560092, 0.09790941294560092),
    "expr_mse_unbiased_capped_norm": (0.9325240682788489, 0.9112385305909547),
    DE + "lfc_nmae": (0.5898799103115048, 0.8549648099162941),
    DE + "direction_fidelity_yield_raw": (0.6708882714031456, 0.09879448249013466),
    DE + "direction_reach_raw": (0.5305641620859012, 0.20628524052437097),
    DE + "sig_jaccard": (0.35726305214990134, 0.032502238502238504),
}
# Per perturbation: pds, capped N, D, fidelity, reach, nmae, jaccard.
PER_PERTURBATION = {
    "G1": (
        0.8888888888888888, 0.09901465993709442, 0.06679107314437913, 0.6842105263157895,
        0.7857142857142857, 0.6076979881758844, 0.2692307692307692,
    ),
    "G2": (
        0.7777777777777778, 0.1275610842229447, 0.10953777411988973, 0.5833333333333334,
        0.08333333333333333, 0.6748336380058946, 0.2727272727272727,
    ),
    "G3": (
        1.0, 0.05686350655371213, 0.13381256606828876, 0.6923076923076923,
        0.9615384615384616, 0.41638842236636764, 0.3888888888888889,
    ),
    "G10": (
        1.0, 0.08812896139492905, 0.08259302821506312, 0.5,
        0.09090909090909091, 0.7382856638837427, 0.37037037037037035,
    ),
    "G11": (
        1.0, 0.06980109341216498, 0.06601955021061726, 0.7142857142857143,
        0.7222222222222222, 0.5130627797631055, 0.3448275862068966,
    ),
    "G12": (
        1.0, 0.051372135913393124, 0.11382006516450673, 0.6923076923076923,
        1.0, 0.31646494633736877, 0.46875,
    ),
    "G20": (
        1.0, 0.11989637028548776, 0.11661198180363123, 0.7777777777777778,
        0.48148148148148145, 0.6264826750056117, 0.3170731707317073,
    ),
    "G21": (
        1.0, 0.05913629093943436, 0.08251379757580121, 0.782608695652174,
        0.9130434782608695, 0.5311157248247913, 0.36363636363636365,
    ),
    "G31": (
        0.7777777777777778, 0.11564509218827024, 0.07970420391391372, 0.6666666666666666,
        0.19047619047619047, 0.8129177463709742, 0.3225806451612903,
    ),
    "X1": (
        1.0, 0.12560964598082505, 0.1276900892399183, 0.6153846153846154,
        0.07692307692307693, 0.6615495183813062, 0.45454545454545453,
    ),
}  # fmt: skip
PER_COLUMNS = (
    "pds_cosine", "expr_mse_unbiased_capped", "expr_distance_unbiased", DE + "direction_fidelity_yield_raw",
    DE + "direction_reach_raw", DE + "lfc_nmae", DE + "sig_jaccard",
)  # fmt: skip
# The whole catalogue, value and how many perturbations have one when not all ten.
FULL = {
    "direction_coverage": 0.944145347406217, "direction_fidelity": 0.44464877586528306,
    "direction_fidelity_raw": 0.7539982532087796, "direction_fidelity_yield": 0.39199755367947586,
    "direction_match": 0.8116362680458791, "direction_precision": 0.7643742458914083,
    "direction_reach": 0.21631118478944567, "direction_reach_unbounded": 0.07446997446997447,
    "direction_reach_unbounded_raw": 0.1013930513930514, "direction_sensitivity": 0.24705244882247168,
    "direction_sensitivity_universe": 0.11129003664358354, "direction_yield": 0.41110782936869894,
    "direction_yield_raw": 0.7072291235334713, "lfc_spearman": 0.6125517657772057,
    "lfc_spearman_neg": (0.2528598239995299, 8), "lfc_spearman_pos": (0.15634127776984919, 7),
    "model_direction_match": 0.7643742458914083, "nsig_counts_pred": 21.8, "nsig_counts_real": 23.6,
    "nsig_spearman": 0.6154108346295895, "overlap": 0.5032718059548723, "overlap_top50": 0.5032718059548723,
    "overlap_top100": 0.5032718059548723, "overlap_top200": 0.5032718059548723, "overlap_top500": 0.5032718059548723,
    "overlap_adjusted": 0.35008153342773873, "pr_auc": 0.5470767947443174, "precision": 0.5076577931984111,
    "precision_top50": 0.5076577931984111, "precision_top100": 0.5076577931984111,
    "precision_top200": 0.5076577931984111, "precision_top500": 0.5076577931984111,
    "precision_adjusted": 0.3708346447079424, "roc_auc": 0.7259316129659725, "sig_mcc": 0.361038517844374,
    "sig_recall": 0.5257279463057495, "sig_recall_adjusted": 0.35275446943833183,
}  # fmt: skip
FULL_BULK = {
    "delta_mae": 0.22944876208477932, "expr_mae": 0.22944876208477932, "delta_mse": 0.11553092542694385,
    "expr_mse": 0.11553092542694385, "delta_pearson": 0.6293005260855206, "pds_l1": 0.9333333333333332,
    "pds_l2": 0.9222222222222222,
}  # fmt: skip
ANCHORS = {
    "pds_cosine": (1.0, 1.0),
    "expr_distance_unbiased": (0.0991139743523273, 0.09832578067366657),
    "expr_mse_unbiased": (-0.001688599664884692, -0.0034014167742838115),
    "expr_mse_unbiased_capped": (-0.0009059894580159612, -0.002405169305214206),
    "expr_mse_unbiased_capped_norm": (-0.009357641762358919, -0.024446469363169118),
    DE + "lfc_nmae": (0.3814188607750622, 0.3726708699350439),
    DE + "direction_fidelity_yield_raw": (0.7604436497455073, 0.8047400200418776),
    DE + "direction_reach_raw": (0.9856140350877192, 0.989780701754386),
    DE + "sig_jaccard": (0.2069174012224894, 0.23656457370944514),
}
ANCHOR_SDS = {
    "expr_mse_unbiased_capped_norm": (0.02725433420253242, 0.015440856288625725),
    DE + "lfc_nmae": (0.008015219446733772, 0.021346090831592293),
}
# from_baseline, from_replicate, low-random_high-1_v10.
SCORES = {
    DE + "lfc_nmae": (0.31005357943415546, 0.5496334861995049, 0.4101200896884952),
    "expr_mse_unbiased_capped_norm": (0.0, 0.0, 0.06747593172115107),
    DE + "direction_fidelity_yield_raw": (0.6348094611024708, 0.8103936613822406, 0.34177654280629133),
    DE + "direction_reach_raw": (0.4085585126018904, 0.4138874283361417, 0.5305641620859012),
    DE + "sig_jaccard": (0.33567086826630793, 1.5914784730748965, 0.3572630521499014),
    "pds_cosine": (0.8809523809523808, 0.8809523809523808, 0.8888888888888888),
}
AVERAGES = (None, 0.7077242383241941, 0.4326814445567715)


def run(arm, *, profile="vcc2026", options=OPTIONS):
    return score_vcc2026(
        MemorySource(golden(arm), name=arm),
        MemorySource(golden("real"), name="real"),
        edition=EDITION,
        profile=resolve_profile(EDITION, profile),
        options=options,
        progress=lambda *_: None,
    )


@pytest.fixture(scope="module")
def truth():
    return read_truth(MemorySource(golden("real")), COLUMNS, OPTIONS)[0]


@pytest.fixture(scope="module")
def real(truth):
    return measure_real(truth, need_de=True)


@pytest.fixture(scope="module")
def pred_result():
    return run("pred")


def test_panel_is_the_published_one():
    assert mix(0) == 16294208416658607535
    assert draw(1, 0, 0) == 12793040940332582595
    totals = {
        arm: (int(golden_counts(arm)[0].sum()), int((golden_counts(arm)[0] > 0).sum()))
        for arm in ("real", "pred", "base")
    }
    assert totals == {"real": (209775, 31734), "pred": (210076, 31704), "base": (207046, 31898)}
    x = golden_counts("real")[0]
    assert x.sum(axis=1)[[0, 1, 12, 467]].tolist() == [463, 480, 443, 414]
    assert x[0, :8].tolist() == [0, 5, 1, 4, 8, 0, 10, 18]


def test_bulks_and_noise(real):
    place = {label: i for i, label in enumerate([*real.perturbations, CONTROL])}
    noise = {label: real.bulks.noise[i] for label, i in place.items()}
    assert noise["G1"] == pytest.approx(1.0019876958336995, rel=1e-12)
    assert noise["G10"] == pytest.approx(1.0227960074966806, rel=1e-12)
    assert noise["X1"] == pytest.approx(1.0325235946360796, rel=1e-12)
    assert noise[CONTROL] == pytest.approx(0.3398486313287256, rel=1e-12)
    assert real.bulks.bulk[place["G1"], :3] == pytest.approx([0, 6.5703182, 6.26609377], abs=1e-8)
    assert real.bulks.bulk[-1, :3] == pytest.approx([4.20462335, 6.61201417, 6.55611228], abs=1e-8)


def test_de_table_of_one_target(real):
    assert len(real.de.genes) == 78
    row = real.perturbations.index("G10")
    smallest = np.argsort(real.de.p_value[row])[:4]
    names = [GENES[g] for g in real.de.genes[smallest]]
    assert names == ["G10", "G47", "G60", "G71"]
    assert real.de.p_value[row, smallest] == pytest.approx(
        [4.1191219702121043e-10, 4.663697426969556e-08, 1.3506781145077974e-06, 1.191805686310732e-05],
        rel=1e-9,
    )
    assert real.de.p_adj[row, smallest] == pytest.approx(
        [3.2129151367654414e-08, 1.818841996518127e-06, 3.5117630977202734e-05, 0.00023240210883059275],
        rel=1e-9,
    )
    assert real.de.log2_fold_change[row, smallest] == pytest.approx(
        [-2.4936994661763063, 1.8784736714097252, 0.9728739331737386, 0.8109624968160691], rel=1e-12
    )


@pytest.mark.parametrize("arm", ["pred", "base"])
def test_aggregates(arm, pred_result):
    result = pred_result if arm == "pred" else run(arm)
    for name, values in AGGREGATES.items():
        assert result.metrics[name].value == pytest.approx(values[arm == "base"], rel=1e-12), name
        assert (result.metrics[name].n, result.metrics[name].n_total) == (10, 10)
    assert result.metrics["expr_real_mass_ratio"].value == pytest.approx(1.0, rel=1e-12)


def test_values_per_perturbation(pred_result):
    table = pred_result.per_perturbation.set_index("perturbation")
    assert list(table.index) == sorted(PER_PERTURBATION)
    for label, values in PER_PERTURBATION.items():
        assert table.loc[label, list(PER_COLUMNS)].tolist() == pytest.approx(values, rel=1e-11), label
    assert set(table["n_cells_truth"]) == {36} and set(table["n_cells_pred"]) == {36}


def test_all_54_of_the_full_profile():
    result = run("pred", profile="full")
    assert len(result.metrics) == 54
    expected = {DE + name: value for name, value in FULL.items()} | FULL_BULK
    expected |= {name: values[0] for name, values in AGGREGATES.items()} | {"expr_real_mass_ratio": 1.0}
    assert set(expected) == set(result.metrics)
    for name, value in expected.items():
        value, n = value if isinstance(value, tuple) else (value, 10)
        assert result.metrics[name].value == pytest.approx(value, rel=1e-11), name
        assert result.metrics[name].n == n, name


def test_single_cell_diagnostics():
    truth = read_truth(MemorySource(golden("real", 60)), COLUMNS, OPTIONS)[0]
    (cells,), _ = match_prediction(
        MemorySource(golden("pred", 60)), COLUMNS, OPTIONS, panels=[("", truth.perturbations)], genes=GENES
    )
    values = cell_diagnostics(truth, cells, TargetRule())
    assert values["cell_cov_corr"].mean() == pytest.approx(0.002838737459735767, abs=3e-8)
    assert values["cell_cov_eig_ratio"].mean() == pytest.approx(0.992530120925624, abs=3e-8)
    assert values["cell_cov_ccc"].mean() == pytest.approx(-0.09309916971791336, abs=3e-8)


def test_split_seeds():
    assert split_seeds(0, 5) == (2968811710, 3677149159, 745650761, 2884920346, 2642120001)


@pytest.mark.parametrize("storage", ["memory", "file"])
def test_anchors_follow_the_stored_category_order(storage, tmp_path):
    names = resolve(resolve_profile(EDITION, "vcc2026").metrics)
    source = (
        MemorySource(golden("real"))
        if storage == "memory"
        else H5ad(write(golden("real"), tmp_path / "r.h5ad"))
    )
    truth = read_truth(source, COLUMNS, OPTIONS)[0]
    order = group_order(truth, "target", CONTROL)
    full = measure_real(truth, need_de=True)
    anchor = replicate_anchor(truth, full, names, TargetRule(), order=order)
    rows = {row.metric: row for row in anchor.rows}
    assert list(rows) == sorted(names)
    for name, values in ANCHORS.items():
        assert rows[name].replicate == pytest.approx(values[storage == "file"], rel=1e-10), name
    for name, values in ANCHOR_SDS.items():
        assert rows[name].replicate_sd == pytest.approx(values[storage == "file"], rel=1e-9), name
    assert rows["expr_mse_unbiased_capped_norm"].n_perturbations_min is None
    assert rows[DE + "lfc_nmae"].estimator == "full_gate_raw"


def test_score_columns(pred_result):
    measured = {name: value.value for name, value in pred_result.metrics.items()}
    zeros = {name: values[1] for name, values in AGGREGATES.items()}
    ones = {name: ANCHORS[name][1] for name in SCORES}
    columns = (
        column("from_baseline", measured, zeros),
        column("from_replicate", measured, zeros, ones=ones),
        scale_column("low-random_high-1_v10", EDITION, measured),
    )
    for place, found in enumerate(columns):
        assert set(found.scores) == set(SCORES)
        for name, values in SCORES.items():
            assert found.scores[name].score == pytest.approx(values[place], rel=1e-9, abs=1e-12), (
                name,
                found.name,
            )
        if AVERAGES[place] is not None:
            assert found.average == pytest.approx(AVERAGES[place], rel=1e-9)
        assert sum(found.contribution(name) for name in found.scores) == pytest.approx(
            found.average, rel=1e-12
        )
    clamped = columns[1].scores["expr_mse_unbiased_capped_norm"]
    expected = 1 - (
        AGGREGATES["expr_mse_unbiased_capped_norm"][0] - ones["expr_mse_unbiased_capped_norm"]
    ) / (AGGREGATES["expr_mse_unbiased_capped_norm"][1] - ones["expr_mse_unbiased_capped_norm"])
    assert (clamped.score, clamped.unclamped) == (0.0, pytest.approx(expected, rel=1e-9))


def test_strict_fingerprint_of_the_real_arm():
    assert (
        source_fingerprint(MemorySource(golden("real")), "target")
        == "4ea44c62bd4a699cbad8106e4cff36151865b74d848046b2c6122c816b1df0fe"
    )
