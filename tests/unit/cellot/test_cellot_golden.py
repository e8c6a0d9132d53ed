"""Potentials, transport, losses, gradients and optimizer steps equal upstream's (float64 golden values)."""

from __future__ import annotations

import numpy as np
import pytest
from cellot_golden import (
    Duel,
    StackedIcnn,
    f_terms,
    fill,
    g_terms,
    icnn_shapes,
    numbers,
    points,
    potential,
    put_network,
    take_network,
    transport,
    w2_terms,
)

torch = pytest.importorskip("torch", reason="torch is not installed")

OTHERS = 2


def network(state, dim, hidden, **options):
    """The given network in the middle of two random ones: a map must not feel its neighbours."""
    stacked = StackedIcnn(OTHERS + 1, dim, hidden, dtype=torch.float64, **options)
    put_network(stacked, 1, state)
    return stacked


def pair(dim, hidden, s, **options):
    shapes = icnn_shapes(dim, hidden)
    f = network(fill(shapes, s, 0.37, 0.0, lambda name: name.startswith("W")), dim, hidden, **options)
    g = network(fill(shapes, s, 0.37, 1.0), dim, hidden, **options)
    return f, g


def stacked(x):
    return x.expand(OTHERS + 1, -1, -1)


@pytest.fixture
def game():
    torch.manual_seed(0)
    f, g = pair(3, (4, 5), 0.3)
    x, y = points()
    return f, g, stacked(x), stacked(y)


def close(found, text, atol=1e-9):
    np.testing.assert_allclose(found.detach().numpy().ravel(), numbers(text), rtol=0, atol=atol)


def test_potentials_and_their_gradients(game):
    f, g, x, y = game
    close(potential(f.weights(), x)[1], "−0.3762535819 −0.0682564221 0.3849028790 0.7954834701")
    close(potential(g.weights(), x)[1], "−0.6059431453 −0.2722583151 0.1472534875 0.5534903287")
    close(potential(f.weights(), y)[1], "0.2007256653 −0.1315679101 −0.3845703425 −0.5501617399")
    close(
        transport(g.weights(), x)[1],
        "−0.3700394675 −0.3488159817 −0.2803818892 / −0.3610036638 −0.3606347619 −0.3114556369 / "
        "−0.4309353632 −0.4295418606 −0.3700118823 / −0.4507995241 −0.4498009819 −0.3879239870",
    )
    close(
        transport(f.weights(), y)[1],
        "−0.3581535812 −0.4548751939 −0.4900315830 / −0.2913066786 −0.3741381667 −0.4063318090 / "
        "−0.1796760819 −0.2670753120 −0.3183271516 / −0.1381808604 −0.2014387342 −0.2374328203",
    )


