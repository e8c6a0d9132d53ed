"""scGPT in the loop: statuses, leakage, kill and resume, gene draws, pools, checkpoints, freezing, features."""

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

from vcbench.baselines.deep_train import train_deep  # noqa: E402
from vcbench.baselines.run_folder import load_run  # noqa: E402
from vcbench.baselines.scgpt.baseline import with_settings  # noqa: E402
from vcbench.baselines.scgpt.checkpoint import write_checkpoint  # noqa: E402
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator  # noqa: E402
from vcbench.baselines.scgpt.vocabulary import Vocabulary  # noqa: E402

GENES = [f"G{i:03d}" for i in range(40)]
LABELS = ("G000", "G001", "G002", "G003", "G004", "G000+G001", "G002+G003")
TEST = ("G003", "G002+G003")
SETTINGS = {
    "epochs": 2,
    "d_model": 8,
    "nhead": 2,
    "nlayers": 2,
    "d_hid": 8,
    "batch_size": 8,
    "max_seq_len": 16,
    "pool_size": 6,
    "validation_cells": 4,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scgpt")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=10, controls=16)
    part = {label: "test" if label in TEST else "train" for label in LABELS} | {"G004": "validation"}
    return (
        data,
        Split({("K562", label): (part[label], "") for label in LABELS}, {"scheme": "by hand"}),
        folder,
    )


def train(files, out, *, data=None, split=None, seed=3, features=None, resume=False, **settings):
    path, own, folder = files
    train_deep(
        "scgpt",
        data or path,
        split or own,
        folder / out,
        settings={**SETTINGS, **settings},
        features=features,
        seed=seed,
        device="cpu",
        resume=resume,
    )
    return load_run(folder / out)


@pytest.fixture(scope="module")
def run(files):
    return train(files, "run")


def weights_of(run, which="best"):
    from safetensors.numpy import load_file

    return load_file(run.folder / "checkpoints" / which / "weights.safetensors")


def same_weights(a, b, which="best"):
    mine, theirs = weights_of(a, which), weights_of(b, which)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def effects(run, labels, **settings):
    model = with_settings(run.model, **settings) if settings else run.model
    found = model.predict([("K562", label) for label in labels], run.control_means)
    assert set(found.status) == {"predicted"}
    return found.profiles - run.control_means["K562"]


def test_the_run_predicts_and_refuses(run):
    keys = [
        ("K562", label) for label in ("G003", "G002+G003", "G000+G001+G010", "NOPE", "G000+NOPE", "control")
    ]
    found = run.model.predict(keys, run.control_means)
    assert found.status == ("predicted",) * 3 + ("refused",) * 2 + ("predicted",)
    assert found.reason[3] == "NOPE not among the genes (unmeasured_target=error)"
    control = run.control_means["K562"]
    np.testing.assert_array_equal(found.profiles[5], control)
    assert np.ptp(found.profiles[:3] - control, axis=0).max() > 1e-4
    swapped = run.model.predict(keys[:3][::-1], run.control_means)
    np.testing.assert_allclose(swapped.profiles[::-1], found.profiles[:3], atol=1e-6)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"valid_pearson_delta", "valid_pearson", "valid_mse"} <= lines[-1].keys()


def test_the_first_gene_is_flagged_like_any_other(run):
    model = run.model
    plain = model.module.pert_encoder.weight.detach().clone()
    with torch.no_grad():
        model.module.pert_encoder.weight[1] += 3.0
    first, none = (
        effects(run, ["G000"])[0],
        model._predictor().mean(model.pools["K562"], model.tokens.place("")),
    )
    pool = model.pools["K562"].toarray().mean(axis=0)
    assert np.abs(first - (none - pool)).max() > 1e-2
    with torch.no_grad():
        model.module.pert_encoder.weight.copy_(plain)


