"""The data ceiling and the mean baseline: golden numbers of the specification, rules and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from unit.evaluator.celleval_golden import LABELS, TARGETS, golden_counts, write_cells
from vcbench.data_specs.errors import InvalidFile, MetricError, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.celleval.baseline import mean_profile, write_mean_baseline
from vcbench.evaluator.celleval.ceiling import CORRECTED, data_ceiling, disjoint_halves
from vcbench.evaluator.celleval.pairing import open_alone
from vcbench.evaluator.celleval.pipeline import score_celleval
from vcbench.evaluator.celleval.rules import Rules
from vcbench.evaluator.score_options import ScoreOptions

EDITION = load_edition("celleval-0.8")
OPTIONS = ScoreOptions()
PROFILE = [1.41815555, 2.30649996, 1.81054723, 1.20796919, 1.77700472, 1.56053793, 2.31541586, 0.432470649]


@pytest.fixture
def real(tmp_path):
    with H5ad(write_cells(tmp_path / "real.h5ad", golden_counts("real"), LABELS)) as source:
        yield source


def score(pred, truth, **references):
    return score_celleval(
        pred,
        truth,
        edition=EDITION,
        profile=EDITION.profile("vcc"),
        options=ScoreOptions(references=references),
        progress=lambda *_: None,
    )


def test_golden_ceiling(real):
    ceiling = data_ceiling(real, edition=EDITION, profile=EDITION.profile("full"), options=OPTIONS)
    table = ceiling.results
    assert table["perturbation"].tolist() == list(TARGETS)
    assert table["mae"].tolist() == pytest.approx([0.275527, 0.248394, 0.372512], abs=1e-6)
    assert table["pearson_delta"].tolist() == pytest.approx([0.812726, 0.529234, 0.883551], abs=1e-6)
    assert table["overlap_at_N"].tolist() == pytest.approx([0, 0, 0.333333], abs=1e-6)
    assert ceiling.values["pearson_delta"] == pytest.approx(0.851787, abs=1e-6)
    assert ceiling.values["overlap_at_N"] == pytest.approx(0.2)
    assert math.isnan(ceiling.values["mae"]) and math.isnan(ceiling.values["pearson_edistance"])
    assert set(CORRECTED) <= set(ceiling.values)
    assert ceiling.dropped == ()


def test_halves_are_disjoint_and_reproducible(real):
    side = open_alone(real, edition=EDITION, options=OPTIONS)
    first, second, _ = disjoint_halves(side, "target_gene", 3)
    assert not ((first.groups >= 0) & (second.groups >= 0)).any()
    assert first.sizes.tolist() == second.sizes.tolist() == [5, 5, 5, 6]
    assert (side.groups[first.groups >= 0] == first.groups[first.groups >= 0]).all()
    again, _, _ = disjoint_halves(side, "target_gene", 3)
    other, _, _ = disjoint_halves(side, "target_gene", 4)
    assert (again.groups == first.groups).all() and (other.groups != first.groups).any()


def test_labels_with_one_cell_are_dropped(tmp_path):
    labels = [*LABELS[:12], "g9", *LABELS[13:]]
    with H5ad(write_cells(tmp_path / "one.h5ad", golden_counts("real"), labels)) as source:
        ceiling = data_ceiling(source, edition=EDITION, profile=EDITION.profile("vcc"), options=OPTIONS)
    assert ceiling.dropped == ("g9",)
    assert ceiling.results["perturbation"].tolist() == list(TARGETS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["non-targeting", *["g0"] * 41], "control"),
        (["non-targeting"] * 41 + ["g0"], "no perturbation"),
    ],
)
def test_nothing_to_split(tmp_path, labels, message):
    with (
        H5ad(write_cells(tmp_path / "few.h5ad", golden_counts("real"), labels)) as source,
        pytest.raises(MetricError, match=message),
    ):
        data_ceiling(source, edition=EDITION, profile=EDITION.profile("vcc"), options=OPTIONS)


def test_golden_baseline(real, tmp_path):
    side = open_alone(real, edition=EDITION, options=OPTIONS)
    np.testing.assert_allclose(mean_profile(side, Rules.of(EDITION)), PROFILE, rtol=2e-7)
    counts = {"g0": 10, "g3": 10, "g5": 10}
    path = write_mean_baseline(real, tmp_path / "base.h5ad", counts=counts, edition=EDITION, options=OPTIONS)
    with H5ad(path) as base:
        assert base.obs_names[:2].tolist() == ["p.0", "p.1"] and base.n_obs == 42
        assert base.labels("target_gene").counts() == {"g0": 10, "g3": 10, "g5": 10, "non-targeting": 12}
        scored = score(base, real)
    table = scored.per_perturbation
    assert table["overlap_at_N"].tolist() == pytest.approx([0, 0, 0.333333333])
    assert table["mae"].tolist() == pytest.approx([0.39310956, 0.436606765, 0.48748064], abs=1e-6)
    assert table["discrimination_score_l1"].tolist() == pytest.approx([1, 1, 0.666666667])
    aggregate = tmp_path / "agg_results.csv"
    scored.tables["agg_results"].to_csv(aggregate, index=False)
    with H5ad(write_cells(tmp_path / "pred.h5ad", golden_counts("pred"), LABELS)) as pred:
        result = score(pred, real, baseline=aggregate)
    assert result.score == 0.0
    assert result.tables["from_baseline"]["from_baseline"].tolist() == [0.0] * 4


def test_baseline_counts(real, tmp_path):
    path = write_mean_baseline(real, tmp_path / "all.h5ad", counts=None, edition=EDITION, options=OPTIONS)
    with H5ad(path) as base:
        assert base.labels("target_gene").counts()["g3"] == 10
    new = {"non-targeting": 5, "other": 3}
    path = write_mean_baseline(real, tmp_path / "new.h5ad", counts=new, edition=EDITION, options=OPTIONS)
    with H5ad(path) as base:
        assert base.labels("target_gene").counts() == {"other": 3, "non-targeting": 12}
    with pytest.raises(UsageError, match="at least one cell"):
        write_mean_baseline(real, tmp_path / "no.h5ad", counts={"a": 0}, edition=EDITION, options=OPTIONS)
    assert not (tmp_path / "no.h5ad").exists()


@pytest.mark.parametrize(
    ("options", "code"), [(ScoreOptions(pert_col="absent"), "E567"), (ScoreOptions(control="absent"), "E569")]
)
def test_files_that_cannot_be_used_alone(real, options, code):
    with pytest.raises(InvalidFile) as caught:
        open_alone(real, edition=EDITION, options=options)
    assert [issue.code for issue in caught.value.issues] == [code]


def test_other_problems_of_a_file_alone(tmp_path):
    x = golden_counts("real")
    x[0, 0] = np.nan
    with (
        H5ad(write_cells(tmp_path / "nan.h5ad", x, LABELS)) as source,
        pytest.raises(InvalidFile, match="E571"),
    ):
        open_alone(source, edition=EDITION, options=OPTIONS)
    only = ["non-targeting"] * 42
    with (
        H5ad(write_cells(tmp_path / "only.h5ad", golden_counts("real"), only)) as source,
        pytest.raises(InvalidFile, match="E576"),
    ):
        open_alone(source, edition=EDITION, options=OPTIONS)
