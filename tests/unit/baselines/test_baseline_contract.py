"""What every baseline of the registry promises: same bits after save and load, order, seed, statuses, no leakage."""

import re
from dataclasses import replace

import numpy as np
import pytest
from baseline_data import fitted, random_panel
from builders import GENES, standard_h5ad
from vcbench.baselines import registry
from vcbench.baselines.base import Baseline
from vcbench.baselines.data import load_training_data
from vcbench.baselines.features import feature_source
from vcbench.data_specs.errors import ModelError, ShapeError, UnknownName, UsageError
from vcbench.data_specs.split_file import Split

NAMES = registry.simple_names()
FEW = {"random-forest": {"n_trees": 4}, "transfer": {"source": "A", "target": "B"}}
REQUESTS = [
    ("A", "G004"),
    ("B", "G020"),
    ("A", "G004+G005"),
    ("C", "G001"),
    ("A", "NOPE"),
    ("B", "G001+NOPE"),
]


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    rng = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("go") / "go.gmt"
    terms = [f"t{i}\td\t" + "\t".join(sorted({GENES[j] for j in rng.integers(0, 30, 6)})) for i in range(40)]
    path.write_text("\n".join(terms) + "\n")
    return feature_source(f"go:{path}")


def build(name, data, go, *, seed=0, **more):
    settings = {**FEW.get(name, {}), **more}
    return fitted(name, data, seed=seed, features=go if name == "go-neighbours" else None, **settings)


