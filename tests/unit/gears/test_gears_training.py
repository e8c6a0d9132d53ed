"""GEARS in the loop: poisoned test rows, targets without GO terms, combinations, draws, weight files, annotation."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from builders import standard_h5ad
from cuda_checks import check_training_on_cuda
from vcbench.baselines.features import feature_source
from vcbench.baselines.gears.annotation import read_gaf, read_gene2go, read_terms
from vcbench.data_specs.errors import InvalidFile, ModelError
from vcbench.data_specs.split_file import Split

LABELS = ("G000", "G001", "G002", "G003", "G004", "G000+G001", "G002+G003", "NOGO")
TEST = ("G003", "G002+G003")
SETTINGS = {"epochs": 2, "hidden_size": 8, "batch_size": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gears")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=10, controls=16)
    rng = np.random.default_rng(1)
    genes = np.array([f"G{i:03d}" for i in range(40)] + ["UNMEASURED"])
    lines = [
        f"T{i}\t-\t" + "\t".join(genes[np.sort(rng.choice(len(genes), 12, replace=False))]) for i in range(15)
    ]
    (folder / "go.gmt").write_text("\n".join([*lines, "all\t-\t" + "\t".join(genes)]) + "\n")
    part = {label: "test" if label in TEST else "train" for label in LABELS} | {"G004": "validation"}
    rows = {("K562", label): (part[label], "") for label in LABELS}
    return data, f"go:{folder / 'go.gmt'}", Split(rows, {"scheme": "by hand"}), folder


def train(files, out, *, data=None, seed=3, device="cpu", **settings):
    pytest.importorskip("torch", reason="torch is not installed")
    from vcbench.baselines.deep_train import train_deep
    from vcbench.baselines.run_folder import load_run

    path, go, split, folder = files
    chosen = {**SETTINGS, **settings}
    train_deep(
        "gears", data or path, split, folder / out, settings=chosen, features=go, seed=seed, device=device
    )
    return load_run(folder / out)


@pytest.fixture(scope="module")
def run(files):
    return train(files, "run")


def weights_of(run):
    from safetensors.numpy import load_file

    return load_file(run.folder / "checkpoints" / "best" / "weights.safetensors")


def test_the_run_predicts_every_row_and_marks_what_it_cannot_know(run):
    keys = [
        ("K562", label) for label in ("G003", "G002+G003", "G000+G001+G010", "NOGO", "G000+NOGO", "control")
    ]
    found = run.model.predict(keys, run.control_means)
    assert found.status == ("predicted",) * 3 + ("fallback",) * 2 + ("predicted",)
    assert found.reason[3] == "no GO terms for NOGO; mean training effect instead"
    assert found.reason[4] == found.reason[3]
    control = run.control_means["K562"]
    np.testing.assert_allclose(found.profiles[3] - control, run.mean_effect, atol=1e-12)
    np.testing.assert_array_equal(found.profiles[5], control)
    assert np.ptp(found.profiles[:3] - control, axis=0).max() > 1e-4
    swapped = run.model.predict(keys[:3][::-1], run.control_means)
    np.testing.assert_allclose(swapped.profiles[::-1], found.profiles[:3], atol=1e-6)


def test_effects_are_shared_by_contexts(run):
    controls = {"K562": run.control_means["K562"], "new": run.control_means["K562"] + 1.0}
    found = run.model.predict([("K562", "G003"), ("new", "G003")], controls)
    np.testing.assert_allclose(found.profiles[1] - found.profiles[0], 1.0, atol=1e-12)


def test_missing_go_can_be_refused(files):
    found = train(files, "refusing", missing_go="refuse", epochs=0).model.predict(
        [("K562", "G001+NOGO")], {"K562": np.zeros(40)}
    )
    assert found.status == ("refused",)
    assert found.reason == ("no GO terms for NOGO",)


def test_perturbations_without_go_terms_do_not_train(run):
    assert any(
        "1 training perturbation(s) with a target without GO terms" in note for note in run.model.notes
    )
    assert "NOGO" not in run.model.vocabulary.position
    assert set(TEST[:1]) <= set(run.model.vocabulary.position)


def test_poisoned_test_rows_change_nothing(files, run):
    ad = pytest.importorskip("anndata", reason="anndata is not installed")
    data, _, _, folder = files
    poisoned = ad.read_h5ad(data)
    rows = np.flatnonzero(poisoned.obs["perturbation"].isin(TEST).to_numpy())
    x = poisoned.X.tolil()
    x[rows] = np.random.default_rng(0).poisson(50.0, (len(rows), 40))
    poisoned.X = x.tocsr().astype(np.float32)
    poisoned.write_h5ad(folder / "poisoned.h5ad")
    other = train(files, "poisoned", data=folder / "poisoned.h5ad")
    mine, clean = weights_of(other), weights_of(run)
    assert mine.keys() == clean.keys()
    for name in clean:
        np.testing.assert_array_equal(mine[name], clean[name], err_msg=name)
    np.testing.assert_array_equal(other.mean_effect, run.mean_effect)
    for graph in ("gene_graph", "perturbation_graph"):
        a, b = getattr(other.model, graph), getattr(run.model, graph)
        np.testing.assert_array_equal(a.edges, b.edges)
        np.testing.assert_array_equal(a.weights, b.weights)
    for name in ("best", "last"):
        log = [(r.folder / "metrics.jsonl").read_text().splitlines() for r in (run, other)]
        scores = [[json.loads(line).get("mse_top20_de") for line in lines] for lines in log]
        assert scores[0] == scores[1], name


def test_retained_genes_come_from_training_cells(files):
    from vcbench.baselines.deep_data import load_cells
    from vcbench.baselines.gears.data import Vocabulary, training_rows

    cells = load_cells(files[0], files[2])
    vocabulary = Vocabulary.of(sorted(f"G{i:03d}" for i in range(40)))
    rows = training_rows(cells, vocabulary)
    assert rows.dropped == ("NOGO",)
    dense = cells.x.toarray()
    for i in range(len(rows.rows)):
        key = cells.keys[cells.codes[rows.rows[i]]]
        own = dense[cells.rows_of(key)]
        expected = np.ones(40, dtype=bool) if key[1] == "control" else own.any(axis=0)
        np.testing.assert_array_equal(rows.retained[rows.conditions[i]], expected)
        assert key[1] not in (*TEST, "G004")
        assert sorted(rows.members[i][rows.members[i] >= 0]) == sorted(vocabulary.members(key[1]) or [])


def test_published_conditions_split_the_loss():
    import scipy.sparse as sp
    from vcbench.baselines.gears.data import Vocabulary, training_rows
    from vcbench.baselines.training.data import CellData

    keys = (("K", "A"), ("K", "control"))
    cells = CellData(
        x=sp.csr_array(np.eye(5, 3, dtype=np.float32)),
        codes=np.array([0, 0, 0, 1, 1]),
        keys=keys,
        train_keys=keys[:1],
        validation_keys=(),
        held_out=np.zeros(5, dtype=bool),
        genes=np.array(["A", "B", "C"]),
        target_sum=1.0,
        extras={"published": np.array([0, 1, 0, 2, 2])},
    )
    vocabulary = Vocabulary.of(["A"])
    assert training_rows(cells, vocabulary).conditions.tolist() == [0, 0, 0, 1, 1]
    split = training_rows(cells, vocabulary, published=True)
    assert split.conditions.tolist() == [0, 1, 0, 2, 2]
    np.testing.assert_array_equal(split.retained, [[1, 0, 1], [0, 1, 0], [1, 1, 1]])


def test_no_covered_perturbation_is_an_error(files, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from vcbench.baselines.deep_train import train_deep

    (tmp_path / "other.gmt").write_text("T1\t-\tX1\tX2\n")
    with pytest.raises(ModelError, match="none of the 5 training perturbations has GO terms"):
        train_deep(
            "gears",
            files[0],
            files[2],
            tmp_path / "run",
            features=f"go:{tmp_path / 'other.gmt'}",
            device="cpu",
        )
    with pytest.raises(ModelError, match=r"give --features go:FILE\.gmt"):
        train_deep("gears", files[0], files[2], tmp_path / "bare", device="cpu")


def test_upstream_preset_draws_controls(files):
    found = train(files, "upstream", preset="upstream", conditions="canonical", epochs=1)
    assert found.settings["coexpression"] == "first"
    keys = [("K562", "G003"), ("K562", "NOGO")]
    first, again = (found.model.predict(keys, found.control_means) for _ in range(2))
    assert first.status == ("predicted", "refused")
    np.testing.assert_array_equal(first.profiles[0], again.profiles[0])
    from vcbench.baselines.gears.effects import effects_of

    exact = effects_of(found.model.module, [found.model.vocabulary.members("G003")])[0][0].numpy()
    gap = first.profiles[0] - found.control_means["K562"] - exact
    assert 1e-4 < np.abs(gap).max() < 0.5


def test_uncertainty_of_labels(files, run):
    found = train(files, "uncertain", uncertainty="true", epochs=1)
    scores = found.model.uncertainty(["G003", "NOGO", "G001+G002"])
    assert set(scores) == {"G003", "G001+G002"}
    assert all(score > 0 for score in scores.values())
    with pytest.raises(ModelError, match="no uncertainty head"):
        run.model.uncertainty(["G003"])


def test_training_starts_from_a_weight_file(files, run, tmp_path):
    import torch

    state = {f"module.{name}": value for name, value in run.model.module.state_dict().items()}
    state["cell_fitness_mlp.0.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "model.pt")
    found = train(files, "started", initial_weights=str(tmp_path / "model.pt"), epochs=0)
    for name, value in run.model.module.state_dict().items():
        assert torch.equal(found.model.module.state_dict()[name], value), name
    with pytest.raises(ModelError, match=r"hidden_size=8.*hidden_size=4"):
        train(files, "narrow", initial_weights=str(tmp_path / "model.pt"), epochs=0, hidden_size=4)
    torch.save({"state": object}, tmp_path / "pickle.pt")
    with pytest.raises(ModelError, match="not a file of tensors"):
        train(files, "pickled", initial_weights=str(tmp_path / "pickle.pt"), epochs=0)
    torch.save({"x": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(ModelError, match="is no GEARS state dict"):
        train(files, "foreign", initial_weights=str(tmp_path / "foreign.pt"), epochs=0)


def test_an_upstream_checkpoint_with_its_exported_graphs(run, tmp_path):
    import torch
    from vcbench.baselines.gears.weights import network_from_upstream

    model = run.model
    torch.save(model.module.state_dict(), tmp_path / "model.pt")
    exported = {}
    for name, graph in (("G_coexpress", model.gene_graph), ("G_go", model.perturbation_graph)):
        exported |= {name: graph.edges.tolist(), f"{name}_weight": graph.weights.tolist()}
    (tmp_path / "config.json").write_text(json.dumps(exported))
    network = network_from_upstream(tmp_path / "model.pt", tmp_path / "config.json")
    members, controls = torch.tensor([[-1, -1], [3, 5]]), torch.rand(2, 40)
    with torch.no_grad():
        # The graph reaches the first cell in upstream's form, every cell in ours.
        mine = model.module(members, controls)[0]
        theirs = network(members, controls)[0]
    torch.testing.assert_close(theirs[0], mine[0], rtol=0, atol=1e-5)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ModelError, match="not an exported GEARS configuration"):
        network_from_upstream(tmp_path / "model.pt", tmp_path / "broken.json")


GAF = """!gaf-version: 2.2
UniProtKB\tP1\tAAA\tinvolved_in\tGO:1\tR\tIDA\t\tP\t\t\tprotein\ttaxon:9606\t2020\tX
UniProtKB\tP1\tAAA\tNOT|involved_in\tGO:2\tR\tIDA\t\tP\t\t\tprotein\ttaxon:9606\t2020\tX
UniProtKB\tP1\tAAA\tlocated_in\tGO:3\tR\tND\t\tC\t\t\tprotein\ttaxon:9606\t2020\tX
UniProtKB\tP2\tBBB\tenables\tGO:4\tR\tIEA\t\tF\t\t\tprotein\ttaxon:9606|taxon:562\t2020\tX
UniProtKB\tP3\tCCC\tenables\tGO:4\tR\tIEA\t\tF\t\t\tprotein\ttaxon:10090\t2020\tX
"""


def test_gaf_annotations(tmp_path):
    (tmp_path / "human.gaf").write_text(GAF)
    expected = {"AAA": {"GO:1"}, "BBB": {"GO:4"}}
    assert read_gaf(tmp_path / "human.gaf") == expected
    assert read_terms(feature_source(f"go:{tmp_path / 'human.gaf'}")) == expected
    (tmp_path / "short.gaf").write_text("a\tb\n")
    with pytest.raises(InvalidFile) as caught:
        read_gaf(tmp_path / "short.gaf")
    assert caught.value.issues[0].code == "E633"
    with pytest.raises(InvalidFile) as caught:
        read_gaf(tmp_path / "absent.gaf")
    assert caught.value.issues[0].code == "E632"


def test_gene2go_annotations(tmp_path):
    lines = ["#tax_id\tGeneID\tGO_ID\tEvidence\tQualifier\tterm", "9606\t1\tGO:1\tIDA\tenables\tx"]
    lines += [
        "9606\t1\tGO:2\tIDA\tNOT enables\tx",
        "9606\t2\tGO:1\tND\tenables\tx",
        "10090\t1\tGO:5\tIDA\t-\tx",
    ]
    (tmp_path / "gene2go").write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidFile) as caught:
        read_terms(feature_source(f"go:{tmp_path / 'gene2go'}"))
    assert caught.value.issues[0].found == "no gene_info file"
    (tmp_path / "Homo_sapiens.gene_info").write_text(
        "#tax\tid\tsymbol\n9606\t1\tAAA\n9606\t2\tBBB\n10090\t1\tZZZ\n"
    )
    assert read_gene2go(tmp_path / "gene2go", tmp_path / "Homo_sapiens.gene_info") == {"AAA": {"GO:1"}}
    assert read_terms(feature_source(f"go:{tmp_path / 'gene2go'}")) == {"AAA": {"GO:1"}}


def test_the_model_imports_and_explains_without_torch():
    import subprocess

    code = (
        "import sys; from vcbench.baselines.registry import explain; d = explain('gears'); "
        "assert 'upstream' in d['presets'], d; print([m for m in ('torch', 'scanpy', 'anndata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.gpu
def test_training_on_cuda(files):
    def train_on(device):
        train(files, f"on-{device}", device=device)
        return files[-1] / f"on-{device}"

    check_training_on_cuda(train_on, [("K562", "G003"), ("K562", "G001"), ("K562", "G000+G001")])
