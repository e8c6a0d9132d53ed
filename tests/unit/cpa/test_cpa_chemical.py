"""The chemical case end to end: a simulated screen of drugs at doses in several cell lines, from file to score."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from vcbench.data_specs.split_file import Split, write_split

pytest.importorskip("torch", reason="torch is not installed")
ad = pytest.importorskip("anndata", reason="anndata is not installed")

HELD_DOSE = ("A549", "DRUG01@1uM")
HELD_DRUG = [("MCF7", f"DRUG02@{dose}") for dose in ("10nM", "100nM", "1uM", "10uM")]
FAST = {
    "epochs": 3,
    "n_latent": 8,
    "n_hidden_encoder": 16,
    "n_hidden_decoder": 16,
    "n_hidden_adv": 8,
    "n_samples": 200,
    "validation_samples": 60,
    "validate_every": 1,
}


def command(*arguments, code: int = 0) -> dict:
    """Run `vcbench ARGUMENTS --format json` in this process and return what it printed."""
    from click.testing import CliRunner
    from vcbench.evaluator.cli import cli

    found = CliRunner().invoke(cli, [str(a) for a in arguments] + ["--format", "json"])
    assert found.exit_code == code, (found.output, found.exception)
    return json.loads(found.stdout)


def screen(folder, *, genes: int, singles: int, cells: int, seed: int = 3):
    """A simulated sci-Plex-like file and its split: one dose held out in a cell line, one drug held out in another."""
    data = folder / "screen.h5ad"
    sizes = [
        "--genes",
        genes,
        "--singles",
        singles,
        "--doubles",
        2,
        "--cells",
        cells,
        "--controls",
        2 * cells,
    ]
    doses = ["--modality", "drug", "--doses", "10nM,100nM,1uM,10uM", "--contexts", "A549,K562,MCF7"]
    command("data", "simulate", "-o", data, *sizes, *doses, "--depth", 20 * genes, "--seed", seed)
    obs = ad.read_h5ad(data, backed="r").obs[["context", "perturbation"]].drop_duplicates()
    tests = {HELD_DOSE, *HELD_DRUG}
    rows = {
        (context, label): ("test" if (context, label) in tests else "train", "")
        for context, label in obs.itertuples(index=False)
        if label != "control"
    }
    write_split(Split(rows, {"scheme": "by hand"}), folder / "split.csv")
    return data, folder / "split.csv"


def score(folder, run, data, split, **options) -> dict:
    """Predict, pack, validate and score a run, as a user would."""
    done = command("predict", run, *[x for key, value in options.items() for x in (f"--{key}", value)])
    assert done["n_refused"] == 0 and done["n_fallback"] == 0
    entry = folder / f"{run.name}.entry.h5ad"
    command("pack", run, "--edition", "core", "-o", entry)
    assert command("validate", entry, "--edition", "core")["valid"]
    card = command(
        "score",
        entry,
        "--truth",
        data,
        "--edition",
        "core",
        "--split",
        split,
        "-o",
        folder / f"{run.name}.score",
    )
    return card["metrics"]


def test_from_a_simulated_screen_to_a_score(tmp_path):
    data, split = screen(tmp_path, genes=60, singles=3, cells=12)
    assert {"dose", "dose_unit"} <= set(ad.read_h5ad(data, backed="r").obs.columns)
    sets = [text for key, value in FAST.items() for text in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    command("train", "cpa", data, "--split", split, "--device", "cpu", "--quiet", *sets, "-o", run)
    card = (run / "card.md").read_text()
    assert "Doses from 1e-08 to 1e-05 M, as log." in card
    assert "writes the model's own cells (counts)" in card
    metrics = score(tmp_path, run, data, split)
    assert metrics["pearson_delta"]["n"] == metrics["pearson_delta"]["n_total"] == 5
    # Cells of the model itself: whole numbers with the library sizes of control cells, other draws for other seeds.
    for seed in (1, 2):
        done = command("predict", run, "--cells", 20, "--seed", seed, "-o", tmp_path / f"cells{seed}.h5ad")
        assert done["cells"] == "the model's own"
    first, second = (ad.read_h5ad(tmp_path / f"cells{seed}.h5ad") for seed in (1, 2))
    x = first.X.toarray()
    assert first.uns["vcbench"]["matrix"]["kind"] == "counts" and x.shape == (100, 60)
    assert np.array_equal(x, np.round(x)) and x.min() == 0
    assert not np.array_equal(x, second.X.toarray())
    totals = np.asarray(ad.read_h5ad(data).X.sum(axis=1)).ravel()
    assert 0.7 < x.sum(axis=1).mean() / totals.mean() < 1.4
    entry = tmp_path / "cells.entry.h5ad"
    command("pack", tmp_path / "cells1.h5ad", "--edition", "core", "-o", entry)
    assert command("validate", entry, "--edition", "core")["valid"]


def test_what_chemical_labels_can_and_cannot_ask(tmp_path):
    from vcbench.baselines.run_folder import load_run

    data, split = screen(tmp_path, genes=40, singles=3, cells=8)
    chosen = {**FAST, "doser_type": "logsigm", "epochs": 1}
    sets = [text for key, value in chosen.items() for text in ("--set", f"{key}={value}")]
    command(
        "train", "cpa", data, "--split", split, "--device", "cpu", "--quiet", *sets, "-o", tmp_path / "run"
    )
    run = load_run(tmp_path / "run")
    asked = (
        "DRUG01@1uM",
        "DRUG01@1000nM",
        "DRUG01@50nM",
        "DRUG01@3uM+DRUG02@20nM",
        "DRUG01",
        "DRUG01@2%",
        "X@1uM",
    )
    found = run.model.predict([("K562", label) for label in asked], run.control_means)
    assert found.status == ("predicted",) * 4 + ("fallback",) * 3
    np.testing.assert_allclose(
        run.model.vectors([run.model.encodable(asked[0])[0]]),
        run.model.vectors([run.model.encodable(asked[1])[0]]),
    )
    assert found.reason[4].startswith("DRUG01 has no dose; the training labels have one")
    assert found.reason[5].startswith("the dose of DRUG01 is in %, not in M")
    assert found.reason[6].startswith("X was not trained")
    response = run.model.dose_response("DRUG01", [0.0, 10.0, 1000.0, 10_000.0], "nM")
    assert response[0] == 0 and (np.diff(response) > 0).all()
    # A drug that was not trained has the mean response of those that were.
    from vcbench.baselines.cpa.counterfactual import dose_factors

    network, trained = run.model.network, run.model.trained
    untrained = trained.copy()
    untrained[2] = False
    expected = np.mean([dose_factors(network, row, [0.5], trained).item() for row in (3, 4)])
    assert dose_factors(network, 2, [0.5], untrained).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_held_out_dose_and_cell_line_are_predicted_better_than_by_the_mean(tmp_path):
    data, split = screen(tmp_path, genes=150, singles=5, cells=40)
    sets = ["--set", "epochs=80", "--set", "n_samples=1000"]
    results = {}
    for name, options in (("cpa", sets), ("mean", []), ("no-change", [])):
        run = tmp_path / name
        command("train", name, data, "--split", split, "--quiet", *options, "-o", run)
        results[name] = score(tmp_path, run, data, split)
    mse = {name: found["mse"]["value"] for name, found in results.items()}
    print(results["cpa"]["pearson_delta"], mse, file=sys.stderr)
    assert results["cpa"]["pearson_delta"]["value"] > results["mean"]["pearson_delta"]["value"] + 0.1
    assert mse["cpa"] < min(mse["mean"], mse["no-change"])
