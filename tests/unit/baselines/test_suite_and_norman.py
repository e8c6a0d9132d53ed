"""Suites of baselines, the perfect control, and leave-one-double-out on the real Norman subset."""

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.base import Prediction
from vcbench.baselines.diagnosis import diagnose
from vcbench.baselines.features import feature_source
from vcbench.baselines.registry import SuiteModel
from vcbench.baselines.suite import run_suite, write_perfect
from vcbench.baselines.train import load_data
from vcbench.data_specs.errors import OutputError, UsageError
from vcbench.data_specs.split_file import Split

REAL = Path(__file__).parents[3] / "../shared/data"
NORMAN, GO = REAL / "norman2019_subset.h5ad", REAL / "go_bp_human_2022-07.gmt.gz"
FORMS = [
    SuiteModel("no-change", "no-change"),
    SuiteModel("mean", "mean"),
    SuiteModel("mean-cell", "mean", {"weighting": "cell"}),
    SuiteModel("context-mean", "context-mean"),
    SuiteModel("perturbation-mean", "perturbation-mean"),
    SuiteModel("additive", "additive"),
    SuiteModel("matching-mean", "matching-mean"),
    SuiteModel("linear", "linear"),
    SuiteModel("linear-go", "linear", {"perturbation_embedding": "features"}, True),
    SuiteModel("transfer", "transfer"),
    SuiteModel("ridge-go", "ridge", {}, True),
    SuiteModel("kernel-ridge-go", "kernel-ridge", {}, True),
    SuiteModel("knn-go", "knn", {}, True),
    SuiteModel("go-neighbours", "go-neighbours", {}, True),
    SuiteModel("coexpression-neighbours", "coexpression-neighbours"),
    SuiteModel("forest-go", "random-forest", {"n_trees": 4}, True),
]


def small_split(path, labels):
    return Split({("K562", p): ("test" if "+" in p else "train", "") for p in labels})


def test_suite_writes_runs_and_predictions(tmp_path):
    labels = ["G000", "G001", "G002", "G000+G001", "G002+G030"]
    path = standard_h5ad(tmp_path / "a.h5ad", perturbations=labels)
    split = small_split(path, labels)
    seen = []
    models = [SuiteModel(n, n) for n in ("no-change", "additive", "transfer")]
    entries = run_suite(path, split, tmp_path / "out", models=models, on_start=seen.append)
    assert seen == ["no-change", "additive", "transfer"]
    first, additive, transfer = entries
    assert (first.n_predicted, first.n_total) == (2, 2)
    assert (additive.n_predicted, len(additive.refused)) == (1, 1)
    assert additive.refused[0]["perturbation"] == "G002+G030"
    assert ad.read_h5ad(additive.prediction).n_obs == 1 and (additive.run / "card.md").exists()
    assert transfer.run is None and transfer.prediction is None and "contexts" in transfer.reason
    assert transfer.to_json()["n_total"] == 2
    with pytest.raises(OutputError):
        run_suite(path, split, tmp_path / "out", models=models[:1])
    with pytest.raises(UsageError, match="needs features"):
        run_suite(path, split, tmp_path / "b", models=[SuiteModel("g", "go-neighbours", {}, True)])
    with pytest.raises(UsageError, match="test rows"):
        run_suite(path, None, tmp_path / "c", models=models)


def test_perfect_is_the_measured_mean(tmp_path):
    labels = ["G000", "G001", "G000+G001"]
    path = standard_h5ad(tmp_path / "a.h5ad", perturbations=labels)
    assert write_perfect(path, small_split(path, labels), tmp_path / "perfect.h5ad") == 1
    data = ad.read_h5ad(path)
    x = data.X.toarray()[(data.obs["perturbation"] == "G000+G001").to_numpy()]
    expected = np.log1p(x / x.sum(axis=1, keepdims=True) * 80.0).mean(axis=0)
    result = ad.read_h5ad(tmp_path / "perfect.h5ad")
    np.testing.assert_allclose(result.X[0], expected, rtol=1e-6)
    assert result.uns["vcbench"]["model"] == "perfect" and bool(result.uns["vcbench"]["oracle"])
    with pytest.raises(UsageError, match="no cell"):
        write_perfect(path, Split({("K562", "NOPE"): ("test", "")}), tmp_path / "q.h5ad")


