"""Nulls, refusals, aggregates, strata, several contexts and files, and objects in memory."""

import hashlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from core_support import cell_file, draw_cells, mean_file, split_of
from vcbench.data_specs.errors import InvalidFile, MetricError, SpecError, UnknownName, UsageError
from vcbench.data_specs.specs import load_edition
from vcbench.evaluator.core.aggregate import effect_tier, subgroups
from vcbench.evaluator.metrics.base import Null
from vcbench.evaluator.metrics.spec import family_metrics
from vcbench.evaluator.profiles import resolve_profile
from vcbench.evaluator.scoring import score

GENES = [f"G{i:03d}" for i in range(45)]
CONTEXTS = ("A549", "K562")
NAMES = ("G001", "G002", "G003+G004")
SIZES = {(c, p): n for c in CONTEXTS for p, n in (("control", 25), *((name, 14) for name in NAMES))}


def cells(path, sizes=SIZES, seed=0, **options):
    x, labels, contexts = draw_cells(np.random.default_rng(seed), sizes, len(GENES))
    return cell_file(path, x, labels, contexts, GENES, **options)


def without_perfect(card, profile):
    """Metrics whose value differs from the perfect one, names without a perfect value left out."""
    family = family_metrics(resolve_profile(load_edition("core"), profile).family)
    return {
        name: value.value
        for name, value in card.metrics.items()
        if family[name].perfect is not None
        and (value.value is None or abs(value.value - family[name].perfect) > 1e-12)
    }


@pytest.fixture
def truth(tmp_path):
    return cells(tmp_path / "truth.h5ad")


def test_identity_is_perfect_for_every_core_metric(truth):
    split = split_of([(c, "G001") for c in CONTEXTS], [(c, n) for c in CONTEXTS for n in NAMES[1:]])
    card = score(truth, truth, profile="full", split=split).card
    assert without_perfect(card, "full") == {}
    assert all(value.n == value.n_total == 4 for value in card.metrics.values())


def test_identity_is_perfect_for_gears(tmp_path):
    genes = [f"G{i:03d}" for i in range(210)]
    sizes = {("K", "control"): 40, ("K", "G001"): 30, ("K", "G002"): 30}
    x, labels, contexts = draw_cells(np.random.default_rng(4), sizes, 210, effect=2.0)
    path = cell_file(tmp_path / "t.h5ad", x, labels, contexts, genes)
    card = score(path, path, profile="gears").card
    # Upstream's mixed gene orders are wrong even for a perfect prediction; empty fold ranges have no entry.
    wrong = {name for name, value in without_perfect(card, "gears").items() if value is not None}
    assert wrong <= {"frac_correct_direction_20_nonzero_upstream"}
    assert card.metrics["mse_top20_de_non_dropout"].value == 0.0


def test_refused_rows_are_null_and_counted(tmp_path, truth):
    keys = [(c, n) for c in CONTEXTS for n in NAMES]
    rng = np.random.default_rng(0)
    profiles = {key: rng.uniform(0, 2, len(GENES)) for key in keys[1:]}
    status = {keys[1]: ("fallback", "mean shift")}
    pred = mean_file(tmp_path / "p.h5ad", profiles, GENES, refused=[(*keys[0], "no GO term")], status=status)
    scored = score(pred, truth)
    mse = scored.card.metrics["mse"]
    assert (mse.n, mse.n_total) == (5, 6)
    assert mse.reason == "refused by the model (1 of 6)"
    assert scored.card.refused == {"A549/G001": "no GO term"}
    table = scored.result.per_perturbation.set_index(["context", "perturbation"])
    assert list(table.loc[keys[0], ["status", "reason"]]) == ["refused", "no GO term"]
    assert np.isnan(table.loc[keys[0], "mse"])
    assert list(table.loc[keys[1], ["status", "reason"]]) == ["fallback", "mean shift"]
    assert mse.value == pytest.approx(table["mse"].mean())


