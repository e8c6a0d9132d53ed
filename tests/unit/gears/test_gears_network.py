"""The GEARS network beside a plain cell-by-cell form, its blocks and groups, sizes, and the loss by hand."""

from __future__ import annotations

import numpy as np
import pytest
from vcbench.baselines.gears.config import GearsConfig
from vcbench.baselines.gears.graphs import Graph, empty_graph
from vcbench.data_specs.errors import UsageError

torch = pytest.importorskip("torch", reason="torch is not installed")


def random_graph(n: int, rng: np.random.Generator) -> Graph:
    source, target = np.nonzero(rng.random((n, n)) < 0.3)
    return Graph(n, np.stack([source, target]), rng.uniform(0.2, 1, len(source)).astype(np.float32))


def small_network(*, dtype=torch.float64, genes: int = 11, perts: int = 7, seed: int = 0, **settings):
    from vcbench.baselines.gears.model import GearsNetwork

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    config = GearsConfig(**{"hidden_size": 6, **settings})
    return GearsNetwork(config, random_graph(genes, rng), random_graph(perts, rng), dtype=dtype)


def cell_by_cell(net, members, controls):
    """The forward pass as published: every cell has its own gene rows, torch's own batch norm. Training mode.

    The co-expression graph reaches every cell, as in the default mode.
    """
    import torch.nn.functional as f

    n_cells, n_genes = controls.shape

    def norm(layer, x):
        return f.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.1, layer.eps)

    def mlp(layers, x):
        for layer in layers.network:
            x = norm(layer, x) if isinstance(layer, torch.nn.BatchNorm1d) else layer(x)
        return x

    def limited(table):
        # Rows are shortened before the lookup, which has a plain gradient.
        with torch.no_grad():
            for row in table.weight:
                if row.norm() > 1:
                    row /= row.norm() + 1e-7
        return table.weight

    base = torch.relu(norm(net.bn_emb, limited(net.gene_emb).repeat(n_cells, 1)))
    position = limited(net.emb_pos)
    for depth, layer in enumerate(net.layers_emb_pos):
        position = layer.lin(net.gene_propagation @ (torch.relu(position) if depth else position))
    genes = mlp(net.emb_trans_v2, base + 0.2 * position.repeat(n_cells, 1)).view(n_cells, n_genes, -1)
    perturbation = limited(net.pert_emb)
    for depth, layer in enumerate(net.sim_layers):
        perturbation = layer.lin(net.pert_propagation @ (torch.relu(perturbation) if depth else perturbation))
    treated = [c for c in range(n_cells) if (members[c] >= 0).any()]
    summed = torch.stack([perturbation[members[c][members[c] >= 0]].sum(dim=0) for c in treated])
    fused = mlp(net.pert_fuse, summed)
    joint = [genes[c] + fused[treated.index(c)] if c in treated else genes[c] for c in range(n_cells)]
    rows = torch.relu(norm(net.bn_pert_base, torch.cat(joint)))
    decoded = mlp(net.recovery_w, rows).view(n_cells, n_genes, -1)
    first = (decoded * net.indv_w1[:, :, 0]).sum(dim=-1) + net.indv_b1[:, 0]
    state = mlp(net.cross_gene_state, first)
    joined = torch.cat([first.unsqueeze(-1), state.unsqueeze(1).expand(-1, n_genes, -1)], dim=-1)
    out = (joined * net.indv_w2).sum(dim=-1) + net.indv_b2 + controls
    spread = mlp(net.uncertainty_w, rows).view(n_cells, n_genes) if net.config.uncertainty else None
    return out, spread


BATCH = [[-1, -1, -1], [2, -1, -1], [3, 1, -1], [1, 3, -1], [6, 0, 2], [-1, -1, -1], [2, -1, -1], [5, 6, -1]]


