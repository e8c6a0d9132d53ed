"""Truth bundles of edition vcc2026, its commands, and results of the platform beside local ones."""

from __future__ import annotations

import json

import pytest
from scoring_rules import arms, with_contexts
from vcbench.data_specs.cli_support import run as run_command
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import compare
from vcbench.evaluator.platform_results import import_platform_result, read_platform_result
from vcbench.evaluator.scorecard import read_scorecard
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth
from vcbench.evaluator.vcc2026.bundle import read_bundle
from vcc2026_panels import write


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {arm: write(adata, folder / f"{arm}.h5ad") for arm, adata in arms().items()}


@pytest.fixture(scope="module")
def bundle(files, tmp_path_factory):
    return build_truth(
        files["real"], tmp_path_factory.mktemp("bundle") / "b", pert_col="target", baseline=str(files["base"])
    )


def test_bundle_scores_as_the_real_file(files, bundle):
    direct = score(files["pred"], files["real"], edition="vcc2026", pert_col="target")
    through = score(files["pred"], bundle.path, edition="vcc2026", pert_col="target")
    assert {n: v.value for n, v in direct.card.metrics.items()} == {
        n: v.value for n, v in through.card.metrics.items()
    }
    assert direct.card.score is None and "truth build" in str(direct.card.score_reason)
    table = through.result.tables["score_columns"]
    average = table[(table["metric"] == "avg_score") & (table["column"] == "from_replicate")]["score"]
    assert through.card.score == pytest.approx(float(average.iloc[0]))
    assert through.card.inputs["truth"]["sha256"] == bundle.sha256
    context = bundle.path / "context_0"
    given = score(
        files["pred"],
        files["real"],
        edition="vcc2026",
        pert_col="target",
        references={"baseline": context / "baseline_agg.csv", "anchor": context},
    )
    assert given.card.score == through.card.score


