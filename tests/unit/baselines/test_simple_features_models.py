"""Ridge, kernel ridge, neighbours and forests against scikit-learn and numpy written out again."""

import numpy as np
import pytest
from baseline_data import EFFECTS, answer, effect_of, fitted, five_genes, random_panel
from vcbench.baselines.features import feature_source
from vcbench.data_specs.errors import ModelError, UsageError


@pytest.fixture
def panel():
    return random_panel(contexts=("A",), n_singles=14)


@pytest.fixture
def table(tmp_path, panel):
    """Random features of the first 25 genes."""
    values = np.random.default_rng(7).standard_normal((25, 6)) * [1, 2, 3, 1, 1, 5] + 4
    lines = [
        f"{gene},{','.join(map(repr, row.tolist()))}"
        for gene, row in zip(panel.genes[:25], values, strict=True)
    ]
    (tmp_path / "f.csv").write_text("gene,a,b,c,d,e,f\n" + "\n".join(lines) + "\n")
    return feature_source(tmp_path / "f.csv"), values


def design(panel, values):
    """z-scores on the distinct training targets; combinations add."""
    targets = sorted({t for _, label in panel.keys for t in label.split("+")})
    at = {gene: i for i, gene in enumerate(panel.genes)}
    chosen = values[[at[t] for t in targets]]
    z = (values - chosen.mean(axis=0)) / chosen.std(axis=0)

    def phi(label):
        return np.sum([z[at[t]] for t in label.split("+")], axis=0)

    return phi, np.stack([phi(label) for _, label in panel.keys])


def test_ridge_equals_scikit_learn(panel, table):
    from sklearn.linear_model import Ridge

    source, values = table
    phi, x = design(panel, values)
    mean = panel.effects.mean(axis=0)
    oracle = Ridge(alpha=2.5, fit_intercept=False).fit(x, panel.effects - mean)
    model = fitted("ridge", panel, features=source, ridge=2.5)
    for label in ("G003", "G020", "G001+G022"):
        expected = mean + oracle.predict(phi(label)[None, :])[0]
        np.testing.assert_allclose(effect_of(model, panel, label), expected, atol=1e-10)


@pytest.mark.parametrize("kernel", ["linear", "cosine", "rbf"])
def test_kernel_ridge_equals_scikit_learn(panel, table, kernel):
    from sklearn.kernel_ridge import KernelRidge

    source, values = table
    phi, x = design(panel, values)
    mean = panel.effects.mean(axis=0)
    gamma = 1 / (x.shape[1] * x.var()) if kernel == "rbf" else None
    oracle = KernelRidge(alpha=0.7, kernel=kernel, gamma=gamma).fit(x, panel.effects - mean)
    model = fitted("kernel-ridge", panel, features=source, ridge=0.7, kernel=kernel)
    for label in ("G003", "G020", "G001+G022"):
        expected = mean + oracle.predict(phi(label)[None, :])[0]
        np.testing.assert_allclose(effect_of(model, panel, label), expected, atol=1e-10)


@pytest.mark.parametrize("ridge", ["cv", 0.5, 20.0])
def test_kernel_ridge_with_linear_kernel_is_ridge(panel, table, ridge):
    models = [
        fitted(name, panel, features=table[0], ridge=ridge, seed=3, **extra)
        for name, extra in (("ridge", {}), ("kernel-ridge", {"kernel": "linear"}))
    ]
    assert models[0].ridge == pytest.approx(models[1].ridge, rel=1e-12)
    for label in ("G000", "G021", "G002+G024"):
        a, b = (effect_of(model, panel, label) for model in models)
        np.testing.assert_allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("metric", ["mse", "pearson_delta"])
def test_cross_validation_equals_an_explicit_loop(panel, table, metric):
    from sklearn.linear_model import Ridge

    source, values = table
    data = panel.ordered()
    _, x = design(data, values)
    labels = sorted(label for _, label in data.keys)
    shuffled = list(np.random.default_rng(11).permutation(labels))
    fold = np.array([shuffled.index(label) % 5 for _, label in data.keys])
    grid = np.logspace(-3, 3, 13) * np.trace(x @ x.T) / len(x)
    means = []
    for ridge in grid:
        scores = []
        for f in range(5):
            kept, held = fold != f, fold == f
            offset = data.effects[kept].mean(axis=0)
            oracle = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(
                x[kept], data.effects[kept] - offset
            )
            for guess, truth in zip(oracle.predict(x[held]) + offset, data.effects[held], strict=True):
                mse = np.mean((guess - truth) ** 2)
                scores.append(-mse if metric == "mse" else np.corrcoef(guess, truth)[0, 1])
        means.append(np.mean(scores))
    model = fitted("ridge", panel, features=source, cv_metric=metric, seed=11)
    assert model.ridge == pytest.approx(grid[int(np.argmax(means))], rel=1e-9)


