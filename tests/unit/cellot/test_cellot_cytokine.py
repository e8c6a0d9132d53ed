"""A cytokine on several cell types, one of them held out: simulate, train, predict, pack, validate, score."""

from __future__ import annotations

import json

import pytest
from vcbench.data_specs.cli_support import run
from vcbench.evaluator.cli import cli

pytest.importorskip("torch", reason="torch is not installed")

SETTINGS = {
    "epochs": 10,
    "ae_epochs": 6,
    "epoch_iterations": 50,
    "hidden": 32,
    "latent": 10,
    "ae_hidden": 64,
    "batch_size": 64,
    "inner_iterations": 5,
    "init": "identity",
    "lr": 1e-3,
}


def test_a_held_out_cell_type_end_to_end(tmp_path, capsys):
    data, split = tmp_path / "kang.h5ad", tmp_path / "split.csv"
    simulate = "--genes 100 --singles 1 --doubles 0 --contexts B,CD4T,NK,MONO --cells 120 --controls 120 --depth 2000"
    simulate += " --modality cytokine --context-similarity 0.97"
    assert run(cli, ["data", "simulate", *simulate.split(), "-o", str(data)]) == 0
    assert run(cli, ["data", "check", str(data)]) == 0
    scheme = ["--scheme", "leave-one-context-out", "--context", "NK", "--validation-fraction", "0"]
    assert run(cli, ["data", "split", str(data), *scheme, "-o", str(split)]) == 0
    out = tmp_path / "run"
    options = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    arguments = ["train", "cellot", str(data), "--split", str(split), "--device", "cpu", *options]
    assert run(cli, [*arguments, "-o", str(out)]) == 0
    assert (
        run(cli, ["train", "no-change", str(data), "--split", str(split), "-o", str(tmp_path / "none")]) == 0
    )
    found = {}
    for name, more in (("mean", []), ("cells", ["--cells", "120"])):
        for model in (out, tmp_path / "none"):
            path = tmp_path / f"{model.name}-{name}.h5ad"
            assert run(cli, ["predict", str(model), *more, "-o", str(path)]) == 0
            entry = tmp_path / f"{model.name}-{name}-entry.h5ad"
            assert run(cli, ["pack", str(path), "--edition", "core", "-o", str(entry)]) == 0
            assert run(cli, ["validate", str(entry), "--edition", "core"]) == 0
            capsys.readouterr()
            score = ["score", str(entry), "--truth", str(data), "--edition", "core", "--split", str(split)]
            profile = ["--profile", "cellot"] if more else []
            folder = str(tmp_path / f"{model.name}-{name}-score")
            assert run(cli, [*score, *profile, "-o", folder, "--format", "json"]) == 0
            metrics = json.loads(capsys.readouterr().out)["metrics"]
            found[model.name, name] = {key: entry["value"] for key, entry in metrics.items()}
    # The map that the other cell types taught moves the cell type that was held out towards its treated cells.
    assert found["run", "mean"]["pearson_delta"] > 0.4
    assert found["run", "mean"]["mse_top20_de"] < found["none", "mean"]["mse_top20_de"]
    assert found["run", "cells"]["l2_means"] < found["none", "cells"]["l2_means"]
    assert found["run", "cells"]["r2_means_top50"] > found["none", "cells"]["r2_means_top50"]