def test_effects_are_means_over_the_pool(run):
    model = run.model
    cells = model.cells("K562", "G002")
    pool = model.pools["K562"].toarray()
    assert cells.shape == pool.shape == (6, 40)
    np.testing.assert_allclose(effects(run, ["G002"])[0], (cells - pool).mean(axis=0), atol=1e-5)
    absolute = effects(run, ["G002"], effect="absolute")[0] + run.control_means["K562"]
    np.testing.assert_allclose(absolute, cells.mean(axis=0), atol=1e-5)
    alone = model.cells("K562", "control")
    np.testing.assert_allclose(
        effects(run, ["G002"], effect="contrast")[0], (cells - alone).mean(axis=0), atol=1e-5
    )
    own = model.cells("elsewhere", "G002", model.pools["K562"][:2])
    np.testing.assert_allclose(own, cells[:2], atol=1e-6)
    with pytest.raises(ModelError, match="was not trained; give its control cells"):
        model.cells("elsewhere", "G002")
    with pytest.raises(ModelError, match="NOPE not among the genes"):
        model.cells("K562", "NOPE")


def test_a_new_context_gets_the_mean_effect_of_the_trained_ones(run):
    controls = {"K562": run.control_means["K562"], "new": run.control_means["K562"] + 1.0}
    found = run.model.predict([("K562", "G003"), ("new", "G003")], controls)
    np.testing.assert_allclose(found.profiles[1] - found.profiles[0], 1.0, atol=1e-6)


def test_chunked_equals_full_where_all_genes_fit(run):
    labels = ["G003", "G000+G020"]
    full = effects(run, labels)
    np.testing.assert_allclose(effects(run, labels, inference="chunked", max_seq_len=40), full, atol=1e-6)
    chunked = effects(run, labels, inference="chunked", max_seq_len=16)
    again = effects(run, labels[::-1], inference="chunked", max_seq_len=16)[::-1]
    np.testing.assert_array_equal(chunked, again)
    assert 0 < np.abs(chunked - full).max() < 0.5
    averaged = effects(run, labels, inference="chunked", max_seq_len=16, partitions=4)
    assert np.abs(averaged - full).max() < np.abs(chunked - full).max() + 0.1


def test_block_sizes_do_not_matter(run, monkeypatch):
    whole = effects(run, ["G003", "G001"])
    monkeypatch.setattr("vcbench.baselines.scgpt.effects.TOKENS_PER_PASS", 50)
    np.testing.assert_allclose(effects(run, ["G003", "G001"]), whole, atol=1e-6)


def test_poisoned_test_rows_change_nothing(files, run):
    ad = pytest.importorskip("anndata", reason="anndata is not installed")
    data, _, folder = files
    poisoned = ad.read_h5ad(data)
    rows = np.flatnonzero(poisoned.obs["perturbation"].isin(TEST).to_numpy())
    x = poisoned.X.tolil()
    x[rows] = np.random.default_rng(0).poisson(50.0, (len(rows), 40))
    poisoned.X = x.tocsr().astype(np.float32)
    poisoned.write_h5ad(folder / "poisoned.h5ad")
    other = train(files, "poisoned", data=folder / "poisoned.h5ad")
    same_weights(other, run)
    same_weights(other, run, "last")
    np.testing.assert_array_equal(effects(other, TEST), effects(run, TEST))


class Killed(Exception):
    """Stands for a kill in the middle of an epoch."""


@pytest.mark.parametrize("more", [{}, {"include_zero_gene": "cell-wise", "dropout": 0.2}])
def test_a_killed_run_resumes_to_the_same_bits(files, more, monkeypatch):
    from vcbench.baselines.scgpt.training import ScGPTTraining

    name = "-".join(["kill", *more])
    whole = train(files, f"{name}-whole", checkpoint_every=2, **more)
    steps, plain = [], ScGPTTraining.loss

    def dying(self, batch):
        steps.append(1)
        if len(steps) == 9:
            raise Killed
        return plain(self, batch)

    monkeypatch.setattr(ScGPTTraining, "loss", dying)
    with pytest.raises(Killed):
        train(files, f"{name}-killed", checkpoint_every=2, **more)
    monkeypatch.setattr(ScGPTTraining, "loss", plain)
    resumed = train(files, f"{name}-killed", checkpoint_every=2, resume=True, **more)
    same_weights(resumed, whole)
    same_weights(resumed, whole, "last")


