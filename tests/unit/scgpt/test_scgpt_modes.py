"""scGPT's settings: unmeasured targets, checkpoints, freezing, presets, features, memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.registry import create
from vcbench.data_specs.errors import ModelError, UsageError
from vcbench.data_specs.split_file import Split

torch = pytest.importorskip("torch", reason="torch is not installed")

from unit.scgpt.scgpt_runs import GENES, SETTINGS, TEST, effects, train, unmeasured, weights_of  # noqa: E402
from vcbench.baselines.scgpt.baseline import with_settings  # noqa: E402
from vcbench.baselines.scgpt.checkpoint import write_checkpoint  # noqa: E402
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator  # noqa: E402
from vcbench.baselines.scgpt.vocabulary import Vocabulary  # noqa: E402


def test_unmeasured_targets(files, tmp_path):
    with pytest.raises(ModelError, match=r"2 training targets are not among the 40 genes \(first: OUT1\)"):
        unmeasured(files, tmp_path)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = unmeasured(files, tmp_path, unmeasured_target="token", steps=4)
    labels = ("OUT1", "OUT2", "G000+OUT1", "OUT1+OUT2+G030", "OUT3", "OUT9")
    found = run.model.predict([("K562", label) for label in labels], run.control_means)
    assert found.status == ("predicted",) * 4 + ("fallback",) * 2
    assert found.reason[4] == "the token of OUT3 was not trained; mean training effect instead"
    np.testing.assert_allclose(found.profiles[4] - run.control_means["K562"], run.mean_effect, atol=1e-9)
    assert np.ptp(found.profiles[:4], axis=0).max() > 1e-5
    told = with_settings(run.model, untrained_target="predict")
    again = told.predict([("K562", label) for label in labels], run.control_means)
    assert again.status == ("predicted",) * 5 + ("refused",)
    refusing = with_settings(run.model, untrained_target="refuse")
    assert refusing.predict([("K562", "OUT3")], run.control_means).status == ("refused",)


def test_slots_do_not_depend_on_the_batch(files, tmp_path):
    run = unmeasured(files, tmp_path, unmeasured_target="token", steps=2)
    model = run.model
    assert model.tokens.n_slots == 1
    x = model.pools["K562"]
    both = model.predicted_cells("K562", "OUT1", x)
    np.testing.assert_allclose(model.predicted_cells("K562", "OUT1", x[3:4]), both[3:4], atol=1e-6)
    assert both.shape[1] == 40


def test_training_starts_from_a_checkpoint(files, pretrained):
    folder, net, vocabulary = pretrained
    found = train(files, "tuned", checkpoint=str(folder), epochs=0)
    model = found.model
    assert found.settings["preset"] == "finetune" and found.settings["lr"] == 1e-4
    assert (found.settings["d_model"], found.settings["nhead"]) == (12, 3)
    state = model.module.state_dict()
    for name, value in net.state_dict().items():
        if name.startswith(("value_encoder.", "transformer_encoder.", "encoder.enc_norm")):
            assert torch.equal(state[name], value), name
    own = model.tokens.vocabulary.ids
    for gene in (*GENES[4:], "ELSE", "<pad>"):
        np.testing.assert_array_equal(
            state["encoder.embedding.weight"][own[gene]],
            net.encoder.embedding.weight[vocabulary.ids[gene]].detach(),
        )
    record = json.loads((found.folder / "checkpoints/best/model.json").read_text())
    assert record["facts"]["checkpoint"]["ignored"] == ["flag_encoder.weight"]
    assert record["facts"]["checkpoint"]["rows_new"] == 4
    assert any("36 of 40 genes are in the checkpoint's vocabulary" in note for note in model.notes)
    moved = train(files, "tuned-2", checkpoint=str(folder), steps=2).model.module.state_dict()
    assert not torch.equal(
        moved["transformer_encoder.layers.0.linear1.weight"],
        state["transformer_encoder.layers.0.linear1.weight"],
    )


def test_a_smaller_table_trains_the_same_weights(files, tmp_path):
    # A fine-tuned checkpoint over all genes leaves nothing to the random initialisation.
    vocabulary = Vocabulary((*GENES[::-1], "ELSE", "MORE", "<pad>", "<cls>", "<eoc>"))
    net = TransformerGenerator(ScGPTConfig(d_model=8, nhead=2, nlayers=2, d_hid=8), 45, vocabulary.pad)
    write_checkpoint(net, vocabulary, tmp_path / "folder")
    runs = [
        train(files, f"table-{kept}", checkpoint=str(tmp_path / "folder"), steps=4, vocabulary=kept)
        for kept in ("whole", "data")
    ]
    assert [len(run.model.tokens.vocabulary) for run in runs] == [45, 43]
    found = [effects(run, TEST) for run in runs]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    tables = [run.model.gene_embeddings() for run in runs]
    assert set(tables[0].names) - set(tables[1].names) == {"ELSE", "MORE"}
    rows = [np.stack([table.row(gene) for gene in GENES]) for table in tables]
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    assert runs[0].model.report["new"] == runs[1].model.report["new"] == []


def test_checkpoint_tokens_inform_unmeasured_targets(files, pretrained, tmp_path):
    run = unmeasured(files, tmp_path, unmeasured_target="token", checkpoint=str(pretrained[0]), steps=1)
    found = run.model.predict([("K562", label) for label in ("OUT1", "OUT3", "ELSE")], run.control_means)
    assert found.status == ("predicted", "fallback", "predicted")


@pytest.mark.parametrize("oov", ["pad", "drop"])
def test_genes_outside_the_checkpoint(files, pretrained, oov):
    # G000 to G003 have no token; all of them are perturbed in some label.
    found = train(files, f"oov-{oov}", checkpoint=str(pretrained[0]), oov=oov, steps=2)
    tokens = found.model.tokens
    assert tokens.modelled.all() and (tokens.ids[:4] == tokens.vocabulary.pad).all() == (oov == "pad")
    answer = found.model.predict([("K562", "G003")], found.control_means)
    assert answer.reason[0] == ("G003 shares the token <pad> with other genes" if oov == "pad" else "")
    if oov == "pad":
        pad = tokens.vocabulary.pad
        x = found.model.pools["K562"].copy()
        x = type(x)(np.where(np.isin(np.arange(40), [0, 1]), 1.5, x.toarray()).astype(np.float32))
        cells = found.model.predicted_cells("K562", "G010", x)
        np.testing.assert_allclose(cells[:, 0], cells[:, 1], atol=1e-6)
        assert not found.model.module.encoder.embedding.weight[pad].isnan().any()


def test_dropped_genes_keep_their_control_value(files, tmp_path):
    genes = (*GENES[:30], *[f"X{i}" for i in range(10)])
    data = standard_h5ad(
        tmp_path / "d.h5ad", perturbations=("G005", "G006"), cells=8, controls=12, genes=genes
    )
    split = Split({("K562", label): ("train", "") for label in ("G005", "G006")}, {})
    vocabulary = Vocabulary.of_genes(GENES)
    net = TransformerGenerator(
        ScGPTConfig(d_model=8, nhead=2, nlayers=1, d_hid=8), len(vocabulary), vocabulary.pad
    )
    write_checkpoint(net, vocabulary, tmp_path / "folder")
    run = train((data, split, tmp_path), "run", checkpoint=str(tmp_path / "folder"), oov="drop", steps=2)
    found = effects(run, ["G005"])[0]
    np.testing.assert_allclose(found[30:], 0.0, atol=1e-12)
    assert np.abs(found[:30]).min() > 0


@pytest.mark.parametrize("freeze", ["genes, transformer", "values,perturbations", "decoder"])
def test_frozen_parts_stay(files, freeze):
    from vcbench.baselines.scgpt.config import PARTS

    before = weights_of(train(files, f"frozen-{freeze[:5]}-0", freeze=freeze, epochs=0), "last")
    after = weights_of(train(files, f"frozen-{freeze[:5]}", freeze=freeze, freeze_layers=1, steps=3), "last")
    prefixes = tuple(PARTS[part.strip()] for part in freeze.split(","))
    prefixes += ("transformer_encoder.layers.0.", "cls_decoder.")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith(prefixes)}


def test_nothing_left_to_train_is_an_error(files):
    with pytest.raises(ModelError, match="nothing is left to train"):
        train(files, "all-frozen", freeze="genes,values,perturbations,transformer,decoder")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_model": 10, "nhead": 4}, "multiple of nhead"),
        ({"pert_pad_id": 1}, "pert_pad_id must be 0 or 2"),
        ({"freeze": "encoder"}, "freeze knows genes, values"),
        ({"decoder_activation": "Softmax9"}, "decoder_activation must be one of"),
        ({"variant": "legacy_bn", "decoder_adaptive_bias": True}, "belong to variant=affine"),
        ({"include_zero_gene": "batch-wise", "gene_sampling": "random"}, "only with include_zero_gene=all"),
        ({"select": "cell_mse"}, "select=cell_mse needs paired_validation=true"),
        ({"freeze_layers": 9}, r"freeze_layers \(9\) is more than nlayers"),
        ({"dropout": 1.0, "partitions": 0}, "partitions must be at least 1, not 0; dropout"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UsageError, match=message):
        create("scgpt", settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"activation_checkpointing": True},
        {"variant": "legacy_bn", "pert_pad_id": 2, "dropout": 0.2},
        {"explicit_zero_prob": True},
        {"include_zero_gene": "cell-wise", "variant": "legacy_bn"},
        {"include_zero_gene": "batch-wise"},
        {"accumulate": 2, "batch_size": 4},
        {"validation": "cells"},
    ],
    ids=lambda s: "-".join(s),
)
def test_every_mode_trains_and_predicts(files, run, settings):
    found = train(files, "mode-" + "-".join(settings) + str(len(str(settings))), **settings)
    got = effects(found, ["G003", "G000+G001"])
    assert np.isfinite(got).all() and np.abs(got).max() > 1e-4
    if settings == {"activation_checkpointing": True}:
        np.testing.assert_allclose(got, effects(run, ["G003", "G000+G001"]), atol=1e-5)
    if settings == {"accumulate": 2, "batch_size": 4}:
        np.testing.assert_allclose(got, effects(run, ["G003", "G000+G001"]), atol=2e-3)


@pytest.mark.parametrize("preset", ["upstream", "upstream-0.2.1"])
def test_upstream_presets(files, preset):
    settings = {name: SETTINGS[name] for name in ("d_model", "nhead", "nlayers", "d_hid", "max_seq_len")}
    found = train(files, preset, preset=preset, epochs=2, batch_size=8, pool_size=6, **settings)
    legacy = preset == "upstream-0.2.1"
    assert found.settings["variant"] == ("legacy_bn" if legacy else "affine")
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["valid_cell_mse"] < 10 for line in lines)
    card = (found.folder / "card.md").read_text()
    assert ("validation cell_mse" if legacy else "validation pearson") in card
    assert np.isfinite(effects(found, ["G003"])).all()


def test_every_preset_spells_out_known_settings():
    from vcbench.baselines.scgpt.baseline import ScGPT

    sizes, data_sets = (
        {"tiny", "small", "base", "medium", "full"},
        {"norman2019", "adamson2016", "replogle2022"},
    )
    assert {"upstream", "upstream-0.2.1", "finetune"} | sizes | data_sets == set(ScGPT.preset_names())
    for name in ScGPT.preset_names():
        assert ScGPT.resolve({"preset": name}).preset == name
    fields = set(ScGPTConfig.__dataclass_fields__) - {"preset", "checkpoint", "checkpoint_every", "data"}
    from vcbench.baselines.training.config import read_toml

    for name in ("upstream", "upstream-0.2.1"):
        assert set(read_toml(ScGPT.presets() / f"{name}.toml")) == fields


def test_features_reach_untrained_targets(files, tmp_path):
    rng = np.random.default_rng(0)
    names = [*GENES[:30], "OUT1", "OUT2", "OUT3"]
    lines = [
        "gene\ta\tb",
        *(f"{n}\t{v[0]}\t{v[1]}" for n, v in zip(names, rng.normal(size=(33, 2)), strict=True)),
    ]
    table = tmp_path / "features.tsv"
    table.write_text("\n".join(lines) + "\n")
    run = unmeasured(files, tmp_path, unmeasured_target="token", features=str(table), steps=3)
    found = run.model.predict([("K562", "OUT3"), ("K562", "OUT9")], run.control_means)
    assert found.status == ("predicted", "fallback")
    module = run.model.module
    assert module.encoder.prior.shape == (len(run.model.tokens.vocabulary), 2)
    at = run.model.tokens.targets["OUT3"]
    assert not module.encoder.embedding.weight[at].any() and module.encoder.prior[at].abs().sum() > 0
    other = tmp_path / "foreign.tsv"
    other.write_text("gene\ta\nNOBODY\t1\n")
    with pytest.raises(ModelError, match="no gene or target of the data has features"):
        unmeasured(
            files,
            tmp_path / "x" if (tmp_path / "x").mkdir() is None else tmp_path,
            features=str(other),
            unmeasured_target="token",
        )


def test_memory_is_checked_before_training(files, monkeypatch):
    monkeypatch.setattr("vcbench.baselines.scgpt.memory.free_bytes", lambda device: 20_000.0)
    with pytest.raises(
        ModelError, match=r"activation_checkpointing=true, or --set batch_size=4 with accumulate=2"
    ):
        train(files, "too-big")


def test_the_model_imports_and_explains_without_torch():
    code = (
        "import sys; from vcbench.baselines.registry import explain; d = explain('scgpt'); "
        "assert 'upstream' in d['presets'], d; print([m for m in ('torch', 'scanpy', 'anndata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_readme_lists_every_preset():
    from vcbench.baselines.scgpt.baseline import ScGPT

    text = (Path(ScGPT.presets()) / "README.md").read_text(encoding="utf-8")
    assert [name for name in ScGPT.preset_names() if f"`{name}`" not in text] == []