def test_bundles_of_contexts_join(files, bundle, tmp_path):
    pred = with_contexts("pred", ("A", "A"))
    pred.obs["context"] = ["A"] * (pred.n_obs // 2) + ["B"] * (pred.n_obs // 2)
    path = tmp_path / "entry.h5ad"
    pred.write_h5ad(path)
    truths = [("A", bundle.path), ("B", bundle.path)]
    joined = score(path, truths, edition="vcc2026", pert_col="target")
    alone = score(files["pred"], bundle.path, edition="vcc2026", pert_col="target")
    assert joined.card.score == pytest.approx(alone.card.score)
    assert joined.result.tables["leaderboard"]["context"].tolist() == ["A", "B", "mean"]
    with pytest.raises(UsageError, match="cannot be mixed"):
        score(path, [("A", bundle.path), ("B", files["real"])], edition="vcc2026", pert_col="target")
    with pytest.raises(UsageError, match="its own context"):
        score(path, [(None, bundle.path), (None, bundle.path)], edition="vcc2026", pert_col="target")


def test_bundle_with_other_target_genes_is_refused(files, bundle):
    with pytest.raises(UsageError, match="other target genes"):
        score(files["pred"], bundle.path, edition="vcc2026", pert_col="target", no_target_genes=True)
    with pytest.raises(UsageError, match="need the real cells"):
        score(files["pred"], bundle.path, edition="vcc2026", pert_col="target", profile="cell")


def test_a_changed_bundle_is_refused(files, tmp_path):
    made = build_truth(files["real"], tmp_path / "b", pert_col="target", baseline="none", anchor=False)
    assert made.ends[""].zeros == {} == made.ends[""].ones
    array = made.path / "context_0" / "bulk_noise.npy"
    raw = bytearray(array.read_bytes())
    raw[-1] ^= 1
    array.write_bytes(bytes(raw))
    with pytest.raises(InvalidFile, match=r"bulk_noise\.npy was changed"):
        read_bundle(made.path)
    array.unlink()
    with pytest.raises(InvalidFile, match="E593"):
        read_bundle(made.path)
    with pytest.raises(InvalidFile, match="edition 'vcc2026'"):
        read_bundle(made.path, edition="core")
    with pytest.raises(InvalidFile, match=r"no readable manifest\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--baseline", "context-mean", "--min-cells", "20", "--max-residual", "9"],
        ["--baseline", "generic", "--emission", "dispersed"],
    ],
)
def test_truth_build_and_score_commands(arguments, files, tmp_path, capsys):
    # Two splits are enough here; the ends of a tiled mean define a scale on this panel.
    out = str(tmp_path / "bundle")
    shared = ["--edition", "vcc2026", "--pert-col", "target", "--quiet"]
    code = run_command(
        cli,
        [
            "truth",
            "build",
            str(files["real"]),
            "-o",
            out,
            "--splits",
            "2",
            "--format",
            "json",
            *arguments,
            *shared,
        ],
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    manifest = json.loads(captured.out)["manifest"]
    assert manifest["contexts"][0]["anchor"]["seeds"] == [2968811710, 3677149159]
    assert manifest["contexts"][0]["baseline"]["kind"] == arguments[1]
    code = run_command(
        cli, ["score", str(files["pred"]), "--truth", out, *shared, "-o", str(tmp_path / "card")]
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "score_avg" in captured.out and "score:" in captured.out
    assert read_scorecard(tmp_path / "card").score is not None
    assert (tmp_path / "card" / "score_columns.csv").exists()
    assert run_command(cli, ["truth", "build", str(files["real"]), "-o", out, *shared]) == 1
    assert "exists already" in capsys.readouterr().err


def test_truth_build_refuses_other_editions_and_foreign_folders(files, tmp_path, capsys):
    assert (
        run_command(
            cli, ["truth", "build", str(files["real"]), "--edition", "core", "-o", str(tmp_path / "b")]
        )
        == 2
    )
    assert "no truth bundles" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    arguments = [
        "truth",
        "build",
        str(files["real"]),
        "--edition",
        "vcc2026",
        "-o",
        str(tmp_path / "mine"),
        "--force",
    ]
    assert run_command(cli, arguments) == 1
    assert "holds no truth bundle" in capsys.readouterr().err
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_wrong_reference_options(files, capsys):
    arguments = [
        "score",
        str(files["pred"]),
        "--truth",
        str(files["real"]),
        "--edition",
        "vcc2026",
        "--reference",
        "x",
    ]
    assert run_command(cli, arguments) == 2
    assert "NAME=FILE" in capsys.readouterr().err


# ---- results of the platform ----

RESULT = {
    "score_avg": 0.4,
    "score_pds": 0.9,
    "score_mse": 0.3,
    "score_nmae": 0.1,
    "score_fid": 0.5,
    "score_reach": 0.2,
    "score_jac": 0.4,
    "pds": 0.93,
    "mse": 0.71,
    "nmae": 0.95,
    "fid": 0.66,
    "rank": 3,
    "panel_id": "vcc2026-val-1",
}


def test_platform_result_becomes_a_scorecard(tmp_path):
    file = tmp_path / "team.json"
    file.write_text(json.dumps(RESULT))
    card, result = read_platform_result(file)
    assert (card.name, card.score) == ("team", 0.4)
    assert card.metrics["pds_cosine"].value == 0.93
    assert card.metrics["de_wilcoxon_sig_jaccard"].value is None
    assert "no raw value" in str(card.metrics["de_wilcoxon_sig_jaccard"].reason)
    assert card.parameters["platform"]["rank"] == 3
    assert card.parameters["platform"]["scores"]["pds_cosine"] == 0.9
    table = result.tables["score_columns"].set_index("metric")["score"]
    assert table["expr_mse_unbiased_capped_norm"] == 0.3
    folder = import_platform_result(file, tmp_path / "card", name="platform")
    assert read_scorecard(folder).name == "platform"


@pytest.mark.parametrize("text", ["", "[1]", "{}", json.dumps({**RESULT, "score_fid": None})])
def test_broken_platform_results(text, tmp_path):
    file = tmp_path / "team.json"
    file.write_text(text)
    with pytest.raises(InvalidFile, match="E596"):
        read_platform_result(file)


def test_platform_results_stand_beside_local_ones(files, bundle, tmp_path, capsys):
    local = score(files["pred"], bundle.path, edition="vcc2026", pert_col="target")
    local.write(tmp_path / "local")
    file = tmp_path / "team.json"
    file.write_text(json.dumps({"result": RESULT, "name": "team"}))
    boards = compare(read_entries([tmp_path / "local", file]))
    assert [board.title for board in boards][-1] == "Overall scores beside those of the platform"
    rows = {row.name: row for row in boards[-1].rows}
    assert rows["team"].values["score"] == 0.4 and rows["team"].values["pds_cosine"] == 0.93
    assert rows["pred"].values["score"] == local.card.score and rows["pred"].rank is None
    assert run_command(cli, ["compare", str(tmp_path / "local"), str(file)]) == 0
    assert "team" in capsys.readouterr().out
    assert len(compare(read_entries([file]))) == 1
