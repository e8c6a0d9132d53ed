"""Parts of CellOT by hand: pairs of cells, distances, stopping times, averaged maps, files, a known optimal map."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from vcbench.baselines.cellot.unseen import Similarity, averaging_weights, tune_averaging
from vcbench.baselines.features import FeatureTable
from vcbench.baselines.training.data import CellData
from vcbench.data_specs.errors import ModelError

torch = pytest.importorskip("torch", reason="torch is not installed")


def cells(counts):
    """One gene that tells each row its own number; `counts` are cells per (context, label)."""
    keys = tuple(sorted(counts))
    codes = np.concatenate([np.full(counts[key], i) for i, key in enumerate(keys)])
    n = len(codes)
    return CellData(
        x=sp.csr_array(np.arange(1.0, n + 1, dtype=np.float32)[:, None]),
        codes=codes,
        keys=keys,
        train_keys=tuple(key for key in keys if key[1] != "control"),
        validation_keys=(),
        held_out=np.zeros(n, dtype=bool),
        genes=np.array(["G"]),
        target_sum=1.0,
    )


COUNTS = {("A", "X"): 30, ("B", "X"): 10, ("A", "Y"): 5, ("A", "control"): 10, ("B", "control"): 40}


def sampler(pairs):
    from vcbench.baselines.cellot.sampling import PairSampler

    data = cells({**COUNTS, ("C", "control"): 7})
    return data, PairSampler(data, ("X", "Y"), torch.device("cpu"), pairs=pairs)


def keys_of(data, rows):
    return [data.keys[code] for code in data.codes[np.asarray(rows)]]


def share(data, rows, context):
    return np.mean([key[0] == context for key in keys_of(data, rows)])


@pytest.mark.parametrize(("pairs", "source_share"), [("matched", 0.75), ("pooled", 0.2), ("one", None)])
def test_sources_come_from_the_contexts_of_the_targets(pairs, source_share):
    data, found = sampler(pairs)
    assert found.n_maps == 3 and found.n_targets.tolist() == [40, 5, 45]
    g = torch.Generator().manual_seed(0)
    uniform = lambda: torch.rand(3, 4000, 2, generator=g, dtype=torch.float64)  # noqa: E731
    context = found.one_context(torch.tensor([0.1, 0.9, 0.9], dtype=torch.float64))
    targets, sources = found.targets(uniform(), context), found.sources(uniform(), context)
    # In context B, which `one` draws for the last map, there is no Y.
    for p, labels in enumerate(({"X"}, {"Y"}, {"X"} if pairs == "one" else {"X", "Y"})):
        assert {key[1] for key in keys_of(data, targets[p])} == labels
        assert {key[1] for key in keys_of(data, sources[p])} == {"control"}
        assert not share(data, sources[p], "C")
    assert share(data, sources[1], "A") == 1.0
    if pairs == "one":
        assert share(data, targets[0], "A") == share(data, sources[0], "A") == 1.0
        assert share(data, targets[2], "B") == share(data, sources[2], "B") == 1.0
        return
    assert share(data, targets[0], "A") == pytest.approx(0.75, abs=0.03)
    assert share(data, sources[0], "A") == pytest.approx(source_share, abs=0.03)
    # Every cell of a group is drawn, the last one too.
    assert len(np.unique(targets[0])) == 40
    edge = torch.full((3, 1, 2), 1 - 1e-12, dtype=torch.float64)
    assert keys_of(data, found.targets(edge)[:, 0]) == [("B", "X"), ("A", "Y"), ("B", "X")]
    again = found.of_maps(torch.tensor([1, 1, 0]))
    assert keys_of(data, again.targets(edge)[:, 0]) == [("A", "Y"), ("A", "Y"), ("B", "X")]


def test_distances():
    from vcbench.baselines.cellot.measures import masked_mean, median_distance

    y = torch.tensor([[[0.0], [3.0], [4.0], [100.0]], [[1.0], [1.0], [1.0], [1.0]]])
    used = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert median_distance(y, used).tolist() == [3.0, 1.0]
    assert masked_mean(y, used)[:, 0].tolist() == pytest.approx([7 / 3, 1.0])


def test_maps_with_few_validation_cells_stop_together():
    from vcbench.baselines.cellot.validation import MapValidation

    used = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4, [True, True, False, False]])
    empty = torch.zeros(4, 4, 1)
    few = torch.tensor([False, True, True, True])
    found = MapValidation(empty, empty, used, torch.ones(4), few, empty)
    values = torch.tensor([5.0, 1.0, float("nan"), 2.0])
    assert found.grouped(values).tolist() == [5.0, 1.5, 1.5, 1.5]
    nan = found.distances(empty).mmd
    assert torch.isnan(nan).tolist() == [False, False, True, False]


def similarity(vectors):
    labels = tuple(f"P{i}" for i in range(len(vectors)))
    table = FeatureTable(np.array(labels), np.array(vectors, dtype=np.float64))
    return Similarity(table, labels, table.values)


def test_averaging_weights():
    cosines = np.array([0.9, np.nan, 0.5, -1.0])
    weights = averaging_weights(cosines, 2, 0.2)
    assert weights[[1, 3]].tolist() == [0.0, 0.0]
    assert weights[0] / weights[2] == pytest.approx(np.exp(2.0))
    assert averaging_weights(cosines, 0, 10.0).tolist() == pytest.approx([0.35, 0.0, 0.34, 0.30], abs=0.02)
    assert averaging_weights(cosines, 1, 0.2).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_averaging_is_tuned_by_leaving_out():
    # Two groups with opposite effects: neighbours in the own group predict it, the pooled map does not.
    vectors = [[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-1.0, 0.1], [-1.0, 0.0], [-1.0, -0.1]]
    shifts = np.array([[2.0]] * 3 + [[-2.0]] * 3)
    found = tune_averaging(similarity(vectors), shifts, np.zeros(1), shifts)
    assert found.averaged < 0.01 and found.pooled == pytest.approx(2.0) and found.n == 6
    fixed = tune_averaging(similarity(vectors), shifts, np.zeros(1), shifts, neighbours=0, temperature=10.0)
    assert fixed.temperature == 10.0 and fixed.neighbours in (1, 3, 5, 10, 20, 0)
    few = tune_averaging(similarity(vectors[:2]), shifts[:2], np.zeros(1), shifts[:2])
    assert np.isnan(few.averaged) and few.n == 2


def test_upstream_files(tmp_path):
    from vcbench.baselines.cellot.icnn import StackedIcnn
    from vcbench.baselines.cellot.weights import put_network, read_upstream, take_network

    source, target = (StackedIcnn(2, 3, (4, 5)) for _ in range(2))
    state = {"g_state": take_network(source, 1), "step": 7, "minmmd": np.float64(0.25)}
    torch.save(state, tmp_path / "model.pt")
    found = read_upstream(tmp_path / "model.pt")
    assert found["step"] == 7 and float(found["minmmd"]) == 0.25
    put_network(target, 0, found["g_state"])
    for name, value in take_network(source, 1).items():
        assert torch.equal(take_network(target, 0)[name], value), name
    with pytest.raises(ModelError, match="are missing"):
        put_network(target, 0, {"W.0.weight": torch.zeros(5, 4)})
    with pytest.raises(ModelError, match=r"A\.0\.bias is \(9,\), this network has \(4,\)"):
        put_network(target, 0, {**found["g_state"], "A.0.bias": torch.zeros(9)})
    torch.save({"model": object}, tmp_path / "pickle.pt")
    with pytest.raises(ModelError, match="not a CellOT checkpoint"):
        read_upstream(tmp_path / "pickle.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="a list"):
        read_upstream(tmp_path / "list.pt")


@pytest.mark.parametrize("init", ["torch", "upstream", "identity"])
def test_initial_maps(init):
    from vcbench.baselines.cellot.icnn import StackedIcnn

    torch.manual_seed(0)
    x = torch.randn(2, 200, 50)
    moved = StackedIcnn(2, 50, (64,) * 4, init=init)(x)
    if init == "identity":
        assert (moved - x).norm() < 0.02 * x.norm()
    if init == "upstream":
        # All weights are positive, so the map points along the diagonal, with a norm near 22.
        assert 19 < moved.norm(dim=2).mean() < 25
        assert (moved.mean(dim=2) * 50**0.5 / moved.norm(dim=2)).mean() > 0.97


def test_a_gaussian_map_is_learned():
    """N(0, I) to N(m, S) in two dimensions: the optimal map m + S^(1/2) x is affine and known."""
    from vcbench.baselines.cellot.icnn import StackedIcnn, transport
    from vcbench.baselines.cellot.solver import Duel

    torch.manual_seed(0)
    root, mean = torch.tensor([[1.3, 0.3], [0.3, 0.7]]), torch.tensor([1.0, -0.5])
    nets = [StackedIcnn(1, 2, (32, 32), init="identity") for _ in range(2)]
    duel = Duel(*nets)
    steps = []
    for net in nets:
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.9))

        def update(loss, optimizer=optimizer):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        steps.append(update)
    for _ in range(200):
        y = mean + torch.randn(1, 256, 2) @ root
        for _ in range(4):
            duel.step_g(torch.randn(1, 256, 2), 256, steps[1])
        duel.step_f(torch.randn(1, 256, 2), y, 256, steps[0])
    x = torch.randn(1, 2000, 2)
    error = ((transport(nets[1].weights(), x) - (mean + x @ root)) ** 2).sum(dim=2).mean().item()
    # Relative to the variance of the target; doing nothing is at 0.6.
    assert error / (root @ root).trace().item() < 0.05


def test_principal_components():
    from vcbench.baselines.cellot.components import principal_axes

    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8)), 0)
    mean, axes = principal_axes(sp.csr_array(x), 3)
    np.testing.assert_allclose(mean, x.mean(axis=0))
    _, _, expected = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(axes.T @ expected[:3].T), np.eye(3), atol=1e-8)
