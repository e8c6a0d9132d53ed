"""Forward pass, losses, gradients and one optimizer step against published values of upstream, both variants."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from unit.scgpt.scgpt_golden import SIZES, inputs, network  # noqa: E402
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator, elastic_cell_similarity  # noqa: E402

ROWS = [
    [0.39006624, -0.33952903, -0.67575314, 0.41218135, -1.09983767],
    [0.02740685, 0.37094571, 0.13914028, -1.43898003, 0.38206090],
]
MVC = [
    [-1.18539925, 2.66283679, -1.11540538, 2.11603508, 2.35903235],
    [-1.14237544, 2.57539295, -1.08028679, 2.02799494, 2.30575038],
]


def close(found, expected, tolerance=1e-7):
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=tolerance)


def run(net, padding=None):
    genes, values, flags, target = inputs(net.encoder.embedding.weight.dtype)
    return net(genes, values, flags, padding), values, target


def test_weights_follow_the_recipe():
    state = network().state_dict()
    assert len(state) == 59
    close(state["encoder.embedding.weight"][0, :3], [0.40424820, 0.02079033, -0.37840125], 1e-8)
    close(state["pert_encoder.weight"][1, :3], [0.38889708, -0.00442565, -0.39439914], 1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-5)])
@pytest.mark.parametrize("recompute", [False, True])
def test_affine_outputs(dtype, tolerance, recompute):
    net = network(dtype=dtype, activation_checkpointing=recompute).train()
    found, values, target = run(net)
    close(found.values, ROWS, tolerance)
    cell = net.cell_vectors(found, values)
    close(net.mvc(cell, found).values, MVC, tolerance * 10)
    close(net.cls_decoder(cell).squeeze(1), [-2.83730513, -2.83876500], tolerance)
    close(elastic_cell_similarity(cell), 0.71020465, tolerance)
    close(((found.values - target) ** 2).mean(), 4.96214972, tolerance * 10)
    pooled = net.cell_vectors(found, values, "w-pool")
    close(
        net.mvc(pooled, found).values[0],
        [-0.41793538, 0.93823028, -0.39290548, 0.74678687, 0.82959927],
        tolerance,
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_affine_gradients_and_one_step(recompute):
    net = network(activation_checkpointing=recompute).train()
    found, _, target = run(net)
    loss = ((found.values - target) ** 2).mean()
    loss.backward()
    grad = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(grad.values()))
    close(norm, 31.14677172, 1e-6)
    for name, total, absolute in (
        ("value_encoder.linear1.weight", -0.07954278, 0.30160016),
        ("transformer_encoder.layers.1.self_attn.in_proj_weight", -0.10378174, 8.12763470),
    ):
        close(grad[name].sum(), total)
        close(grad[name].abs().sum(), absolute)
    close(grad["pert_encoder.weight"][1].sum(), -0.00163384)
    close(grad["pert_encoder.weight"][1].abs().sum(), 0.33390165)
    assert not grad["pert_encoder.weight"][[0, 2]].any()
    close(grad["encoder.embedding.weight"].abs().sum(), 0.87587964)
    assert not grad["encoder.embedding.weight"][9].any()
    close(grad["decoder.coeff_decoder.fc.4.bias"], [-7.74900920])
    close(grad["decoder.bias_decoder.fc.4.bias"], [-2.61645971])
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    torch.optim.Adam(net.parameters(), lr=1e-2).step()
    close(((run(net)[0].values - target) ** 2).mean(), 1.89219746, 1e-6)


def test_padding_hides_keys():
    padding = torch.tensor([[False, False, False, False, True], [False, False, False, True, True]])
    found = run(network(), padding)[0].values
    close(found[0, :4], [0.31993360, -0.29913308, -0.59896233, 0.33412072])
    close(found[1, :3], [0.02305609, 0.35566127, 0.13304960])


def test_decoder_options():
    found = run(network(decoder_adaptive_bias=True, decoder_activation="ReLU"))[0].values
    close(found[0], [0.87764904, 0.92952422, 0.89189358, 0.92740803, 0.93317144])
    net = network(explicit_zero_prob=True)
    output, _, _ = run(net)
    assert output.nonzero is not None
    close(output.nonzero[0], [0.59629865, 0.60183621, 0.59782173, 0.60161081, 0.60222458])
    close(net.expected(output), (output.values * output.nonzero).detach())
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([net.sampled(output, generator) for _ in range(4000)]).detach()
    assert set((drawn[:, 0, 0] != 0).tolist()) == {True, False}
    close(drawn.mean(0), net.expected(output).detach(), 0.05)


def test_an_empty_cell_is_finite():
    net = network(decoder_adaptive_bias=True)
    genes, values, flags, _ = inputs()
    out = net(genes, torch.zeros_like(values).requires_grad_(True), flags).values
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_legacy_outputs():
    net = network(variant="legacy_bn", pert_pad_id=2)
    assert len(net.state_dict()) == 58
    found, _, _ = run(net.eval())
    close(found.values[0], [-0.47667877, -0.51583710, -0.49595981, -0.50114803, -0.52249362])
    close(found.values[1], [-0.45804472, -0.46178342, -0.45746826, -0.45946789, -0.46643458])
    found, _, target = run(net.train())
    close(found.values[0], [-0.50088279, -0.54825519, -0.52490472, -0.53921001, -0.55011929])
    close(((found.values - target) ** 2).mean(), 4.23124792)
    close(net.state_dict()["bn.running_mean"][:3], [-0.43149663, -0.15563585, 0.21754570])


def test_genes_are_a_set_and_cells_do_not_meet():
    net = network().eval()
    genes, values, flags, _ = inputs()
    whole = net(genes, values, flags).values
    order = torch.tensor([3, 1, 4, 0, 2])
    close(net(genes[order], values[:, order], flags[:, order]).values, whole[:, order].detach(), 1e-12)
    close(net(genes, values[1:], flags[1:]).values, whole[1:].detach(), 1e-12)
    close(net(genes.expand(2, -1), values, flags).values, whole.detach(), 1e-12)


def test_slots_follow_the_genes():
    net = network().eval()
    genes, values, flags, _ = inputs()
    extra = torch.tensor([[5], [6]])
    wide = torch.nn.functional.pad(values, (0, 1))
    flagged = torch.nn.functional.pad(flags, (0, 1), value=1)
    found = net(genes, wide, flagged, None, extra).values
    rows = [net(torch.cat([genes, extra[i]]), wide[i : i + 1], flagged[i : i + 1]).values for i in range(2)]
    close(found, torch.cat(rows).detach(), 1e-12)


def test_layers_start_alike_only_upstream():
    def first_weights(init):
        net = TransformerGenerator(ScGPTConfig(**SIZES, init=init), 5, 4)
        return [layer.linear1.weight for layer in net.transformer_encoder.layers]

    a, b = first_weights("upstream")
    assert torch.equal(a, b)
    a, b = first_weights("independent")
    assert not torch.equal(a, b)


def test_the_published_size_has_the_published_number_of_parameters():
    config = ScGPTConfig(d_model=512, nhead=8, nlayers=12, d_hid=512)
    with torch.device("meta"):
        net = TransformerGenerator(config, 60_697, 60_694)
    state = net.state_dict()
    assert len(state) == 176
    assert sum(value.numel() for value in state.values()) == 51_859_459
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert count["encoder"] == 31_077_888 and count["transformer_encoder"] == 18_935_808
    assert count["decoder"] == 1_051_650 and count["cls_decoder"] == 527_873