def test_cross_validation_shrinks_noise_more_than_signal(panel, table):
    from dataclasses import replace

    source, values = table
    _, x = design(panel, values)
    signal = x @ np.random.default_rng(1).standard_normal((6, 30))
    real = replace(panel, means=panel.control_means["A"] + signal)
    assert fitted("ridge", real, features=source).ridge < fitted("ridge", panel, features=source).ridge


def test_effect_components_of_full_rank_change_nothing(panel, table):
    full = fitted("ridge", panel, features=table[0], ridge=1.0)
    reduced = fitted("ridge", panel, features=table[0], ridge=1.0, effect_components=16)
    two = fitted("ridge", panel, features=table[0], ridge=1.0, effect_components=2)
    np.testing.assert_allclose(effect_of(full, panel, "G020"), effect_of(reduced, panel, "G020"), atol=1e-10)
    shifts = np.stack(
        [effect_of(two, panel, label) - two.context_mean("A") for label in ("G001", "G009", "G022")]
    )
    assert np.linalg.matrix_rank(shifts, tol=1e-8) == 2


def test_knn_by_hand(panel, table):
    source, values = table
    phi, x = design(panel, values)
    labels = [label for _, label in panel.keys]
    model = fitted("knn", panel, features=source, k=3)
    for query in ("G005", "G021"):
        v = phi(query)
        similarity = x @ v / (np.linalg.norm(x, axis=1) * np.linalg.norm(v))
        order = [i for i in np.argsort(-similarity) if labels[i] != query][:3]
        np.testing.assert_allclose(
            effect_of(model, panel, query), panel.effects[order].mean(axis=0), atol=1e-12
        )
        soft = fitted("knn", panel, features=source, k=3, weights="softmax", temperature=0.5)
        weights = np.exp(similarity[order] / 0.5)
        expected = weights / weights.sum() @ panel.effects[order]
        np.testing.assert_allclose(effect_of(soft, panel, query), expected, atol=1e-12)


def test_knn_with_all_neighbours_is_the_mean(panel, table):
    knn = fitted("knn", panel, features=table[0], k=len(panel.keys))
    mean = fitted("mean", panel)
    np.testing.assert_allclose(effect_of(knn, panel, "G020"), effect_of(mean, panel, "G020"), atol=1e-12)


def test_knn_never_uses_the_requested_perturbation(panel, table):
    model = fitted("knn", panel, features=table[0], k=1)
    for (_, label), effect in zip(panel.keys, panel.effects, strict=True):
        assert np.abs(effect_of(model, panel, label) - effect).max() > 1e-3


@pytest.mark.parametrize("name", ["ridge", "kernel-ridge", "knn", "random-forest"])
def test_missing_features_are_refused_or_averaged(panel, table, name):
    few = {"n_trees": 3} if name == "random-forest" else {}
    strict = fitted(name, panel, features=table[0], **few)
    status, reason = answer(strict, panel, "G001+G027")
    assert status == "refused" and reason == "no features of G027"
    lenient = fitted(name, panel, features=table[0], missing="mean", **few)
    status, reason = answer(lenient, panel, "G001+G027")
    assert status == "fallback" and "G027" in reason
    assert np.isfinite(effect_of(lenient, panel, "G027")).all()
    if name != "random-forest":
        at_mean = effect_of(lenient, panel, "G027")
        np.testing.assert_allclose(
            at_mean, lenient.context_mean("A"), atol=2.0 if name == "kernel-ridge" else 1e-10
        )


def test_default_features_are_the_gene_scores(panel):
    from sklearn.decomposition import PCA

    columns = np.vstack([panel.means, panel.control_means["A"]])
    scores = PCA(4, svd_solver="full").fit_transform(columns.T)
    phi, x = design(panel, scores)
    mean = panel.effects.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + 1.5 * np.eye(4), x.T @ (panel.effects - mean))
    model = fitted("ridge", panel, n_components=4, ridge=1.5)
    np.testing.assert_allclose(effect_of(model, panel, "G026"), mean + phi("G026") @ weights, atol=1e-10)
    assert answer(model, panel, "NOPE") == ("refused", "no features of NOPE")