def test_one_true_cell_has_no_de(tmp_path):
    sizes = {("K", "control"): 20, ("K", "G001"): 1, ("K", "G002"): 15}
    truth = cells(tmp_path / "t.h5ad", sizes)
    scored = score(truth, truth, profile="full")
    table = scored.result.per_perturbation.set_index("perturbation")
    assert np.isnan(table.loc["G001", "direction_accuracy"]) and np.isnan(table.loc["G001", "mse_top20_de"])
    assert table.loc["G001", "mse"] == 0.0 and table.loc["G001", "edistance"] == 0.0
    assert table.loc["G001", "effect_tier"] == "unknown"
    nulls = scored.result.tables["nulls"].set_index(["perturbation", "metric"])["reason"]
    assert nulls["G001", "mse_top20_de"] == "fewer than 2 cells or controls: no DE"
    assert nulls["G001", "mmd"] == "fewer than 2 distinct true cells: no distance scale"
    assert scored.card.metrics["mse_top20_de"].n == 1


def test_one_predicted_cell_has_no_predicted_de(tmp_path, truth):
    pred = cells(tmp_path / "p.h5ad", {key: 1 for key in SIZES if key[1] != "control"}, seed=1)
    metrics = score(pred, truth).card.metrics
    assert metrics["top20_overlap"].value is None
    assert "fewer than 2 predicted cells" in str(metrics["topk_precision"].reason)
    assert metrics["edistance"].n == 6


def test_constant_prediction_is_null_not_zero(tmp_path, truth):
    keys = [(c, n) for c in CONTEXTS for n in NAMES]
    flat = mean_file(tmp_path / "flat.h5ad", {key: np.full(len(GENES), 0.7) for key in keys}, GENES)
    metrics = score(flat, truth).card.metrics
    assert metrics["pearson"].value is None
    assert metrics["pearson"].reason == "constant vector: undefined (6 of 6)"
    assert metrics["r2"].value is not None


def test_no_split_means_no_systema_reference(truth):
    value = score(truth, truth).card.metrics["pearson_delta_perturbed_ref"]
    assert value.value is None and "no split" in str(value.reason)


def test_systema_reference_is_per_context(tmp_path, truth):
    train = [("A549", "G001"), ("A549", "G002")]
    test = [(c, "G003+G004") for c in CONTEXTS]
    value = score(truth, truth, split=split_of(train, test)).card.metrics["pearson_delta_perturbed_ref"]
    assert (value.value, value.n, value.n_total) == (1.0, 1, 2)


def test_subset_chooses_the_part(truth):
    split = split_of(
        [(c, "G001") for c in CONTEXTS], [(c, "G002") for c in CONTEXTS], [(c, "G003+G004") for c in CONTEXTS]
    )
    rows = {
        subset: sorted(
            set(score(truth, truth, split=split, subset=subset).result.per_perturbation["perturbation"])
        )
        for subset in ("train", "validation", "test", "all")
    }
    assert rows == {"train": ["G001"], "validation": ["G003+G004"], "test": ["G002"], "all": list(NAMES)}


def test_strata(truth):
    strata = score(truth, truth).card.strata
    assert {"subgroup=single", "subgroup=double", "context=A549", "context=K562"} <= set(strata)
    assert strata["subgroup=single"]["mse"].n_total == 4
    assert sum(v["mse"].n_total for k, v in strata.items() if k.startswith("effect_tier=")) == 6


def test_subgroups_and_tiers():
    split = split_of([("K", "A"), ("K", "B")], [("K", "A+B"), ("K", "A+C"), ("K", "C"), ("K", "C+D")])
    found = subgroups([("K", name) for name in ("A+B", "A+C", "C", "C+D")], split)
    assert found == ["combo_seen2", "combo_seen1", "unseen_single", "combo_seen0"]
    without = subgroups([("K", name) for name in ("A", "A+B", "A+B+C")], None)
    assert without == ["single", "double", "multiple"]
    assert [effect_tier(n, [1, 10, 100]) for n in (0, 1, 99, 100)] == ["none", "1-9", "10-99", "100+"]


def in_memory(path, storage="csr"):
    data = ad.read_h5ad(path)
    data.X = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": lambda x: x.toarray()}[storage](data.X)
    return data


