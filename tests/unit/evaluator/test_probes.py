"""Single probes, marks and flags, inputs of every kind, and the command."""

import json

import anndata as ad
import numpy as np
import pytest
from probe_support import CONTROL, halves, informative, options, report, simulated, write_entry, write_truth
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import SpecError, UnknownName, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.cli import cli
from vcbench.evaluator.cli_probe import parse_probes
from vcbench.evaluator.probes import expectations
from vcbench.evaluator.probes.expectations import Expectation, verdict
from vcbench.evaluator.probes.judge import flags, marks
from vcbench.evaluator.probes.registry import Change, NotApplicable, all_probes, choose_probes
from vcbench.evaluator.probes.rows import grouped_rows
from vcbench.evaluator.probes.run import _examine, _Run, probe_entry
from vcbench.evaluator.probes.truth import facts_of_cells
from vcbench.evaluator.probes.writing import write_changed
from vcbench.evaluator.score_options import ScoreOptions


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Truth and entry: `truth`, `counts`, `log1p` and `mean` files, and the cells behind them."""
    folder = tmp_path_factory.mktemp("files")
    truth, replicate = halves(simulated(folder, genes=60, cells=24))
    entry = informative(truth, replicate)
    paths = {"truth": write_truth(truth, folder / "truth.h5ad")}
    for form in ("counts", "log1p", "mean"):
        paths[form] = write_entry(entry, folder / f"{form}.h5ad", edition="core", form=form)
    return paths, truth, entry


_STAGES: dict[tuple, tuple] = {}


def stage_of(files, form, block_bytes):
    """The opened entry and its stage, made once per form and size of blocks."""
    key = (files[0][form], block_bytes)
    if key not in _STAGES:
        rules = load_edition("core")
        chosen = ScoreOptions(**{**vars(options("core")), "block_bytes": block_bytes})
        grouped = grouped_rows(H5ad(files[0][form]), rules, chosen)
        with H5ad(files[0]["truth"]) as truth:
            facts = facts_of_cells(truth, grouped, rules, chosen)
        _STAGES[key] = grouped, _examine(grouped, facts, _Run(rules, None, chosen, None)).stage
    return _STAGES[key]


@pytest.fixture(scope="module", autouse=True)
def closed_entries():
    """Close what `stage_of` opened."""
    yield
    for grouped, _ in _STAGES.values():
        grouped.source.close()
    _STAGES.clear()


def changed(files, tmp_path, name, *, form="counts", block_bytes=2**20):
    """The rows and labels of the entry after one probe, or why it does not apply."""
    grouped, stage = stage_of(files, form, block_bytes)
    change = choose_probes((name,))[0].apply(stage)
    if isinstance(change, NotApplicable):
        return change
    write_changed(grouped, change, tmp_path / "changed.h5ad")
    data = ad.read_h5ad(tmp_path / "changed.h5ad")
    x = data.X if isinstance(data.X, np.ndarray) else data.X.toarray()
    return x, data.obs["perturbation"].astype(str).to_numpy(), data


def before(files, form="counts"):
    data = ad.read_h5ad(files[0][form])
    x = data.X if isinstance(data.X, np.ndarray) else data.X.toarray()
    return x, data.obs["perturbation"].astype(str).to_numpy(), data


@pytest.mark.parametrize("name", list(all_probes()))
@pytest.mark.parametrize("form", ["counts", "log1p", "mean"])
def test_a_changed_entry_keeps_its_form_and_does_not_depend_on_blocks(files, tmp_path, name, form):
    found = changed(files, tmp_path, name, form=form)
    if isinstance(found, NotApplicable):
        assert found.reason
        return
    x, labels, data = found
    old, old_labels, original = before(files, form)
    assert x.shape == old.shape and list(data.var_names) == list(original.var_names)
    assert list(data.obs_names) == list(original.obs_names)
    assert data.uns["vcbench"]["matrix"] == original.uns["vcbench"]["matrix"]
    assert np.isfinite(x).all() and (x >= 0).all()
    if form == "counts" and name != "log-twice":
        assert (x == np.rint(x)).all()
    small, small_labels, _ = changed(files, tmp_path, name, form=form, block_bytes=4096)
    np.testing.assert_array_equal(small, x)
    np.testing.assert_array_equal(small_labels, labels)
    controls = old_labels == CONTROL
    if name not in ("log-twice", "depth-x4", "control-twist"):
        np.testing.assert_array_equal(x[controls], old[controls])
    elif form != "mean":
        assert (x[controls] != old[controls]).any()


def test_scaling_multiplies_the_mean_effects(files, tmp_path):
    old, labels, _ = before(files, "log1p")
    control = files[1].log1p()[files[1].labels == CONTROL].mean(axis=0)
    for name, factor in (("scale-0.25", 0.25), ("scale-10", 10.0), ("sign-flip", -1.0)):
        x, _, _ = changed(files, tmp_path, name, form="log1p")
        for label in sorted(set(labels) - {CONTROL}):
            mean = old[labels == label].mean(axis=0)
            wanted = np.clip(control + factor * (mean - control), 0, None)
            loud = mean > 0
            np.testing.assert_allclose(
                x[labels == label].mean(axis=0)[loud], wanted[loud], rtol=2e-5, atol=1e-5
            )
            assert (x[labels == label][:, ~loud] == 0).all()


def test_mean_profiles_are_scaled_exactly(files, tmp_path):
    old, _, _ = before(files, "mean")
    control = files[1].log1p()[files[1].labels == CONTROL].mean(axis=0)
    x, _, _ = changed(files, tmp_path, "scale-4", form="mean")
    np.testing.assert_allclose(x, np.clip(control + 4 * (old - control), 0, None), rtol=2e-5, atol=1e-5)


def test_counts_keep_their_depth_when_effects_are_scaled(files, tmp_path):
    old, labels, _ = before(files)
    x, _, _ = changed(files, tmp_path, "scale-4")
    perturbed = labels != CONTROL
    np.testing.assert_allclose(x[perturbed].sum(axis=1), old[perturbed].sum(axis=1), rtol=0.05)


def test_shuffled_labels_leave_no_perturbation_in_place(files, tmp_path):
    old, old_labels, _ = before(files)
    x, labels, _ = changed(files, tmp_path, "label-shuffle")
    np.testing.assert_array_equal(x, old)
    perturbed = old_labels != CONTROL
    assert (labels[perturbed] != old_labels[perturbed]).all() and set(labels) == set(old_labels)
    assert len({(a, b) for a, b in zip(old_labels, labels, strict=True)}) == len(set(labels))


def test_cells_are_tiled_repeated_and_inflated(files, tmp_path):
    old, labels, _ = before(files, "log1p")
    first = sorted(set(labels) - {CONTROL})[0]
    group = labels == first
    tiled = changed(files, tmp_path, "tiled-cells", form="log1p")[0][group]
    np.testing.assert_allclose(tiled, np.tile(old[group].mean(axis=0), (group.sum(), 1)), rtol=1e-5)
    repeated = changed(files, tmp_path, "repeated-cells", form="log1p")[0][group]
    np.testing.assert_array_equal(repeated, old[group][np.arange(group.sum()) % 5])
    inflated = changed(files, tmp_path, "variance-inflation", form="counts")[0]
    counts = before(files)[0]
    assert ((inflated[group] == 0) | (inflated[group] == 2 * counts[group])).all()
    # Along the cells that express a gene, doubling and dropping take turns, so that the sum is nearly kept.
    for gene in range(counts.shape[1]):
        expressed = counts[group][:, gene] > 0
        kept = inflated[group][expressed, gene] > 0
        assert (kept[1:] != kept[:-1]).all()


def test_depth_is_exact_for_counts_and_logs_are_taken_again(files, tmp_path):
    counts = before(files)[0]
    np.testing.assert_array_equal(changed(files, tmp_path, "depth-x4")[0], 4 * counts)
    logs = before(files, "log1p")[0]
    np.testing.assert_allclose(
        changed(files, tmp_path, "log-twice", form="log1p")[0], np.log1p(logs), rtol=1e-6
    )


def test_spikes_reach_other_targets_only(files, tmp_path):
    old, labels, data = before(files, "log1p")
    x, _, _ = changed(files, tmp_path, "target-spike", form="log1p")
    targets = sorted(set(labels) - {CONTROL})
    place = [list(data.var_names).index(target) for target in targets]
    others = np.setdiff1d(np.arange(old.shape[1]), place)
    np.testing.assert_array_equal(x[:, others], old[:, others])
    group = labels == targets[0]
    np.testing.assert_array_equal(x[group][:, place[0]], old[group][:, place[0]])
    assert (x[group][:, place[1:]].mean(axis=0) > old[group][:, place[1:]].mean(axis=0) + 1).all()


def test_probes_that_do_not_apply_say_why(files, tmp_path):
    assert "no cells" in changed(files, tmp_path, "tiled-cells", form="mean").reason
    assert "control rows" in changed(files, tmp_path, "control-twist", form="mean").reason
    assert isinstance(choose_probes(("scale-4",))[0].apply, type(lambda: None))
    with pytest.raises(UnknownName, match="scale-4"):
        choose_probes(("scale-5",))


def test_every_probe_is_documented():
    for item in all_probes().values():
        assert item.text.endswith(".") and len(item.text) > 20 and item.documented
        assert bool(item.caught_by) == (item.kind == "exploit")
    assert Change().labels is None


def test_marks_of_no_change_and_of_equal_profiles(files, tmp_path):
    truth = files[1]
    rng = np.random.default_rng(0)
    control = truth.x[truth.labels == CONTROL]
    x, labels = [], []
    for label in sorted(set(truth.labels) - {CONTROL}):
        x.append(control[rng.choice(len(control), 12)])
        labels += [label] * 12
    copied = type(truth)(np.concatenate(x), np.array(labels, dtype=object), truth.genes, truth.target_sum)
    found = report(tmp_path / "a", copied, truth, edition="core", form="counts", probes=())
    assert {"copied-controls", "all-alike"} <= {mark.name for mark in found.marks}
    assert found.flags == () and found.rows == () and found.outcomes == ()
    found = report(tmp_path / "b", copied, truth, edition="core", form="mean", probes=())
    mean = np.tile(truth.x[truth.labels != CONTROL].mean(axis=0), (len(labels), 1))
    same = type(truth)(mean, copied.labels, truth.genes, truth.target_sum)
    found = report(tmp_path / "c", same, truth, edition="core", form="mean", probes=())
    assert {"all-alike", "mode-collapse"} <= {mark.name for mark in found.marks} and found.flags == ()


def test_an_object_in_memory_gives_the_same_report_and_stays_as_it_was(files):
    entry = ad.read_h5ad(files[0]["counts"])
    kept = entry.X.copy()
    chosen = {"edition": "core", "options": options("core"), "probes": ("scale-4", "label-shuffle")}
    ours = probe_entry(entry, files[0]["truth"], **chosen)
    theirs = probe_entry(files[0]["counts"], files[0]["truth"], **chosen)
    assert ours.rows == theirs.rows and ours.diagnostics == theirs.diagnostics
    assert (kept != entry.X).nnz == 0


def test_tables_are_not_probed(files):
    with pytest.raises(UsageError, match="tables"):
        probe_entry(files[0]["counts"], files[0]["truth"], edition="openproblems")


@pytest.mark.parametrize("edition", ["vcc2026", "celleval-0.8"])
def test_a_truth_bundle_gives_the_same_rows(files, tmp_path, edition):
    from vcbench.evaluator.truth import build_truth

    names = {"pert_col": "perturbation", "control": CONTROL}
    if edition == "vcc2026":
        build_truth(
            files[0]["truth"],
            tmp_path / "b",
            edition=edition,
            context_col="context",
            anchor=False,
            min_cells=5,
            max_residual=1.0,
            **names,
        )
    else:
        build_truth(files[0]["truth"], tmp_path / "b", edition=edition, ceiling=False, **names)
    chosen = {"edition": edition, "options": options(edition), "probes": ("scale-10",)}
    with_bundle = probe_entry(files[0]["counts"], tmp_path / "b", **chosen)
    with_cells = probe_entry(files[0]["counts"], files[0]["truth"], **chosen)
    values = [
        {(row.probe, row.metric): (row.before, row.after) for row in found.rows if row.metric != "score"}
        for found in (with_bundle, with_cells)
    ]
    assert values[0].keys() == values[1].keys()
    for key, (old, new) in values[1].items():
        close = edition == "vcc2026"
        if old is None or not close:
            continue
        assert values[0][key] == pytest.approx((old, new), rel=0.3, abs=0.3)
    assert with_bundle.truth["sha256"] != with_cells.truth["sha256"]
    assert "amplified-effects" in {flag.name for o in with_bundle.outcomes for flag in o.flags}


def test_flags_and_marks_follow_their_limits():
    quiet = {
        "effect_size": {"ratio": 1.0},
        "mode_collapse": {"mean_correlation": 0.5, "truth_mean_correlation": 0.4, "spread_ratio": 0.9},
        "library_size": {"ratio": 1.0, "profile_ratio": 1.0},
        "variance": {"ratio": 1.0},
        "significant_genes": {"mean_share": 0.1, "truth_mean_share": 0.1},
        "cells": {"flat_share": 0.0, "distinct_share": 1.0, "copied_control_share": 0.0},
        "target_genes": {"n": 5, "index": 1.0, "truth_index": 1.0},
        "controls": {"shift_ratio": 0.1},
    }
    assert flags(quiet, {}) == [] and marks(quiet) == []
    loud = {
        "amplified-effects": ("effect_size", "ratio", 2.5),
        "implausible-depth": ("library_size", "ratio", 0.4),
        "inflated-variance": ("variance", "ratio", 3.0),
        "significant-genes-out-of-range": ("significant_genes", "mean_share", 0.9),
        "target-spikes": ("target_genes", "index", 9.0),
        "twisted-controls": ("controls", "shift_ratio", 0.9),
    }
    for name, (part, key, value) in loud.items():
        found = {**quiet, part: {**quiet[part], key: value}}
        assert [flag.name for flag in flags(found, {})] == [name]
    found = {**quiet, "effect_size": {"ratio": 3.0}}
    assert "pds_cosine at 0.990" in flags(found, {"pds_cosine": 0.99})[0].evidence
    tiled = {**quiet, "cells": {**quiet["cells"], "flat_share": 1.0}}
    tiled["significant_genes"] = {"mean_share": 0.9, "truth_mean_share": 0.1}
    assert flags(tiled, {}) == [] and [mark.name for mark in marks(tiled)] == ["tiled-cells"]
    unknown = {part: dict.fromkeys(values) for part, values in quiet.items()}
    assert flags(unknown, {}) == [] and marks(unknown) == []


def test_verdicts():
    up = Expectation("up", "why", ("slope < 1.5",), 0.01)
    ok = {"slope": 1.0}
    judge = {"perfect": 1.0, "better": "higher"}
    assert verdict(up, ok, 0.5, 0.6, **judge) == ("up", True)
    assert verdict(up, ok, 0.5, 0.505, **judge) == ("up", False)
    assert verdict(up, ok, 1.0, 1.0, **judge) == ("up", None)
    assert verdict(up, {"slope": 2.0}, 0.5, 0.6, **judge) == (None, None)
    assert verdict(up, {"slope": None}, 0.5, 0.6, **judge) == (None, None)
    assert verdict(up, ok, None, 0.6, **judge) == (None, None)
    down = Expectation("down", "why")
    assert verdict(down, ok, 0.0, 0.0, **judge) == ("down", None)
    assert verdict(Expectation(None, "why"), ok, 0.0, 1.0, **judge) == (None, None)
    good = {"editions": ["core"], "probes": ["*"], "metrics": ["*"], "expected": "up", "reason": "x"}
    for broken in ({"expected": "sideways"}, {"needs": ["slope"]}, {"needs": ["weight > 1"]}, {"colour": 1}):
        with pytest.raises(SpecError):
            expectations._row({**good, **broken})


def test_the_command_prints_json_and_a_table(files, tmp_path, capsys):
    line = ["probe", str(files[0]["mean"]), "--truth", str(files[0]["truth"]), "--edition", "core"]
    line += ["--profile", "means", "--probes", "scale-10,sign-flip", "--quiet"]
    out = tmp_path / "probes.json"
    assert run(cli, [*line, "-o", str(out), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(out.read_text())
    assert found["probes_version"] == 1 and found["edition"] == "core" and found["profile"] == "means"
    assert len(found["truth"]["sha256"]) == 64
    keys = {"probe", "metric", "before", "after", "change", "expected", "as_expected"}
    assert all(keys <= set(row) for row in found["rows"])
    assert {row["expected"] for row in found["rows"]} <= {"up", "down", "same", None}
    assert found["flags"] == [] and set(found["diagnostics"]) >= {"effect_size", "mode_collapse"}
    assert run(cli, line) == 0
    text = capsys.readouterr().out
    assert "sign-flip" in text and "flags: none" in text
    assert run(cli, [*line[:-3], "--probes", "nothing"]) == 2
    assert not list(files[0]["mean"].parent.glob(".vcbench-tmp-*"))
    assert parse_probes(None) is None and parse_probes("none") == () and parse_probes("a,b") == ("a", "b")


def test_a_file_that_the_edition_refuses_after_a_probe_is_a_row_without_value(files):
    found = probe_entry(
        files[0]["counts"],
        files[0]["truth"],
        edition="core",
        options=options("core"),
        probes=("log-twice",),
    )
    assert all(row.after is None and row.reason.startswith("refused") for row in found.rows)
    assert found.outcomes[0].caught


@pytest.mark.slow
def test_no_simple_baseline_is_flagged(tmp_path):
    from vcbench.baselines.suite import run_suite
    from vcbench.data_specs.simulate import simulate_dataset
    from vcbench.data_specs.simulate_model import SimulationSpec
    from vcbench.data_specs.splits import draw_split
    from vcbench.data_specs.splits.labels_table import read_labels

    data = tmp_path / "sim.h5ad"
    simulate_dataset(data, SimulationSpec(genes=300, singles=30, doubles=20, cells=60, controls=200), seed=1)
    split = draw_split(read_labels(data), "gears-simulation", seed=1)
    seen = {}
    for entry in run_suite(data, split, tmp_path / "suite"):
        if entry.prediction is None:
            continue
        found = probe_entry(entry.prediction, data, edition="core", split=split, probes=())
        seen[entry.label] = {mark.name for mark in found.marks}
        assert found.flags == (), entry.label
    assert "all-alike" in seen["mean"] and "no-change" in seen["no-change"]
    assert {"additive", "linear"} <= set(seen)


def test_the_overall_score_is_a_row_where_the_edition_has_one(files):
    chosen = ScoreOptions(**{**vars(options("vcc2025")), "references": {"baseline": "published"}})
    found = probe_entry(
        files[0]["log1p"], files[0]["truth"], edition="vcc2025", options=chosen, probes=("label-shuffle",)
    )
    score = next(row for row in found.rows if row.metric == "score")
    assert score.before is not None and score.change == score.after - score.before and score.expected is None


def test_contexts_in_one_file_or_in_one_each_are_probed_alike(files, tmp_path):
    from core_support import cell_file, draw_cells

    genes = [f"G{i:03d}" for i in range(30)]
    rng = np.random.default_rng(3)
    sizes = {(c, p): 20 for c in ("A", "B") for p in ("control", "G001", "G002", "G003")}
    x, labels, contexts = draw_cells(rng, sizes, len(genes))
    both = cell_file(tmp_path / "both.h5ad", x, labels, contexts, genes)
    parts = {}
    for context in ("A", "B"):
        rows = [i for i, place in enumerate(contexts) if place == context]
        chosen = [labels[i] for i in rows]
        parts[context] = cell_file(
            tmp_path / f"{context}.h5ad", x[rows], chosen, [context] * len(rows), genes
        )
    noisy = rng.binomial(x.astype(int), 0.7).astype(float) + 1
    entry = cell_file(tmp_path / "entry.h5ad", noisy, labels, contexts, genes)
    chosen = {"edition": "core", "options": options("core"), "probes": ("scale-4", "label-shuffle")}
    joined = probe_entry(entry, parts, **chosen)
    one = probe_entry(entry, both, **chosen)
    assert joined.rows == one.rows and joined.diagnostics == one.diagnostics
    assert set(joined.truth["parts"]) == {"truth:A", "truth:B"}


def test_a_packed_2026_entry_is_probed_as_its_h5ad(files, tmp_path):
    from vcbench.submission.packing import pack

    genes, perts = tmp_path / "genes.csv", tmp_path / "perts.csv"
    names = sorted(set(files[2].labels) - {CONTROL})
    genes.write_text("gene\n" + "\n".join(files[2].genes) + "\n")
    perts.write_text("target_gene,n_cells\n" + "".join(f"{name},12\n" for name in names))
    entry = write_entry(files[2], tmp_path / "e.h5ad", edition="vcc2026", form="counts")
    packed = tmp_path / "e.vcc"
    pack(entry, "vcc2026", out=packed, genes=genes, perts=perts, contexts=["A"], pert_col="perturbation")
    data = ad.read_h5ad(files[0]["truth"])
    data.obs["target_gene"] = data.obs["perturbation"].astype(str).replace(CONTROL, "non-targeting")
    data.write_h5ad(tmp_path / "truth.h5ad")
    chosen = {"edition": "vcc2026", "probes": ("scale-4",)}
    ours = probe_entry(packed, tmp_path / "truth.h5ad", **chosen)
    theirs = probe_entry(entry, files[0]["truth"], options=options("vcc2026"), **chosen)
    assert [(r.metric, r.before) for r in ours.rows] == [(r.metric, r.before) for r in theirs.rows]
    assert ours.diagnostics == theirs.diagnostics
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_documentation_names_every_probe_flag_and_mark():
    import re
    from pathlib import Path

    from vcbench.evaluator.probes import judge

    text = (Path(__file__).parents[3] / "docs" / "probes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9.-]+)`", text))
    source = Path(judge.__file__).read_text(encoding="utf-8")
    assert set(all_probes()) | set(re.findall(r'Finding\(\s*"([a-z-]+)"', source)) <= named
    assert {name for item in all_probes().values() for name in item.caught_by} <= named