def test_random_forest_equals_scikit_learn(panel, table):
    from sklearn.ensemble import RandomForestRegressor

    source, values = table
    data = panel.ordered()
    phi, x = design(data, values)
    mean = data.effects.mean(axis=0)
    model = fitted("random-forest", panel, features=source, n_trees=5, seed=4)
    seed = int(np.random.default_rng(4).integers(2**31))
    oracle = RandomForestRegressor(n_estimators=5, random_state=seed).fit(x, data.effects - mean)
    expected = mean + oracle.predict(phi("G020")[None, :])[0]
    np.testing.assert_allclose(effect_of(model, panel, "G020"), expected, atol=1e-8)


GMT = "t1\td\tT1\tX\nt2\td\tT1\tX\tT2\nt3\td\tT2\tY\nt4\td\tT1\tT3\nt5\td\tQ\n"


@pytest.fixture
def go(tmp_path):
    (tmp_path / "go.gmt").write_text(GMT)
    return feature_source(f"go:{tmp_path / 'go.gmt'}")


def test_go_neighbours_by_hand(go):
    # Terms: T1 {1,2,4}, T2 {2,3}, T3 {4}, X {1,2}, Y {3}. Jaccard of X: T1 2/3, T2 1/3; of T3: T1 1/3.
    data = five_genes()
    t1, t2 = EFFECTS["T1"], EFFECTS["T2"]
    model = fitted("go-neighbours", data, features=go)
    np.testing.assert_allclose(effect_of(model, data, "X"), (t1 + t2) / 2, atol=1e-14)
    np.testing.assert_allclose(effect_of(model, data, "T3"), t1, atol=1e-14)
    np.testing.assert_allclose(effect_of(model, data, "T1"), t2, atol=1e-14)  # never itself
    np.testing.assert_allclose(effect_of(model, data, "T1+X"), t1 + (t1 + t2) / 2, atol=1e-14)
    weighted = fitted("go-neighbours", data, features=go, weights="similarity")
    np.testing.assert_allclose(effect_of(weighted, data, "X"), (2 * t1 + t2) / 3, atol=1e-14)
    one = fitted("go-neighbours", data, features=go, n_similar=1)
    np.testing.assert_allclose(effect_of(one, data, "X"), t1, atol=1e-14)
    status, reason = answer(model, data, "Q")
    assert status == "fallback" and "no GO neighbour of Q" in reason
    np.testing.assert_allclose(effect_of(model, data, "Q"), (t1 + t2) / 2, atol=1e-14)
    assert answer(fitted("go-neighbours", data, features=go, above=0.5), data, "T3")[0] == "fallback"


def test_coexpression_neighbours_by_hand(panel):
    model = fitted("coexpression-neighbours", panel)
    correlation = np.abs(np.corrcoef(panel.cells.x.T))
    for gene in (20, 3):
        near = [q for q in range(14) if q != gene and correlation[gene, q] > 0.4]
        assert near
        label = str(panel.genes[gene])
        np.testing.assert_allclose(
            effect_of(model, panel, label), panel.effects[_rows(panel, near)].mean(axis=0), atol=1e-12
        )
    assert answer(model, panel, "NOPE")[0] == "fallback"


def _rows(panel, genes):
    at = {label: i for i, (_, label) in enumerate(panel.keys)}
    return [at[str(panel.genes[g])] for g in genes]


def test_models_say_what_they_lack(panel, table):
    from dataclasses import replace

    with pytest.raises(ModelError, match="go:FILE"):
        fitted("go-neighbours", panel)
    with pytest.raises(ModelError, match="go:FILE"):
        fitted("go-neighbours", panel, features=table[0])
    with pytest.raises(ModelError, match="training cells"):
        fitted("coexpression-neighbours", replace(panel, cells=None))
    foreign = replace(panel, keys=tuple((c, f"Z{i}") for i, (c, _) in enumerate(panel.keys)))
    for name in ("ridge", "knn", "coexpression-neighbours"):
        with pytest.raises(ModelError):
            fitted(name, foreign)
    with pytest.raises(UsageError, match="positive"):
        fitted("ridge", panel, ridge=0)
    single = five_genes(("T1",))
    with pytest.raises(ModelError, match="two training perturbations"):
        fitted("ridge", single)