@pytest.mark.parametrize(
    "options", [{}, {"softplus_beta": 2.0}, {"activation": "relu"}, {"init": "identity"}]
)
def test_the_closed_form_is_the_gradient_of_the_potential(options):
    torch.manual_seed(1)
    net = StackedIcnn(3, 6, (8, 7, 5), dtype=torch.float64, **options)
    if net.curvature is not None:
        torch.nn.init.uniform_(net.curvature, 0.5, 2.0)
        torch.nn.init.uniform_(net.W[-1], 0.0, 1.0)
    x = torch.randn(3, 11, 6, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(potential(net.weights(), x).sum(), x, create_graph=True)
    found = transport(net.weights(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), list(net.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((expected * weight).sum(), list(net.parameters()), allow_unused=True)
    for a, b, (name, _) in zip(ours, theirs, net.named_parameters(), strict=True):
        if name == "b_out":
            assert a is None
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_losses(game):
    f, g, x, y = game
    loss, _ = g_terms(f.weights(), g.weights(), x)
    assert loss[1].mean().item() == pytest.approx(0.4000533058, abs=1e-9)
    assert f_terms(f.weights(), g.weights(), x, y)[1].mean().item() == pytest.approx(-0.6773891224, abs=1e-9)
    assert w2_terms(f.weights(), g.weights(), x, y)[1].mean().item() == pytest.approx(1.5630334837, abs=1e-9)
    assert g.penalty()[1].item() == pytest.approx(0.7521663221, abs=1e-9)


def gradients(net):
    """Sum and norm of the gradient of the middle network, by upstream's name."""
    copy = StackedIcnn(1, net.dim, net.hidden, dtype=torch.float64)
    for target, source in zip(copy.parameters(), net.parameters(), strict=True):
        target.data = (torch.zeros_like(source) if source.grad is None else source.grad)[1:2]
    return {name: (v.sum().item(), v.norm().item()) for name, v in take_network(copy, 0).items()}


def test_gradients_of_both_losses(game):
    f, g, x, y = game
    duel = Duel(f, g)
    duel.step_g(x, x.shape[1], lambda loss: loss.backward())
    found = gradients(g)
    expected = {
        "W.0.weight": (-2.5999346061, 1.0021775321),
        "W.1.weight": (-1.3684545846, 1.3069528177),
        "A.0.weight": (0.0125270098, 0.0423877395),
        "A.0.bias": (0.0301470366, 0.0186116795),
        "A.1.weight": (-0.1360005243, 0.2411061312),
        "A.1.bias": (0.0, 0.0),
        "A.2.weight": (-1.2524968408, 1.1157374063),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-9, err_msg=name)
    assert g.b_out.grad is None
    assert all(p.grad is None for p in f.parameters())
    g.zero_grad()
    duel.step_f(x, y, x.shape[1], lambda loss: loss.backward())
    found = gradients(f)
    expected = {
        "W.0.weight": (-0.5665927060, 0.2133118810),
        "W.1.weight": (-0.8216140117, 0.7467989994),
        "A.0.weight": (0.8849507607, 0.2673064077),
        "A.0.bias": (-0.3174151050, 0.2584582164),
        "A.1.weight": (1.9160911097, 0.5366160699),
        "A.1.bias": (-0.0816324399, 0.1597804416),
        "A.2.weight": (1.8720150391, 1.1175788915),
        "A.2.bias": (0.0, 0.0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-9, err_msg=name)
    assert all(p.grad is None for p in g.parameters())


def stepper(net):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.9))

    def update(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def test_outer_iterations(game):
    f, g, x, y = game
    duel, update_f, update_g = Duel(f, g), stepper(f), stepper(g)
    golden = [
        (1.151528580785, -0.677063331582, 12.705718821148, 12.390923871315),
        (1.150778274597, -0.677491582178, 12.699118807685, 12.393124518616),
        (1.150028639997, -0.677919239268, 12.692517495862, 12.395326171022),
    ]
    for loss_g, loss_f, size_g, size_f in golden:
        for _ in range(2):
            penalty = g.penalty()[1].item()
            last = duel.step_g(x, x.shape[1], update_g)[1].item() + penalty
        assert last == pytest.approx(loss_g, abs=1e-10)
        assert duel.step_f(x, y, x.shape[1], update_f)[1].item() == pytest.approx(loss_f, abs=1e-10)
        for net, size in ((g, size_g), (f, size_f)):
            total = sum(v.abs().sum().item() for v in take_network(net, 1).values())
            assert total == pytest.approx(size, abs=1e-9)
    close(
        transport(g.weights(), x)[1],
        "−0.3688197472 −0.3475507342 −0.2804670094 / −0.3599881302 −0.3596068372 −0.3119861934 / "
        "−0.4294841536 −0.4281557851 −0.3704419674 / −0.4491680295 −0.4482875601 −0.3882911288",
    )


def test_softplus_and_relu_networks():
    state = fill(icnn_shapes(3, (4, 5)), 0.3, 0.37, 1.0)
    x = stacked(points()[0])
    one = network(state, 3, (4, 5), softplus_beta=1.0)
    close(potential(one.weights(), x)[1], "−0.4076907083 −0.2687834750 0.7145191473 2.1404004713")
    close(
        transport(one.weights(), x)[1],
        "0.1595258273 0.2648044723 0.3342430743 / −0.4901659694 −0.5415227195 −0.5195869099 / "
        "−1.1661541568 −1.2372212682 −1.1408362850 / −1.8169033644 −1.8423277002 −1.6184016246",
    )
    five = network(state, 3, (4, 5), softplus_beta=5.0)
    close(potential(five.weights(), x)[1], "−0.5696765536 −0.2841315803 0.1578869513 0.6085617852")
    relu = network(state, 3, (4, 5), activation="relu")
    close(potential(relu.weights(), x)[1], "−0.5781587694 −0.2635865590 0.1419305661 0.5428511371")
    assert (one.penalty() == 0).all()


def test_shipped_size():
    f, g = pair(50, (64,) * 4, 0.05)
    x = points(16, 50)[0]
    i, j = np.arange(16)[:, None], np.arange(50)[None, :]
    y = torch.tensor(np.sin(0.3 * i - 0.4 * j) + 0.5 * np.cos(0.2 * j))
    x, y = stacked(x), stacked(y)
    assert sum(v.numel() for v in take_network(f, 0).values()) == 25_459
    moved = transport(g.weights(), x)[1]
    close(moved[0, :3], "−0.0091532119 −0.0192959528 −0.0268270771")
    loss, _ = g_terms(f.weights(), g.weights(), x)
    found = [
        potential(f.weights(), x)[1].mean(),
        potential(g.weights(), x)[1].mean(),
        moved.norm(),
        loss[1].mean(),
        g.penalty()[1],
        f_terms(f.weights(), g.weights(), x, y)[1].mean(),
        w2_terms(f.weights(), g.weights(), x, y)[1].mean(),
    ]
    close(
        torch.stack(found),
        "0.2753245529 0.0788335575 0.6158380668 0.2245710381 4.9936317874 7.5160970997 21.0075887150",
    )


def test_float32_is_within_the_tolerance(game):
    f, g, x, _ = game
    half = [StackedIcnn(3, 3, (4, 5)) for _ in range(2)]
    for small, full in zip(half, (f, g), strict=True):
        small.load_state_dict({name: value.float() for name, value in full.state_dict().items()})
    moved = transport(half[1].weights(), x.float())
    torch.testing.assert_close(moved.double(), transport(g.weights(), x), rtol=1e-5, atol=1e-6)
    loss, _ = g_terms(half[0].weights(), half[1].weights(), x.float())
    assert loss[1].mean().item() == pytest.approx(0.4000533058, rel=1e-5)


def test_a_map_trains_as_if_it_were_alone(game):
    _, _, x, y = game
    torch.manual_seed(3)
    together = [StackedIcnn(3, 3, (4, 5), init="upstream", dtype=torch.float64) for _ in range(2)]
    alone = []
    for net in together:
        copy = StackedIcnn(1, 3, (4, 5), dtype=torch.float64)
        put_network(copy, 0, take_network(net, 2))
        alone.append(copy)
    for (f, g), cells in ((together, slice(None)), (alone, slice(2, 3))):
        duel, update_f, update_g = Duel(f, g), stepper(f), stepper(g)
        for _ in range(3):
            duel.step_g(x[cells], 4, update_g)
            duel.step_f(x[cells], y[cells], 4, update_f)
    for net, copy in zip(together, alone, strict=True):
        for name, value in take_network(net, 2).items():
            torch.testing.assert_close(take_network(copy, 0)[name], value, rtol=0, atol=1e-14)


def test_a_diverged_map_leaves_the_others_alone(game):
    f, g, x, y = game
    results = []
    for broken in (False, True):
        nets = [StackedIcnn(3, 3, (4, 5), dtype=torch.float64) for _ in range(2)]
        for net, source in zip(nets, (f, g), strict=True):
            net.load_state_dict(source.state_dict())
        duel = Duel(*nets)
        update_f, update_g = stepper(nets[0]), stepper(nets[1])
        cells = x.clone()
        if broken:
            cells[0, 0, 0] = float("nan")
        for _ in range(3):
            duel.step_g(cells, 4, update_g)
            duel.step_f(cells, y, 4, update_f)
        results.append(duel)
    clean, hurt = results
    assert clean.healthy.tolist() == [True] * 3 and hurt.healthy.tolist() == [False, True, True]
    for name, value in clean.state_dict().items():
        if name != "healthy":
            assert torch.equal(hurt.state_dict()[name][1:], value[1:]), name
            assert torch.isfinite(hurt.state_dict()[name]).all()


def autoencoder_state(n_conditions):
    from vcbench.baselines.cellot.autoencoder import Autoencoder

    net = Autoencoder(3, (5, 4), 2, n_conditions=n_conditions, dtype=torch.float64)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(fill(shapes, 0.8, 1.7, 0.5))
    return net


def test_autoencoder():
    from vcbench.baselines.cellot.autoencoder import reconstruction_loss

    net, x = autoencoder_state(0), points()[0]
    codes = net.encode(x)
    close(
        codes,
        "0.3207209869 −0.8813428955 / 0.2978203134 −0.9712884259 / 0.3113733648 −0.9180569611 / "
        "0.3636233965 −0.7128378078",
    )
    back = net.decode(codes)
    close(back[0], "−1.9725421450 0.1521812368 1.9305260428")
    close(reconstruction_loss(x, back, codes, 0.0), "4.5707202845 4.9400571606 4.9244471359 4.5232038366")
    close(reconstruction_loss(x, back, codes, 0.1), "4.6586830095 5.0432669751 5.0184253315 4.5872398081")
    shift = codes[2:].mean(dim=0) - codes[:2].mean(dim=0)
    close(shift, "0.0282277305 0.1108682763")
    close(net.decode(codes[:1] + shift), "−1.9840944331 0.1629997809 1.9290525462")


def test_conditional_autoencoder():
    from vcbench.baselines.cellot.autoencoder import reconstruction_loss

    net, x, labels = autoencoder_state(2), points()[0], torch.tensor([0, 1, 0, 1])
    codes = net.encode(x, labels)
    close(codes[0], "0.4729014843 1.4838310200")
    back = net.decode(codes, labels)
    close(back[0], "−1.3297805312 −0.7794041464 1.8232194360")
    losses = "3.8649821088 4.8546431234 3.8031380342 3.2425789327"
    close(reconstruction_loss(x, back, codes, 0.0), losses)
    moved = net.decode(net.encode(x[:2], torch.tensor([0, 0])), torch.tensor([1, 1]))
    close(
        moved,
        "−1.3524430636 −0.7438838149 1.8031146437 / −1.3244582144 −0.7877461293 1.8279410652",
    )


def test_mmd():
    from vcbench.baselines.cellot.measures import EVALUATION_GAMMAS, TRAINING_GAMMAS, mmd

    x, y = (p[None] for p in points())
    golden = (0.672820939340, 0.575968005451, 0.423810909013, 0.131428484189, 0.014880310963, 0.007494218737)
    for gamma, value in zip(TRAINING_GAMMAS, golden, strict=True):
        assert mmd(x, y, gammas=[gamma]).item() == pytest.approx(value, abs=1e-11)
    assert mmd(x, y).item() == pytest.approx(0.304400477949, abs=1e-11)
    assert mmd(x, y, gammas=EVALUATION_GAMMAS).item() == pytest.approx(0.256844565406, abs=1e-11)
    padded = torch.cat([y, torch.full((1, 3, 3), 9.0, dtype=y.dtype)], dim=1)
    used = torch.arange(7)[None] < 4
    assert mmd(x, padded, y_used=used).item() == pytest.approx(0.304400477949, abs=1e-11)


def test_partially_convex_network():
    from vcbench.baselines.cellot.conditional import PartiallyConvex

    net = PartiallyConvex(3, 2, (4, 4, 4), dtype=torch.float64)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(fill(shapes, 0.9, 0.37, 1.0))
    x = points()[0].requires_grad_(True)
    context = torch.tensor([[0.5, -0.25]], dtype=torch.float64).expand(4, -1)
    value = net(x, context)
    close(value, "0.0659359119 0.7121776606 1.1386995356 1.2213578849")
    (slope,) = torch.autograd.grad(value.sum(), x)
    close(slope[0], "0.2770648111 −0.2848378784 −1.1931544275")
    close(slope[3], "0.3797906394 −0.4703911119 −1.3402512352")
    assert net.penalty().item() == pytest.approx(3.7069096419, abs=1e-9)
    shipped = PartiallyConvex(50, 10, (64,) * 4)
    assert sum(p.numel() for p in shipped.parameters()) == 87_981
