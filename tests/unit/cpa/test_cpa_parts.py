"""The parts of CPA by hand: likelihoods and their gradients, schedule, mixing, doses, features, purity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from vcbench.baselines.cpa.encoding import DoseScale, PerturbationTable, condition_of, padded, parts_of
from vcbench.baselines.features import FeatureTable
from vcbench.data_specs.errors import ModelError
from vcbench.data_specs.labels import base_unit

torch = pytest.importorskip("torch", reason="torch is not installed")


def plain_nb(logits, log_theta, x):
    """The density as scvi-tools writes it, entry by entry."""
    theta, eps = torch.exp(log_theta), 1e-8
    mu = x.sum(1, keepdim=True) * torch.softmax(logits, 1)
    log_total = torch.log(theta + mu + eps)
    found = theta * (torch.log(theta + eps) - log_total) + x * (torch.log(mu + eps) - log_total)
    return -(found + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)).sum()


@pytest.mark.parametrize("whole", [True, False])
def test_negative_binomial_and_its_gradients(whole):
    from vcbench.baselines.cpa.likelihood import TABLE, negative_binomial
    from vcbench.baselines.training.device_matrix import StoredEntries

    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.rand(7, 9, generator=generator, dtype=torch.float64) * 8, generator=generator)
    x[0, :3] = torch.tensor([TABLE, TABLE + 1.0, 900.0])
    x[1, 2:6] = 0
    if not whole:
        x = x * 0.7
    gradients = []
    for loss in (negative_binomial, plain_nb):
        logits = torch.randn(
            7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).requires_grad_()
        log_theta = torch.linspace(-3, 4, 9, dtype=torch.float64).requires_grad_()
        value = loss(logits, log_theta, x)
        (value * 1.7).backward()
        gradients.append((value.detach(), logits.grad, log_theta.grad))
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-10)
    # Known positions of the stored entries give the same.
    positions = torch.nonzero(x.view(-1)).squeeze(1)
    columns = positions % x.shape[1]
    stored = StoredEntries(columns, lambda: positions - columns)
    torch.testing.assert_close(negative_binomial(logits, log_theta, x, stored), value, rtol=1e-12, atol=0)


def test_densities_are_those_of_the_distributions():
    from scipy import stats
    from vcbench.baselines.cpa.likelihood import gaussian, negative_binomial, zero_inflated

    x = torch.tensor([[0.0, 3.0, 40.0]], dtype=torch.float64)
    logits, theta = torch.tensor([[0.2, 0.5, 2.0]], dtype=torch.float64), np.array([0.5, 2.0, 9.0])
    mu = 43 * torch.softmax(logits, 1).numpy()[0]
    expected = stats.nbinom.logpmf([0, 3, 40], theta, theta / (theta + mu))
    log_theta = torch.log(torch.tensor(theta))
    assert negative_binomial(logits, log_theta, x).item() == pytest.approx(-expected.sum(), rel=1e-7)
    extra = np.array([0.3, 0.2, 0.1])
    zeros = torch.tensor(np.log(extra / (1 - extra)))[None]
    mixed = np.log((1 - extra) * np.exp(expected) + extra * np.array([1, 0, 0]))
    found = zero_inflated(torch.tensor(mu)[None], log_theta, zeros, x).item()
    assert found == pytest.approx(-mixed.sum(), rel=1e-6)
    mean, variance = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    y = torch.tensor([[0.4, 5.0]])
    density = stats.norm.logpdf(y.numpy(), mean.numpy(), np.sqrt(variance.numpy())).sum()
    assert gaussian(mean, variance, y).item() == pytest.approx(-density, rel=1e-6)


def test_who_learns_when():
    from vcbench.baselines.cpa.config import CpaConfig
    from vcbench.baselines.cpa.schedule import mixing_alpha, phase_of
    from vcbench.baselines.training.protocol import Position

    config = CpaConfig(adv_steps=3, n_epochs_pretrain_ae=2, n_epochs_adv_warmup=4)
    phases = [
        phase_of(config, Position(0, epoch, step_in_epoch=b), 0)
        for epoch in (0, 2, 3, 5, 9)
        for b in (0, 1, 3)
    ]
    assert [phase.pretraining for phase in phases] == [True] * 6 + [False] * 9
    assert all(phase.autoencoder and phase.adversaries for phase in phases[:6])
    assert [phase.autoencoder for phase in phases[6:9]] == [True, False, True]
    assert [phase.adversaries for phase in phases[6:9]] == [False, True, False]
    assert [phase.reg_share for phase in phases[6::3]] == [0.25, 0.75, 1.0]
    both = phase_of(CpaConfig(adv_steps=0, n_epochs_pretrain_ae=0, n_epochs_adv_warmup=0), Position(0, 0), 0)
    assert both.autoencoder and both.adversaries and both.reg_share == 1
    # Steps: batches by default, every optimizer's in upstream's way; no warm-up divides by nothing.
    steps = {"n_steps_pretrain_ae": 6, "n_steps_adv_warmup": 8}
    assert phase_of(CpaConfig(**steps), Position(6, 0), 18).pretraining
    assert not phase_of(CpaConfig(**steps, count_steps="optimizer"), Position(6, 0), 18).pretraining
    assert phase_of(CpaConfig(**steps), Position(10, 0), 0).reg_share == 0.5

    settings = {"mixup_alpha": 0.4, "n_epochs_mixup_warmup": 10, "n_epochs_pretrain_ae": 5}
    assert [mixing_alpha(CpaConfig(**settings), e) for e in (0, 5, 10, 15, 40)] == [0, 0, 0.2, 0.4, 0.4]
    assert mixing_alpha(CpaConfig(**settings, mixup_ramp="never"), 40) == 0
    settings["n_epochs_pretrain_ae"] = 0
    assert mixing_alpha(CpaConfig(**settings, mixup_ramp="never"), 5) == 0.2


def test_mixing_partners_do_not_depend_on_how_a_step_is_cut():
    import scipy.sparse as sp
    from vcbench.baselines.cpa.data import EncodedRows
    from vcbench.baselines.cpa.training import CpaTraining
    from vcbench.baselines.training.device_matrix import DeviceMatrix
    from vcbench.baselines.training.protocol import Part, Placement

    rng = np.random.default_rng(0)
    n = 12
    training = object.__new__(CpaTraining)
    codes = rng.integers(0, 3, n)
    training.encoded = EncodedRows(
        np.arange(n)[::-1].copy(), np.ones((n, 1), int), np.ones((n, 1)), codes, {}
    )
    x = sp.csr_array(rng.poisson(1.0, (n, 5)).astype(np.float32))
    training._x = DeviceMatrix(x, Placement(torch.device("cpu"), torch.float64))
    training._slots, training._doses = torch.arange(n)[:, None], torch.arange(n)[:, None].double()
    training._conditions, training._covariates = torch.as_tensor(codes), {}
    training._weights, training._mix_seed, training._alpha = np.ones(3), 7, 0.5
    whole = rng.permutation(n)
    once = training.batch(Part(whole, whole))
    parts = [training.batch(Part(rows, whole)) for rows in np.array_split(whole, 3)]
    assert torch.equal(torch.cat([part.x for part in parts]), once.x)
    assert torch.equal(torch.cat([part.mixing.rows for part in parts]), once.mixing.rows)
    assert {part.mixing.weight for part in parts} == {once.mixing.weight}
    dense = torch.as_tensor(x.toarray()[::-1].copy()).double()
    partners = once.mixing.rows[:, 0]
    w = once.mixing.weight
    torch.testing.assert_close(once.x, w * dense[whole] + (1 - w) * dense[partners])
    assert sorted(partners.tolist()) == list(range(n))


def test_labels_and_doses():
    assert condition_of("A@10nM+B@1uM@24h") == "A+B@24h" and condition_of("control") == "control"
    assert [part.target for part in parts_of(r"x\+y@5nM")] == ["x+y"]
    assert (
        base_unit("µM") == ("M", 1e-6)
        and base_unit("mg/mL") == ("g/ml", 1e-3)
        and base_unit("day") == ("day", 1.0)
    )
    labels = ["A@10nM", "A@1uM", "B@100nM+C@10uM"]
    for form, expected in (
        ("raw", [0.01, 1.0]),
        ("relative", [0.001, 0.1]),
        ("log", [math.log(2) / math.log(1001), math.log(101) / math.log(1001)]),
    ):
        scale = DoseScale.fit(form, labels)
        assert [scale.value(parts_of(label)[0]) for label in labels[:2]] == pytest.approx(expected)
    assert scale.value(parts_of("C@10uM")[0]) == pytest.approx(1.0)
    genes = DoseScale.fit("log", ["A", "A+B"])
    assert genes.value(parts_of("A")[0]) == 1.0 and "training labels have none" in genes.problem(
        parts_of("A@1uM")[0]
    )
    with pytest.raises(ModelError, match="others none"):
        DoseScale.fit("log", ["A@10nM", "B"])
    with pytest.raises(ModelError, match="cannot be compared"):
        DoseScale.fit("log", ["A@10nM", "B@2%"])
    with pytest.raises(ModelError, match="label such cells control"):
        DoseScale.fit("log", ["A@0nM"])


def test_slots():
    table = PerturbationTable.of(["B", "A", "A1"])
    assert table.names == ("<PAD>", "control", "A", "A1", "B")
    scale = DoseScale.fit("raw", ["A@1nM"])
    # A1@ sorts before A@ in the label, but not in the table.
    label = "A1@5nM+A@3nM"
    assert table.encode(label, scale) == ([2, 3], [3.0, 5.0])
    assert table.encode(label, scale, match_doses=False) == ([2, 3], [5.0, 3.0])
    assert table.encode("control", scale) == ([1], [1.0])
    rows, doses = padded([table.encode(x, scale) for x in (label, "B@2nM")])
    assert rows.tolist() == [[2, 3], [4, 0]] and doses.tolist() == [[3.0, 5.0], [2.0, 0.0]]
    for names, message in ((["A", "A"], "twice"), (["Z"], "no perturbation called 'Z'"), (["A"], "2 dose")):
        with pytest.raises(ModelError, match=message):
            table.slots(names, [1.0, 1.0] if names != ["Z"] else [1.0])


def test_feature_rows():
    from vcbench.baselines.cpa.embeddings import MEAN, feature_rows

    rng = np.random.default_rng(0)
    source = FeatureTable(np.array(["A", "B", "C", "control"]), rng.normal(size=(4, 6)))
    found = feature_rows(source, ["A@1nM", "B@1nM+C@1nM"], ["A@1nM@24h", "Z"], n_components=0, with_mean=True)
    assert found.table.names == ("<PAD>", "control", MEAN, "A", "A@24h", "B", "C", "Z")
    values = dict(zip(found.table.names, found.values, strict=True))
    np.testing.assert_allclose(values["A"], values["A@24h"])
    np.testing.assert_allclose((values["A"] + values["B"] + values["C"]) / 3, 0, atol=1e-12)
    assert (
        values["control"].any()
        and not values["<PAD>"].any()
        and not values["Z"].any()
        and not values[MEAN].any()
    )
    reduced = feature_rows(source, ["A", "B", "C"], [], n_components=2, with_mean=False)
    assert reduced.values.shape == (5, 2)
    np.testing.assert_allclose(np.mean(reduced.values[2:] ** 2), 1.0)


def test_purity_of_neighbours():
    from vcbench.baselines.cpa.metrics import knn_purity

    apart = torch.cat([torch.randn(40, 2), torch.randn(10, 2) + 100])
    labels = torch.tensor([0] * 40 + [1] * 10)
    # 30 neighbours: 9 of the small group are its own, the rest must come from the other.
    assert knn_purity(apart, labels) == pytest.approx((1 + 9 / 30) / 2)
    assert math.isnan(knn_purity(apart[:1], labels[:1]))


def test_dose_responses_are_zero_without_dose():
    from vcbench.baselines.cpa.layers import DoseNetwork, DoseResponse

    rows = torch.tensor([[1, 2], [2, 0]])
    doses = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    for kind, one in (("linear", 1.0), ("sigm", 0.2311), ("logsigm", 0.1667)):
        found = DoseResponse(kind, 3)(doses, rows)
        assert found[0, 0] == 0 and found[1, 1] == 0
        assert found[0, 1].item() == pytest.approx(one, abs=1e-4)
    torch.manual_seed(0)
    network = DoseNetwork(3, 4, 2)
    found = network(doses, rows)
    assert found[0, 0] == 0 and found[1, 1] == 0 and (found[[0, 1], [1, 0]] > 0).all()
    alone = network(torch.tensor([[1.0]]), torch.tensor([[2]]))
    torch.testing.assert_close(alone[0, 0], found[0, 1])