@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_objects_equal_files_and_stay_as_they_are(tmp_path, truth, storage):
    pred = cells(tmp_path / "p.h5ad", seed=7)
    ours, theirs = in_memory(pred, storage), in_memory(truth, storage)
    before = [x.copy() for x in (ours, theirs)]
    found = score(ours, theirs, profile="full")
    pd.testing.assert_frame_equal(
        found.result.per_perturbation, score(pred, truth, profile="full").result.per_perturbation
    )
    for now, then in zip((ours, theirs), before, strict=True):
        pd.testing.assert_frame_equal(now.obs, then.obs)
        assert type(now.X) is type(then.X)
        dense = [x.X.toarray() if sp.issparse(x.X) else x.X for x in (now, then)]
        np.testing.assert_array_equal(*dense)
    assert found.card.inputs["truth"]["sha256"] is None


def test_files_stay_as_they_are(tmp_path, truth):
    digest = hashlib.sha256(truth.read_bytes()).hexdigest()
    card = score(truth, truth).card
    assert hashlib.sha256(truth.read_bytes()).hexdigest() == digest == card.inputs["truth"]["sha256"]


def test_truth_in_two_files_equals_one(tmp_path, truth):
    pred = cells(tmp_path / "p.h5ad", seed=7)
    data = ad.read_h5ad(truth)
    parts = {}
    for context in CONTEXTS:
        part = (
            data[(data.obs["context"] == context).to_numpy()]
            .copy()[:, :: -1 if context == "K562" else 1]
            .copy()
        )
        del part.obs["context"]
        parts[context] = tmp_path / f"{context}.h5ad"
        part.write_h5ad(parts[context])
    one, two = score(pred, truth, profile="full"), score(pred, parts, profile="full")
    pd.testing.assert_frame_equal(one.result.per_perturbation, two.result.per_perturbation, rtol=1e-9)
    assert set(two.card.inputs) == {"prediction", "truth:A549", "truth:K562"}


def test_one_context_for_a_file_with_two(truth):
    with pytest.raises(UsageError, match="holds 2 contexts"):
        score(truth, {"K562": truth})


def test_other_column_and_control_names(tmp_path, truth):
    data = ad.read_h5ad(truth)
    data.obs = pd.DataFrame(
        {
            "target_gene": data.obs["perturbation"].astype(str).replace("control", "non-targeting"),
            "line": data.obs["context"],
        }
    )
    names = {"pert_col": "target_gene", "control": "non-targeting", "context_col": "line"}
    found = score(data, data, **names).result.per_perturbation
    pd.testing.assert_frame_equal(found, score(truth, truth).result.per_perturbation)


def test_invalid_values_give_no_score(tmp_path, truth):
    data = ad.read_h5ad(truth)
    data.X = data.X.toarray()
    data.X[3, 4] = np.nan
    with pytest.raises(InvalidFile):
        score(data, truth)


def test_a_metric_that_is_not_a_number_fails_the_run(truth, monkeypatch):
    from vcbench.evaluator.metrics import expression

    family_metrics("core")
    monkeypatch.setattr(expression, "mse", lambda y, p: float("nan"))
    with pytest.raises(MetricError, match=r"'mse'.*nan"):
        score(truth, truth)


def test_unknown_names():
    core = load_edition("core")
    with pytest.raises(UnknownName, match="standard"):
        resolve_profile(core, "standart")
    wrong = core.profiles["means"].model_copy(update={"metrics": ("mse", "pearson_dleta")})
    with pytest.raises(UnknownName, match="pearson_delta"):
        resolve_profile(core.model_copy(update={"profiles": {"means": wrong}}), "means")
    circle = core.profiles["means"].model_copy(update={"metrics": ("@other",)})
    back = core.profiles["means"].model_copy(update={"metrics": ("@means",)})
    with pytest.raises(SpecError, match="itself"):
        resolve_profile(core.model_copy(update={"profiles": {"means": circle, "other": back}}), "means")
    with pytest.raises(UsageError, match="subset"):
        score("a", "b", subset="valid")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["core", "gears"])
def test_every_metric_is_fully_described(family):
    metrics = family_metrics(family)
    for name, spec in metrics.items():
        assert spec.name == name and spec.title and spec.formula and spec.source and spec.nulls
        assert spec.better in ("higher", "lower")
    listed = {p: set(resolve_profile(load_edition("core"), p).metrics) for p in ("full", "gears")}
    assert set(metrics) == listed["full" if family == "core" else "gears"]


def test_null_is_not_a_number():
    assert not isinstance(Null("because"), float)
