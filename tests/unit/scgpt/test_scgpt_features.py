"""Gene embeddings as feature tables: written from runs and checkpoints, read by the simple models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.features import read_feature_table
from vcbench.baselines.run_folder import load_run
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.cli import cli

torch = pytest.importorskip("torch", reason="torch is not installed")

LABELS = ("G000", "G001", "G002", "G003", "OUT1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=8, controls=12)
    part = {"G003": "test"}
    write_split(Split({("K562", x): (part.get(x, "train"), "") for x in LABELS}, {}), folder / "split.csv")
    options = ["preset=tiny", "d_model=8", "nhead=2", "steps=2", "unmeasured_target=token", "batch_size=8"]
    sets = [item for option in options for item in ("--set", option)]
    arguments = ["train", "scgpt", str(data), "--split", str(folder / "split.csv"), "--device", "cpu", *sets]
    assert run(cli, [*arguments, "-o", str(folder / "run")]) == 0
    return folder, data


def test_a_run_gives_a_table_that_other_models_read(files, tmp_path, capsys):
    folder, data = files
    table = tmp_path / "genes.tsv"
    assert run(cli, ["features", str(folder / "run"), "-o", str(table), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_genes"] == 41
    found = read_feature_table(table)
    assert found.values.shape == (41, 8) and found.row("OUT1") is not None
    model = load_run(folder / "run").model
    with torch.no_grad():
        expected = model.module.encoder(torch.tensor([model.tokens.vocabulary.ids["G007"]]))[0].numpy()
    np.testing.assert_allclose(found.row("G007"), expected, rtol=1e-6)
    common = [str(data), "--split", str(folder / "split.csv")]
    for name, more in (
        ("ridge", ["--features", str(table)]),
        ("linear", ["--features", str(table), "--set", "perturbation_embedding=features"]),
        ("linear", ["--set", f"gene_embedding={table}"]),
        ("scgpt", ["--features", str(table), "--device", "cpu", "--set", "preset=tiny", "--set", "steps=1"]),
    ):
        out = tmp_path / f"{name}{len(more)}"
        if name == "scgpt":
            more = [*more, "--set", "unmeasured_target=token"]
        assert run(cli, ["train", name, *common, *more, "-o", str(out)]) == 0
        loaded = load_run(out)
        assert loaded.model.predict([("K562", "G003")], loaded.control_means).status == ("predicted",)


def test_a_checkpoint_folder_and_a_choice_of_genes(files, tmp_path, capsys):
    from vcbench.baselines.scgpt.checkpoint import write_checkpoint
    from vcbench.baselines.scgpt.config import ScGPTConfig
    from vcbench.baselines.scgpt.model import TransformerGenerator
    from vcbench.baselines.scgpt.vocabulary import Vocabulary

    _, data = files
    vocabulary = Vocabulary.of_genes(["OUT1", "G001", "ELSE"])
    net = TransformerGenerator(
        ScGPTConfig(d_model=8, nhead=2, nlayers=1, d_hid=8), len(vocabulary), vocabulary.pad
    )
    write_checkpoint(net, vocabulary, tmp_path / "folder", layout="flash")
    whole, some = tmp_path / "whole.csv", tmp_path / "some.tsv"
    assert run(cli, ["features", str(tmp_path / "folder"), "-o", str(whole)]) == 0
    assert read_feature_table(whole).names.tolist() == ["OUT1", "G001", "ELSE"]
    assert run(cli, ["features", str(tmp_path / "folder"), "--like", str(data), "-o", str(some)]) == 0
    found = read_feature_table(some)
    assert found.names.tolist() == ["G001", "OUT1"]
    with torch.no_grad():
        np.testing.assert_allclose(found.values, net.encoder(torch.tensor([1, 0])).numpy(), rtol=1e-6)
    assert run(cli, ["features", str(tmp_path / "folder"), "-o", str(some)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(cli, ["features", str(tmp_path / "folder"), "-o", str(tmp_path / "x.npz")]) == 2


def test_parquet(files, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    folder, _ = files
    assert run(cli, ["features", str(folder / "run"), "-o", str(tmp_path / "g.parquet")]) == 0
    assert read_feature_table(tmp_path / "g.parquet").values.shape == (41, 8)


def test_models_without_embeddings_say_so(files, tmp_path, capsys):
    folder, data = files
    assert (
        run(
            cli, ["train", "mean", str(data), "--split", str(folder / "split.csv"), "-o", str(tmp_path / "m")]
        )
        == 0
    )
    assert run(cli, ["features", str(tmp_path / "m"), "-o", str(tmp_path / "m.tsv")]) == 1
    assert "mean has no gene embeddings" in capsys.readouterr().err
    assert run(cli, ["features", str(tmp_path), "-o", str(tmp_path / "m.tsv")]) == 1
    assert "no scGPT checkpoint; best_model.pt, vocab.json, args.json missing" in capsys.readouterr().err
