"""Calibration: references made of the truth's own cells, what metrics can tell apart, and the file that says so."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from core_support import split_of
from probe_support import CONTROL, Cells, options, simulated, write_truth
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.calibration.file import check_belongs, read_calibration
from vcbench.evaluator.calibration.halves import part_moments, split_parts
from vcbench.evaluator.calibration.references import REFERENCES, ReferenceMaker
from vcbench.evaluator.calibration.run import calibrate, judged
from vcbench.evaluator.cli import cli
from vcbench.evaluator.probes.rows import grouped_rows
from vcbench.evaluator.scorecard import MetricValue, ScoreCard, ScoreResult

# Metric that a replicate must win, by edition.
CLEAR = {
    "core": ("mse", "pearson_delta", "edistance"),
    "vcc2025": ("mae", "discrimination_score_l1", "overlap_at_N"),
    "celleval-0.8": ("pearson_delta", "mae"),
    "vcc2026": ("pds_cosine",),
}
PROFILES = {"celleval-0.8": "minimal"}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("cells"), cells=60)


@pytest.fixture(scope="module")
def truth(cells, tmp_path_factory):
    return write_truth(cells, tmp_path_factory.mktemp("truth") / "truth.h5ad")


def maker(truth, edition="core", *, seed=0, block_bytes=2**20, cap=None, split=None):
    source = H5ad(truth)
    chosen = replace(options(edition), block_bytes=block_bytes)
    parts = split_parts(grouped_rows(source, load_edition(edition), chosen), seed=seed, split=split)
    return ReferenceMaker(part_moments(parts), seed=seed, with_controls=edition == "vcc2025", max_log1p=cap)


def dense(source, max_bytes=2**20):
    out = np.zeros((source.n_obs, source.n_vars))
    for block in source.row_blocks(max_bytes=max_bytes):
        out[block.start : block.stop] = block.matrix.toarray()
    return out


def means(source, *, counts):
    x = dense(source)
    if counts:
        x = x / np.maximum(x.sum(axis=1, keepdims=True), 1)
    labels = source.labels("perturbation").values()
    return {name: x[labels == name].mean(axis=0) for name in sorted(set(labels))}


@pytest.mark.parametrize("edition", list(CLEAR))
def test_replicates_of_strong_effects_are_told_from_the_mean(truth, edition):
    found = calibrate(truth, edition=edition, profile=PROFILES.get(edition), options=options(edition))
    assert found.calibration_version == 1 and len(found.truth["sha256"]) == 64
    for name in CLEAR[edition]:
        metric = found.metrics[name]
        assert metric.discriminates, metric.reason
        assert all(getattr(metric, reference) is not None for reference in REFERENCES)
        assert metric.dynamic_range_fraction is None or 0 < metric.dynamic_range_fraction <= 1
        assert 0.5 < metric.bound_discrimination <= 1
    json.loads(found.to_text())


def test_without_effects_nothing_is_told_apart(cells, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.permutation(cells.labels)
    shuffled = Cells(cells.x, labels, cells.genes, cells.target_sum)
    found = calibrate(
        write_truth(shuffled, tmp_path / "noise.h5ad"),
        edition="core",
        profile="means",
        options=options("core"),
    )
    marked = {name for name in found.metrics if found.mark(name)}
    assert {"mse", "mae", "pearson_delta", "l2"} <= marked
    # A replicate of noise is noisier than the mean; the interpolated duplicate falls back to the mean.
    mse = found.metrics["mse"]
    assert mse.mean < mse.replicate and mse.interpolated_duplicate < mse.replicate
    assert found.reliability["all"]["median_reliability"] < 0.5


def test_blocks_do_not_matter_and_seeds_do(truth):
    def of(**changes):
        return calibrate(
            truth, edition="core", profile="means", options=replace(options("core"), **changes)
        ).to_text()

    first = of()
    assert of(block_bytes=20_000) == first and of() == first
    assert of(seed=1) != first


def test_halves_share_no_cell_and_are_equal_in_size(truth):
    made = maker(truth)
    parts = made.parts
    first, second = parts.rows_by_key(0), parts.rows_by_key(1)
    for key, (a, b) in enumerate(zip(first, second, strict=True)):
        assert not set(a) & set(b)
        assert len(a) + len(b) == (parts.code == key).sum() and 0 <= len(a) - len(b) <= 2
    assert dense(made.truth()).sum() + dense(made.reference("replicate")).sum() < dense(H5ad(truth)).sum()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_reads_the_same_in_any_blocks(truth, name):
    source = maker(truth).reference(name)
    whole = dense(source)
    assert np.array_equal(whole, dense(source, 5_000))
    assert np.array_equal(whole, np.floor(whole)) and (whole.sum(axis=1) > 0).all()
    wanted = np.zeros(source.n_obs, dtype=bool)
    wanted[[3, source.n_obs - 1]] = True
    for block in source.row_blocks(max_bytes=5_000, wanted=wanted):
        assert np.array_equal(block.matrix.toarray(), whole[block.start : block.stop])


def test_profiles_of_the_references_are_what_they_say(truth, cells, tmp_path):
    made = maker(truth)
    own = means(made.reference("replicate"), counts=True)
    mean, control = (means(made.reference(name), counts=True) for name in ("mean", "no_change"))
    for name in own:
        others = np.mean([own[other] for other in own if other != name], axis=0)
        # Whole numbers and silent genes allow no more.
        assert np.corrcoef(mean[name], others)[0, 1] > 0.995
        assert np.corrcoef(control[name], control[next(iter(own))])[0, 1] > 0.99
    log = Cells(cells.log1p(), cells.labels, cells.genes, cells.target_sum)
    path = tmp_path / "log1p.h5ad"
    from core_support import cell_file

    cell_file(path, log.x, list(log.labels), ["A"] * len(log.labels), log.genes, kind="log1p", target_sum=1e3)
    made = maker(path, cap=15.0)
    own, drawn = means(made.reference("replicate"), counts=False), made.reference("mean")
    found = means(drawn, counts=False)
    for name in own:
        others = np.mean([own[other] for other in own if other != name], axis=0)
        heard = found[name] > 0
        assert np.allclose(found[name][heard], others[heard], rtol=1e-5)
    assert dense(drawn).max() <= 15.0


def test_permuted_gives_everyone_the_cells_of_another(truth):
    made = maker(truth)
    own, other = (means(made.reference(name), counts=True) for name in ("replicate", "permuted"))
    for name, profile in other.items():
        (source,) = [k for k, v in own.items() if np.allclose(v, profile)]
        assert source != name
    assert sorted(map(tuple, own.values())) == sorted(map(tuple, other.values()))


def test_own_controls_are_there_only_where_the_edition_reads_them(truth):
    assert CONTROL in set(maker(truth, "vcc2025").reference("mean").labels("perturbation").values())
    assert CONTROL not in set(maker(truth).reference("mean").labels("perturbation").values())


def test_with_a_split_the_mean_is_that_of_training(truth, cells):
    names = sorted(set(cells.labels) - {CONTROL})
    split = split_of([("A", n) for n in names[:6]], [("A", n) for n in names[6:9]])
    made = maker(truth, split=split)
    everything = means(maker(truth).reference("replicate"), counts=True)
    train = np.mean([everything[name] for name in names[:6]], axis=0)
    found = means(made.reference("mean"), counts=True)
    assert sorted(found) == names[6:9]
    assert all(np.corrcoef(profile, train)[0, 1] > 0.995 for profile in found.values())
    calibration = calibrate(truth, edition="core", profile="means", split=split, options=options("core"))
    assert len(calibration.perturbations) == 3
    assert calibration.metrics["pearson_delta_perturbed_ref"].mean is not None
    # Three perturbations cannot be told apart beyond chance: every sign pattern has probability 1/8.
    assert "over 3 perturbations" in calibration.metrics["mse"].reason


def test_reliability_follows_strength_and_small_groups_are_left_out(cells, tmp_path):
    keep = np.ones(len(cells.labels), dtype=bool)
    first = sorted(set(cells.labels) - {CONTROL})[0]
    keep[np.flatnonzero(cells.labels == first)[3:]] = False
    few = Cells(cells.x[keep], cells.labels[keep], cells.genes, cells.target_sum)
    found = calibrate(
        write_truth(few, tmp_path / "few.h5ad"), edition="core", profile="means", options=options("core")
    )
    assert found.left_out == {f"A/{first}": "3 cells; halves need 4"}
    table = pd.DataFrame(found.perturbations)
    assert first not in set(table["perturbation"])
    r = table["half_correlation"].astype(float)
    assert np.allclose(
        table["reliability"].dropna().astype(float), (2 * r / (1 + r))[table["reliability"].notna()]
    )
    assert np.corrcoef(table["n_de"].astype(float), r)[0, 1] > 0.3
    assert sum(v["n"] for k, v in found.reliability.items() if k != "all") == len(table)


def result_of(values, *, better="higher", perfect=1.0, panel=False):
    table = pd.DataFrame({"context": "A", "perturbation": [f"P{i}" for i in range(len(values))]})
    if not panel:
        table["m"] = values
    value = float(np.mean(values))
    return ScoreResult(table, {"m": MetricValue(value=value, n=8, n_total=8, better=better, perfect=perfect)})


def test_range_and_discrimination_by_hand():
    low, high = np.array([0.1] * 8), np.array([0.6] * 7 + [0.0])
    results = {name: result_of(low) for name in REFERENCES} | {"interpolated_duplicate": result_of(high)}
    found = judged(results, ["m"])["m"]
    assert found.dynamic_range_fraction == pytest.approx((high.mean() - 0.1) / 0.9)
    assert found.bound_discrimination == pytest.approx(7 / 8)
    assert not found.discriminates and "no better than the mean" in found.reason
    found = judged(results | {"replicate": result_of(high)}, ["m"])["m"]
    assert found.discriminates and "p = 0.016 over 8 perturbations" in found.reason
    found = judged(results | {"replicate": result_of(high), "mean": "no gene is significant"}, ["m"])["m"]
    assert found.reason == "the mean has no value: no gene is significant" and found.mean is None
    panel = {name: result_of(low, panel=True) for name in REFERENCES} | {
        "replicate": result_of(high, panel=True)
    }
    found = judged(panel, ["m"])["m"]
    assert found.discriminates and found.bound_discrimination is None and "no test" in found.reason
    aimless = {name: result_of(low, better="none", perfect=None) for name in REFERENCES}
    assert "neither higher nor lower" in judged(aimless, ["m"])["m"].reason


def test_what_cannot_be_calibrated_says_why(truth, cells, tmp_path):
    with pytest.raises(UsageError, match="tables of differential expression"):
        calibrate(truth, edition="openproblems")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="calibrate with the real file"):
        calibrate(tmp_path / "bundle", edition="vcc2026")
    one = sorted(set(cells.labels) - {CONTROL})[0]
    keep = np.isin(cells.labels, [one, CONTROL])
    alone = Cells(cells.x[keep], cells.labels[keep], cells.genes, cells.target_sum)
    with pytest.raises(UsageError, match="no perturbation can be calibrated"):
        calibrate(write_truth(alone, tmp_path / "one.h5ad"), edition="core", options=options("core"))


def test_the_command_writes_a_file_that_is_read_back(truth, tmp_path, capsys):
    out = tmp_path / "calibration.json"
    args = ["calibrate", str(truth), "--edition", "core", "--profile", "means", "-o", str(out), "--quiet"]
    assert run(cli, [*args, "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert read_calibration(out).model_dump(mode="json") == shown
    assert run(cli, args) == 1
    assert run(cli, [*args, "--force"]) == 0
    assert "median reliability" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"calibration_version": 2}', '{"calibration_version": 1}'])
def test_an_unreadable_calibration_is_refused(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(InvalidFile) as caught:
        read_calibration(path)
    assert [issue.code for issue in caught.value.issues] == ["E731"]


@pytest.mark.parametrize(
    "change", [{"edition": "vcc2025"}, {"profile": "full"}, {"truth": {"sha256": "b" * 64}}]
)
def test_a_calibration_of_something_else_is_refused(truth, change):
    found = calibrate(truth, edition="core", profile="means", options=options("core"))
    card = ScoreCard(
        name="a",
        edition="core",
        profile="means",
        metrics={},
        inputs={"truth": {"sha256": found.truth["sha256"]}},
    )
    check_belongs(found, card, path="calibration.json")
    with pytest.raises(InvalidFile) as caught:
        check_belongs(found.model_copy(update=change), card, path="calibration.json")
    (issue,) = caught.value.issues
    assert issue.code == "E732" and next(iter(change)) in issue.message
    unknown = card.model_copy(update={"inputs": {"truth": {"sha256": None}}})
    with pytest.raises(InvalidFile):
        check_belongs(found.model_copy(update={"truth": {"sha256": None}}), unknown, path="calibration.json")
