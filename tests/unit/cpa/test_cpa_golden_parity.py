"""Latents, likelihoods, losses, gradients, adversaries, validation and training batches against cpa-tools 0.8.8."""

from __future__ import annotations

import numpy as np
import pytest
from unit.cpa.cpa_golden import (
    CASES,
    adversaries,
    config,
    data,
    forward_data,
    gap,
    golden,
    meta,
    needs_golden,
    network,
    sizes,
    under,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = needs_golden


def trained(net, adversary):
    """A `CpaTraining` around a network, for its reconstruction and steps; its cells are the golden rows."""
    from vcbench.baselines.cpa.training import CpaModule, CpaTraining

    training = object.__new__(CpaTraining)
    training.module = CpaModule(net, adversary)
    training.network, training.adversaries = net, adversary
    training.config = net.config
    training._reg_adv = net.config.reg_adv
    training._optimizer_steps = 0
    return training


def decoded(net, z, x):
    """Upstream's mean (and scale) of each cell."""
    found = net.decoder(z)
    if not net.counts:
        return found[0], found[1].sqrt()
    return x.sum(dim=1, keepdim=True) * found[0], net.theta


def check_forward(case: str, mode: str, net, latents, x, limit: float) -> None:
    z = golden()
    found = {
        "z_basal": latents.basal,
        "z": latents.total(),
        "z_corrected": latents.total(without="plate"),
        "z_no_pert": latents.total(perturbation=False),
        "z_no_pert_corrected": latents.total(perturbation=False, without="plate"),
    }
    for name, value in found.items():
        assert gap(value, z[f"{case}/{mode}/{name}"]) < limit, name
    first, second = decoded(net, latents.total(), x)
    names = ("mu", "theta") if net.counts else ("mean", "scale")
    assert gap(first, z[f"{case}/{mode}/{names[0]}"]) < 10 * limit
    assert gap(second, z[f"{case}/{mode}/{names[1]}"]) < limit


@pytest.mark.parametrize("case", CASES)
def test_eval_forward_and_loss(case):
    z, net = golden(), network(case).eval()
    x, slots, doses, covariates, _ = forward_data(case)
    latents = net.latents(x, slots, doses, covariates)
    check_forward(case, "eval", net, latents, x, 1e-12)
    assert gap(net.pert_network(slots, doses), z[f"{case}/eval/pert_latent"]) < 1e-13
    loss = trained(net, None).reconstruction(latents.total(), x) / len(x)
    assert loss.item() == pytest.approx(float(z[f"{case}/eval/recon_loss"]), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_near(case):
    z, net = golden(), network(case).float().eval()
    x, slots, doses, covariates, _ = forward_data(case)
    latents = net.latents(x.float(), slots, doses.float(), covariates)
    assert gap(latents.basal, z[f"{case}/eval/z_basal"]) < 5e-6
    assert (
        gap(decoded(net, latents.total(), x.float())[0], z[f"{case}/eval/{'mu' if net.counts else 'mean'}"])
        < 2e-5
    )
    loss = trained(net, None).reconstruction(latents.total(), x.float()) / len(x)
    assert loss.item() == pytest.approx(float(z[f"{case}/eval/recon_loss"]), rel=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", CASES)
def test_adversaries_and_penalty(case, mode):
    net, adversary = network(case), adversaries(case)
    net.train(mode == "train")
    adversary.train(mode == "train")
    x, slots, doses, covariates, labels = forward_data(case)
    basal = net.latents(x, slots, doses, covariates).basal.detach().requires_grad_(True)
    logits = adversary.logits(basal)
    loss, penalty = adversary.loss(logits, labels), adversary.penalty(logits, basal, len(x))
    expected = under(f"{case}/{mode}/adversary/")
    assert loss.item() == pytest.approx(float(expected["adv_loss"]), rel=1e-12)
    assert penalty.item() == pytest.approx(float(expected["penalty_adv"]), rel=1e-10)
    for name, values in logits.items():
        own = "perts" if name == "conditions" else name
        assert adversary.loss({name: values}, labels).item() == pytest.approx(
            float(expected[f"adv_{own}"]), rel=1e-12
        )
        found = adversary.penalty({name: adversary.logits(basal)[name]}, basal, len(x)).item()
        assert found == pytest.approx(float(expected[f"penalty_{own}"]), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_train_mode_losses_gradients_and_statistics(case):
    # A trained projection changes no value; upstream computes its gradient and never uses it.
    z, net = golden(), network(case, projection="trained").train()
    adversary = adversaries(case).train()
    training = trained(net, adversary)
    x, slots, doses, covariates, labels = forward_data(case)
    latents = net.latents(x, slots, doses, covariates)
    check_forward(case, "train", net, latents, x, 1e-11)
    state = net.state_dict()
    buffers = {key: value for key, value in under(f"{case}/train/buffers/").items() if key in state}
    assert buffers
    for key, expected in buffers.items():
        assert gap(state[key], expected) < 1e-12, key
    reconstruction = training.reconstruction(latents.total(), x) / len(x)
    assert reconstruction.item() == pytest.approx(float(z[f"{case}/train/recon_loss"]), rel=1e-11)
    loss = reconstruction - net.config.reg_adv * adversary.loss(adversary.logits(latents.basal), labels)
    assert loss.item() == pytest.approx(float(z[f"{case}/train/loss_autoencoder"]), rel=1e-10)
    loss.backward()
    compare_gradients(net, under(f"{case}/train/grad/"))
    adversary.zero_grad()
    basal = latents.basal.detach().requires_grad_(True)
    logits = adversary.logits(basal)
    penalty = adversary.penalty(logits, basal, len(x))
    total = adversary.loss(logits, labels) + net.config.pen_adv * penalty
    assert total.item() == pytest.approx(float(z[f"{case}/train/loss_adversary"]), rel=1e-10)
    total.backward()
    compare_gradients(adversary, under(f"{case}/train/grad_adv/"))


def compare_gradients(module, expected: dict[str, np.ndarray]) -> None:
    parameters = dict(module.named_parameters())
    assert expected
    for key, value in expected.items():
        own = parameters[key].grad
        assert own is not None, key
        # The floor is for gradients that are zero in exact arithmetic (a constant in front of a batch norm).
        assert gap(own, value) < 1e-9 * np.abs(value).max() + 1e-14, key


@pytest.mark.parametrize("case", ["nb_logsigm", "gauss_linear"])
def test_mixup(case):
    from vcbench.baselines.cpa.network import Mixing

    z, net, adversary = golden(), network(case).train(), adversaries(case).train()
    x, slots, doses, covariates, labels = forward_data(case)
    permutation = torch.as_tensor(z[f"{case}/mixup/perm"])
    weight = float(z[f"{case}/mixup/lambda"])
    mixed = weight * x + (1 - weight) * x[permutation]
    assert gap(mixed, z[f"{case}/mixup/X"]) < 1e-13
    theirs = {name: codes[permutation] for name, codes in covariates.items()}
    mixing = Mixing(weight, slots[permutation], doses[permutation], theirs)
    latents = net.latents(mixed, slots, doses, covariates, mixing=mixing)
    check_forward(case, "mixup", net, latents, mixed, 1e-11)
    loss = trained(net, adversary).reconstruction(latents.total(), mixed) / len(x)
    assert loss.item() == pytest.approx(float(z[f"{case}/mixup/recon_loss"]), rel=1e-11)
    rows = z["data/forward_rows"][z[f"{case}/mixup/perm"]]
    partners = data(case, rows)[-1]
    logits = adversary.logits(latents.basal)
    found = adversary.loss(logits, labels, partners=partners, weight=weight)
    assert found.item() == pytest.approx(float(z[f"{case}/mixup/adversary/adv_loss"]), rel=1e-11)
    # The default mode mixes the labels of covariates too: the loss of a mixture lies between those of its parts.
    adversary.mixed_covariates = True
    both = adversary.loss(logits, labels, partners=partners, weight=weight)
    expected = weight * adversary.loss(logits, labels) + (1 - weight) * adversary.loss(logits, partners)
    assert both.item() == pytest.approx(expected.item(), rel=1e-12)
    assert both.item() > found.item()


@pytest.mark.parametrize("case", CASES)
def test_validation_metrics(case):
    from vcbench.baselines.cpa.metrics import category_r2, gaussian_r2, purity

    z, net = golden(), network(case).eval()
    x, slots, doses, covariates, labels = forward_data(case)
    with torch.no_grad():
        latents = net.latents(x, slots, doses, covariates)
        total = latents.total()
        categories = torch.as_tensor(z["data/category_code"][z["data/forward_rows"]])
        if net.counts:
            mu = decoded(net, total, x)[0]
            r2 = category_r2(torch.log1p(mu), torch.log1p(x), categories)
        else:
            r2 = gaussian_r2(*net.decoder(total), x, categories)
    assert r2[0].item() == pytest.approx(float(z[f"{case}/eval/r2_mean"]), abs=1e-9)
    assert r2[1].item() == pytest.approx(float(z[f"{case}/eval/r2_var"]), abs=1e-9)
    sets = {"conditions": labels.conditions} | {
        name: codes for name, codes in covariates.items() if sizes().covariates[name] > 1
    }
    assert purity(latents.basal, sets) == pytest.approx(float(z[f"{case}/eval/disnt_basal"]), abs=1e-12)
    assert purity(total, sets) == pytest.approx(float(z[f"{case}/eval/disnt_after"]), abs=1e-12)


@pytest.mark.parametrize("case", ["nb_logsigm", "gauss_linear"])
def test_initial_weights_from_the_seed(case):
    from vcbench.baselines.cpa.network import CpaNetwork

    expected = under(f"init/{case}/")
    if not expected:
        pytest.skip(f"no initial weights of {case}")
    torch.manual_seed(meta()["cases"][case]["seed"])
    state = CpaNetwork(config(case), sizes()).state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(state[key].numpy(), value), key


PLANS = {
    "steps_pretrain": {"n_epochs_pretrain_ae": 1, "adv_steps": 3},
    "steps_joint": {"adv_steps": 0, "clip": "norm", "clip_at": 1.0},
    "steps_alternate": {"adv_steps": 2},
}


@pytest.mark.parametrize("plan", list(PLANS))
def test_three_training_batches(plan):
    """The real `train_step` under the real `Optimizers`, on the recorded batches."""
    from vcbench.baselines.cpa.training import Batch, CpaTraining
    from vcbench.baselines.training.optimizers import Optimizers
    from vcbench.baselines.training.protocol import Position

    case, z = "nb_logsigm", golden()
    steps = meta()["cases"][case]["steps"][plan]
    rates = {"lr": steps["lr"], "weight_decay": steps["wd"]}
    rates |= {name: steps[name] for name in ("doser_lr", "doser_wd", "adv_lr", "adv_wd")}
    net = network(case, **PLANS[plan], **rates).train()
    adversary = adversaries(case, f"{plan}/adv_start/", **PLANS[plan], **rates).train()
    training = trained(net, adversary)
    optimizers = Optimizers(CpaTraining.optimizers(training), net.config, torch.device("cpu"))
    for i, rows in enumerate(z[f"{case}/{plan}/rows"]):
        x, slots, doses, _, labels = data(case, rows)
        position = Position(i, 0, step_in_epoch=i)
        optimizers.start_pass(position, 1.0)
        logs = CpaTraining.train_step(training, Batch(x, slots, doses, labels), optimizers, position)
        assert float(logs["adversary"]) == pytest.approx(float(z[f"{case}/{plan}/adv_loss"][i]), rel=1e-9)
        every = PLANS[plan]["adv_steps"] if plan == "steps_alternate" else 1
        if plan != "steps_alternate" or i % 2 == 0:
            expected = float(z[f"{case}/{plan}/recon_loss"][i])
            assert float(logs["loss"]) / every == pytest.approx(expected, rel=1e-9)
        if "penalty" in logs:
            expected = float(z[f"{case}/{plan}/penalty_adv"][i])
            assert float(logs["penalty"]) / (2 if plan == "steps_alternate" else 1) == pytest.approx(
                expected, rel=1e-8
            )
    counted = {"steps_pretrain": 9, "steps_joint": 9, "steps_alternate": 5}
    assert training._optimizer_steps == counted[plan]
    for module, prefix in ((net, "state_after/"), (adversary, "adv_after/")):
        state, expected = module.state_dict(), under(f"{case}/{plan}/{prefix}")
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            # Biases in front of a batch norm have no true gradient; Adam turns rounding into steps, and the running
            # means follow.
            loose = key.endswith((".0.bias", "running_mean"))
            assert gap(state[key], value) < (1e-8 if loose else 1e-10), key
    start = under(f"{case}/state/")
    moved = np.abs(net.state_dict()["encoder.z.weight"].numpy() - start["encoder.z.weight"]).max()
    assert moved > 1e-3


def test_encoding_of_conditions_and_doses():
    from vcbench.baselines.cpa.encoding import PerturbationTable, padded

    z = golden()
    names = {part for text in z["data/condition"] for part in str(text).split("+")}
    table = PerturbationTable.of(names, control="ctrl")
    assert list(table.names) == [str(name) for name in z["data/pert_table"]]
    pairs = [
        (str(condition).split("+"), [float(dose) for dose in str(doses).split("+")])
        for condition, doses in zip(z["data/condition"], z["data/dose"], strict=True)
    ]
    slots, doses = padded([table.slots(*pair, match_doses=False) for pair in pairs])
    assert np.array_equal(slots, z["data/perts"])
    assert np.array_equal(doses, z["data/perts_doses"])
    rows, matched = table.slots(["DDD", "CCC"], [3.0, 2.0])
    assert [table.names[row] for row in rows] == ["CCC", "DDD"] and matched == [2.0, 3.0]


def test_class_weights():
    from vcbench.baselines.cpa.adversary import class_weights

    z = golden()
    counts = np.bincount(z["data/condition_code"])
    found = class_weights(torch.as_tensor(counts, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), z["data/class_weights"], rtol=1e-6)