def test_diagnosis_by_hand():
    control = np.array([1.0, 1.0, 1.0])
    effects = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [np.nan] * 3])
    keys = tuple(("A", str(i)) for i in range(4))
    status = ("predicted", "predicted", "fallback", "refused")
    found = diagnose(
        Prediction(keys, control + effects, status, ("",) * 4), {"A": control}, np.array([1.0, 0, 0])
    )
    correlations = [np.corrcoef(effects[i], effects[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.effect_correlation == pytest.approx(np.mean(correlations))
    assert found.distance_to_mean == pytest.approx((0 + np.sqrt(2) + 1) / 3)
    assert found.distance_to_no_change == pytest.approx((1 + 1 + 2) / 3)
    assert (found.n_rows, found.n_refused) == (3, 1)
    none = diagnose(Prediction(keys[3:], effects[3:], status[3:], ("",)), {"A": control}, control)
    assert none.effect_correlation is None and none.n_rows == 0


@pytest.fixture(scope="module")
def norman(tmp_path_factory):
    if not NORMAN.exists() or not GO.exists():
        pytest.skip(f"real data not found in {REAL}")
    from vcbench.data_specs.conversion import convert
    from vcbench.data_specs.specs import load_dataset

    out = tmp_path_factory.mktemp("norman") / "norman.h5ad"
    convert(NORMAN, load_dataset("norman2019_subset"), out=out)
    return out


@pytest.fixture(scope="module")
def small_go(norman):
    """The GO terms of the screen's targets and measured genes: the same graph among them, read faster."""
    data = ad.read_h5ad(norman, backed="r")
    wanted = {t for p in data.obs["perturbation"].unique() for t in p.split("+")} | set(data.var_names)
    lines = []
    for line in gzip.decompress(GO.read_bytes()).decode().splitlines():
        term, text, *genes = line.split("\t")
        kept = [gene for gene in genes if gene in wanted]
        if kept and len(genes) <= 2000:
            lines.append("\t".join([term, text, *kept]))
    path = norman.parent / "small.gmt"
    path.write_text("\n".join(lines) + "\n")
    return feature_source(f"go:{path}")


def test_leave_one_double_out_on_norman(norman, small_go, tmp_path):
    from vcbench.data_specs.splits import draw_split
    from vcbench.data_specs.splits.labels_table import read_labels

    cells = ad.read_h5ad(norman)
    x = cells.X.toarray().astype(np.float64)
    x = np.log1p(
        x / np.maximum(x.sum(axis=1, keepdims=True), 1) * cells.uns["vcbench"]["matrix"]["target_sum"]
    )
    labels = cells.obs["perturbation"].astype(str).to_numpy()
    control = x[labels == "control"].mean(axis=0)
    splits = draw_split(read_labels(norman), "leave-one-double-out")
    assert sorted(splits) == ["KLF1+MAP2K6", "KLF1+TGFBR2", "MAP2K3+MAP2K6", "MAP2K3+SLC38A2", "MAPK1+TGFBR2"]
    pearson, refused = {}, {}
    for double, split in splits.items():
        truth = x[labels == double].mean(axis=0)
        loaded = load_data(norman, split)
        assert len(loaded.data.keys) == 32
        for entry in run_suite(loaded, None, tmp_path / double, models=FORMS, features=small_go):
            if entry.prediction is None:
                refused.setdefault(entry.label, set()).add(entry.reason)
                continue
            assert entry.n_predicted + entry.n_fallback == 1
            effect = ad.read_h5ad(entry.prediction).X[0] - control
            if entry.label == "no-change":
                np.testing.assert_allclose(effect, 0, atol=1e-6)
                continue
            pearson.setdefault(entry.label, []).append(np.corrcoef(effect, truth - control)[0, 1])
    means = {label: np.mean(values) for label, values in pearson.items()}
    assert all(a > b for a, b in zip(pearson["additive"], pearson["mean"], strict=True))
    assert means["additive"] > 0.8 > 0.3 > means["mean"]
    assert means["linear-go"] > means["mean"]
    # Only TMSB4X of the 31 targets is measured, so gene-score features say nothing about any double.
    assert set(refused) == {"linear", "transfer"}
    assert all("not a measured gene" in reason for reason in refused["linear"])