def test_seeds_decide(files, run):
    again = train(files, "again")
    same_weights(again, run)
    other = train(files, "other-seed", seed=4)
    assert np.abs(effects(other, ["G003"]) - effects(run, ["G003"])).max() > 1e-4


def training_of(files, **settings):
    from vcbench.baselines.deep_data import load_cells
    from vcbench.baselines.training.protocol import Placement

    data, split, _ = files
    model = create("scgpt", {**SETTINGS, **settings})
    cells = load_cells(data, split)
    placement = Placement(torch.device("cpu"), torch.float32)
    return model.start(cells, placement, rng=np.random.default_rng(1)), cells


def parts_of(trainable, n=8):
    from vcbench.baselines.training.protocol import Part

    order = trainable.order(0, np.random.default_rng(2))
    return [Part(order[i : i + n], order[i : i + n]) for i in range(0, len(order) - n + 1, n)]


def targets_in(trainable, cells, part):
    return [cells.keys[cells.codes[row]][1] for row in trainable.rows[part.rows]]


@pytest.mark.parametrize("zero_genes", ["all", "batch-wise", "cell-wise"])
def test_every_perturbed_gene_is_among_the_genes_of_its_step(files, zero_genes):
    trainable, cells = training_of(files, include_zero_gene=zero_genes, max_seq_len=12)
    dense = cells.x.toarray()
    for part in parts_of(trainable):
        batch = trainable.batch(part)
        inputs = batch.inputs
        columns = inputs.columns.expand(len(part.rows), -1).numpy()
        padding = inputs.gene_padding
        for i, label in enumerate(targets_in(trainable, cells, part)):
            own = columns[i] if padding is None else columns[i][~padding[i].numpy()]
            assert len(set(own.tolist())) == len(own)
            flagged = {GENES[c] for c in columns[i][inputs.flags[i, : inputs.n_genes].numpy() == 1]}
            assert flagged == (set() if label == "control" else set(label.split("+")))
            row, pair = trainable.rows[part.rows[i]], trainable.pairs[part.rows[i]]
            np.testing.assert_array_equal(inputs.values[i, : len(own)], dense[pair, own])
            np.testing.assert_array_equal(batch.targets[i, : len(own)], dense[row, own])
            if zero_genes == "cell-wise":
                assert (dense[pair, own] > 0).sum() >= len(own) - len(flagged)
        tokens = inputs.flags.shape[1] * len(part.rows)
        assert batch.n_tokens == (tokens if padding is None else int((~padding).sum()))
        assert columns.shape[1] <= (12 if padding is None else 64)


def test_too_many_targets_for_one_set_of_genes_are_drawn_by_cell(files):
    trainable, cells = training_of(files, max_seq_len=5)
    seen = set()
    for part in parts_of(trainable, 24):
        batch = trainable.batch(part)
        seen.add(batch.inputs.columns.dim())
        flagged = batch.inputs.flags.sum(dim=1).tolist()
        assert flagged == [
            0 if t == "control" else len(t.split("+")) for t in targets_in(trainable, cells, part)
        ]
        assert batch.inputs.columns.shape[-1] == 5 and batch.n_tokens == 5 * 24
    assert 2 in seen


def test_upstreams_draw_hides_targets(files):
    trainable, cells = training_of(files, gene_sampling="random", max_seq_len=10, include_control=False)
    parts = parts_of(trainable)
    shown = [int(trainable.batch(part).inputs.flags.sum()) for part in parts]
    asked = [sum(len(t.split("+")) for t in targets_in(trainable, cells, part)) for part in parts]
    assert 0.05 < sum(shown) / sum(asked) < 0.6
    sizes = {trainable.batch(part).inputs.columns.shape for part in parts}
    assert sizes == {torch.Size([10])}