@pytest.mark.parametrize(
    "settings", [{}, {"uncertainty": True}, {"num_go_gnn_layers": 2, "num_gene_gnn_layers": 2}]
)
def test_default_mode_equals_the_cell_by_cell_form(settings):
    net = small_network(**settings).train()
    members = torch.tensor(BATCH)
    controls = torch.rand(len(BATCH), 11, dtype=torch.float64)
    target = torch.rand(len(BATCH), 11, dtype=torch.float64)
    expected, expected_spread = cell_by_cell(net, members, controls)
    wanted = ((expected - target) ** 4).mean() + (
        0 if expected_spread is None else expected_spread.sin().mean()
    )
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    found, spread = net(members, controls)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    loss = ((found - target) ** 4).mean() + (0 if spread is None else spread.sin().mean())
    loss.backward()
    mine = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert mine.keys() == gradients.keys()
    for name, expected_gradient in gradients.items():
        torch.testing.assert_close(mine[name], expected_gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_blocks_of_genes_and_threads_do_not_matter(monkeypatch):
    from vcbench.baselines.gears import decoder

    members, controls = torch.tensor(BATCH), torch.rand(len(BATCH), 23, dtype=torch.float64)
    results = []
    for length in (1024, 7, 5):
        monkeypatch.setattr(decoder, "_GENES_PER_SLICE", length)
        net = small_network(genes=23).train()
        found = net(members, controls)[0]
        (found**2).sum().backward()
        results.append((found.detach(), net.indv_w1.grad, net.pert_emb.weight.grad))
    for other in results[1:]:
        for mine, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-13)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    net = small_network(genes=23).train()
    found = net(members, controls)[0]
    (found**2).sum().backward()
    assert torch.equal(found, results[2][0])
    assert torch.equal(net.indv_w1.grad, results[2][1])
    assert torch.equal(net.pert_emb.weight.grad, results[2][2])


def test_float32_training_pass_is_close_to_float64():
    wide, narrow = small_network(genes=300).train(), small_network(genes=300).float().train()
    members, controls = torch.tensor(BATCH), torch.rand(len(BATCH), 300, dtype=torch.float64)
    outputs = []
    for net in (wide, narrow):
        out = net(members, controls.to(net.indv_w1.dtype))[0]
        (out**2).mean().backward()
        outputs.append(out)
    torch.testing.assert_close(outputs[1].double(), outputs[0], rtol=0, atol=2e-5)
    for name in (
        "indv_w1",
        "recovery_w.network.0.weight",
        "recovery_w.network.3.weight",
        "recovery_w.network.1.weight",
    ):
        expected = dict(wide.named_parameters())[name].grad
        found = dict(narrow.named_parameters())[name].grad.double()
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max(), name


@pytest.mark.parametrize("mode", ["all", "first", "none"])
def test_evaluation_depends_on_place_only_in_upstreams_mode(mode):
    net = small_network(coexpression=mode).eval()
    controls = torch.zeros(3, 11, dtype=torch.float64)
    with torch.no_grad():
        found = net(torch.tensor([[2, 3], [3, 2], [-1, -1]]), controls)[0]
        alone = net(torch.tensor([[2, 3]]), controls[:1])[0]
    torch.testing.assert_close(alone[0], found[0])
    assert torch.equal(found[0], found[1]) == (mode != "first")


