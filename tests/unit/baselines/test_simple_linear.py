"""The linear model against the published formula written out again, and its ablations."""

from dataclasses import replace

import numpy as np
import pytest
from baseline_data import answer, effect_of, fitted, five_genes, random_panel
from vcbench.baselines.features import feature_source
from vcbench.data_specs.errors import ModelError


def formula(data, *, k, ridge, include_ctrl=True, g=None, p=None):
    """Sections 5.1 to 5.6 with scikit-learn's PCA and an explicit inverse; one context."""
    from sklearn.decomposition import PCA

    control = data.control_means["A"]
    columns = [*data.means, control] if include_ctrl else list(data.means)
    scores = PCA(k, svd_solver="full").fit_transform(np.stack(columns).T)
    g = scores if g is None else g
    row = {str(gene): i for i, gene in enumerate(data.genes)}
    fit = [i for i, (_, label) in enumerate(data.keys) if label in row]
    c = np.stack([data.effects[i] for i in fit], axis=1)
    pe = np.stack([(scores if p is None else p)[row[data.keys[i][1]]] for i in fit])
    if include_ctrl:
        c, pe = np.column_stack([c, np.zeros(len(c))]), np.vstack([pe, np.zeros(pe.shape[1])])
    b = c.mean(axis=1, keepdims=True)
    w = (
        np.linalg.inv(g.T @ g + ridge * np.eye(g.shape[1]))
        @ g.T
        @ (c - b)
        @ pe
        @ np.linalg.inv(pe.T @ pe + ridge * np.eye(pe.shape[1]))
    )
    return lambda target: b[:, 0] + g @ w @ (scores if p is None else p)[row[target]]


@pytest.mark.parametrize("include_ctrl", [True, False])
def test_equals_the_formula(include_ctrl):
    data = random_panel(contexts=("A",), n_singles=15)
    model = fitted("linear", data, n_components=5, ridge=0.1, include_ctrl=include_ctrl)
    expected = formula(data, k=5, ridge=0.1, include_ctrl=include_ctrl)
    for target in ("G000", "G007", "G025"):
        np.testing.assert_allclose(effect_of(model, data, target), expected(target), atol=1e-10)


def test_five_genes_by_formula():
    data = five_genes(("T1", "T2", "T1+T2"))
    model = fitted("linear", data, n_components=2)
    expected = formula(data, k=2, ridge=0.1)
    for target in ("T1", "T3", "Y"):
        np.testing.assert_allclose(effect_of(model, data, target), expected(target), atol=1e-12)


def test_reproduces_training_effects_when_rank_and_ridge_allow():
    # Gene scores are centred over genes, so only effects that are can lie in their span.
    panel = random_panel(contexts=("A",), n_singles=6, doubles=False)
    data = replace(panel, means=panel.means - panel.effects.mean(axis=1, keepdims=True))
    model = fitted("linear", data, n_components=7, ridge=1e-12)
    for (_, label), effect in zip(data.keys, data.effects, strict=True):
        np.testing.assert_allclose(effect_of(model, data, label), effect, atol=1e-6)


def test_combinations_add_embeddings_but_never_enter_the_fit():
    data = random_panel(contexts=("A",))
    singles = random_panel(contexts=("A",), doubles=False)
    model = fitted("linear", data, n_components=4)
    assert any("9 of 11" in note for note in model.notes) and len(singles.keys) == 9
    intercept = model.intercepts["A"]
    parts = [effect_of(model, data, name) - intercept for name in ("G004", "G005")]
    np.testing.assert_allclose(effect_of(model, data, "G004+G005"), intercept + sum(parts), atol=1e-12)
    changed = replace(data, means=data.means + np.where([["+" in key[1]] for key in data.keys], 1e-3, 0.0))
    other = fitted(
        "linear", changed, n_components=4, gene_embedding="identity", perturbation_embedding="identity"
    )
    same = fitted(
        "linear", data, n_components=4, gene_embedding="identity", perturbation_embedding="identity"
    )
    np.testing.assert_array_equal(effect_of(other, data, "G004"), effect_of(same, data, "G004"))