def test_draws_are_uniform_beside_the_forced_genes():
    from vcbench.baselines.scgpt.sampling import shared_genes

    forced = np.array([3, 7])
    counts = np.zeros(20)
    for seed in range(3000):
        counts[shared_genes(np.arange(20), forced, 8, np.random.default_rng(seed))] += 1
    assert (counts[forced] == 3000).all()
    others = np.delete(counts, forced)
    # Six of eighteen: 1,000 times each, standard deviation 26.
    assert np.abs(others - 1000).max() < 110 and others.sum() == 18_000


def test_batches_hold_cells_of_similar_length():
    from vcbench.baselines.scgpt.sampling import bucketed_order

    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 1000, 1003)
    order = bucketed_order(rng.permutation(1003), lengths, 10, rng, bucket=25)
    assert sorted(order.tolist()) == list(range(1003))
    steps = lengths[order[:1000]].reshape(100, 10)
    assert np.ptp(steps, axis=1).mean() < 0.1 * np.ptp(lengths)
    assert (np.diff(steps.mean(axis=1)) < 0).sum() > 30


def test_pairing_and_controls(files):
    fixed, cells = training_of(files, pairing="fixed")
    before = fixed.pairs.copy()
    fixed.order(1, np.random.default_rng(9))
    np.testing.assert_array_equal(fixed.pairs, before)
    drawn, _ = training_of(files)
    drawn.order(0, np.random.default_rng(2))
    first = drawn.pairs.copy()
    drawn.order(1, np.random.default_rng(9))
    control = cells.is_control[drawn.rows]
    np.testing.assert_array_equal(drawn.pairs[control], drawn.rows[control])
    assert (drawn.pairs[~control] != first[~control]).mean() > 0.5
    assert cells.is_control[drawn.pairs].all()
    mean, _ = training_of(files, pairing="mean", include_control=False)
    part = parts_of(mean)[0]
    inputs = mean.batch(part).inputs
    expected = cells.control_means["K562"][inputs.columns.numpy()]
    np.testing.assert_allclose(
        inputs.values[:, : inputs.n_genes].numpy(), np.tile(expected, (8, 1)), rtol=1e-6
    )
    assert len(mean.rows) == len(drawn.rows) - 16


def unmeasured(files, tmp_path, **settings):
    labels = ("G000", "OUT1", "OUT2", "G001+OUT1", "OUT3")
    data = standard_h5ad(tmp_path / "out.h5ad", perturbations=labels, cells=8, controls=12)
    part = {"OUT3": "test"}
    split = Split({("K562", label): (part.get(label, "train"), "") for label in labels}, {})
    return train((data, split, tmp_path), "run", **settings)


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
    both = model.cells("K562", "OUT1", x)
    np.testing.assert_allclose(model.cells("K562", "OUT1", x[3:4]), both[3:4], atol=1e-6)
    assert both.shape[1] == 40


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder in the official layout over most of the genes, and some that the data lacks."""
    folder = tmp_path_factory.mktemp("pretrained") / "whole-human"
    vocabulary = Vocabulary((*GENES[4:][::-1], "OUT1", "ELSE", "<pad>", "<cls>", "<eoc>"))
    torch.manual_seed(2)
    net = TransformerGenerator(
        ScGPTConfig(d_model=12, nhead=3, nlayers=2, d_hid=10), len(vocabulary), vocabulary.pad
    )
    write_checkpoint(
        net, vocabulary, folder, layout="flash", extra={"flag_encoder.weight": torch.zeros(2, 12)}
    )
    state = torch.load(folder / "best_model.pt", weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith(("pert_encoder", "decoder", "cls_decoder"))}
    torch.save(kept, folder / "best_model.pt")
    return folder, net, vocabulary


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
        cells = found.model.cells("K562", "G010", x)
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

    assert {"upstream", "upstream-0.2.1", "finetune", "tiny", "small", "base", "medium", "full"} == set(
        ScGPT.preset_names()
    )
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
