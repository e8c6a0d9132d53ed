"""The simulator: deterministic to the byte, independent of what else is simulated, and true to its documented truth."""

import anndata as ad
import numpy as np
import pytest
from vcbench.data_specs.errors import OutputError, UsageError
from vcbench.data_specs.gmt import read_gmt
from vcbench.data_specs.labels import split_label
from vcbench.data_specs.schema_check import check_standard
from vcbench.data_specs.simulate import simulate_dataset, truth_path
from vcbench.data_specs.simulate_model import Model, SimulationSpec

SMALL = SimulationSpec(
    genes=120, singles=6, doubles=4, contexts=("A", "B"), cells=12, controls=20, depth=2000
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    truth = simulate_dataset(folder / "s.h5ad", SMALL, 3, gmt=folder / "s.gmt")
    return truth, ad.read_h5ad(folder / "s.h5ad")


@pytest.fixture(scope="module")
def many_cells(tmp_path_factory):
    spec = SimulationSpec(
        genes=150, singles=4, doubles=2, cells=1500, controls=3000, depth=20_000, interaction_fraction=1.0
    )
    truth = simulate_dataset(tmp_path_factory.mktemp("many") / "s.h5ad", spec, 7)
    data = ad.read_h5ad(truth.path)
    sums, errors = {}, {}
    for name in data.obs["perturbation"].cat.categories:
        rows = data.X[(data.obs["perturbation"] == name).to_numpy()].toarray().astype(np.float64)
        sums[name] = rows.mean(axis=0)
        errors[name] = rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return spec, truth, sums, errors


def test_files_are_standard(small):
    truth, data = small
    assert check_standard(truth.path) == []
    assert data.shape == (2 * (20 + 10 * 12), 120)
    names = set(data.obs["perturbation"])
    assert len(names) == 11 and sum("+" in name for name in names) == 4
    assert all(set(split_label(name)) <= names for name in names)
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(data.obs["total_counts"], totals.astype(np.float32))
    assert truth.target_sum == np.median(totals[data.obs["is_control"]])
    assert set(data.obs["batch"]) == {"batch1", "batch2"}
    targets = {t for name in names for t in split_label(name) if name != "control"}
    assert set(data.var_names[data.var["is_target"]]) == targets


def test_equal_seeds_give_equal_bytes_and_others_do_not(small, tmp_path):
    truth, _ = small
    for seed in (3, 4):
        simulate_dataset(tmp_path / "s.h5ad", SMALL, seed, gmt=tmp_path / "s.gmt", force=True)
        for name in ("s.h5ad", "s.truth.h5ad", "s.gmt"):
            same = (tmp_path / name).read_bytes() == (truth.path.parent / name).read_bytes()
            assert same == (seed == 3)


def test_cells_do_not_depend_on_what_else_is_simulated(small, tmp_path):
    truth, data = small
    chosen = [next(name for _, name in truth.keys if "+" in name), truth.keys[0][1]]
    fields = {name: getattr(SMALL, name) for name in ("genes", "cells", "controls", "depth")}
    for names, contexts in ((chosen, ("B", "A")), (chosen[::-1], ("B",))):
        spec = SimulationSpec(**fields, perturbations=tuple(names), contexts=contexts)
        simulate_dataset(tmp_path / "part.h5ad", spec, 3, force=True)
        part = ad.read_h5ad(tmp_path / "part.h5ad")
        np.testing.assert_array_equal(part.X.toarray(), data[part.obs_names].X.toarray())
        assert list(part.obs["batch"]) == list(data[part.obs_names].obs["batch"])


def test_truth_file_equals_the_returned_truth(small):
    truth, _ = small
    data = ad.read_h5ad(truth_path(truth.path))
    np.testing.assert_array_equal(data.X, truth.log_fold_changes.astype(np.float32))
    assert list(zip(data.obs["context"], data.obs["perturbation"], strict=True)) == list(truth.keys)
    record = data.uns["vcbench_truth"]
    np.testing.assert_array_equal(record["loadings"], truth.loadings)
    np.testing.assert_array_equal(record["baseline"], truth.baseline)
    assert list(data.obs["interacts"]) == list((truth.interaction != 0).any(axis=1))
    np.testing.assert_allclose(truth.baseline.sum(axis=1), 1.0, rtol=1e-12)


def test_shares_implied_by_the_truth_sum_to_one(small):
    truth, _ = small
    for (context, _), change in zip(truth.keys, truth.log_fold_changes, strict=True):
        share = truth.baseline[truth.contexts.index(context)] * np.exp(change)
        assert share.sum() == pytest.approx(1.0, rel=1e-12)


def test_mean_counts_match_the_truth(many_cells):
    spec, truth, sums, errors = many_cells
    base = spec.depth * truth.baseline[0]
    z = [(sums["control"] - base) / errors["control"]]
    for i, (_, name) in enumerate(truth.keys):
        z.append((sums[name] - base * np.exp(truth.log_fold_changes[i])) / errors[name])
    z = np.array(z)
    assert np.isfinite(z).all() and np.abs(z).max() < 5.5
    # Cells share their depth within a group, so the mean of z is itself noisy by group.
    assert 0.7 < z.std() < 1.3


def test_knockdown_efficiency(many_cells):
    spec, truth, sums, _ = many_cells
    expected_left = (1 - spec.escape) * (1 - spec.knockdown) + spec.escape
    left = []
    for name in (name for _, name in truth.keys if "+" not in name):
        gene = truth.genes.index(name)
        # Against the genes a perturbation leaves alone, because shares must sum to one.
        calm = np.abs(truth.log_fold_change("A", name)) < 0.1
        scale = sums[name][calm].sum() / sums["control"][calm].sum()
        left.append(sums[name][gene] / sums["control"][gene] / scale)
    assert np.mean(left) == pytest.approx(expected_left, abs=0.08)
    assert max(left) < 0.5


def test_activation_raises_targets():
    model = Model(SimulationSpec(genes=100, singles=5, doubles=0, modality="CRISPRa", effect_scale=0.0), 1)
    for name in model.perturbations:
        change = model.effect("A", name).log_fold_change
        assert change.argmax() == model.position[name] and change.max() > 1


def test_additive_doubles_add_and_interacting_ones_do_not():
    spec = SimulationSpec(genes=200, singles=12, doubles=30, escape=0.0, interaction_fraction=0.5)
    model = Model(spec, 5)
    doubles = [name for name in model.perturbations if "+" in name]
    additive = [name for name in doubles if not model.interaction(name, "A").any()]
    assert 5 <= len(additive) <= 25
    for name in doubles:
        a, b = split_label(name)
        effects = [model.effect("A", x) for x in (a, b, name)]
        residual = effects[2].log_fold_change - effects[0].log_fold_change - effects[1].log_fold_change
        others = [i for i, gene in enumerate(model.genes) if gene not in (a, b)]
        # Normalisation to shares shifts all genes by one constant.
        spread = np.ptp(residual[others])
        assert (spread < 1e-9) == (name in additive)
        np.testing.assert_allclose(
            effects[2].activity, effects[0].activity + effects[1].activity + effects[2].interaction
        )


def test_contexts_share_effects_as_much_as_asked():
    def agreement(similarity):
        spec = SimulationSpec(
            genes=300, singles=40, doubles=0, contexts=("A", "B"), context_similarity=similarity
        )
        model = Model(spec, 2)
        pushes = [np.concatenate([model.activity(x, c) for x in model.perturbations]) for c in ("A", "B")]
        return float(np.corrcoef(pushes)[0, 1])

    assert agreement(1.0) == pytest.approx(1.0) and agreement(0.9) > agreement(0.3)
    assert abs(agreement(0.0)) < 0.35
    model = Model(SMALL, 3)
    assert not np.allclose(model.log_baseline("A"), model.log_baseline("B"))


def test_gene_sets_follow_the_programs(small):
    truth, _ = small
    annotation = read_gmt(truth.path.parent / "s.gmt")
    model = Model(SMALL, 3)
    for gene in truth.genes:
        push = model.shared_activity(gene)
        for k in range(SMALL.programs):
            terms = annotation.get(gene, frozenset())
            if f"PROGRAM {k + 1} REGULATORS UP" in terms:
                assert push[k] > 0
            if f"PROGRAM {k + 1} REGULATORS DOWN" in terms:
                assert push[k] < 0
    n_regulating = sum((model.shared_activity(g) != 0).sum() for g in truth.genes)
    n_listed = sum(term.endswith("REGULATORS") for terms in annotation.values() for term in terms)
    assert 0.8 * n_regulating < n_listed < n_regulating


def test_impossible_specs_list_every_problem(tmp_path):
    spec = SimulationSpec(genes=20, singles=15, doubles=0, cells=0, escape=2.0, contexts=("A", "A"))
    with pytest.raises(UsageError) as caught:
        simulate_dataset(tmp_path / "s.h5ad", spec)
    for text in ("cells", "escape", "contexts", "15 singles need at least 30 genes"):
        assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="NOPE"):
        Model(SimulationSpec(perturbations=("NOPE",)))
    with pytest.raises(UsageError, match=r"B\+A"):
        Model(SimulationSpec(perturbations=("B+A",)))


def test_outputs_are_checked_before_work(tmp_path):
    (tmp_path / "s.truth.h5ad").write_text("mine")
    with pytest.raises(OutputError, match=r"s\.truth\.h5ad"):
        simulate_dataset(tmp_path / "s.h5ad", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["s.truth.h5ad"]


def test_cytokines_are_no_genes_and_act_on_every_cell_type(tmp_path):
    spec = SimulationSpec(genes=60, singles=2, doubles=0, contexts=("B", "NK"), cells=5, modality="cytokine")
    truth = simulate_dataset(tmp_path / "sim.h5ad", spec, 3)
    assert {name for _, name in truth.keys} == {"CYTOKINE01", "CYTOKINE02"}
    assert not [issue for issue in check_standard(tmp_path / "sim.h5ad") if issue.severity == "error"]
    b, nk = (truth.log_fold_change(context, "CYTOKINE01") for context in ("B", "NK"))
    assert np.corrcoef(b, nk)[0, 1] > 0.3 and np.abs(b - nk).max() > 0.01
