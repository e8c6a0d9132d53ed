"""scGPT in the loop: statuses, leakage, kill and resume, pools and inference, draws of genes, pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vcbench.baselines.registry import create
from vcbench.data_specs.errors import ModelError

torch = pytest.importorskip("torch", reason="torch is not installed")

from unit.scgpt.scgpt_runs import (  # noqa: E402
    GENES,
    SETTINGS,
    TEST,
    effects,
    same_weights,
    train,
)


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
    cells = model.predicted_cells("K562", "G002")
    pool = model.pools["K562"].toarray()
    assert cells.shape == pool.shape == (6, 40)
    np.testing.assert_allclose(effects(run, ["G002"])[0], (cells - pool).mean(axis=0), atol=1e-5)
    absolute = effects(run, ["G002"], effect="absolute")[0] + run.control_means["K562"]
    np.testing.assert_allclose(absolute, cells.mean(axis=0), atol=1e-5)
    alone = model.predicted_cells("K562", "control")
    np.testing.assert_allclose(
        effects(run, ["G002"], effect="contrast")[0], (cells - alone).mean(axis=0), atol=1e-5
    )
    own = model.predicted_cells("elsewhere", "G002", model.pools["K562"][:2])
    np.testing.assert_allclose(own, cells[:2], atol=1e-6)
    with pytest.raises(ModelError, match="was not trained; give its control cells"):
        model.predicted_cells("elsewhere", "G002")
    with pytest.raises(ModelError, match="NOPE not among the genes"):
        model.predicted_cells("K562", "NOPE")


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
