"""Policies, ends and score columns of edition vcc2026."""

from __future__ import annotations

import math

import pytest
from vcbench.data_specs.errors import InvalidFile, MetricError, UnknownName, UsageError
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.vcc2026.catalog import ENTRIES, SCORED, resolve
from vcbench.evaluator.vcc2026.columns import Ends
from vcbench.evaluator.vcc2026.references import read_anchor, read_baseline
from vcbench.evaluator.vcc2026.scores import POLICIES, column, end_problem, scale_column, score_value

EDITION = load_edition("vcc2026")
VALUES = {
    "pds_cosine": 0.9,
    "expr_mse_unbiased_capped_norm": 0.2,
    "de_wilcoxon_lfc_nmae": 0.7,
    "de_wilcoxon_direction_fidelity_yield_raw": 0.8,
    "de_wilcoxon_direction_reach_raw": 0.5,
    "de_wilcoxon_sig_jaccard": 0.3,
}
ZEROS = dict(zip(VALUES, (0.5, 1.0, 1.0, 0.5, 0.1, 0.05), strict=True))
ONES = dict(zip(VALUES, (0.95, 0.03, 0.4, 0.8, 0.95, 0.4), strict=True))


@pytest.mark.parametrize(
    ("policy", "value", "zero", "one", "unclamped", "score"),
    [
        ("error", 0.5, 2.0, None, 0.75, 0.75),
        # 1 - 3/2 = -0.5; the penalty makes it -((1.5)^2 - 1)/2.
        ("error", 3.0, 2.0, None, -0.5, -0.625),
        ("error", 100.0, 2.0, None, -49.0, -6.0),
        ("error_linear", 3.0, 2.0, None, -0.5, -0.5),
        ("error_linear", 100.0, 2.0, None, -49.0, -6.0),
        ("bounded", 0.2, 0.5, None, -0.6, 0.0),
        ("unfloored", 0.2, 0.5, None, -0.6, -0.6),
        ("unfloored", 1.0, 0.5, 0.75, 2.0, 2.0),
        ("open", 9.0, 2.0, None, 3.5, 2.0),
        ("signed", 1.0, -2.0, None, 1.5, 1.5),
        ("mse_norm", 1.5, 1.0, 0.0, -0.5, 0.0),
        ("mse_norm", -0.3, 1.0, 0.0, 1.3, 1.0),
    ],
)
def test_policies_by_hand(policy, value, zero, one, unclamped, score):
    found = score_value(value, zero, POLICIES[policy], one=one)
    assert (found.unclamped, found.score) == (pytest.approx(unclamped), pytest.approx(score))


def test_missing_values_take_the_floor_or_a_metric_value_of_zero():
    assert score_value(math.nan, 2.0, POLICIES["error"]).score == -6.0
    assert score_value(math.inf, 0.5, POLICIES["bounded"]).score == 0.0
    missing = score_value(math.nan, 0.5, POLICIES["unfloored"], one=0.9)
    assert math.isnan(missing.unclamped) and missing.score == pytest.approx((0 - 0.5) / 0.4)


def test_columns_and_contributions():
    found = column("from_replicate", VALUES, ZEROS, ones=ONES)
    assert found.scores["pds_cosine"].score == pytest.approx(0.4 / 0.45)
    assert found.scores["de_wilcoxon_lfc_nmae"].score == pytest.approx(0.3 / 0.6)
    assert found.average == pytest.approx(sum(s.score for s in found.scores.values()) / 6)
    assert math.fsum(found.contribution(name) for name in VALUES) == pytest.approx(found.average)
    fixed = scale_column("low-random_high-1_v10", EDITION, VALUES)
    assert fixed.scores["pds_cosine"].score == pytest.approx(0.8)
    assert fixed.scores["expr_mse_unbiased_capped_norm"].score == pytest.approx(0.8)
    own = scale_column("published-context-mean", EDITION, VALUES)
    assert own.scores["pds_cosine"].score == pytest.approx((0.9 - 0.5021) / (0.9495 - 0.5021))


def test_named_scale_floors():
    low = scale_column(
        "low-random_high-1_v10", EDITION, dict(VALUES, de_wilcoxon_lfc_nmae=9.0, pds_cosine=math.nan)
    )
    assert (low.scores["de_wilcoxon_lfc_nmae"].score, low.scores["pds_cosine"].score) == (-1.0, -1.0)
    assert low.scores["de_wilcoxon_lfc_nmae"].unclamped == -8.0
    with pytest.raises(UnknownName, match="low-random"):
        scale_column("low-random", EDITION, VALUES)
    with pytest.raises(MetricError, match="was not measured"):
        scale_column("low-random_high-1_v10", EDITION, {"pds_cosine": 0.5})


