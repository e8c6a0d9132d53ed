"""`score --only-missing`: ScoreCards of the same content are kept, all others are made anew."""

import json
import shutil

import pytest
from builders import standard_h5ad
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scoring import Scorer

LABELS = ("G000", "G001", "G002")


@pytest.fixture
def files(tmp_path):
    real = standard_h5ad(tmp_path / "real.h5ad", perturbations=LABELS, cells=12, controls=15)
    preds = [
        standard_h5ad(tmp_path / f"p{i}.h5ad", perturbations=LABELS, cells=8 + i, controls=5)
        for i in range(2)
    ]
    return real, preds


def score(real, preds, out, *more):
    words = ["score", *preds, "--truth", real, "--edition", "core", "--only-missing", "-o", out, *more]
    return run(cli, [str(word) for word in words])


def kept(capsys):
    return [
        line.split(":")[0].split("/")[-1]
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("kept")
    ]


def test_the_same_content_is_kept_wherever_it_lies(files, tmp_path, capsys):
    real, preds = files
    assert score(real, preds, tmp_path / "cards") == 0 and kept(capsys) == []
    before = (tmp_path / "cards" / "p0" / "scorecard.json").read_bytes()
    assert score(real, preds, tmp_path / "cards") == 0 and kept(capsys) == ["p0", "p1"]
    (tmp_path / "moved").mkdir()
    moved = [shutil.copy(path, tmp_path / "moved" / path.name) for path in [real, *preds]]
    assert score(moved[0], moved[1:], tmp_path / "cards") == 0 and kept(capsys) == ["p0", "p1"]
    assert (tmp_path / "cards" / "p0" / "scorecard.json").read_bytes() == before


def test_other_content_or_options_are_scored_again(files, tmp_path, capsys):
    real, preds = files
    out = tmp_path / "cards"
    assert score(real, preds, out) == 0
    standard_h5ad(preds[1], perturbations=LABELS, cells=11, controls=6)
    capsys.readouterr()
    assert score(real, preds, out) == 0 and kept(capsys) == ["p0"]
    for more in (["--seed", "1"], ["--profile", "means"], ["--no-intervals"]):
        assert score(real, preds, out, *more) == 0 and kept(capsys) == []
        assert score(real, preds, out, *more) == 0 and kept(capsys) == ["p0", "p1"]
    (out / "p1" / "scorecard.json").unlink()
    shutil.rmtree(out / "p1")
    assert score(real, preds, out, "--no-intervals") == 0 and kept(capsys) == ["p0"]
    assert json.loads((out / "p1" / "scorecard.json").read_text())["parameters"]["content_key"]


def test_one_entry_and_json(files, tmp_path, capsys):
    real, preds = files
    assert score(real, preds[:1], tmp_path / "card") == 0
    capsys.readouterr()
    assert score(real, preds[:1], tmp_path / "card", "--format", "json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out) == {"kept": [str(tmp_path / "card")]}


def test_refusals(files, tmp_path, capsys):
    real, preds = files
    assert (
        run(cli, ["score", str(preds[0]), "--truth", str(real), "--edition", "core", "--only-missing"]) == 2
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    assert score(real, preds[:1], tmp_path / "mine") != 0
    assert (tmp_path / "mine" / "thesis.txt").exists()
    import anndata as ad

    with Scorer(ad.read_h5ad(real), edition="core") as scorer, pytest.raises(UsageError, match="give paths"):
        scorer.content_key(preds[0])
