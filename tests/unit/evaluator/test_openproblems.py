"""Edition openproblems: the five metrics against plain numpy, the six control methods, every check."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from op3_tables import COMPOUNDS, GENES, miniature, prediction
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.evaluator.cli import cli
from vcbench.evaluator.metrics.spec import family_metrics
from vcbench.evaluator.openproblems.pipeline import official_values
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

METRICS = ("rmse", "mae", "pearson", "spearman", "cosine")
LAYER = "clipped_sign_log10_pval"


@pytest.fixture
def op3(tmp_path):
    return miniature(tmp_path)


def reference_ranks(row):
    return np.array([(np.sum(row < v) + np.sum(row <= v) + 1) / 2 for v in row])


def reference(t, p):
    """The five metrics, row by row with numpy only."""
    out = {f"mean_rowwise_{name}": [] for name in METRICS}
    for a, b in zip(t, p, strict=True):
        out["mean_rowwise_rmse"].append(np.linalg.norm(a - b) / np.sqrt(len(a)))
        out["mean_rowwise_mae"].append(sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a))
        flat = len(set(a)) == 1 or len(set(b)) == 1
        out["mean_rowwise_pearson"].append(0.0 if flat else np.corrcoef(a, b)[0, 1])
        ranks = reference_ranks(a), reference_ranks(b)
        out["mean_rowwise_spearman"].append(0.0 if flat else np.corrcoef(*ranks)[0, 1])
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        out["mean_rowwise_cosine"].append(np.dot(a, b) / norm if norm else 0.0)
    return {name: float(np.mean(values)) for name, values in out.items()}


def values_of(scored):
    return {name: value.value for name, value in scored.card.metrics.items()}


def test_metrics_equal_independent_numpy(op3):
    paths, _, test = op3
    pred = ad.read_h5ad(paths["prediction"])
    pred.layers["prediction"][1] = 0.0
    pred.layers["prediction"][2] = np.round(pred.layers["prediction"][2])
    pred.layers["prediction"][3] = 0.1
    scored = score(pred, test, edition="openproblems")
    wanted = reference(test.layers[LAYER], pred.layers["prediction"])
    assert values_of(scored) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
    assert scored.card.metrics["mean_rowwise_pearson"].n == 4
    assert scored.card.metrics["mean_rowwise_cosine"].n == 5
    assert [issue["code"] for issue in scored.card.issues] == ["W705"]
    assert len(scored.result.tables["non_finite"]) == 2 + 2 + 1
    table = scored.result.per_perturbation
    assert table["mean_rowwise_pearson"].mean() == pytest.approx(wanted["mean_rowwise_pearson"], rel=1e-12)


def test_control_methods_in_one_table(op3):
    paths, train, test = op3
    scored = score(
        paths["prediction"],
        paths["de_test"],
        edition="openproblems",
        references={"train": paths["de_train"], "id_map": paths["id_map"]},
    )
    table = scored.result.tables["control_methods"].set_index("method")
    assert list(table.index) == [
        "ground_truth", "zeros", "sample", "mean_outcome", "mean_across_celltypes", "mean_across_compounds",
    ]  # fmt: skip
    t, x = test.layers[LAYER], train.layers[LAYER]
    by = {
        c: np.array([x[(train.obs[c] == v).to_numpy()].mean(axis=0) for v in test.obs[c]])
        for c in ("cell_type", "sm_name")
    }
    wanted = {
        "ground_truth": t,
        "zeros": np.zeros_like(t),
        "mean_outcome": np.tile(x.mean(axis=0), (len(t), 1)),
        "mean_across_celltypes": by["cell_type"],
        "mean_across_compounds": by["sm_name"],
    }
    for name, p in wanted.items():
        assert table.loc[name].drop("reason").to_dict() == pytest.approx(reference(t, p), abs=1e-12), name
    assert table["reason"].isna().all()
    again = score(
        paths["prediction"], paths["de_test"], edition="openproblems", references={"train": paths["de_train"]}
    )
    assert again.result.tables["control_methods"].equals(scored.result.tables["control_methods"])
    assert again.card.parameters["rows_matched_by"] == "row number"


def test_sample_draws_training_rows_and_files_score_as_the_table(op3, tmp_path):
    from vcbench.evaluator.openproblems.controls import write_control_predictions

    paths, train, _ = op3
    done = write_control_predictions(
        tmp_path / "c", paths["de_test"], paths["de_train"], id_map=paths["id_map"]
    )
    rows = {row.tobytes() for row in train.layers[LAYER]}
    drawn = ad.read_h5ad(done["sample"]).layers["prediction"]
    assert all(row.tobytes() in rows for row in drawn)
    references = {"train": paths["de_train"], "id_map": paths["id_map"]}
    for name in ("mean_across_compounds", "ground_truth"):
        assert validate(done[name], edition="openproblems", perts=paths["id_map"]).valid
        scored = score(done[name], paths["de_test"], edition="openproblems", references=references)
        line = scored.result.tables["control_methods"].set_index("method").loc[name].drop("reason")
        assert values_of(scored) == pytest.approx(line.to_dict(), rel=1e-14)
    assert scored.card.issues == []


def test_a_method_without_training_rows_has_a_reason(op3):
    _, train, test = op3
    few = train[train.obs["sm_name"] != COMPOUNDS[2]].copy()
    table = score(as_entry(test), test, edition="openproblems", references={"train": few}).result.tables
    line = table["control_methods"].set_index("method").loc["mean_across_compounds"]
    assert "Idelalisib" in line["reason"] and np.isnan(line["mean_rowwise_rmse"])
    alone = score(as_entry(test), test, edition="openproblems").result.tables["control_methods"]
    assert alone["reason"].str.contains("train=", na=False).sum() == 4


def as_entry(test):
    return prediction(test.layers[LAYER])


def test_identity_is_perfect_and_metrics_are_described(op3):
    _, _, test = op3
    scored = score(as_entry(test), test, edition="openproblems")
    for name, spec in family_metrics("openproblems").items():
        assert scored.card.metrics[name].value == pytest.approx(spec.perfect, abs=1e-12)
        assert spec.formula and spec.source and spec.nulls
    assert scored.card.score is None and "no overall score" in scored.card.score_reason
    assert set(scored.card.strata) == {"context=B cells", "context=Myeloid cells"}


def test_rows_match_by_id_key_name_or_number(op3):
    paths, _, test = op3
    pred = ad.read_h5ad(paths["prediction"])
    straight = values_of(score(pred, test, edition="openproblems"))
    order = np.array([3, 1, 0, 5, 4, 2])
    references = {"id_map": paths["id_map"]}
    by_id = score(pred[order].copy(), test, edition="openproblems", references=references)
    assert values_of(by_id) == pytest.approx(straight, rel=1e-15)
    assert "W702" in {issue["code"] for issue in by_id.card.issues}
    keyed = pred[order].copy()
    keyed.obs_names = [f"row{i}" for i in order]
    for column in ("cell_type", "sm_name"):
        keyed.obs[column] = test.obs[column].astype(str).to_numpy()[order]
    assert values_of(score(keyed, test, edition="openproblems")) == pytest.approx(straight, rel=1e-15)
    named = pred[order].copy()
    named.obs_names = test.obs_names[order]
    by_name = score(named, test, edition="openproblems")
    assert by_name.card.parameters["rows_matched_by"] == "row name"
    assert values_of(by_name) == pytest.approx(straight, rel=1e-15)


def test_sparse_and_float32_layers_are_read(op3, tmp_path):
    paths, _, test = op3
    pred = ad.read_h5ad(paths["prediction"])
    dense = pred.layers["prediction"].astype(np.float32)
    for name, layer in (("csr", sp.csr_matrix(dense)), ("csc", sp.csc_matrix(dense)), ("dense", dense)):
        pred.layers["prediction"] = layer
        pred.write_h5ad(tmp_path / f"{name}.h5ad")
        scored = score(tmp_path / f"{name}.h5ad", test, edition="openproblems")
        wanted = reference(test.layers[LAYER], dense.astype(np.float64))
        assert values_of(scored) == pytest.approx(wanted, rel=1e-12)


def broken(change, entry=True):
    def made(op3):
        paths, _, test = op3
        data = ad.read_h5ad(paths["prediction"]) if entry else test.copy()
        return change(data) or data

    return made


def set_values(layer, value, n=3):
    def change(data):
        data.layers[layer].flat[:n] = value

    return change


def renamed_genes(data):
    names = list(GENES)
    names[1] = names[0]
    data.var_names = names


@pytest.mark.parametrize(
    ("code", "made"),
    [
        ("E701", broken(lambda d: d.layers.clear())),
        ("E704", broken(lambda d: setattr(d, "obs_names", ["0", "0", "1", "2", "3", "4"]))),
        ("E705", broken(renamed_genes)),
        ("E709", broken(set_values("prediction", np.inf))),
        ("W701", broken(set_values("prediction", np.nan))),
        ("W706", broken(set_values("prediction", 4.5))),
        ("W702", broken(lambda d: d[::-1].copy())),
        ("W703", broken(lambda d: d.uns.clear())),
        ("E707", broken(lambda d: d[:4].copy())),
        ("E706", broken(lambda d: d[:, :30].copy())),
        ("E703", broken(lambda d: d.obs.drop(columns="sm_name", inplace=True), entry=False)),
        ("E704", broken(lambda d: d.obs.__setitem__("sm_name", "Foretinib"), entry=False)),
        ("E708", broken(set_values(LAYER, np.nan), entry=False)),
        ("E711", broken(set_values(LAYER, 7.0), entry=False)),
        ("E711", broken(set_values(LAYER, 3.9), entry=False)),
    ],
)
def test_validate_names_the_defect(op3, code, made):
    paths, *_ = op3
    genes = None if code == "E705" else list(GENES)
    report = validate(made(op3), edition="openproblems", perts=paths["id_map"], genes=genes)
    codes = {issue.code for issue in report.issues}
    assert codes == {code}
    assert report.valid == code.startswith("W")


def test_a_layer_of_text_and_a_missing_file(op3, tmp_path):
    import h5py

    paths, *_ = op3
    with h5py.File(paths["prediction"], "r+") as file:
        del file["layers/prediction"]
        file["layers/prediction"] = np.zeros((6, 2))
    assert [i.code for i in validate(paths["prediction"], edition="openproblems").issues] == ["E702"]
    assert [i.code for i in validate(tmp_path / "no.h5ad", edition="openproblems").issues] == ["E001"]
    with h5py.File(paths["de_test"], "r+") as file:
        del file["var"]
    assert [i.code for i in validate(paths["de_test"], edition="openproblems").issues] == ["E005"]


@pytest.mark.parametrize(
    "text", ["id,cell_type\n0,B cells\n", "id,cell_type,sm_name\n0,B,x\n0,B,y\n", "id,cell_type,sm_name\n"]
)
def test_unusable_id_maps(op3, tmp_path, text):
    paths, *_ = op3
    (tmp_path / "m.csv").write_text(text)
    report = validate(paths["prediction"], edition="openproblems", perts=tmp_path / "m.csv")
    assert {issue.code for issue in report.issues} == {"E710"}


def test_scoring_refuses_what_does_not_fit(op3):
    _, train, test = op3
    fewer = as_entry(test)[:, :30].copy()
    with pytest.raises(InvalidFile) as stop:
        score(fewer, test, edition="openproblems")
    assert {issue.code for issue in stop.value.issues} == {"E706"}
    scored = score(fewer, test, edition="openproblems", references={"genes": "intersection"})
    assert "W704" in {issue["code"] for issue in scored.card.issues}
    assert scored.card.parameters["n_genes"] == 30
    other = as_entry(test)
    other.uns["dataset_id"] = "another"
    assert "W703" in {i["code"] for i in score(other, test, edition="openproblems").card.issues}
    for options in (
        {"pert_col": "x"},
        {"references": {"baseline": "published"}},
        {"references": {"genes": "all"}},
        {"matrix": "log1p"},
    ):
        with pytest.raises(UsageError):
            score(as_entry(test), test, edition="openproblems", **options)
    with pytest.raises(UsageError, match="one truth"):
        score(as_entry(test), [test, train], edition="openproblems")
    with pytest.raises(UsageError, match="tables"):
        pack(as_entry(test), edition="openproblems", out="x.h5ad")


def test_official_values_round_to_the_largest_of_their_component():
    table = official_values(
        {"mean_rowwise_rmse": 12.34567890123, "mean_rowwise_mae": 0.123456789012, "mean_rowwise_cosine": 0.12345678909},
        10,
    ).set_index("metric")["value"]  # fmt: skip
    assert table.to_dict() == {
        "mean_rowwise_rmse": 12.3456789, "mean_rowwise_mae": 0.12345679, "mean_rowwise_cosine": 0.1234567891,
    }  # fmt: skip


def test_command_line(op3, tmp_path, capsys):
    paths, *_ = op3
    common = ["--edition", "openproblems", "--format", "json"]
    run = lambda *args: cli.main(list(map(str, args)), standalone_mode=False)  # noqa: E731
    run("validate", paths["prediction"], "--perts", paths["id_map"], *common)
    assert json.loads(capsys.readouterr().out)["valid"] is True
    run("score", paths["prediction"], "--truth", paths["de_test"], *common)
    assert set(json.loads(capsys.readouterr().out)["metrics"]) == {f"mean_rowwise_{m}" for m in METRICS}
    run("score", paths["prediction"], "--truth", paths["de_test"], "--edition", "openproblems",
        "--reference", f"train={paths['de_train']}", "-o", tmp_path / "card")  # fmt: skip
    assert "mean_across_celltypes" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "card" / "control_methods.csv")) == 6
    run(
        "truth",
        "control-methods",
        paths["de_test"],
        "--train",
        paths["de_train"],
        "-o",
        tmp_path / "controls",
    )
    assert len(list((tmp_path / "controls").glob("*.h5ad"))) == 6
    capsys.readouterr()
    run("list", "baselines")
    assert "openproblems/mean_outcome" in capsys.readouterr().out
    run("explain", "openproblems/zeros")
    assert "control-methods" in capsys.readouterr().out
