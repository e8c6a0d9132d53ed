"""A whole multi-context entry (`.vcc`) of edition vcc2026 against one truth per context, as the platform scores it."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zstandard
from vcbench.data_specs.cli_support import run as run_command
from vcbench.evaluator.cli import cli
from vcbench.evaluator.scorecard import read_scorecard
from vcbench.evaluator.scoring import score
from vcbench.evaluator.truth import build_truth
from vcc2026_panels import CONTROL, random_panel

CONTEXTS = ("A", "B")


@dataclass(frozen=True)
class Files:
    """An entry with predicted controls in context B only, its plain h5ad, and truth and bundle per context."""

    entry: Path
    plain: Path
    parts: dict[str, Path]
    truths: dict[str, Path]
    bundles: dict[str, Path]
    n_control: dict[str, int]


def relabelled(adata: ad.AnnData) -> ad.AnnData:
    out = adata.copy()
    out.obs = out.obs.rename(columns={"target": "target_gene"})
    return out


def write_entry(adata: ad.AnnData, path: Path) -> Path:
    """The two members of a 2026 entry."""
    plain = path.with_suffix(".h5ad")
    adata.write_h5ad(plain)
    meta = {
        "schema": 1,
        "n_obs": adata.n_obs,
        "n_vars": adata.n_vars,
        "nnz": int(adata.X.nnz),
        "contexts": list(CONTEXTS),
    }
    members = {
        "meta.json": json.dumps(meta, sort_keys=True).encode(),
        "pred.h5ad.zst": zstandard.ZstdCompressor().compress(plain.read_bytes()),
    }
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("entry")
    parts, truths, bundles, n_control, cells = {}, {}, {}, {}, []
    for seed, context in enumerate(CONTEXTS):
        panel = random_panel(30 + seed, n_genes=70, cells=(40, 36, 34, 30), n_control=70, effect=0.9)
        real, pred = relabelled(panel["real"]), relabelled(panel["pred"])
        truths[context] = folder / f"real_{context}.h5ad"
        real.write_h5ad(truths[context])
        bundles[context] = build_truth(
            truths[context], folder / f"bundle_{context}", baseline="generic", n_splits=2
        ).path
        n_control[context] = int((real.obs["target_gene"] == CONTROL).sum())
        if context == "A":
            pred = pred[pred.obs["target_gene"] != CONTROL].copy()
        parts[context] = folder / f"pred_{context}.h5ad"
        pred.write_h5ad(parts[context])
        pred.obs["context"] = context
        cells.append(pred)
    entry = ad.concat(cells)
    entry.obs_names = [str(i) for i in range(entry.n_obs)]
    return Files(
        write_entry(entry, folder / "entry.vcc"), folder / "entry.h5ad", parts, truths, bundles, n_control
    )


def test_entry_against_a_bundle_per_context(files):
    joined = score(files.entry, files.bundles, edition="vcc2026")
    alone = {
        context: score(files.parts[context], bundle, edition="vcc2026")
        for context, bundle in files.bundles.items()
    }
    assert joined.card.score == pytest.approx(np.mean([one.card.score for one in alone.values()]), abs=1e-15)
    for name, value in joined.card.metrics.items():
        assert value.value == pytest.approx(
            np.mean([one.card.metrics[name].value for one in alone.values()]), abs=1e-15
        )
        for context, one in alone.items():
            assert joined.card.strata[f"context={context}"][name].value == one.card.metrics[name].value
    board = joined.result.tables["leaderboard"].set_index("context")
    assert board.index.tolist() == ["A", "B", "mean"]
    for column in board.columns.drop("coverage"):
        assert board.loc["mean", column] == pytest.approx(board.loc[["A", "B"], column].mean())
    assert board.loc["A", "coverage"].endswith("/4") and board.loc["mean", "coverage"] == "2 contexts"
    assert joined.card.inputs["prediction"]["name"] == "entry.vcc"
    assert set(joined.card.inputs) == {"prediction", "truth:A", "truth:B"}


def test_real_controls_replace_predicted_ones_and_both_are_recorded(files):
    joined = score(files.entry, files.bundles, edition="vcc2026").card
    assert joined.parameters["control_cells_of_the_truth"] == files.n_control
    (note,) = [note for note in joined.notes if "control cells" in note]
    assert note.startswith("context B: 70 control cells of the prediction were left out")
    entry = ad.read_h5ad(files.plain)
    wild = entry.copy()
    wild.X[np.flatnonzero(wild.obs["target_gene"] == CONTROL)] *= 3
    without = entry[entry.obs["target_gene"] != CONTROL].copy()
    for name, changed in (("wild", wild), ("without", without)):
        path = files.plain.parent / f"{name}.h5ad"
        changed.write_h5ad(path)
        again = score(path, files.bundles, edition="vcc2026").card
        assert again.score == joined.score and again.metrics == joined.metrics


def test_entry_against_a_real_file_per_context(files):
    through = score(files.entry, files.bundles, edition="vcc2026").card
    direct = score(files.entry, files.truths, edition="vcc2026").card
    assert direct.metrics == through.metrics and direct.strata == through.strata
    assert direct.score is None and through.score is not None


def test_command_prints_the_leaderboard_of_contexts_and_mean(files, tmp_path, capsys):
    truths = [word for context, path in files.bundles.items() for word in ("--truth", f"{context}={path}")]
    arguments = ["score", str(files.entry), *truths, "--edition", "vcc2026", "-o", str(tmp_path / "card")]
    assert run_command(cli, arguments) == 0
    printed = capsys.readouterr().out
    last = printed[printed.index("leaderboard layout") :]
    rows = [line.split() for line in last.splitlines()]
    for name in ("A", "B", "mean"):
        assert any(name in row[:2] for row in rows), name
    for word in ("score_avg", "score_pds", "coverage"):
        assert word in last
    for word in ("from_replicate", "unclamped", "contribution", "n_total"):
        assert word in printed
    assert read_scorecard(tmp_path / "card").score is not None
    arguments[arguments.index("-o") :] = ["--format", "json"]
    assert run_command(cli, arguments) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["strata"].keys() == {"context=A", "context=B"}
    assert all({"value", "n", "n_total"} <= set(value) for value in table["metrics"].values())


def test_an_entry_without_one_context_is_refused(files, tmp_path, capsys):
    entry = ad.read_h5ad(files.plain)
    entry[entry.obs["context"] == "A"].copy().write_h5ad(tmp_path / "a.h5ad")
    truths = [word for context, path in files.bundles.items() for word in ("--truth", f"{context}={path}")]
    assert run_command(cli, ["score", str(tmp_path / "a.h5ad"), *truths, "--edition", "vcc2026"]) == 1
    assert "E591" in capsys.readouterr().err
