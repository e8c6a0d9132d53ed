"""Truth bundles of the 2025 editions: equal numbers, baselines, ceiling, contexts, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
from unit.evaluator.celleval_golden import GENES, LABELS, TARGETS, golden_counts, write_cells
from vcbench.data_specs.cli_support import run as run_command
from vcbench.data_specs.errors import InvalidFile, MetricError, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.bundles import open_bundle
from vcbench.evaluator.celleval.baseline import write_mean_baseline
from vcbench.evaluator.celleval.ceiling import data_ceiling
from vcbench.evaluator.cli import cli
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.scorecard import read_scorecard
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth


def train_counts() -> np.ndarray:
    """Training cells with labels of their own: the real counts with rows and values moved."""
    return np.roll(golden_counts("real"), 5, axis=0) + 1


TRAIN_LABELS = ["non-targeting"] * 12 + ["g1"] * 10 + ["g2"] * 10 + ["g4"] * 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    counts = {"real": golden_counts("real"), "pred": golden_counts("pred"), "train": train_counts()}
    made = {
        name: write_cells(folder / f"{name}.h5ad", x, TRAIN_LABELS if name == "train" else LABELS)
        for name, x in counts.items()
    }
    made["perts"] = folder / "pert_counts.csv"
    made["perts"].write_text("target_gene,n_cells,median_umi_per_cell\ng5,7,1\ng0,9,1\ng3,8,1\n")
    return made


@pytest.fixture(scope="module")
def bundle(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "b"
    return build_truth(files["real"], out, edition="celleval-0.8", train=files["train"], perts=files["perts"])


def per_perturbation(scored) -> np.ndarray:
    return scored.result.per_perturbation.drop(columns=["context", "perturbation"]).to_numpy(dtype=float)


@pytest.mark.parametrize(
    ("edition", "profile"),
    [
        ("vcc2025", None),
        ("vcc2025", "generalist"),
        ("celleval-0.8", "full"),
        ("celleval-0.8", "pds"),
        ("celleval-0.8", "vcc"),
    ],
)
def test_same_numbers_to_the_last_digit(edition, profile, files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", edition=edition, profile=profile, ceiling=False)
    direct = score(files["pred"], files["real"], edition=edition, profile=profile)
    through = score(files["pred"], made.path, edition=edition, profile=profile)
    np.testing.assert_array_equal(per_perturbation(direct), per_perturbation(through))
    assert direct.card.metrics == through.card.metrics
    assert direct.result.parameters["matrices"] == through.result.parameters["matrices"]
    assert through.card.inputs["truth"] == {"name": "b", "sha256": made.sha256, "kind": "truth bundle"}
    assert through.card.score is None and "baseline" in str(through.card.score_reason)


def test_only_the_submission_is_read(files, bundle, monkeypatch):
    opened = []
    plain = H5ad.__init__

    def recorded(self, path, *args, **options):
        opened.append(str(path))
        plain(self, path, *args, **options)

    monkeypatch.setattr(H5ad, "__init__", recorded)
    score(files["pred"], bundle.path, edition="celleval-0.8")
    assert {path for path in opened if "real" in path or "train" in path} == set()
    assert any("pred" in path for path in opened)


def test_mean_response_of_training_is_the_organisers_baseline(files, bundle, tmp_path):
    """The bundle's baseline equals the separate steps: write the comparator, score it, keep its aggregate."""
    edition = load_edition("celleval-0.8")
    counts = {"g5": 7, "g0": 9, "g3": 8}
    with H5ad(files["train"]) as train:
        arm = write_mean_baseline(
            train, tmp_path / "arm.h5ad", counts=counts, edition=edition, options=ScoreOptions()
        )
    scored = score(arm, files["real"], edition="celleval-0.8")
    for name, value in scored.card.metrics.items():
        stored = bundle.baseline[name]
        assert (value.value is None and np.isnan(stored)) or stored == value.value, name
    assert bundle.manifest["baseline"]["n_cells"] == counts
    table = tmp_path / "agg.csv"
    scored.result.tables["agg_results"].to_csv(table, index=False)
    direct = score(files["pred"], files["real"], edition="celleval-0.8", references={"baseline": table})
    through = score(files["pred"], bundle.path, edition="celleval-0.8")
    assert through.card.score is not None and through.card.score == direct.card.score
    assert through.result.tables["from_baseline"].equals(direct.result.tables["from_baseline"])


