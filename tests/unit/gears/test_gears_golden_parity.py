"""Forward pass, loss, gradients, batch statistics and two training steps against cell-gears 0.1.2, float64."""

from __future__ import annotations

import numpy as np
import pytest
from unit.gears.gears_golden import CASES, EDGE_BATCHES, batch, golden, needs_golden, network, under

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = needs_golden

FREE = ("emb_trans_v2.network.4.bias", "bn_pert_base.running_mean")
BIASES_BEFORE_NORM = tuple(
    f"{name}.network.{i}.bias"
    for name in ("emb_trans_v2", "pert_fuse", "recovery_w", "cross_gene_state", "uncertainty_w")
    for i in (0, 3, 6)
)


def run(net, name: str, *, direction_lambda: float = 0.1, reg: float = 1.0):
    from vcbench.baselines.gears.loss import autofocus_loss, cell_weights

    z = golden()
    members, controls, targets, codes = batch(name)
    predicted, spread = net(members, controls)
    retained = torch.as_tensor(z["data/retained_genes"])
    terms = autofocus_loss(
        predicted,
        targets,
        torch.as_tensor(z["data/ctrl_mean"]).double(),
        retained[codes],
        cell_weights(codes, codes, retained.sum(dim=1)),
        direction="sign-log",
        direction_lambda=direction_lambda,
        log_variance=spread,
        uncertainty_reg=reg,
    )
    return predicted, spread, terms.total


def gap(mine, expected: np.ndarray) -> float:
    return float(np.abs(mine.detach().numpy() - expected).max())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["batch0", "batch1", "batch2", *EDGE_BATCHES])
def test_eval_outputs(case, name):
    z, net = golden(), network(case).eval()
    with torch.no_grad():
        predicted, spread, loss = run(net, name)
    assert gap(predicted, z[f"{case}/eval/{name}/pred"]) < 1e-11
    assert (spread is not None) == (case == "uncertainty")
    if spread is not None:
        assert gap(spread, z[f"{case}/eval/{name}/logvar"]) < 1e-11
    if f"{case}/eval/{name}/loss" in z.files:
        plain = run(net, name, direction_lambda=0.0)[2].item()
        assert loss.item() == pytest.approx(float(z[f"{case}/eval/{name}/loss"]), rel=1e-12)
        assert plain == pytest.approx(float(z[f"{case}/eval/{name}/loss_without_direction"]), rel=1e-12)
    if f"{case}/eval/{name}/loss_reg_0.1" in z.files:
        weaker = run(net, name, reg=0.1)[2].item()
        assert weaker == pytest.approx(float(z[f"{case}/eval/{name}/loss_reg_0.1"]), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_limited_to_norm_one(case):
    net = network(case).eval()
    run(net, "batch0")
    state = net.state_dict()
    for key, expected in under(f"{case}/eval/norm_limited/").items():
        assert gap(state[key], expected) < 1e-15, key


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["batch0", "batch1", "controls_only", "one_perturbed"])
def test_train_outputs(case, name):
    z, net = golden(), network(case).train()
    predicted, spread, loss = run(net, name)
    assert gap(predicted, z[f"{case}/train/{name}/pred"]) < 1e-11
    if spread is not None:
        assert gap(spread, z[f"{case}/train/{name}/logvar"]) < 1e-11
    if f"{case}/train/{name}/loss" in z.files:
        assert loss.item() == pytest.approx(float(z[f"{case}/train/{name}/loss"]), rel=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_running_statistics(case):
    net = network(case).train()
    run(net, "batch0")[2].backward()
    state, parameters = net.state_dict(), dict(net.named_parameters())
    buffers, gradients = under(f"{case}/train/batch0/buffers/"), under(f"{case}/train/batch0/grad/")
    assert len(buffers) >= 30
    assert len(gradients) >= 13
    for key, expected in buffers.items():
        assert gap(state[key], expected) < 1e-12, key
    for key, expected in gradients.items():
        grad = parameters[key].grad
        assert grad is not None, key
        assert gap(grad, expected) < 1e-10 * np.abs(expected).max(), key


@pytest.mark.parametrize("case", CASES)
def test_two_training_steps(case):
    from vcbench.baselines.gears.model import trained_parameters

    z, net = golden(), network(case).train()
    optimizer = torch.optim.Adam(trained_parameters(net), lr=1e-3, weight_decay=5e-4)
    for step, name in enumerate(("batch0", "batch1")):
        optimizer.zero_grad()
        loss = run(net, name)[2]
        loss.backward()
        torch.nn.utils.clip_grad_value_(net.parameters(), 1.0)
        optimizer.step()
        assert loss.item() == pytest.approx(float(z[f"{case}/steps/loss"][step]), rel=1e-10)
    state = net.state_dict()
    after = under(f"{case}/steps/state_after/")
    assert after.keys() == state.keys()
    for key, expected in after.items():
        loose = key in FREE or key in BIASES_BEFORE_NORM
        assert gap(state[key], expected) < (1e-8 if loose else 1e-10), key
    with torch.no_grad():
        predicted = run(net.eval(), "batch0")[0]
    assert gap(predicted, z[f"{case}/steps/eval_after/batch0/pred"]) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_float32_forward(case):
    z, net = golden(), network(case).float().eval()
    members, controls, _, _ = batch("batch0")
    with torch.no_grad():
        predicted = net(members, controls.float())[0]
    assert gap(predicted, z[f"{case}/eval/batch0/pred"]) < 1e-5


@pytest.mark.parametrize("case", ["default", "uncertainty"])
def test_predict_draws(case):
    from vcbench.baselines.gears.effects import mean_of_draws, uncertainty_of_draws

    z, net = golden(), network(case).eval()
    vocabulary = [str(g) for g in z["data/vocabulary"]]
    controls = torch.as_tensor(z["data/X"][np.array([c == "ctrl" for c in z["data/condition"]])]).double()
    for i, query in enumerate(z["predict/query"]):
        members = [vocabulary.index(gene) for gene in str(query).split("_")]
        drawn = controls[torch.as_tensor(z["predict/control_rows"][i])]
        mean, spread = mean_of_draws(net, members, drawn)
        assert gap(mean, z[f"{case}/predict/pred"][i]) < 1e-11
        if spread is not None:
            expected = float(z[f"{case}/predict/uncertainty"][i])
            assert uncertainty_of_draws(spread) == pytest.approx(expected, rel=1e-10)
