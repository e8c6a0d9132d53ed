"""Arrays of cell-gears 0.1.2 on new data, under the names of the golden file; run by a Python that has it.

Usage: python run_gears.py OUT.npz SEED FOLDER

Expression, annotation and weights are invented from SEED. The names, shapes and meanings are those of
`gears_0.1.2.npz` (GI scores left out), so that every test of the golden arrays can be run on these.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from upstream_gears import open_data, set_split

CASES = {
    "default": {},
    "uncertainty": {"uncertainty": True},
    "two_layers": {"num_go_gnn_layers": 2, "num_gene_gnn_layers": 2},
}
KINDS = ("simulation", "combo_seen0", "combo_seen1", "combo_seen2", "single", "no_test")
BATCHES = {
    "batch0": [2, 0, 3, 12, 2, 0, 13, 5, 14, 7],
    "batch1": [0, 4, 4, 15, 0, 6, 13, 2, 9, 1],
    "batch2": [3, 14, 0, 8],
    "controls_only": [0, 0, 0],
    "one_perturbed": [0, 5, 0],
    "single_cell": [12],
    "single_control": [0],
}


class Loss:
    """Upstream's losses. Its uncertainty loss cannot be differentiated on a CPU: its accumulator is a leaf that it
    changes in place, so here it is created without a gradient, in float64 as all the rest."""

    def __init__(self, model, config) -> None:
        self.config, self.ctrl, self.kept = config, model.ctrl_expression.double(), model.dict_filter

    def __call__(self, predicted, y, conditions, *, direction_lambda=0.1, reg=None):
        from gears import utils

        shared = {"ctrl": self.ctrl, "dict_filter": self.kept, "direction_lambda": direction_lambda}
        if not self.config["uncertainty"]:
            return utils.loss_fct(predicted, y, conditions, **shared)
        plain = torch.tensor
        utils.torch.tensor = lambda value, **_: plain(value, dtype=torch.float64)
        try:
            reg = self.config["uncertainty_reg"] if reg is None else reg
            return utils.uncertainty_loss_fct(*predicted, y, conditions, reg=reg, **shared)
        finally:
            utils.torch.tensor = plain


def screen(rng, n_genes, conditions, cells, controls):
    """An AnnData of invented log-normalised cells whose genes fall into correlated blocks."""
    labels = np.repeat(["ctrl", *conditions], [controls] + [cells] * len(conditions))
    block = rng.integers(0, n_genes // 8, n_genes)
    level = rng.normal(0.6, 0.5, n_genes)
    state = rng.normal(0, 0.8, (len(labels), n_genes // 8))[:, block]
    effect = {c: rng.normal(0, 0.8, n_genes) * (rng.random(n_genes) < 0.3) for c in conditions}
    shift = np.stack([effect.get(c, np.zeros(n_genes)) for c in labels])
    x = np.maximum(level + state + shift + rng.normal(0, 0.4, state.shape) - 0.4, 0).astype(np.float32)
    x[:, :2] = 0  # genes that are never seen
    genes = [f"G{i:03d}" for i in range(n_genes)]
    obs = pd.DataFrame(
        {"condition": labels, "cell_type": "K562"}, index=[f"cell{i}" for i in range(len(labels))]
    )
    obs = obs.iloc[rng.permutation(len(obs))]
    found = ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame({"gene_name": genes}, index=genes))
    return found, genes


def annotation(rng, names):
    return {
        name: {f"GO:{t:03d}" for t in rng.choice(28, rng.integers(2, 9), replace=False)}
        for name in sorted(names)
    }


def model_arrays(rng, out, folder):
    """Graphs, batches, outputs, losses, gradients, two steps and predictions of every case."""
    singles = [f"G{i:03d}+ctrl" if i % 2 else f"ctrl+G{i:03d}" for i in range(3, 14)]
    doubles = ["G003+G004", "G005+G008", "G009+G004", "G006+G011", "G007+G012", "X01+G010"]
    adata, genes = screen(rng, 48, [*singles, *doubles], 7, 40)
    terms = annotation(rng, [*genes[2:], "X01"])
    data = open_data(folder, adata, terms, seed=3)
    conditions = list(data.adata.obs["condition"].unique())
    data.prepare_split(split="simulation", seed=1)
    part = {c: name for name, members in data.set2conditions.items() for c in members}
    set_split(data, data.set2conditions, 10)
    vocabulary = [str(v) for v in data.pert_names]
    order = ["ctrl", *singles, *doubles]
    rank = data.adata.uns["rank_genes_groups_cov_all"]
    full = data.adata.obs.drop_duplicates("condition").set_index("condition")["condition_name"]
    x = data.adata.X.toarray()
    out |= {
        "data/X": x,
        "data/condition": data.adata.obs["condition"].to_numpy(str),
        "data/gene_name": np.array(genes),
        "data/vocabulary": np.array(vocabulary),
        "data/conditions": np.array(conditions),
        "data/split": np.array([part[c] for c in conditions]),
        "data/de_rank": np.array(
            [[-1] * 48 if c == "ctrl" else [genes.index(g) for g in rank[full[c]]] for c in conditions]
        ),
    }
    all_terms = sorted({t for v in vocabulary for t in terms[v]})
    out["go/terms"] = np.array(all_terms)
    out["go/incidence"] = np.array([[t in terms[v] for t in all_terms] for v in vocabulary])
    batches = {name: batch_of(data, rng, [order[i] for i in picked]) for name, picked in BATCHES.items()}
    for name, (batch, rows) in batches.items():
        out |= {
            f"{name}/x": batch.x.double().reshape(len(rows), -1).numpy(),
            f"{name}/y": batch.y.double().numpy(),
        }
        members = [list(r.pert_idx) + [-1] * (2 - len(r.pert_idx)) for r in rows]
        out |= {f"{name}/pert_idx": np.array(members), f"{name}/condition": np.array([r.pert for r in rows])}
    cases = {}
    for case, settings in CASES.items():
        model = fresh_model(data, settings)
        cases[case] = {k: v for k, v in model.config.items() if not k.startswith("G_") and k != "device"}
        case_arrays(out, case, model, batches, genes, vocabulary)
    config = model.config
    for key, name in (("coexpress", "G_coexpress"), ("go", "G_go")):
        out[f"graph/{key}_edges"] = config[name].numpy()
        out[f"graph/{key}_weight"] = config[f"{name}_weight"].float().numpy()
    out["data/ctrl_mean"] = model.ctrl_expression.float().numpy()
    kept = np.ones((len(conditions), 48), dtype=bool)
    for i, c in enumerate(conditions):
        if c != "ctrl":
            kept[i] = np.isin(np.arange(48), model.dict_filter[c])
    out["data/retained_genes"] = kept
    out["meta"] = np.array(json.dumps({"cases": cases}))


def batch_of(data, rng, conditions):
    from torch_geometric.data import Batch

    rows = [data.dataset_processed[c][rng.integers(len(data.dataset_processed[c]))] for c in conditions]
    return Batch.from_data_list([row.clone() for row in rows]), rows


def fresh_model(data, settings):
    """A GEARS object in float64 with batch norms and biases moved off their defaults."""
    from gears import GEARS

    model = GEARS(data, device="cpu")
    model.model_initialize(hidden_size=16, **settings)
    for owner in model.model.modules():
        for name in ("G_coexpress_weight", "G_sim_weight"):
            if isinstance(getattr(owner, name, None), torch.Tensor):
                setattr(owner, name, getattr(owner, name).double())
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, value in model.model.state_dict().items():
            if value.dtype.is_floating_point and value.dim() == 1:
                noise = torch.randn(value.shape, generator=draw) * 0.3
                value.copy_((1 + noise).abs() if key.endswith(("weight", "running_var")) else noise)
    model.model.double()
    return model


def outputs(net, batch, uncertainty):
    found = net(doubled(batch))
    return found if uncertainty else (found, None)


def doubled(batch):
    batch = batch.clone()
    batch.x, batch.y = batch.x.double(), batch.y.double()
    return batch


def case_arrays(out, case, model, batches, genes, vocabulary):
    config, start = model.config, deepcopy(model.model)
    uncertain, loss = config["uncertainty"], Loss(model, config)
    put(out, f"{case}/state/", start.state_dict())
    for mode, names in (("eval", BATCHES), ("train", ("batch0", "batch1", "controls_only", "one_perturbed"))):
        for name in names:
            batch, _ = batches[name]
            net = deepcopy(start).train(mode == "train")
            predicted, spread = outputs(net, batch, uncertain)
            key = f"{case}/{mode}/{name}"
            out[f"{key}/pred"] = predicted.detach().numpy()
            if uncertain:
                out[f"{key}/logvar"] = spread.detach().numpy()
            if name in ("batch0", "batch1") and (mode == "eval" or name == "batch0"):
                both = (predicted, spread) if uncertain else predicted
                value = loss(both, doubled(batch).y, batch.pert)
                out[f"{key}/loss"] = value.detach().numpy()
                out[f"{key}/loss_without_direction"] = (
                    loss(both, doubled(batch).y, batch.pert, direction_lambda=0.0).detach().numpy()
                )
                if uncertain:
                    out[f"{key}/loss_reg_0.1"] = (
                        loss(both, doubled(batch).y, batch.pert, reg=0.1).detach().numpy()
                    )
                if mode == "train":
                    value.backward()
                    put(out, f"{key}/buffers/", dict(net.named_buffers()))
                    put(out, f"{key}/grad/", gradients(net))
            if mode == "eval" and name == "batch0":
                limited = ("gene_emb.weight", "emb_pos.weight", "pert_emb.weight")
                put(out, f"{case}/eval/norm_limited/", {k: net.state_dict()[k] for k in limited})
    steps(out, case, deepcopy(start).train(), batches, loss, uncertain)
    if case != "two_layers":
        predictions(out, case, model, start, genes, vocabulary)


def gradients(net):
    """Gradients that are not rounding noise: biases before a batch norm have a true gradient of zero."""
    found = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in found.values())
    return {k: g for k, g in found.items() if float(g.abs().max()) > 1e-11 * largest}


def steps(out, case, net, batches, loss, uncertain):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=5e-4)
    losses = []
    for name in ("batch0", "batch1"):
        batch, _ = batches[name]
        optimizer.zero_grad()
        found = outputs(net, batch, uncertain)
        value = loss(found if uncertain else found[0], doubled(batch).y, batch.pert)
        value.backward()
        torch.nn.utils.clip_grad_value_(net.parameters(), clip_value=1.0)
        optimizer.step()
        losses.append(value.item())
    out[f"{case}/steps/loss"] = np.array(losses)
    put(out, f"{case}/steps/state_after/", net.state_dict())
    with torch.no_grad():
        out[f"{case}/steps/eval_after/batch0/pred"] = outputs(net.eval(), batches["batch0"][0], uncertain)[
            0
        ].numpy()


def predictions(out, case, model, start, genes, vocabulary):
    """`predict` on drawn controls, the rows of the draw kept."""
    from gears import utils

    controls = model.adata[model.adata.obs["condition"] == "ctrl"].X.toarray()
    queries = [["G005"], ["G003", "G009"], ["X01", "G012"]]
    net, rows, means, spreads = deepcopy(start).eval(), [], [], []
    np.random.seed(11)  # noqa: NPY002 upstream draws with numpy's global generator
    model.ctrl_adata = model.adata[model.adata.obs["condition"] == "ctrl"]
    for query in queries:
        graphs = utils.create_cell_graph_dataset_for_prediction(
            query, model.ctrl_adata, model.pert_list, "cpu"
        )
        drawn = np.stack([g.x.reshape(-1).numpy() for g in graphs])
        distance = ((drawn[:, None] - controls[None]) ** 2).sum(axis=2)
        rows.append(distance.argmin(axis=1))
        assert distance.min(axis=1).max() == 0
        from torch_geometric.loader import DataLoader

        batch = next(iter(DataLoader(graphs, 300, shuffle=False)))
        batch.x = batch.x.double()
        with torch.no_grad():
            found = net(batch)
        predicted = found[0] if model.config["uncertainty"] else found
        means.append(predicted.numpy().mean(axis=0))
        if model.config["uncertainty"]:
            spreads.append(np.exp(-np.mean(found[1].numpy().mean(axis=0))))
    out["predict/query"] = np.array(["_".join(q) for q in queries])
    out["predict/control_rows"] = np.stack(rows)
    out[f"{case}/predict/pred"] = np.stack(means)
    if spreads:
        out[f"{case}/predict/uncertainty"] = np.array(spreads)


def put(out, prefix, tensors):
    for key, value in tensors.items():
        out[prefix + key] = value.detach().numpy().copy()


def metric_arrays(rng, out, folder):
    """Every metric function on invented predictions."""
    from gears import inference

    conditions = ["G010+ctrl", "ctrl+G020", "G030+G031", "G040+ctrl"]
    adata, genes = screen(rng, 220, conditions, 9, 22)
    adata.X[:, 60:90] = 0  # leaves genes that only some conditions express
    adata.X.eliminate_zeros()
    data = open_data(folder, adata, annotation(rng, genes), seed=4)
    x, condition = data.adata.X.toarray().astype(np.float64), data.adata.obs["condition"].to_numpy(str)
    rows = np.flatnonzero(condition != "ctrl")
    predicted = np.maximum(x[rows] + rng.normal(0, 0.5, (len(rows), 220)), 0)
    uns, full = (
        data.adata.uns,
        data.adata.obs.drop_duplicates("condition").set_index("condition")["condition_name"],
    )
    position = {g: i for i, g in enumerate(genes)}
    rank = {c: np.array([position[g] for g in uns["rank_genes_groups_cov_all"][full[c]]]) for c in conditions}
    de = np.stack([np.sort(rank[c][:20]) for c in condition[rows]])  # a loader gives them by position
    results = {
        "pert_cat": condition[rows],
        "pred": predicted,
        "truth": x[rows],
        "pred_de": np.take_along_axis(predicted, de, axis=1),
        "truth_de": np.take_along_axis(x[rows], de, axis=1),
    }
    out |= {
        "metrics/X": x,
        "metrics/condition": condition,
        "metrics/test_rows": rows,
        "metrics/pred": predicted,
    }
    out["metrics/conditions"] = np.array(conditions)
    out["metrics/de_rank"] = np.stack([rank[c] for c in conditions])
    for key in ("top_non_dropout_de_20", "top_non_zero_de_20"):
        out[f"metrics/{key}"] = np.array([[position[g] for g in uns[key][full[c]]] for c in conditions])
    for key in ("non_zeros_gene_idx", "non_dropout_gene_idx"):
        out[f"metrics/{key}"] = np.array([np.isin(np.arange(220), uns[key][full[c]]) for c in conditions])
    data.adata = data.adata.copy()
    data.adata.X = data.adata.X.astype(np.float64)
    tables = {
        "compute_metrics": inference.compute_metrics(results)[1],
        "deeper_analysis": inference.deeper_analysis(data.adata, results),
        "non_dropout_analysis": inference.non_dropout_analysis(data.adata, results),
        "non_zero_analysis": inference.non_zero_analysis(data.adata, results),
    }
    for function, table in tables.items():
        names = sorted({name for values in table.values() for name in values})
        out[f"metrics/{function}/names"] = np.array(names)
        out[f"metrics/{function}/values"] = np.array(
            [[float(table[c].get(name, np.nan)) for name in names] for c in conditions]
        )


def split_arrays(rng, out):
    """All split kinds on one list of conditions."""
    from gears.data_utils import DataSplitter

    names = [f"Q{i:02d}" for i in range(14)]
    conditions = [f"{a}+ctrl" if i % 2 else f"ctrl+{a}" for i, a in enumerate(names)]
    conditions += [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :: 4]]
    order = ["ctrl", *(conditions[i] for i in rng.permutation(len(conditions)))]
    out["splits/order"] = np.array(order)
    for kind in KINDS:
        for seed in (1, 2, 3):
            obs = pd.DataFrame({"condition": order}, index=[f"c{i}" for i in range(len(order))])
            adata = ad.AnnData(sp.csr_matrix((len(order), 1), dtype=np.float32), obs=obs)
            if kind == "simulation":
                found, groups = DataSplitter(adata, split_type=kind).split_data(
                    train_gene_set_size=0.75, combo_seen2_train_frac=0.75, seed=seed
                )
                group = dict.fromkeys(order, "-")
                for part in ("test", "val"):
                    for name, members in groups[f"{part}_subgroup"].items():
                        group |= dict.fromkeys(members, f"{part}:{name}")
                out[f"splits/{kind}/subgroup_seed{seed}"] = np.array([group[c] for c in order])
            elif kind == "no_test":
                found = DataSplitter(adata, split_type=kind).split_data(seed=seed)
            elif kind == "single":
                found = DataSplitter(adata, split_type=kind).split_data(test_size=0.1, seed=seed)
            else:
                splitter = DataSplitter(adata, split_type="combo", seen=int(kind[-1]))
                found = splitter.split_data(test_size=0.1, test_perts=None, test_pert_genes=None, seed=seed)
            out[f"splits/{kind}/seed{seed}"] = np.array(
                [str(v) if v == v else "none" for v in found.obs["split"]]
            )


def main(path: str, seed: str, folder: str) -> None:
    rng, out, target = np.random.default_rng(int(seed)), {}, Path(path).resolve()
    base = Path(folder).resolve()
    for name in ("model", "metrics"):
        (base / name).mkdir(parents=True)
    model_arrays(rng, out, base / "model")
    metric_arrays(rng, out, base / "metrics")
    split_arrays(rng, out)
    np.savez(target, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
