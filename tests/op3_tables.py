"""A miniature OP3: training and test tables with the task's columns and layers, its id map, and predictions."""

import anndata as ad
import numpy as np
import pandas as pd

CELLS = ("NK cells", "T cells", "B cells", "Myeloid cells")
COMPOUNDS = ("Belinostat", "Dabrafenib", "Idelalisib", "(+)-JQ1", "Foretinib")
GENES = tuple(f"G{i:02d}" for i in range(40))


def de_layers(rng, n):
    n_genes = len(GENES)
    logfc = rng.normal(size=(n, n_genes))
    p = rng.uniform(size=(n, n_genes)) ** 4
    adjusted = np.minimum(1.0, p * 3)
    return {
        "logFC": logfc,
        "P.Value": p,
        "adj.P.Value": adjusted,
        "is_de": p < 0.05,
        "is_de_adj": adjusted < 0.05,
        "sign_log10_pval": np.sign(logfc) * -np.log10(p),
        "clipped_sign_log10_pval": np.sign(logfc) * -np.log10(np.maximum(1e-4, p)),
    }


def table(keys, rng, split):
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([k[0] for k in keys]),
            "sm_name": pd.Categorical([k[1] for k in keys]),
            "sm_lincs_id": [f"LSM-{len(k[1])}" for k in keys],
            "SMILES": ["CC"] * len(keys),
            "split": [split] * len(keys),
            "control": [k[1] in COMPOUNDS[:2] for k in keys],
        },
        index=[f"{k[0]}:{k[1]}" for k in keys],
    )
    return ad.AnnData(
        obs=obs,
        var=pd.DataFrame(index=list(GENES)),
        layers=de_layers(rng, len(keys)),
        uns={"dataset_id": "neurips-2023-data", "dataset_name": "NeurIPS2023"},
    )


def miniature(folder, seed=0):
    """Paths of de_train, de_test, id_map and one prediction; the two tables as objects."""
    rng = np.random.default_rng(seed)
    keys = [(c, s) for c in CELLS for s in COMPOUNDS]
    held_out = [k for k in keys if k[0] in CELLS[2:] and k[1] in COMPOUNDS[2:]]
    train = table([k for k in keys if k not in held_out], rng, "train")
    test = table(held_out, rng, "private_test")
    pred = prediction(test.layers["clipped_sign_log10_pval"] * 0.5 + rng.normal(size=test.shape) * 0.1)
    id_map = pd.DataFrame(
        {"id": range(test.n_obs), "cell_type": [k[0] for k in held_out], "sm_name": [k[1] for k in held_out]}
    )
    paths = {name: folder / f"{name}.h5ad" for name in ("de_train", "de_test", "prediction")}
    for name, data in (("de_train", train), ("de_test", test), ("prediction", pred)):
        data.write_h5ad(paths[name], compression="gzip")
    paths["id_map"] = folder / "id_map.csv"
    id_map.to_csv(paths["id_map"], index=False)
    return paths, train, test


def prediction(values, genes=GENES):
    return ad.AnnData(
        obs=pd.DataFrame(index=[str(i) for i in range(len(values))]),
        var=pd.DataFrame(index=list(genes)),
        layers={"prediction": np.clip(values, -4, 4)},
        uns={"dataset_id": "neurips-2023-data", "method_id": "mine"},
    )