def test_exact_effects_are_those_of_cells_behind_the_first():
    from vcbench.baselines.gears.effects import effects_of

    net = small_network(coexpression="first").eval()
    sets = [[1], [0, 4, 6], [2, 5]]
    found, spread = effects_of(net, sets, batch_size=2)
    members = torch.tensor([[-1, -1, -1], [1, -1, -1], [0, 4, 6], [2, 5, -1]])
    with torch.no_grad():
        expected = net(members, torch.zeros(4, 11, dtype=torch.float64))[0][1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert spread is None
    assert effects_of(net, [])[0].shape == (0, 11)


@pytest.mark.parametrize("layers", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("uncertainty", [False, True])
def test_number_of_parameters(layers, uncertainty):
    net = small_network(
        num_go_gnn_layers=layers[0], num_gene_gnn_layers=layers[1], uncertainty=uncertainty, hidden_size=8
    )
    g, p, h = 11, 7, 8
    expected = g * (5 * h + 3) + p * h + 9 * h * h + 35 * h + sum(layers) * (h * h + h)
    if uncertainty:
        expected += 2 * h * h + 2 * h + 4 * h + 2 * h * h + h + 2 * h + h + 1 + 2
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


def test_published_sizes():
    from vcbench.baselines.gears.model import GearsNetwork

    net = GearsNetwork(GearsConfig(), empty_graph(300), empty_graph(279))
    assert sum(parameter.numel() for parameter in net.parameters()) == 162_180


def test_large_graphs_are_sparse_and_train():
    from vcbench.baselines.gears.model import GearsNetwork

    graph = Graph(2100, np.array([[5, 7], [7, 5]]), np.array([0.5, 0.5], dtype=np.float32))
    net = GearsNetwork(GearsConfig(hidden_size=4), empty_graph(6), graph, dtype=torch.float64).train()
    assert net.pert_propagation.is_sparse
    net(torch.tensor([[5], [9], [11]]), torch.zeros(3, 6, dtype=torch.float64))[0].sin().sum().backward()
    touched = set(net.pert_emb.weight.grad.abs().sum(dim=1).nonzero().ravel().tolist())
    assert touched == {5, 7, 9, 11}


def test_a_batch_of_controls_leaves_the_perturbation_layers_alone():
    net = small_network().train()
    before = net.pert_fuse.network[1].running_mean.clone()
    net(torch.full((4, 1), -1), torch.rand(4, 11, dtype=torch.float64))[0].sum().backward()
    assert net.pert_emb.weight.grad is None
    assert torch.equal(net.pert_fuse.network[1].running_mean, before)


def loss_by_hand(p, y, c, conditions, retained, lam, shape):
    total, names = 0.0, sorted(set(conditions))
    for name in names:
        cells = [i for i, condition in enumerate(conditions) if condition == name]
        genes = np.flatnonzero(retained[name])
        part = sum((p[i, g] - y[i, g]) ** 4 for i in cells for g in genes)
        part += lam * sum((shape(y[i, g] - c[g]) - shape(p[i, g] - c[g])) ** 2 for i in cells for g in genes)
        total += part / (len(cells) * len(genes))
    return total / len(names)


@pytest.mark.parametrize(("direction", "shape"), [("sign-log", np.sign), ("tanh", np.tanh)])
def test_loss_by_hand(direction, shape):
    from vcbench.baselines.gears.loss import autofocus_loss, cell_weights

    rng = np.random.default_rng(4)
    p, y, c = rng.random((6, 5)), rng.random((6, 5)), rng.random(5)
    conditions = [0, 2, 2, 1, 0, 2]
    retained = rng.random((4, 5)) < 0.6
    retained[:, 0] = True
    codes, mask = torch.tensor(conditions), torch.tensor(retained)
    predicted = torch.tensor(p, requires_grad=True)
    arguments = (torch.tensor(y), torch.tensor(c), mask[codes])
    weights = cell_weights(codes, codes, mask.sum(dim=1))
    terms = autofocus_loss(predicted, *arguments, weights, direction=direction, direction_lambda=0.3)
    assert terms.total.item() == pytest.approx(loss_by_hand(p, y, c, conditions, retained, 0.3, shape))
    assert terms.total.item() == pytest.approx(terms.fit.item() + 0.3 * terms.direction.item())
    plain = autofocus_loss(predicted, *arguments, weights, direction="none", direction_lambda=0.3).total
    gradients = [torch.autograd.grad(t, predicted)[0] for t in (terms.total, plain)]
    assert torch.equal(*gradients) == (direction == "sign-log")


def test_shares_of_a_step_add_up():
    from vcbench.baselines.gears.loss import cell_weights

    whole, n_retained = torch.tensor([0, 1, 1, 3, 1, 0]), torch.tensor([2, 4, 9, 0])
    joined = torch.cat([cell_weights(part, whole, n_retained) for part in (whole[:2], whole[2:])])
    assert torch.equal(joined, cell_weights(whole, whole, n_retained))
    # Three conditions; two cells with 2 genes, three with 4, one without genes.
    expected = [1 / 12, 1 / 36, 1 / 36, 0, 1 / 36, 1 / 12]
    np.testing.assert_allclose(joined.numpy(), expected)


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(UsageError, match="batch_size must be at least 2, not 1; gears has its own"):
        GearsConfig(batch_size=1, precision="bf16")
    with pytest.raises(UsageError, match="first cell of a batch"):
        GearsConfig(coexpression="first", accumulate=2)
