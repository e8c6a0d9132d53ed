"""Every core metric against scanpy, scikit-learn and SciPy on random panels, to 1e-9."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from core_support import TARGET_SUM, cell_file, draw_cells, mean_file, split_of
from scipy.spatial.distance import cdist, pdist
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from vcbench.evaluator.scoring import score

GENES = [f"G{i:03d}" for i in range(70)]
CONTEXTS = ("A549", "K562")
TRAIN = [(c, p) for c in CONTEXTS for p in ("G001", "G002")]
TEST = [(c, p) for c in CONTEXTS for p in ("G003", "G004+G005")]
GAMMAS = (2.0, 1.0, 0.5, 0.1, 0.01, 0.005)


def normalized(x, labels, contexts):
    import scanpy as sc

    data = ad.AnnData(x.copy(), obs=pd.DataFrame({"perturbation": labels, "context": contexts}))
    data.var_names, data.obs_names = GENES, [str(i) for i in range(len(x))]
    sc.pp.normalize_total(data, target_sum=TARGET_SUM)
    sc.pp.log1p(data)
    return data


def scanpy_de(data, context, name):
    """(t, adjusted p) per gene of one group against the controls of its context."""
    import scanpy as sc

    part = data[(data.obs["context"] == context) & data.obs["perturbation"].isin([name, "control"])].copy()
    part.obs["perturbation"] = part.obs["perturbation"].astype("category")
    sc.tl.rank_genes_groups(part, "perturbation", groups=[name], reference="control", method="t-test")
    table = sc.get.rank_genes_groups_df(part, group=name).set_index("names").loc[GENES]
    return table["scores"].to_numpy(float), table["pvals_adj"].to_numpy(float)


def bulk(data, context, name):
    rows = (data.obs["context"] == context) & (data.obs["perturbation"] == name)
    return np.asarray(data.X[rows.to_numpy()]).mean(axis=0)


def profile_metrics(y, p, c, ref):
    d, e = y - c, p - c
    return {
        "mse": mean_squared_error(y, p),
        "rmse": np.sqrt(mean_squared_error(y, p)),
        "mae": mean_absolute_error(y, p),
        "pearson": pearsonr(y, p)[0],
        "pearson_delta": pearsonr(d, e)[0],
        "pearson_delta_perturbed_ref": pearsonr(y - ref, p - ref)[0],
        "r2": r2_score(y, p),
        "r2_delta": r2_score(d, e),
        "cosine_delta": cosine_similarity([d], [e])[0, 0],
        "l2": np.linalg.norm(y - p),
    }


def expected_row(truth, context, name, p, predicted_ranking, predicted_de):
    y, c = bulk(truth, context, name), bulk(truth, context, "control")
    ref = np.mean([bulk(truth, context, other) for where, other in TRAIN if where == context], axis=0)
    t, q = scanpy_de(truth, context, name)
    order = np.argsort(-np.abs(t), kind="stable")
    significant = q < 0.05
    rest = [i for i in order if GENES[i] not in name.split("+")]
    out = {}
    for suffix, genes in (("", slice(None)), ("_top20_de", order[:20]), ("_top20_de_no_target", rest[:20])):
        values = profile_metrics(y[genes], p[genes], c[genes], ref[genes])
        out |= {key + suffix: value for key, value in values.items()}
    d, e, k = y - c, p - c, int(significant.sum())
    named = predicted_de if predicted_de is not None else predicted_ranking[:k]
    out["top20_overlap"] = len(set(order[:20]) & set(predicted_ranking[:20])) / 20
    out["topk_overlap"] = len(set(order[:k]) & set(predicted_ranking[:k])) / k
    out["topk_precision"] = len(set(np.flatnonzero(significant)) & set(named)) / len(named)
    out["direction_accuracy"] = np.mean(np.sign(d[significant]) == np.sign(e[significant]))
    out["opposite_direction"] = np.mean(np.sign(d[significant]) == -np.sign(e[significant]))
    out["direction_accuracy_top20"] = np.mean(np.sign(d[order[:20]]) == np.sign(e[order[:20]]))
    return out


def expected_distances(p, t):
    scale = np.median(pdist(t))
    energy = 2 * cdist(p, t).mean() - cdist(p, p).mean() - cdist(t, t).mean()
    kernels = [
        rbf_kernel(p, p, g / scale**2).mean()
        + rbf_kernel(t, t, g / scale**2).mean()
        - 2 * rbf_kernel(p, t, g / scale**2).mean()
        for g in GAMMAS
    ]
    return {"edistance": energy, "mmd": np.mean(kernels)}


@pytest.fixture(scope="module", params=[0, 1])
def panels(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"panel{request.param}")
    rng = np.random.default_rng(request.param)
    sizes = {(c, "control"): 40 for c in CONTEXTS} | {key: int(rng.integers(15, 30)) for key in TRAIN + TEST}
    out = {}
    for role in ("truth", "pred"):
        chosen = sizes if role == "truth" else dict.fromkeys(TEST, 22)
        x, labels, contexts = draw_cells(np.random.default_rng(request.param), chosen, len(GENES))
        cell_file(folder / f"{role}.h5ad", x, labels, contexts, GENES)
        out[role] = normalized(x, labels, contexts)
    return folder, out


def compare(table, key, expected):
    row = table[(table["context"] == key[0]) & (table["perturbation"] == key[1])].iloc[0]
    found = {name: row[name] for name in expected}
    assert found == {name: pytest.approx(value, abs=1e-9) for name, value in expected.items()}


def test_cell_predictions(panels):
    folder, data = panels
    scored = score(folder / "pred.h5ad", folder / "truth.h5ad", split=split_of(TRAIN, TEST))
    pca = PCA(50, svd_solver="full").fit(data["truth"].X)
    for context, name in TEST:
        # Predicted cells are tested against the true controls.
        controls = data["truth"][
            (data["truth"].obs["context"] == context) & (data["truth"].obs["perturbation"] == "control")
        ]
        cells = data["pred"][
            (data["pred"].obs["context"] == context) & (data["pred"].obs["perturbation"] == name)
        ]
        t, q = scanpy_de(ad.concat([cells, controls], index_unique="-"), context, name)
        ranking = np.argsort(-np.abs(t), kind="stable")
        expected = expected_row(
            data["truth"], context, name, bulk(data["pred"], context, name), ranking, np.flatnonzero(q < 0.05)
        )
        rows = (data["truth"].obs["context"] == context) & (data["truth"].obs["perturbation"] == name)
        expected |= expected_distances(
            pca.transform(cells.X), pca.transform(data["truth"].X[rows.to_numpy()])
        )
        assert set(expected) == set(scored.card.metrics)
        compare(scored.result.per_perturbation, (context, name), expected)


def test_mean_predictions_and_aggregates(panels):
    folder, data = panels
    rng = np.random.default_rng(5)
    profiles = {
        key: np.float32(np.abs(bulk(data["truth"], *key) + rng.normal(0, 0.2, len(GENES)))) for key in TEST
    }
    pred = mean_file(folder / "means.h5ad", profiles, GENES)
    scored = score(pred, folder / "truth.h5ad", split=split_of(TRAIN, TEST), profile="means")
    rows = []
    for context, name in TEST:
        p = profiles[context, name].astype(float)
        ranking = np.argsort(-np.abs(p - bulk(data["truth"], context, "control")), kind="stable")
        expected = expected_row(data["truth"], context, name, p, ranking, None)
        rows.append({metric: expected[metric] for metric in scored.card.metrics})
        compare(scored.result.per_perturbation, (context, name), rows[-1])
    table = pd.DataFrame(rows)
    counts = data["truth"].obs.groupby(["context", "perturbation"]).size()
    weights = [counts[key] for key in TEST]
    for metric, value in scored.card.metrics.items():
        assert value.value == pytest.approx(table[metric].mean(), abs=1e-9)
        assert value.std == pytest.approx(table[metric].std(), abs=1e-9)
        assert value.cell_weighted == pytest.approx(np.average(table[metric], weights=weights), abs=1e-9)
        assert (value.n, value.n_total) == (4, 4)
    for context in CONTEXTS:
        part = table[[where == context for where, _ in TEST]]
        assert scored.card.strata[f"context={context}"]["mse"].value == pytest.approx(part["mse"].mean())