def test_unmeasured_target_is_refused():
    data = random_panel(contexts=("A",))
    status, reason = answer(fitted("linear", data), data, "G000+NOPE")
    assert status == "refused" and "NOPE" in reason and "measured" in reason
    renamed = replace(data, genes=np.array([f"Z{i}" for i in range(30)], dtype=object))
    with pytest.raises(ModelError, match="measured gene"):
        fitted("linear", renamed)


def test_zero_embeddings_give_the_mean_with_control_counted():
    data = random_panel(contexts=("A",), doubles=False)
    for side in ({"gene_embedding": "zero"}, {"perturbation_embedding": "zero"}):
        model = fitted("linear", data, **side)
        expected = data.effects.sum(axis=0) / (len(data.keys) + 1)
        np.testing.assert_allclose(effect_of(model, data, "G001"), expected, atol=1e-12)


def test_identity_embeddings_shrink_each_effect():
    data = random_panel(contexts=("A",), doubles=False)
    model = fitted("linear", data, gene_embedding="identity", perturbation_embedding="identity", ridge=0.1)
    b = data.effects.sum(axis=0) / (len(data.keys) + 1)
    np.testing.assert_allclose(effect_of(model, data, "G002"), b + (data.effects[2] - b) / 1.1**2, atol=1e-12)
    assert answer(model, data, "G020")[0] == "refused"


def test_random_embeddings_depend_on_seed_and_name_alone():
    data = random_panel(contexts=("A",))
    a, b, c = (fitted("linear", data, seed=s, perturbation_embedding="random") for s in (1, 1, 2))
    np.testing.assert_array_equal(effect_of(a, data, "G001"), effect_of(b, data, "G001"))
    assert np.abs(effect_of(a, data, "G001") - effect_of(c, data, "G001")).max() > 1e-6
    assert answer(a, data, "UNMEASURED") == ("predicted", "")
    rotated = fitted("linear", data, seed=3, gene_embedding="random", n_components=3)
    assert rotated.gene_map.shape == (30, 3)


def test_plugged_in_embeddings(tmp_path):
    data = random_panel(contexts=("A",), doubles=False)
    rng = np.random.default_rng(5)
    g, p = rng.standard_normal((30, 4)), rng.standard_normal((30, 3))
    for name, table in (("g", g), ("p", p)):
        lines = [
            f"{gene}\t" + "\t".join(map(repr, row.tolist()))
            for gene, row in zip(data.genes, table, strict=True)
        ]
        (tmp_path / f"{name}.tsv").write_text(
            "\n".join(["gene\t" + "\t".join("abcd"[: table.shape[1]]), *lines]) + "\n"
        )
    model = fitted(
        "linear",
        data,
        features=feature_source(tmp_path / "p.tsv"),
        gene_embedding=str(tmp_path / "g.tsv"),
        perturbation_embedding="features",
    )
    expected = formula(data, k=4, ridge=0.1, g=g, p=p)
    np.testing.assert_allclose(effect_of(model, data, "G012"), expected("G012"), atol=1e-10)


def test_contexts_have_their_own_intercepts():
    data = random_panel(contexts=("A", "B"), doubles=False)
    model = fitted("linear", data, gene_embedding="zero")
    in_a = [context == "A" for context, _ in data.keys]
    np.testing.assert_allclose(
        effect_of(model, data, "G001"), data.effects[in_a].sum(axis=0) / 10, atol=1e-12
    )
    new = model.predict([("C", "G001")], {"C": data.control_means["A"]})
    expected = data.control_means["A"] + data.effects.sum(axis=0) / 20
    np.testing.assert_allclose(new.profiles[0], expected, atol=1e-12)
