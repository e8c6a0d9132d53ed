"""`vcbench report`: what is on the page, what can never be, and its figures."""

import json
import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pandas as pd
import pytest
from builders import standard_h5ad
from report_support import METRICS, invented_cards
from scipy.stats import ttest_ind
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.normalize import to_log1p
from vcbench.data_specs.standard import MatrixMeta, StandardMeta, read_meta
from vcbench.evaluator.cli import cli
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.report.content import gather
from vcbench.evaluator.report.effects import effects_of
from vcbench.evaluator.report.figures import figures_of, file_name, minus_log10
from vcbench.evaluator.report.page import render
from vcbench.evaluator.scoring import score
from vcc2026_panels import golden, write

VOID = {"meta", "link", "br", "input", "img"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def ids(self):
        return {found["id"] for _, found in self.elements if "id" in found}

    def data(self, text):
        return json.loads(
            re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
        )


def command(*words):
    return run(cli, ["report", *map(str, words)])


@pytest.fixture
def cards(tmp_path):
    issue = {
        "code": "W552",
        "severity": "warning",
        "message": "scale",
        "where": "p.h5ad:/X",
        "found": "nothing",
    }
    return invented_cards(tmp_path / "cards", ("good", "better", "mean"), issues=[issue], refused=[0, 3])


def test_page_of_cards(cards, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert command(cards, "-o", out, "--title", "My report") == 0
    assert "3 entries" in capsys.readouterr().err
    text = out.read_text()
    page = Page(text)
    assert {"leaderboard", "metrics", "strata", "rows", "issues", "provenance", "more"} <= page.ids()
    assert not {"effects", "curves", "calibration", "probes"} & page.ids()
    for wanted in (
        "My report",
        "28 of 30 perturbations",
        "W552",
        "unknown gene",
        "vcbench score good.h5ad",
        "abababababab",
    ):
        assert wanted in text, wanted
    data = page.data(text)
    assert [entry["name"] for entry in data["entries"]] == ["good", "better", "mean"]
    assert data["metrics"]["mse"] == {"better": "lower", "perfect": 0.0, "mark": None}
    assert len(data["rows"]) == 30 and data["entries"][2]["rows"]["mse"][0] is None
    table = pd.read_csv(cards / "entry000" / "per_perturbation.csv").sort_values("perturbation")
    np.testing.assert_allclose(data["entries"][0]["rows"]["mae"], table["mae"], rtol=1e-3)
    card = json.loads((cards / "entry000" / "scorecard.json").read_text())
    value, low, high, n, n_total = data["entries"][0]["values"]["mse"]
    assert (n, n_total) == (30, 30)
    np.testing.assert_allclose(
        [value, low, high], [card["metrics"]["mse"][k] for k in ("value", "low", "high")], rtol=1e-3
    )
    assert set(data["entries"][0]["strata"]["half"]) == {"first", "second"}


def test_nothing_is_fetched_and_names_are_only_text(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    issue = {"code": "W1", "severity": "<b>", "message": "<i>m</i>", "where": "&", "found": '"><script>'}
    folder = invented_cards(tmp_path / "c", (hostile, "a'b\"c", "{{ 7 * 7 }}"), issues=[issue])
    report = gather(read_entries([folder]), title="<script>alert(2)</script>")
    text = render(report)
    page = Page(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2 and not {"img", "iframe", "object", "b", "i"} & set(tags)
    assert not any(name.startswith("on") for _, found in page.elements for name in found)
    links = {
        found.get(name) for _, found in page.elements for name in ("src", "href", "action") if name in found
    }
    assert links <= {"data:,", *(f"#{name}" for name in page.ids())}
    # The one address is the name of SVG, which is never opened.
    assert set(re.findall(r"https?://[^\"'\s)]+", text)) == {"http://www.w3.org/2000/svg"}
    policy = next(f["content"] for t, f in page.elements if f.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "connect-src" not in policy
    assert "url(" not in text and "@import" not in text
    data = page.data(text)
    assert data["entries"][0]["name"] == hostile and "{{ 7 * 7 }}" in [e["name"] for e in data["entries"]]


def test_equal_inputs_give_equal_bytes(cards, tmp_path):
    for name in ("a", "b"):
        assert command(cards, "-o", tmp_path / f"{name}.html", "--figures", tmp_path / name, "--quiet") == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_figures_have_the_numbers_of_the_page(cards, tmp_path):
    assert command(cards, "-o", tmp_path / "r.html", "--figures", tmp_path / "figures", "--quiet") == 0
    index = pd.read_csv(tmp_path / "figures" / "figures.csv")
    assert set(index["name"]) == {
        *(f"metric-{m}" for m in METRICS),
        "strata-half-pearson_delta",
        "rows-pearson_delta",
    }
    for name in index["name"]:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    table = pd.read_csv(tmp_path / "figures" / "metric-mse.csv")
    assert table["entry"].tolist() == ["good", "better", "mean"] and (table["low"] < table["value"]).all()
    assert table["n"].tolist() == [30, 30, 28]


def test_outputs_are_guarded(cards, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert command(cards, "-o", out) == 0
    before = out.read_bytes()
    assert command(cards, "-o", out, "--title", "other") == 1 and out.read_bytes() == before
    assert command(cards, "-o", out, "--title", "other", "--force") == 0 and out.read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    assert command(cards, "-o", out, "--force", "--figures", tmp_path / "mine") == 1
    assert "holds no figures" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_mixed_editions_and_foreign_files_are_refused(cards, tmp_path, capsys):
    other = invented_cards(tmp_path / "other", ("x",), edition="vcc2025")
    assert command(cards, other, "-o", tmp_path / "r.html") == 2
    assert "never mixed" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[]")
    keys = {name: [] for name in ("probes_version", "entry", "edition", "marks", "flags", "probes")}
    (tmp_path / "rows.json").write_text(json.dumps({**keys, "rows": [{"probe": "x"}]}))
    for words, told in (
        (["--probe", tmp_path / "bad.json"], "not a report"),
        (["--probe", tmp_path / "rows.json"], "not those of a probe report"),
        (["--run", f"a={tmp_path}"], "no training curve"),
        (["--run", "nothing"], "NAME=PATH"),
        (["--pred", "nobody=x.h5ad", "--truth", "y.h5ad"], "nobody"),
        (["--pred", "good=x.h5ad"], "both --pred"),
        (["--by", "colour"], "colour"),
    ):
        assert command(cards, "-o", tmp_path / "r.html", *words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("version", ["v1_core_means", "v2_core_means", "v2_vcc2026"])
def test_old_cards(version, tmp_path, golden_scorecards):
    folder = golden_scorecards(version, tmp_path)
    assert command(folder, "-o", tmp_path / "r.html", "--quiet") == 0
    Page((tmp_path / "r.html").read_text())


@pytest.fixture
def golden_scorecards():
    from pathlib import Path

    stored = Path(__file__).parents[2] / "golden" / "scorecards"

    def place(version, tmp_path):
        card = json.loads((stored / f"{version}.json").read_text())
        folder = tmp_path / "card"
        folder.mkdir()
        (folder / "scorecard.json").write_text(json.dumps(card))
        table = pd.DataFrame({"context": ["A", "A"], "perturbation": ["G1", "G2"]})
        for name in card["metrics"]:
            table[name] = [0.1, 0.2]
        table.to_csv(folder / "per_perturbation.csv", index=False)
        return folder

    return place


# ---- effects, curves, probes, calibration ----


LABELS = ("G000", "G001", "G002", "G003")


def logs_of(path):
    """(log1p values in sorted gene order, labels) of a standard file."""
    with H5ad(path) as file:
        matrix = read_meta(file).matrix
        x = np.concatenate([to_log1p(block.matrix, matrix).toarray() for block in file.row_blocks()])
        return x[:, np.argsort(file.genes.astype(str), kind="stable")], file.labels("perturbation").values()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with real cells, a prediction of mean effects (genes in another order) and its ScoreCard."""
    folder = tmp_path_factory.mktemp("scored")
    real = standard_h5ad(folder / "real.h5ad", perturbations=LABELS, cells=25, controls=40)
    x, names = logs_of(real)
    profiles = np.array([x[names == label].mean(axis=0) for label in LABELS]) + np.linspace(
        0, 0.2, x.shape[1]
    )
    with H5ad(real) as file:
        genes = sorted(str(gene) for gene in file.genes)[::-1]
        target_sum = read_meta(file).matrix.target_sum
    meta = StandardMeta("test", MatrixMeta("log1p", target_sum), rows="mean")
    obs = {"perturbation": list(LABELS), "context": ["K562"] * len(LABELS)}
    write_h5ad_dense(folder / "pred.h5ad", profiles[:, ::-1], genes=genes, obs=obs, uns=meta.to_uns())
    score(folder / "pred.h5ad", real, edition="core", name="mine").write(folder / "card")
    return folder, real, folder / "pred.h5ad"


def test_effects_are_differences_of_means(scored):
    _, real, pred = scored
    keys = [(("K562", "G002"), "worst"), (("K562", "G000"), "best"), (("K562", "absent"), "best")]
    found = effects_of({"mine": pred}, [(None, str(real))], keys, edition="core")
    assert [(effect.key[1], effect.which) for effect in found] == [("G002", "worst"), ("G000", "best")]
    x, names = logs_of(real)
    profiles, predicted = logs_of(pred)
    control, cells = x[names == "control"], x[names == "G002"]
    np.testing.assert_allclose(found[0].observed, cells.mean(axis=0) - control.mean(axis=0), atol=1e-6)
    mine = profiles[predicted == "G002"][0] - control.mean(axis=0)
    np.testing.assert_allclose(found[0].predicted["mine"], mine, atol=1e-6)
    expected = ttest_ind(cells, control, equal_var=False).pvalue
    np.testing.assert_allclose(found[0].p, expected, rtol=1e-4)
    assert list(found[0].genes) == sorted(found[0].genes)


def test_page_with_everything(scored, tmp_path):
    folder, real, pred = scored
    runs = tmp_path / "run"
    runs.mkdir()
    lines = [{"epoch": i, "step": 10 * i, "loss": 1 / (i + 1), "note": "text"} for i in range(4)]
    (runs / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = ["--truth", real, "--edition", "core", "--quiet"]
    probe, calibration = tmp_path / "probe.json", tmp_path / "cal.json"
    for words in (
        ["probe", pred, *shared, "--probes", "none", "-o", probe],
        ["calibrate", real, "--edition", "core", "--quiet", "-o", calibration],
    ):
        assert run(cli, [str(word) for word in words]) == 0
    words = ["--pred", f"mine={pred}", "--truth", real, "--run", f"net={runs}", "--probe", probe]
    out = tmp_path / "r.html"
    figures = ["--figures", tmp_path / "figures"]
    assert command(folder / "card", "-o", out, "--calibration", calibration, *words, *figures, "--quiet") == 0
    text = out.read_text()
    page = Page(text)
    assert {"effects", "curves", "calibration", "probes"} <= page.ids() and "more" not in page.ids()
    data = page.data(text)
    columns = data["curves"][0]["columns"]
    assert columns["loss"] == [1.0, 0.5, 0.3333, 0.25] and "note" not in columns
    assert {effect["which"] for effect in data["effects"]} == {"worst", "best"}
    assert data["heat"]["rows"][0].endswith("observed") and len(data["heat"]["values"]) == 2 * len(
        data["effects"]
    )
    kinds = {figure.kind for figure in figures_of(_rebuilt(folder, real, pred, runs))}
    assert kinds == {"dots", "scatter", "volcano", "heat", "lines"}
    assert (tmp_path / "figures" / "training-net.png").exists()


def _rebuilt(folder, real, pred, runs):
    from vcbench.evaluator.report.sources import read_curves

    return gather(
        read_entries([folder / "card"]),
        title="t",
        curves=read_curves({"net": runs}),
        predictions={"mine": pred},
        truth=[(None, str(real))],
    )


def test_truths_that_do_not_serve(scored, tmp_path, capsys):
    folder, _, pred = scored
    bundle, other = tmp_path / "bundle", tmp_path / "other.h5ad"
    cells = write(golden("real"), tmp_path / "cells.h5ad")
    words = ["truth", "build", cells, "--edition", "vcc2026", "--pert-col", "target", "-o", bundle, "--quiet"]
    assert run(cli, [str(word) for word in words]) == 0
    standard_h5ad(other, perturbations=("G030",), cells=5, controls=5)
    for truth, told in ((bundle, "need the real h5ad"), (other, "none of the")):
        words = ["--pred", f"mine={pred}", "--truth", truth]
        assert command(folder / "card", "-o", tmp_path / "r.html", *words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_values_that_are_not_finite_are_not_drawn(scored, tmp_path):
    _, real, pred = scored
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(pred.read_bytes())
    with h5py.File(broken, "r+") as file:
        file["X"][0, 0] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        effects_of({"mine": broken}, [(None, str(real))], [(("K562", "G000"), "best")], edition="core")


def test_effects_of_an_edition_without_contexts(tmp_path):
    """The files may have a column of contexts; the ScoreCard of 2025 has none."""
    real = standard_h5ad(tmp_path / "real.h5ad", perturbations=LABELS, cells=20, controls=30)
    keys = [(("", "G001"), "best")]
    found = effects_of(
        {"itself": real},
        [(None, str(real))],
        keys,
        edition="vcc2025",
        pert_col="perturbation",
        control="control",
    )
    x, names = logs_of(real)
    expected = x[names == "G001"].mean(axis=0) - x[names == "control"].mean(axis=0)
    np.testing.assert_allclose(found[0].observed, expected, atol=1e-6)
    np.testing.assert_allclose(found[0].predicted["itself"], expected, atol=1e-6)


def test_names_of_files_and_logarithms():
    assert file_name("effect", "K562/A+B", "my model") == "effect-K562_A+B-my_model"
    assert file_name("../..", "") == "x-x"
    np.testing.assert_allclose(minus_log10([0.01, 0.0, np.nan, 1.0]), [2.0, 320.0, np.nan, 0.0])
