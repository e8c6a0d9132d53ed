"""Scoring rules, edge cases, storage, contexts, bundles, commands and the platform import of edition vcc2026."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
import scipy.sparse as sp
from scoring_rules import CASES, arms, changed, rename, set_value, with_contexts
from vcbench.data_specs.errors import InvalidFile, MetricError, SpecError, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.issues import catalogue
from vcbench.data_specs.memory_source import MemorySource
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.profiles import resolve_profile
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.vcc2026.anchors import group_order, replicate_anchor
from vcbench.evaluator.vcc2026.baselines import context_mean, generic_response
from vcbench.evaluator.vcc2026.bulks import measure_bulks
from vcbench.evaluator.vcc2026.cells import Cells
from vcbench.evaluator.vcc2026.de import de_table
from vcbench.evaluator.vcc2026.fingerprints import perturbations_fingerprint, source_fingerprint
from vcbench.evaluator.vcc2026.panel import Columns, read_truth
from vcbench.evaluator.vcc2026.parameters import check_parameters
from vcbench.evaluator.vcc2026.pipeline import score_vcc2026
from vcbench.evaluator.vcc2026.sides import measure_real
from vcbench.evaluator.vcc2026.targets import TargetRule
from vcc2026_panels import CONTROL, annotated, random_panel, write

EDITION = load_edition("vcc2026")
COLUMNS = Columns("target", CONTROL, "context")
OPTIONS = ScoreOptions(pert_col="target")


def run(pred=None, real=None, *, profile="vcc2026", **options):
    return score_vcc2026(
        MemorySource(arms()["pred"] if pred is None else pred, name="pred"),
        MemorySource(arms()["real"] if real is None else real, name="real"),
        edition=EDITION,
        profile=resolve_profile(EDITION, profile),
        options=ScoreOptions(**{"pert_col": "target", **options}),
        progress=lambda *_: None,
    )


def values(result):
    return {name: value.value for name, value in result.metrics.items()}


@pytest.mark.parametrize("case", CASES, ids=[f"{c.rule} {c.name}".strip() for c in CASES])
def test_every_scoring_rule_has_a_coded_issue(case):
    broken = changed(case.arm, case.edit)
    with pytest.raises(InvalidFile) as caught:
        run(**{case.arm: broken})
    issue = next(i for i in caught.value.issues if i.code == case.code)
    if case.rule:
        assert f"2026:{case.rule}" in catalogue()[case.code].rules
    # A label or context too many in the truth is one that the prediction lacks.
    at = "pred" if case.code in ("E583", "E591") else case.arm
    assert issue.where.startswith(at) and issue.found and issue.expected
    assert issue.fix.startswith("vcbench ")


def test_every_rule_of_counts_is_in_the_table():
    """S08 and S10 are about files declared log-normalised, which edition vcc2026 does not take."""
    assert {f"S{i:02d}" for i in range(1, 11)} - {case.rule for case in CASES} == {"S08", "S10"}


def test_problems_of_a_file_are_reported_together():
    def edit(adata):
        set_value(-1.5)(adata)
        rename({"G3": "G4"})(adata)

    with pytest.raises(InvalidFile) as caught:
        run(pred=changed("pred", edit))
    assert {issue.code for issue in caught.value.issues} == {"E583", "E585", "E586"}


@pytest.mark.parametrize("arm", ["pred", "real"])
@pytest.mark.parametrize("is_control", [True, False])
@pytest.mark.parametrize(
    ("code", "value"), [("E585", -1), ("E586", 0.5), ("E587", 1_000_001), ("E588", np.inf)]
)
def test_values_of_every_row_are_checked_whichever_pass_reads_them(arm, is_control, code, value):
    def edit(adata):
        row = np.flatnonzero((adata.obs["target"] == CONTROL).to_numpy() == is_control)[-1]
        x = adata.X.toarray().astype(np.float64)
        x[row, 2] = value
        adata.X = sp.csr_matrix(x)

    with pytest.raises(InvalidFile) as caught:
        run(**{arm: changed(arm, edit)})
    assert [issue.code for issue in caught.value.issues] == [code]


@pytest.mark.parametrize(("value", "accepted"), [(3.0000005, True), (2.9999995, True), (3.00001, False)])
def test_whole_numbers_have_a_small_tolerance(value, accepted):
    pred = changed("pred", set_value(value))
    if accepted:
        assert run(pred=pred).metrics["pds_cosine"].value is not None
    else:
        with pytest.raises(InvalidFile, match="E586"):
            run(pred=pred)


def test_a_million_counts_are_accepted():
    pred = changed("pred", set_value(0))
    rest = float(pred.X[0].sum())
    assert run(pred=changed("pred", set_value(1_000_000 - rest))).metrics["pds_cosine"].n == 4


# ---- what must not change results ----


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.toarray(),
        lambda x: sp.csc_matrix(x),
        lambda x: sp.csr_matrix(x.astype(np.int64)),
        lambda x: x.toarray().astype(np.uint8),
        lambda x: sp.csr_matrix(x.astype(np.float64)),
    ],
    ids=["dense", "csc", "int64", "uint8", "float64"],
)
def test_storage_and_dtype_do_not_matter(form):
    pred, real = arms()["pred"].copy(), arms()["real"].copy()
    pred.X, real.X = form(pred.X), form(real.X)
    assert values(run(pred=pred, real=real, profile="full")) == values(run(profile="full"))


def test_block_size_and_threads_do_not_matter():
    whole = values(run(profile="full"))
    assert values(run(profile="full", block_bytes=700)) == whole
    assert values(run(profile="full", threads=1)) == whole


def test_column_budget_does_not_matter():
    truth = read_truth(MemorySource(arms()["real"]), COLUMNS, OPTIONS)[0]
    bulks = measure_bulks([truth.cells], 5, 60)
    shared = {"n_cells": bulks.n_cells, "mean_cpm": bulks.mean_cpm}
    one = de_table([truth.cells], **shared)
    many = de_table([truth.cells], **shared, budget_bytes=1)
    assert np.array_equal(one.p_value, many.p_value) and np.array_equal(one.p_adj, many.p_adj)


def test_order_of_cells_does_not_matter_and_inputs_stay():
    order = np.random.default_rng(0).permutation(arms()["pred"].n_obs)
    before = arms()["pred"].X.copy()
    shuffled = values(run(pred=arms()["pred"][order].copy()))
    assert shuffled == {name: pytest.approx(v, rel=1e-12) for name, v in values(run()).items()}
    assert (before != arms()["pred"].X).nnz == 0


def test_predicted_controls_are_left_out_and_may_be_missing():
    full = run()
    assert any("control cells of the prediction were left out" in note for note in full.notes)
    pred = arms()["pred"]
    assert values(run(pred=pred[pred.obs["target"] != CONTROL].copy())) == values(full)


# ---- the jackknife ----


def direct_noise(x, target_sum=5e4):
    sums, n = x.sum(axis=0), len(x)
    total = sums.sum()
    if n < 2 or total <= 0:
        return 0.0
    rest = total - x.sum(axis=1)
    v = np.zeros_like(x)
    some = rest > 0
    v[some] = np.log1p(target_sum * (sums - x[some]) / rest[some, None])
    v -= np.log1p(sums * (target_sum / total))
    return max((n - 1) / n * ((v**2).sum(axis=0) - v.sum(axis=0) ** 2 / n).sum(), 0.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: rng.poisson(rng.gamma(0.5, 4.0, 30), (200, 30)),
        lambda rng: rng.poisson(2.0, (7, 30)),
        lambda rng: np.vstack([rng.poisson(2.0, (80, 30)), np.full((1, 30), 900)]),
        lambda rng: np.vstack([np.eye(1, 30, 3) * 7, np.zeros((4, 30))]),
        lambda rng: np.vstack([rng.poisson(3.0, (1, 30))]),
        lambda rng: np.zeros((3, 30)),
    ],
    ids=["series", "few_cells", "one_dominates", "one_cell_has_all", "one_cell", "empty"],
)
def test_noise_equals_the_direct_jackknife(make):
    x = make(np.random.default_rng(5)).astype(float)
    adata = annotated(x, ["p"] * len(x), tuple(f"g{i}" for i in range(30)))
    bulks = measure_bulks([Cells(MemorySource(adata), np.zeros(len(x), np.int64))], 1, 30)
    assert bulks.noise[0] == pytest.approx(direct_noise(x), rel=1e-11, abs=1e-13)


def test_equal_cells_have_no_noise():
    adata = annotated(np.tile(np.arange(1, 11.0), (50, 1)), ["p"] * 50, tuple(f"g{i}" for i in range(10)))
    bulks = measure_bulks([Cells(MemorySource(adata), np.zeros(50, np.int64))], 1, 10)
    assert bulks.noise[0] == pytest.approx(0.0, abs=1e-15)


def test_control_gate_is_strict():
    x = np.zeros((4, 3))
    x[:, 0], x[:, 1] = 5, 6
    x[:, 2] = 1_000_000 - 11
    adata = annotated(x, ["p", "p", CONTROL, CONTROL], ("five", "six", "rest"))
    cells = Cells(MemorySource(adata), np.array([0, 0, 1, 1]))
    bulks = measure_bulks([cells], 2, 3)
    assert de_table([cells], n_cells=bulks.n_cells, mean_cpm=bulks.mean_cpm).genes.tolist() == [1, 2]


# ---- contexts ----


def test_contexts_are_scored_apart_and_averaged():
    both = run(pred=with_contexts("pred"), real=with_contexts("real"))
    first, second = values(run()), values(run(pred=random_panel(11)["pred"], real=random_panel(11)["real"]))
    for name, value in both.metrics.items():
        assert value.value == pytest.approx((first[name] + second[name]) / 2, rel=1e-12), name
        assert both.strata["context=A"][name].value == pytest.approx(first[name], rel=1e-12)
    assert sorted(set(both.per_perturbation["context"])) == ["A", "B"]
    assert both.tables["leaderboard"]["context"].tolist() == ["A", "B", "mean"]


def test_one_context_of_a_larger_entry_can_be_scored():
    real = arms()["real"].copy()
    real.obs["context"] = "A"
    assert values(run(pred=with_contexts("pred"), real=real)) == values(run())


# ---- options and refusals ----


def test_target_options():
    plain = values(run())
    none = values(run(no_target_genes=True))
    assert none["de_wilcoxon_sig_jaccard"] != plain["de_wilcoxon_sig_jaccard"]
    named = run(target_map={label: label for label in ("G0", "G3", "G6")} | {"Z9": None})
    assert values(named) == plain
    assert any("'Z9'" in note for note in run().notes) and not any("Z9" in note for note in named.notes)
    renamed = rename({"G0": "G0-1", "G3": "G3-1", "G6": "G6-1"})
    with pytest.raises(MetricError, match="--target-map"):
        run(pred=changed("pred", renamed), real=changed("real", renamed))


def test_options_that_this_edition_does_not_have():
    with pytest.raises(UsageError, match="raw counts"):
        run(matrix="log1p")


def test_an_edition_with_other_parameters_is_refused():
    scoring = EDITION.scoring.model_copy(update={"parameters": EDITION.scoring.parameters | {"alpha": 0.1}})
    with pytest.raises(SpecError, match=r"alpha is 0\.1"):
        check_parameters(EDITION.model_copy(update={"scoring": scoring}))
    check_parameters(EDITION)


def test_a_metric_that_cannot_be_computed_fails_the_run():
    noise = np.random.default_rng(0).poisson(0.3, (120, 40)).astype(float)
    noise[:, 0] += 1
    labels = [f"G{i % 3}" if i < 60 else CONTROL for i in range(120)]
    adata = annotated(noise, labels, tuple(f"G{i}" for i in range(40)))
    with pytest.raises(MetricError, match="no further from control than noise"):
        run(pred=adata, real=adata)


def test_exact_copy_of_the_truth():
    copy = values(run(pred=arms()["real"], profile="full"))
    assert copy["expr_mse_unbiased_capped_norm"] < 0 and copy["pds_cosine"] == 1.0
    for name, perfect in (("sig_jaccard", 1), ("direction_reach_raw", 1), ("lfc_nmae", 0), ("sig_recall", 1)):
        assert copy[f"de_wilcoxon_{name}"] == perfect


# ---- anchors and baselines ----


def test_anchors_need_two_cells_of_each_label():
    real = arms()["real"]
    keep = np.flatnonzero((real.obs["target"] != "G3").to_numpy())
    one = np.flatnonzero((real.obs["target"] == "G3").to_numpy())[:1]
    truth = read_truth(MemorySource(real[np.sort(np.r_[keep, one])].copy()), COLUMNS, OPTIONS)[0]
    full = measure_real(truth, need_de=True)
    with pytest.raises(InvalidFile, match="E595"):
        replicate_anchor(
            truth, full, ("pds_cosine",), TargetRule(), order=group_order(truth, "target", CONTROL)
        )


def test_generic_response_leaves_out_own_genes():
    truth = read_truth(MemorySource(arms()["real"]), COLUMNS, OPTIONS)[0]
    real = measure_real(truth, need_de=False)
    x, labels = arms()["real"].X.toarray().astype(float), arms()["real"].obs["target"].to_numpy()
    means = {label: x[labels == label].mean(axis=0) for label in ("G0", "G3", "G6", "Z9")}
    found = generic_response(real, TargetRule())
    assert found.profile[0] == pytest.approx(np.mean([means[k][0] for k in ("G3", "G6", "Z9")]))
    assert found.profile[1] == pytest.approx(np.mean([m[1] for m in means.values()]))
    assert found.facts == {"n_perturbations": 4, "n_excluded": 3}
    everyone = context_mean(real, TargetRule(), min_cells=1, max_residual=1e9)
    assert everyone.profile == pytest.approx(np.mean(list(means.values()), axis=0))
    with pytest.raises(MetricError, match="no perturbation has 1000 cells"):
        context_mean(real, TargetRule(), min_cells=1000)


# ---- fingerprints ----


def test_fingerprints_see_content_not_category_order(tmp_path):
    memory = MemorySource(arms()["real"])
    with H5ad(write(arms()["real"], tmp_path / "real.h5ad")) as file:
        for strict in (True, False):
            assert source_fingerprint(file, "target", strict=strict) == source_fingerprint(
                memory, "target", strict=strict, block_bytes=900
            )
    dense = arms()["real"].copy()
    dense.X = dense.X.toarray()
    assert source_fingerprint(MemorySource(dense), "target") != source_fingerprint(memory, "target")
    loose = source_fingerprint(MemorySource(dense), "target", strict=False)
    assert loose == source_fingerprint(memory, "target", strict=False)
    expected = "sha256:" + sha256(b"A\nB").hexdigest()
    assert perturbations_fingerprint(["B", "A ", "", "B"]) == expected
