"""The cell-eval metrics against scikit-learn, scipy and hand-computed tables; aggregates; score rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control, mannwhitneyu, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score
from unit.evaluator.celleval_golden import LABELS, golden_counts, write_cells
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval import de_metrics, expression
from vcbench.evaluator.celleval.de import DeTable, asymptotic_p, benjamini_hochberg
from vcbench.evaluator.celleval.edistance import energy_distances
from vcbench.evaluator.celleval.measure import Measured, measure
from vcbench.evaluator.celleval.pairing import open_pairs
from vcbench.evaluator.celleval.panel import Panel, PanelSide
from vcbench.evaluator.celleval.pipeline import metric_value, score_celleval
from vcbench.evaluator.celleval.rules import Rules
from vcbench.evaluator.celleval.score_rule import average, from_baseline, read_aggregate
from vcbench.evaluator.celleval.tables import aggregate, aggregate_table, results_table
from vcbench.evaluator.metrics.spec import family_metrics
from vcbench.evaluator.score_options import ScoreOptions

EDITION = load_edition("celleval-0.8")
RULES = Rules.of(EDITION)
GENES = np.array([f"g{i}" for i in range(5)], dtype=object)


def table(fdr, lfc) -> DeTable:
    fdr, lfc = np.array(fdr, dtype=float), np.array(lfc, dtype=float)
    return DeTable(fdr, fdr, lfc, None, fdr.astype(np.float32) < np.float32(0.05))


def panel(truth: DeTable, pred: DeTable, rules: Rules = RULES) -> Panel:
    targets = tuple(f"p{i}" for i in range(len(truth.fdr)))
    sides = [PanelSide(None, None, de) for de in (pred, truth)]  # type: ignore[arg-type]
    return Panel(targets, GENES, sides[0], sides[1], rules)


# Two targets by five genes: p0 has four true DE genes (g0 strongest), p1 has none.
TRUTH = table([[0.01, 0.02, 0.03, 0.04, 0.5], [0.9] * 5], [[-3, 2, -1, 0.5, 9], [1] * 5])
PRED = table(
    [[0.01, 0.9, 0.001, 0.2, 0.01], [0.9, 0.01, 0.9, 0.9, 0.9]], [[-1, 5, 2, 0.5, 4], [0, 1, 0, 0, 0]]
)


def test_a_sign_flip_keeps_the_genes_and_turns_the_directions():
    flipped = DeTable(TRUTH.p_value, TRUTH.fdr, -TRUTH.log2_fold_change, None, TRUTH.significant)
    both = panel(TRUTH, flipped)
    # Sets and ranks by size stay; p1 has no true DE gene, so its direction metrics are null.
    assert de_metrics.overlap(both, None, "overlap").tolist() == [1, 0]
    assert de_metrics.recall(both).tolist() == [1, None]
    assert de_metrics.direction_match(both).tolist() == [0, None]
    assert de_metrics.spearman_lfc(both).tolist() == [pytest.approx(-1.0), None]
    assert de_metrics.area(both, "roc")[0] == 1.0


def test_overlap_by_hand():
    # R = g0 g1 g2 g3, Q = g4 g2 g0: at N = 4 the prediction has only three, two of them shared
    both = panel(TRUTH, PRED)
    assert de_metrics.overlap(both, None, "overlap").tolist() == [2 / 4, 0]
    assert de_metrics.overlap(both, None, "precision").tolist() == [2 / 3, 0]
    assert de_metrics.overlap(both, 2, "overlap").tolist() == [0, 0]
    assert de_metrics.overlap(both, 50, "overlap").tolist() == [2 / 4, 0]
    assert de_metrics.overlap(panel(TRUTH, TRUTH), None, "overlap").tolist() == [1, 0]


def test_a_side_without_any_significant_gene_scores_zero():
    silent = table([[0.9] * 5] * 2, [[1] * 5] * 2)
    for pair in (panel(TRUTH, silent), panel(silent, PRED), panel(silent, silent)):
        for side in ("overlap", "precision"):
            assert de_metrics.overlap(pair, None, side).tolist() == [0, 0]


def test_ranking_puts_infinite_changes_first_and_keeps_gene_order_in_ties():
    ranked = table([[0.01] * 5], [[1, -np.inf, -1, np.inf, 2]]).ranked(0)
    assert ranked.tolist() == [1, 3, 4, 0, 2]


def test_threshold_is_compared_in_single_precision():
    assert not table([[0.0499999999]], [[1]]).significant[0, 0]
    assert table([[0.04999999]], [[1]]).significant[0, 0]


def test_direction_recall_and_lfc_by_hand():
    both = panel(TRUTH, PRED)
    match, recall, rank = (
        de_metrics.direction_match(both),
        de_metrics.recall(both),
        de_metrics.spearman_lfc(both),
    )
    assert match[0] == 3 / 4 and match.mask.tolist() == [False, True]
    assert recall[0] == 2 / 4 and recall.mask.tolist() == [False, True]
    assert rank[0] == pytest.approx(spearmanr([-3, 2, -1, 0.5], [-1, 5, 2, 0.5]).statistic)
    assert de_metrics.n_significant(both, "real").tolist() == [4, 0]
    assert de_metrics.n_significant(both, "pred").tolist() == [3, 1]


def test_spearman_of_counts():
    many = table([[0.01] * k + [0.9] * (5 - k) for k in (0, 1, 2, 4)], np.ones((4, 5)))
    other = table([[0.01] * k + [0.9] * (5 - k) for k in (5, 2, 1, 3)], np.ones((4, 5)))
    values = de_metrics.spearman_sig(panel(many, other))
    assert values.tolist() == pytest.approx([spearmanr([1, 2, 4], [2, 1, 3]).statistic] * 4)
    silent = table([[0.9] * 5] * 4, np.ones((4, 5)))
    assert de_metrics.spearman_sig(panel(silent, other)).tolist() == [1.0] * 4
    assert np.isnan(de_metrics.spearman_sig(panel(TRUTH, PRED))).all()


def test_spearman_corner_cases():
    assert math.isnan(de_metrics.spearman(np.array([1.0]), np.array([2.0])))
    assert math.isnan(de_metrics.spearman(np.array([1.0, 1.0]), np.array([2.0, 3.0])))
    assert de_metrics.spearman(np.array([1.0, np.inf, 3.0]), np.array([-np.inf, 2.0, 1.0])) == 1.0


def test_areas_equal_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.random(40) < 0.4
        scores = np.round(rng.random(40), 1)
        assert de_metrics.average_precision(labels, scores) == pytest.approx(
            average_precision_score(labels, scores), rel=1e-12
        )
        assert de_metrics.roc_area(labels, scores) == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
    for one_class in (np.zeros(4, bool), np.ones(4, bool)):
        assert math.isnan(de_metrics.average_precision(one_class, np.arange(4.0)))
        assert math.isnan(de_metrics.roc_area(one_class, np.arange(4.0)))


def test_fdr_floor_of_both_generations():
    """An FDR that underflowed to 0 ranks below 1e-30 in 0.6, level with it from 0.7 on."""
    truth = table([[0.01, 0.9, 0.9, 0.9, 0.9]], [[1] * 5])
    pred = table([[0.0, 1e-30, 0.5, 0.6, 0.7]], [[1] * 5])
    old = Rules.of(load_edition("vcc2025"))
    assert de_metrics.area(panel(truth, pred, RULES), "pr")[0] == 0.5
    assert de_metrics.area(panel(truth, pred, RULES), "roc")[0] == 0.875
    assert de_metrics.area(panel(truth, pred, old), "roc")[0] == 0.75


def test_p_values_equal_scipy():
    rng = np.random.default_rng(1)
    for n1, n2 in ((20, 31), (9, 200)):
        x, y = np.round(rng.gamma(1, 2, n1)), np.round(rng.gamma(1, 2.4, n2))
        expected = mannwhitneyu(x, y, method="asymptotic")
        _, t = np.unique(np.concatenate([x, y]), return_counts=True)
        two_u, ties = np.array([round(2 * expected.statistic)]), np.array([(t**3 - t).sum()])
        assert asymptotic_p(two_u, ties, n1, n2)[0] == pytest.approx(expected.pvalue, rel=1e-12)
        single = mannwhitneyu(x.astype(np.float32), y.astype(np.float32), method="asymptotic").pvalue
        assert asymptotic_p(two_u, ties, n1, n2, float32=True)[0] == pytest.approx(single, rel=1e-6)


def test_all_tied_gives_p_one():
    n = 12
    assert asymptotic_p(np.array([5 * 7]), np.array([n**3 - n]), 5, 7).tolist() == [1.0]


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(2).random((4, 30)) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p).ravel(), false_discovery_control(p.ravel()), rtol=1e-15)


def effects_panel(pred: np.ndarray, truth: np.ndarray, targets: tuple[str, ...]) -> Panel:
    sides = []
    for effects in (pred, truth):
        bulk = np.vstack([effects, np.zeros(effects.shape[1])]).astype(np.float32)
        sizes = np.ones(len(bulk), dtype=np.int64)
        sides.append(PanelSide(None, Measured(sizes, bulk, bulk.astype(float)), None))  # type: ignore[arg-type]
    genes = np.array([f"g{i}" for i in range(pred.shape[1])], dtype=object)
    return Panel(targets, genes, sides[0], sides[1], RULES)


@pytest.mark.parametrize(("name", "metric"), [("l1", "cityblock"), ("l2", "euclidean"), ("cosine", "cosine")])
def test_discrimination_equals_direct_ranks(name, metric):
    rng = np.random.default_rng(3)
    pred, truth = (rng.normal(0, 1, (7, 9)).astype(np.float32) for _ in range(2))
    targets = ("a", "b", "g1", "g4", "g8", "x", "y")
    found = expression.discrimination(effects_panel(pred, truth, targets), name)
    for i, target in enumerate(targets):
        keep = [j for j in range(9) if f"g{j}" != target]
        d = cdist(truth[:, keep], pred[i : i + 1, keep], metric).ravel()
        assert found[i] == pytest.approx(1 - (d < d[i]).sum() / 7)


def test_discrimination_ties_keep_the_order_of_targets():
    pred = np.zeros((4, 6))
    truth = np.random.default_rng(4).normal(0, 1, (4, 6))
    targets = ("a", "b", "c", "d")
    assert expression.discrimination(effects_panel(pred, truth, targets), "cosine").tolist() == [
        1,
        0.75,
        0.5,
        0.25,
    ]
    same = np.ones((4, 6))
    assert expression.discrimination(effects_panel(pred, same, targets), "l1").tolist() == [
        1,
        0.75,
        0.5,
        0.25,
    ]


def test_five_gene_errors_by_hand():
    pred = np.array([[1.0, 0, 0, 0, 0]])
    truth = np.array([[0.0, 2, 0, 0, 0]])
    both = effects_panel(pred, truth, ("a",))
    assert expression.squared_error(both, "effect")[0] == 1.0
    assert expression.absolute_error(both, "mean")[0] == pytest.approx(0.6)
    assert expression.pearson_delta(both)[0] == pytest.approx(-0.25)
    assert np.isnan(expression.pearson_delta(effects_panel(np.ones((1, 5)), truth, ("a",)))[0])


@pytest.fixture
def sides(tmp_path):
    with (
        H5ad(write_cells(tmp_path / "pred.h5ad", golden_counts("pred"), LABELS)) as pred,
        H5ad(write_cells(tmp_path / "truth.h5ad", golden_counts("real"), LABELS)) as truth,
    ):
        yield open_pairs(pred, truth, edition=EDITION, options=ScoreOptions(), progress=lambda *_: None)[0][0]


@pytest.mark.parametrize("held_bytes", [10**9, 500, 1])
def test_energy_distance_is_the_direct_one_in_any_block(sides, held_bytes):
    found = energy_distances(sides.truth, held_bytes=held_bytes)
    x = np.vstack([rows.toarray() for _, rows, _ in sides.truth.blocks()]).astype(float)
    groups = sides.truth.groups
    control = x[groups == 3]
    for target in range(3):
        cells = x[groups == target]
        expected = (
            2 * cdist(cells, control).mean() - cdist(cells, cells).mean() - cdist(control, control).mean()
        )
        assert found[target] == pytest.approx(expected, rel=1e-9)


def test_measure_does_not_depend_on_gene_blocks(sides):
    whole = measure(sides.truth, RULES, with_de=True)
    for gather_bytes in (1, 1000):
        parts = measure(sides.truth, RULES, with_de=True, gather_bytes=gather_bytes, threads=1)
        for name in ("two_u", "ties", "bulk", "de_mean"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    groups = np.array([0, -1, 1, 2])[sides.truth.groups].astype(np.int32)
    fewer = measure(sides.truth.with_groups(groups, ("g0", "g5")), RULES, with_de=True)
    np.testing.assert_array_equal(fewer.two_u, whole.two_u[[0, 2]])  # type: ignore[index]
    np.testing.assert_array_equal(fewer.bulk, whole.bulk[[0, 2, 3]])


def test_aggregate_of_a_column_with_null_and_nan():
    column = np.ma.masked_array([3.0, 1.0, 99.0, np.nan, 2.0], mask=[0, 0, 1, 0, 0])
    found = aggregate(column)
    assert (found["count"], found["null_count"]) == (4, 1)
    assert math.isnan(found["mean"]) and math.isnan(found["std"])  # type: ignore[arg-type]
    assert (found["min"], found["max"]) == (1, 3)
    assert (found["25%"], found["50%"], found["75%"]) == (2, 3, 3)
    single = aggregate(np.ma.masked_array([0.5], mask=False))
    assert single["std"] is None and single["mean"] == single["75%"] == 0.5
    empty = aggregate(np.ma.masked_all(2))
    assert empty["mean"] is None and empty["null_count"] == 2


def test_tables_keep_null_and_nan_apart(tmp_path):
    columns = {"x": np.ma.masked_array([1.5, np.nan, 0.0], mask=[0, 0, 1])}
    results_table(["a", "b", "c"], columns).to_csv(tmp_path / "results.csv", index=False)
    assert (tmp_path / "results.csv").read_text() == "perturbation,x\na,1.5\nb,NaN\nc,\n"
    aggregate_table(columns).to_csv(tmp_path / "agg.csv", index=False)
    assert (tmp_path / "agg.csv").read_text().splitlines()[:4] == [
        "statistic,x",
        "count,2.0",
        "null_count,1.0",
        "mean,NaN",
    ]
    assert math.isnan(read_aggregate(tmp_path / "agg.csv", ["x"], edition_id="celleval-0.8")["x"])


def test_metric_value_says_why_it_is_null():
    spec = family_metrics("celleval")["pr_auc"]
    cells = np.array([1, 1, 2])
    fine = metric_value(spec, np.ma.masked_array([0.1, 0.3, 0.5], mask=False), cells, None)
    assert (fine.value, fine.n, fine.n_total, fine.reason) == (pytest.approx(0.3), 3, 3, None)
    assert fine.cell_weighted == pytest.approx(0.35)
    undefined = metric_value(spec, np.ma.masked_array([0.1, np.nan, 0.5], mask=False), cells, None)
    assert undefined.value is None and (undefined.n, undefined.n_total) == (2, 3)
    assert "NaN for 1 of 3" in str(undefined.reason) and "0.3" in str(undefined.reason)
    nulls = metric_value(spec, np.ma.masked_array([0.1, 7.0, 0.5], mask=[0, 1, 0]), cells, None)
    assert nulls.value == pytest.approx(0.3) and nulls.n == 2
    assert "no perturbation has a value" in str(metric_value(spec, np.ma.masked_all(3), cells, None).reason)


def test_published_scores():
    """The two entries whose values and scores were published."""
    best = {"overlap_at_N": 1.0, "discrimination_score_l1": 1.0, "mae": 0.0}
    base = {"overlap_at_N": 0.106, "discrimination_score_l1": 0.514, "mae": 0.027}
    for pds, score in ((0.61, 9.3), (0.56, 5.9)):
        user = {"overlap_at_N": 0.18, "discrimination_score_l1": pds, "mae": 0.036}
        terms = from_baseline(user, base, best)
        assert [term.metric for term in terms] == ["mae", "overlap_at_N", "discrimination_score_l1"]
        assert 100 * average(terms) == pytest.approx(score, abs=0.05)
        assert terms[0].raw < 0 and terms[0].clipped == 0


@pytest.mark.parametrize(
    ("user", "base", "best", "clipped"),
    [
        (0.5, 0.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (0.5, 1.0, 1.0, 0.0),
        (1.0, 1.0, 1.0, 0.0),
        (math.nan, 0.5, 1.0, 0.0),
        (0.25, 0.5, 0.0, 0.5),
        (0.75, 0.5, 1.0, 0.5),
    ],
)
def test_terms(user, base, best, clipped):
    assert from_baseline({"m": user}, {"m": base}, {"m": best})[0].clipped == clipped


def test_metrics_without_a_best_value_are_no_terms():
    assert from_baseline({"n": 3.0}, {}, {"n": None}) == []
    assert math.isnan(average([]))


def score(sides, edition_id, profile, **references):
    edition = load_edition(edition_id)
    return score_celleval(
        sides.pred.source,
        sides.truth.source,
        edition=edition,
        profile=edition.profile(profile),
        options=ScoreOptions(references=references),
        progress=lambda *_: None,
    )


def test_overall_score_and_its_reasons(sides, tmp_path):
    assert "needs a baseline" in str(score(sides, "vcc2025", "vcc").score_reason)
    published = score(sides, "vcc2025", "vcc", baseline="published")
    assert published.score == pytest.approx(100 * (0 + (1 / 9 - 0.106) / 0.894 + (7 / 9 - 0.514) / 0.486) / 3)
    assert "published" in str(score(sides, "celleval-0.8", "vcc", baseline="published").score_reason)
    own = tmp_path / "agg.csv"
    full = score(sides, "celleval-0.8", "full")
    full.tables["agg_results"].to_csv(own, index=False)
    assert score(sides, "celleval-0.8", "de", baseline=own).score == 0.0
    pds = load_edition("vcc2025")
    only = pds.profiles["vcc"].model_copy(update={"metrics": ("mae",)})
    result = score_celleval(
        sides.pred.source,
        sides.truth.source,
        edition=pds,
        profile=only,
        options=ScoreOptions(references={"baseline": "published"}),
        progress=lambda *_: None,
    )
    assert result.score is None and "overlap_at_N" in str(result.score_reason)


def test_every_metric_of_the_editions_is_registered():
    known = family_metrics("celleval")
    assert len(known) == 28 and tuple(known) == EDITION.profile("full").metrics
    for edition in (EDITION, load_edition("vcc2025")):
        for profile in edition.profiles.values():
            assert set(profile.metrics) <= set(known)