def test_degenerate_ends_are_errors_in_words():
    with pytest.raises(MetricError, match=r"pds_cosine cannot be scored: the upper end 0\.5 is not above"):
        column("from_replicate", VALUES, ZEROS, ones=dict(ONES, pds_cosine=0.5))
    with pytest.raises(MetricError, match=r"lfc_nmae cannot be scored: the upper end 1\.2 is not below"):
        column("from_replicate", VALUES, ZEROS, ones=dict(ONES, de_wilcoxon_lfc_nmae=1.2))
    with pytest.raises(MetricError, match="the baseline has no value"):
        column("from_baseline", VALUES, dict(ZEROS, pds_cosine=math.nan))
    with pytest.raises(MetricError, match="which was not measured"):
        column("from_replicate", {"pds_cosine": 0.9}, ZEROS, ones=ONES)
    with pytest.raises(MetricError, match="no metric is left"):
        column("from_baseline", {"expr_mse_unbiased": 0.1}, {"expr_mse_unbiased": 0.2})


def test_a_diagnostic_without_scale_is_left_out_and_named():
    name = "de_wilcoxon_direction_coverage"
    found = column("from_baseline", VALUES | {name: 0.5}, ZEROS | {name: 0.0})
    assert name not in found.scores and "cannot divide" in found.left_out[name]
    gated = "de_wilcoxon_sig_mcc"
    both = column("from_baseline", VALUES | {gated: math.nan}, ZEROS | {gated: math.nan})
    assert both.left_out[gated] == "the truth admits no perturbation"
    with pytest.raises(MetricError, match="on one side only"):
        column("from_baseline", VALUES | {gated: math.nan}, ZEROS | {gated: 0.2})


def test_end_problem_of_unanchored_policies():
    assert end_problem(0.0, POLICIES["open"], None) is not None
    assert end_problem(-1.0, POLICIES["open"], None) is not None
    assert end_problem(-1.0, POLICIES["signed"], None) is None


def test_catalogue_has_the_published_counts():
    kinds = [entry.kind for entry in ENTRIES.values()]
    assert (len(ENTRIES), kinds.count("cells")) == (57, 3)
    assert sum(kind.startswith("bulk") for kind in kinds) == 13
    assert sum(kind.startswith("de") for kind in kinds) == 41
    sizes = {
        name: len(resolve(EDITION.profiles[name].metrics)) for name in ("vcc2026", "de", "anndata", "cell")
    }
    assert sizes == {"vcc2026": 10, "de": 41, "anndata": 13, "cell": 3}
    assert set(SCORED) <= set(resolve(EDITION.profiles["vcc2026"].metrics))


def test_names_of_cell_eval_are_understood():
    assert resolve(["mae", "overlap_at_50"]) == ("expr_mae", "de_wilcoxon_overlap_top50")
    assert resolve(["expr_mse_unbiased_capped_norm"])[:2] == (
        "expr_mse_unbiased_capped",
        "expr_distance_unbiased",
    )
    with pytest.raises(UnknownName, match="pds_cosine"):
        resolve(["pds_cosin"])


def test_reference_files(tmp_path):
    agg = tmp_path / "baseline_agg.csv"
    agg.write_text("statistic,expr_mae,pds_cosine,other\ncount,3,3,3\nmean,0.5,,7\n")
    found = read_baseline(agg)
    assert found["expr_mae"] == 0.5 and math.isnan(found["pds_cosine"]) and "other" not in found
    anchor = tmp_path / "anchor_agg.csv"
    anchor.write_text("metric,replicate,estimator\npds_cosine,0.95,split_half_raw\n")
    assert read_anchor(anchor) == {"pds_cosine": 0.95} == read_anchor(tmp_path)
    for text in ("", "statistic,expr_mae\ncount,1\n", "a,b\n1,2\n", "statistic,expr_mae\nmean,x\n"):
        agg.write_text(text)
        with pytest.raises(InvalidFile, match="E594"):
            read_baseline(agg)
    with pytest.raises(InvalidFile, match="E594"):
        read_anchor(tmp_path / "none.csv")


def test_parquet_without_pyarrow_is_a_clear_error(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    file = tmp_path / "anchor_agg.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"vcbench\[fast\]"):
        read_anchor(file)


def test_parquet_is_read_where_pyarrow_is(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    file = tmp_path / "anchor_agg.parquet"
    parquet.write_table(pyarrow.table({"metric": ["pds_cosine"], "replicate": [0.9]}), file)
    assert read_anchor(file) == {"pds_cosine": 0.9}


def test_one_reference_for_several_contexts_is_refused(tmp_path):
    with pytest.raises(UsageError, match="each context has its own"):
        Ends.from_references({"baseline": "x.csv"}, ["A", "B"])
    with pytest.raises(UsageError, match="no baseline for context 'B'"):
        Ends.from_references({"baseline": {"A": _written(tmp_path)}}, ["A", "B"])


def _written(folder):
    file = folder / "agg.csv"
    file.write_text("statistic,pds_cosine\nmean,0.5\n")
    return str(file)