def test_cells_of_the_baseline_default_to_the_real_ones(files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", edition="vcc2025", train=files["train"], ceiling=False)
    assert made.manifest["baseline"]["n_cells"] == dict.fromkeys(TARGETS, 10)
    partial = tmp_path / "perts.csv"
    partial.write_text("target_gene,n_cells\ng0,3\ng3,\ng5,4\n")
    made = build_truth(
        files["real"], tmp_path / "c", edition="vcc2025", train=files["train"], perts=partial, ceiling=False
    )
    assert made.manifest["baseline"]["n_cells"] == {"g0": 3, "g3": 10, "g5": 4}


def test_ceiling_stands_beside_the_values(files, bundle):
    edition = load_edition("celleval-0.8")
    with H5ad(files["real"]) as real:
        expected = data_ceiling(
            real, edition=edition, profile=edition.profile("full"), options=ScoreOptions()
        )
    scored = score(files["pred"], bundle.path, edition="celleval-0.8")
    found = scored.card.parameters["ceiling"]["all"]
    assert found == {name: value for name, value in expected.values.items() if not np.isnan(value)}
    assert found["overlap_at_N"] == pytest.approx(0.2)
    table = scored.result.tables["ceiling"].set_index("metric")["ceiling"]
    assert table["overlap_at_N"] == found["overlap_at_N"]
    without = build_truth(files["real"], bundle.path.parent / "w", edition="celleval-0.8", ceiling=False)
    assert "ceiling" not in score(files["pred"], without.path, edition="celleval-0.8").result.tables


def test_published_and_given_baselines(files, tmp_path):
    made = build_truth(files["real"], tmp_path / "p", edition="vcc2025", baseline="published", ceiling=False)
    assert dict(made.baseline) == {"overlap_at_N": 0.106, "discrimination_score_l1": 0.514, "mae": 0.027}
    scored = score(files["pred"], made.path, edition="vcc2025")
    terms = scored.result.tables["from_baseline"].set_index("metric")
    # By hand: values 1/9, 7/9 and 0.456.. against 0.106, 0.514, 0.027; the error is far below the baseline.
    overlap, pds = (1 / 9 - 0.106) / (1 - 0.106), (7 / 9 - 0.514) / (1 - 0.514)
    assert terms.loc["overlap_at_N", "from_baseline"] == pytest.approx(overlap)
    assert terms.loc["mae", "from_baseline"] == 0.0 and terms.loc["mae", "unclamped"] < -10
    assert scored.card.score == pytest.approx(100 * (overlap + pds) / 3)
    assert terms["contribution"].drop("avg_score").sum() == pytest.approx(scored.card.score)
    agg = tmp_path / "agg.csv"
    agg.write_text("statistic,mae,overlap_at_N,discrimination_score_l1\ncount,1,1,1\nmean,0.5,0.1,0.5\n")
    given = build_truth(files["real"], tmp_path / "g", edition="vcc2025", baseline=agg, ceiling=False)
    direct = score(files["pred"], files["real"], edition="vcc2025", references={"baseline": agg})
    assert score(files["pred"], given.path, edition="vcc2025").card.score == direct.card.score
    with pytest.raises(UsageError, match="no baseline values are published"):
        build_truth(
            files["real"], tmp_path / "n", edition="celleval-0.8", baseline="published", ceiling=False
        )
    with pytest.raises(UsageError, match="once"):
        build_truth(
            files["real"], tmp_path / "n", edition="vcc2025", baseline="published", train=files["train"]
        )


def test_a_bundle_that_does_not_fit_is_refused(files, bundle, tmp_path):
    with pytest.raises(InvalidFile, match="E593") as caught:
        score(files["pred"], bundle.path, edition="vcc2025")
    assert caught.value.issues[0].fix == "vcbench truth build REAL.h5ad --edition vcc2025 -o BUNDLE"
    small = build_truth(files["real"], tmp_path / "s", edition="vcc2025", ceiling=False)
    with pytest.raises(InvalidFile, match=r"E593.*(\n.*)*profile 'vcc', without de_spearman_sig"):
        score(files["pred"], small.path, edition="vcc2025", profile="generalist")
    edition = load_edition("vcc2025")
    changed = edition.model_copy(
        update={
            "scoring": edition.scoring.model_copy(
                update={"parameters": {**edition.scoring.parameters, "alpha": 0.01}}
            )
        }
    )
    with pytest.raises(InvalidFile, match=r"E593.*(\n.*)*other scoring parameters \(alpha\)"):
        score(files["pred"], small.path, edition=changed)
    with pytest.raises(UsageError, match="built without contexts"):
        entry = write_contexts(tmp_path / "entry.h5ad", {"A": golden_counts("pred")})
        score(entry, small.path, edition="vcc2025", context_col="context")


def write_contexts(path, counts):
    """One file of the same labels in every context; `counts` maps each context to its cells."""
    contexts = np.repeat(np.array(list(counts), dtype=object), len(LABELS))
    obs = {"target_gene": np.array(LABELS * len(counts), dtype=object), "context": contexts}
    with write_h5ad_stream(path, genes=GENES, obs=obs) as writer:
        for x in counts.values():
            writer.append(sp.csr_array(x))
    return path


@pytest.mark.parametrize("member", ["bulk.npy", "manifest.json", "agg_ceiling_results.csv"])
def test_a_changed_file_is_refused(member, files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", edition="vcc2025")
    file = made.path / member
    if member == "manifest.json":
        manifest = json.loads(file.read_text())
        manifest["contexts"][0]["perturbations"][0] = "g1"
        file.write_text(json.dumps(manifest))
    else:
        raw = bytearray(file.read_bytes())
        raw[-2] ^= 1
        file.write_bytes(bytes(raw))
    with pytest.raises(InvalidFile, match=r"was changed after it was written"):
        score(files["pred"], made.path, edition="vcc2025")
    file.unlink()
    with pytest.raises(InvalidFile):
        score(files["pred"], made.path, edition="vcc2025")


def test_another_bundle_version_is_refused(files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", edition="vcc2025", ceiling=False)
    manifest = json.loads((made.path / "manifest.json").read_text())
    (made.path / "manifest.json").write_text(json.dumps({**manifest, "bundle_version": 2}))
    with pytest.raises(InvalidFile, match="bundle version 2"):
        open_bundle(made.path, edition=load_edition("vcc2025"))


def test_a_file_that_the_manifest_does_not_list_is_not_read(files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", edition="vcc2025", ceiling=False)
    (made.path / "baseline_agg.csv").write_text("statistic,mae\nmean,9\n")
    assert score(files["pred"], made.path, edition="vcc2025").card.score is None


def test_bundles_of_contexts_score_as_the_files(files, tmp_path):
    """Two contexts, each against its own bundle: values as against the files, score the mean of both."""
    other = write_cells(tmp_path / "other.h5ad", train_counts(), LABELS)
    cells = {"A": golden_counts("pred"), "B": np.roll(golden_counts("pred"), 1, axis=1)}
    entry = write_contexts(tmp_path / "entry.h5ad", cells)
    bundles = {
        context: build_truth(path, tmp_path / context, edition="vcc2025", baseline="published").path
        for context, path in (("A", files["real"]), ("B", other))
    }
    through = score(entry, bundles, edition="vcc2025")
    direct = score(entry, {"A": files["real"], "B": other}, edition="vcc2025")
    assert through.card.strata.keys() == direct.card.strata.keys() == {"context=A", "context=B"}
    assert through.card.metrics == direct.card.metrics and through.card.strata == direct.card.strata
    terms = through.result.tables["from_baseline"]
    averages = terms[terms["metric"] == "avg_score"]["from_baseline"]
    assert through.card.score == pytest.approx(100 * averages.mean())
    assert set(through.card.parameters["ceiling"]) == {"A", "B"}
    alone = score(files["pred"], {"A": bundles["A"]}, edition="vcc2025")
    assert alone.card.metrics == through.card.strata["context=A"]
    with pytest.raises(UsageError, match="its own context"):
        score(entry, [bundles["A"], bundles["B"]], edition="vcc2025")
    with pytest.raises(InvalidFile, match="E202"):
        score(files["pred"], bundles, edition="vcc2025")
    with pytest.raises(UsageError, match="2 contexts"):
        build_truth(entry, tmp_path / "two", edition="vcc2025", context_col="context")


def test_problems_of_real_and_training_files_are_coded(files, tmp_path):
    swapped = write_cells(
        tmp_path / "swapped.h5ad", train_counts(), TRAIN_LABELS, genes=tuple(reversed(GENES))
    )
    with pytest.raises(InvalidFile, match="E566"):
        build_truth(files["real"], tmp_path / "b", edition="vcc2025", train=swapped)
    perts = tmp_path / "perts.csv"
    perts.write_text("target_gene,n_cells\ng0,3\ng1,4\n")
    with pytest.raises(InvalidFile, match="E568"):
        build_truth(files["real"], tmp_path / "b", edition="vcc2025", train=files["train"], perts=perts)
    labels = ["non-targeting", *["g0"] * 41]
    single = write_cells(tmp_path / "one.h5ad", golden_counts("real"), labels)
    with pytest.raises(MetricError, match="control has fewer than 2"):
        build_truth(single, tmp_path / "b", edition="vcc2025")
    assert not (tmp_path / "b").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_options_of_the_other_year_are_refused(files, tmp_path):
    with pytest.raises(UsageError, match=r"--splits: not an option of edition vcc2025"):
        build_truth(files["real"], tmp_path / "b", edition="vcc2025", n_splits=3)
    with pytest.raises(UsageError, match=r"--train: not an option of edition vcc2026"):
        build_truth(files["real"], tmp_path / "b", edition="vcc2026", train=files["train"])


def test_commands_print_score_terms_and_ceiling(files, tmp_path, capsys):
    out, card = str(tmp_path / "bundle"), str(tmp_path / "card")
    shared = ["--edition", "vcc2025", "--quiet"]
    build = [
        "truth",
        "build",
        str(files["real"]),
        "--train",
        str(files["train"]),
        "--perts",
        str(files["perts"]),
    ]
    assert run_command(cli, [*build, "-o", out, *shared]) == 0
    printed = capsys.readouterr().out
    assert "replicate or ceiling" in printed and "overlap_at_N" in printed
    assert run_command(cli, ["score", str(files["pred"]), "--truth", out, *shared, "-o", card]) == 0
    printed = capsys.readouterr().out
    for word in ("ceiling", "from_baseline", "unclamped", "contribution", "avg_score", "score:", "3/3"):
        assert word in printed, word
    assert read_scorecard(card).score is not None
    assert (tmp_path / "card" / "ceiling.csv").exists()
