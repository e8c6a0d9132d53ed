"""Golden arrays of cell-gears 0.1.2: where they are, and our network and batches built from them."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
from gears_arrays import GOLDEN, needs_golden

CASES = ("default", "uncertainty", "two_layers")
EDGE_BATCHES = ("controls_only", "one_perturbed", "single_cell", "single_control")

__all__ = ["CASES", "EDGE_BATCHES", "batch", "golden", "needs_golden", "network", "under"]


@cache
def golden():
    return np.load(GOLDEN, allow_pickle=False)


@cache
def meta() -> dict:
    return json.loads(str(golden()["meta"]))


def under(prefix: str) -> dict[str, np.ndarray]:
    """Arrays below a prefix, the prefix removed."""
    z = golden()
    return {name[len(prefix) :]: z[name] for name in z.files if name.startswith(prefix)}


def terms() -> dict[str, set[str]]:
    z = golden()
    names = np.array([str(t) for t in z["go/terms"]])
    return {
        str(gene): set(names[row]) for gene, row in zip(z["data/vocabulary"], z["go/incidence"], strict=True)
    }


def edge_dict(edges: np.ndarray, weights: np.ndarray) -> dict[tuple[int, int], float]:
    return {(int(s), int(t)): float(w) for s, t, w in zip(*edges, weights, strict=True)}


def config(case: str, **changes):
    from vcbench.baselines.gears.config import GearsConfig

    found = meta()["cases"][case]
    names = (
        "hidden_size",
        "num_go_gnn_layers",
        "num_gene_gnn_layers",
        "uncertainty",
        "uncertainty_reg",
        "direction_lambda",
    )
    settings = {name: found[name] for name in names}
    settings["uncertainty_reg"] = float(settings["uncertainty_reg"])
    return GearsConfig(**{**settings, "coexpression": "first", "direction": "sign-log", **changes})


def network(case: str, **changes):
    import torch
    from vcbench.baselines.gears.graphs import Graph
    from vcbench.baselines.gears.model import GearsNetwork

    z = golden()
    genes = Graph(len(z["data/gene_name"]), z["graph/coexpress_edges"], z["graph/coexpress_weight"])
    perturbations = Graph(len(z["data/vocabulary"]), z["graph/go_edges"], z["graph/go_weight"])
    found = GearsNetwork(config(case, **changes), genes, perturbations, dtype=torch.float64)
    found.load_state_dict({key: torch.as_tensor(value) for key, value in under(f"{case}/state/").items()})
    return found


def batch(name: str):
    """(members, controls, targets, conditions as codes of data/conditions)."""
    import torch

    z = golden()
    order = [str(c) for c in z["data/conditions"]]
    codes = torch.tensor([order.index(str(c)) for c in z[f"{name}/condition"]])
    tensors = [torch.as_tensor(z[f"{name}/{key}"]) for key in ("pert_idx", "x", "y")]
    return (*tensors, codes)