@pytest.fixture(scope="module")
def panel():
    return random_panel()


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_predict_the_same_bits(name, panel, go, tmp_path):
    model = build(name, panel, go, target_overwrite="median-residual", low_rank=4, reliability="james-stein")
    controls = {**panel.control_means, "C": panel.control_means["A"] + 1}
    before = model.predict(REQUESTS, controls)
    model.save(tmp_path)
    loaded = registry.baseline_class(name).load(tmp_path)
    after = loaded.predict(REQUESTS, controls)
    np.testing.assert_array_equal(before.profiles, after.profiles)
    assert (before.status, before.reason) == (after.status, after.reason)
    assert isinstance(model, Baseline) and loaded.config == model.config
    assert loaded.n_parameters == model.n_parameters
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_row_order_and_request_order_do_not_matter(name, panel, go):
    order = np.random.default_rng(1).permutation(len(panel.keys))
    shuffled = replace(
        panel,
        control_means=dict(reversed(panel.control_means.items())),
        keys=tuple(panel.keys[i] for i in order),
        means=panel.means[order],
        n_cells=panel.n_cells[order],
        sampling_variance=panel.sampling_variance[order],
    )
    a, b = build(name, panel, go, seed=5), build(name, shuffled, go, seed=5)
    first = a.predict(REQUESTS, panel.control_means)
    second = b.predict(REQUESTS[::-1], panel.control_means)
    np.testing.assert_array_equal(first.profiles, second.profiles[::-1])
    assert first.status == second.status[::-1] and first.reason == second.reason[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_statuses_and_new_contexts(name, panel, go):
    model = build(name, panel, go)
    prediction = model.predict(REQUESTS, panel.control_means)
    assert prediction.status[3] == "refused" and "no control profile" in prediction.reason[3]
    for row, status, reason in zip(prediction.profiles, prediction.status, prediction.reason, strict=True):
        assert np.isnan(row).all() if status == "refused" else np.isfinite(row).all()
        assert reason or status == "predicted"
    key = [("C", "G004")]
    low, high = ({"C": panel.control_means["A"] + shift} for shift in (0.0, 2.0))
    profiles = [model.predict(key, controls).profiles[0] for controls in (low, high)]
    np.testing.assert_allclose(profiles[1] - profiles[0], 2.0, atol=1e-12)


# What each model says to an unmeasured target (alone, in a pair) and to an unseen measured target.
DOCUMENTED = {
    "no-change": ("predicted", "predicted", "predicted"),
    "mean": ("predicted", "predicted", "predicted"),
    "context-mean": ("predicted", "predicted", "predicted"),
    "perturbation-mean": ("fallback", "fallback", "fallback"),
    "additive": ("refused", "refused", "refused"),
    "matching-mean": ("fallback", "fallback", "fallback"),
    "linear": ("refused", "refused", "predicted"),
    "transfer": ("refused", "refused", "refused"),
    "ridge": ("refused", "refused", "predicted"),
    "kernel-ridge": ("refused", "refused", "predicted"),
    "knn": ("refused", "refused", "predicted"),
    "go-neighbours": ("fallback", "fallback", "predicted"),
    "coexpression-neighbours": ("fallback", "fallback", "predicted"),
    "random-forest": ("refused", "refused", "predicted"),
}


@pytest.mark.parametrize("name", NAMES)
def test_documented_nulls(name, panel, go):
    model = build(name, panel, go)
    rows = [("B", "NOPE"), ("B", "G001+NOPE"), ("B", "G020")]
    assert model.predict(rows, panel.control_means).status == DOCUMENTED[name]


@pytest.mark.parametrize("name", ["linear", "ridge", "kernel-ridge", "random-forest"])
def test_seed_decides_every_draw(name, panel, go):
    extra = {"perturbation_embedding": "random"} if name == "linear" else {}
    same, again, other = (build(name, panel, go, seed=s, **extra) for s in (1, 1, 2))
    key = [("A", "G020")]
    a, b, c = (m.predict(key, panel.control_means).profiles for m in (same, again, other))
    np.testing.assert_array_equal(a, b)
    if name in ("linear", "random-forest"):
        assert np.abs(a - c).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_broken_folders_and_wrong_genes(name, panel, go, tmp_path):
    model = build(name, panel, go)
    with pytest.raises(ShapeError, match="29 genes"):
        model.predict([("A", "G001")], {"A": np.zeros(29)})
    with pytest.raises(ModelError, match="not a saved"):
        registry.baseline_class(name).load(tmp_path)
    other = "mean" if name != "mean" else "no-change"
    build(other, panel, go).save(tmp_path)
    with pytest.raises(ModelError, match=f"holds the model '{other}'"):
        registry.baseline_class(name).load(tmp_path)
    (tmp_path / "model.npz").write_bytes(b"PK no archive")
    with pytest.raises(ModelError, match="not a saved"):
        registry.baseline_class(name).load(tmp_path)
    with pytest.raises(ModelError, match="not fitted"):
        registry.create(name).predict([("A", "G001")], panel.control_means)
    with pytest.raises(ModelError, match="not fitted"):
        registry.create(name).save(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_test_rows_are_never_read(name, go, tmp_path):
    singles = [f"G{i:03d}" for i in range(8)]
    labels = [*singles, "G000+G001", "G002+G003"]
    held = {("A", "G000+G001"): "test", ("A", "G003"): "validation", ("B", "G005"): "test"}
    rows = {(c, p): (held.get((c, p), "train"), "") for c in "AB" for p in labels}
    split = Split(rows)
    path = standard_h5ad(tmp_path / "a.h5ad", perturbations=labels, contexts=("A", "B"))
    from vcbench.data_specs.h5ad import H5ad

    with H5ad(path) as file:
        x = np.concatenate([block.matrix.toarray() for block in file.row_blocks()])
        keys = list(zip(file.labels("context").values(), file.labels("perturbation").values(), strict=True))
    hidden = np.array([key in held for key in keys])
    poisoned = x.copy()
    poisoned[hidden] = np.random.default_rng(0).integers(0, 10**6, (hidden.sum(), x.shape[1]))
    other = standard_h5ad(tmp_path / "b.h5ad", perturbations=labels, contexts=("A", "B"), x=poisoned)
    nan = poisoned.copy()
    nan[hidden] = np.nan
    third = standard_h5ad(tmp_path / "c.h5ad", perturbations=labels, contexts=("A", "B"), x=nan)
    outputs = []
    for file in (path, other, third):
        data = load_training_data(file, split)
        assert not set(held) & set(data.keys)
        model = build(name, data, go, reliability="james-stein", target_overwrite="median-residual")
        outputs.append((model.predict([*held, ("A", "G001")], data.control_means), model._all_arrays()))
    for prediction, arrays in outputs[1:]:
        np.testing.assert_array_equal(prediction.profiles, outputs[0][0].profiles)
        assert all(np.array_equal(arrays[key], value) for key, value in outputs[0][1].items())


def test_registry_matches_the_models():
    for name in (*registry.simple_names(), "gears", "cpa", "cellot", "scgpt"):
        title = registry.titles()[name]
        found = registry.baseline_class(name)
        assert found.info.name == name and found.info.title == title
        documented = re.findall(
            r"^    (\w+(?:, \w+)*)$", "\n".join(c.__doc__ or "" for c in found.Config.__mro__), re.M
        )
        described = {word for line in documented for word in line.split(", ")}
        settings = {setting for setting, _, _ in registry.settings_of(name)}
        assert settings <= described
        shown = registry.explain(name)
        assert shown["title"] == title and len(shown["settings"]) == len(settings)
    with pytest.raises(UnknownName, match="Did you mean 'additive'"):
        registry.create("aditive")
    with pytest.raises(UnknownName, match="n_components"):
        registry.create("linear", {"n_component": 3})


def test_suites_name_known_models_and_settings():
    assert {model.name for model in registry.default_suite(features=True, n_contexts=2)} == set(NAMES)
    for model in registry.default_suite(features=True, n_contexts=2):
        registry.create(model.name, model.settings)
    labels = [model.label for model in registry.default_suite(features=True, n_contexts=2)]
    assert len(set(labels)) == len(labels)
    assert not any(model.uses_features for model in registry.default_suite())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": "three"}, "a whole number"),
        ({"k": "2.5"}, "a whole number"),
        ({"weights": "linear"}, "uniform|softmax"),
        ({"temperature": "x"}, "a number"),
        ({"k": "0"}, "at least 1"),
        ({"low_rank": "-1"}, "low_rank"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        registry.create("knn", settings)


def test_text_settings_become_typed():
    from vcbench.baselines.settings import parse_assignments

    config = registry.create(
        "ridge", parse_assignments(["ridge=2", "missing=mean", "n_components = 4"])
    ).config
    assert (config.ridge, config.missing, config.n_components) == (2.0, "mean", 4)
    assert registry.create("ridge", {"ridge": "cv"}).config.ridge == "cv"
    assert registry.create("additive", {"scaled": "true"}).config.scaled is True
    for bad in (["ridge"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_assignments(bad)
