"""Golden arrays of cpa-tools 0.8.8: where they are, and our networks, batches and adversaries built from them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[3] / "../shared/data"
GOLDEN = SHARED / "golden" / "cpa_0.8.8.npz"
CASES = (
    "nb_linear",
    "nb_logsigm",
    "nb_linear_ext",
    "zinb_linear",
    "zinb_logsigm",
    "gauss_linear",
    "gauss_logsigm",
)
COVARIATES = ("cell_type", "medium", "plate")

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden arrays at {GOLDEN}")


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


def tensors(prefix: str):
    import torch

    return {key: torch.as_tensor(value) for key, value in under(prefix).items()}


def config(case: str, **changes):
    from vcbench.baselines.cpa.baseline import Cpa

    found = meta()["cases"][case]
    names = (
        "recon_loss",
        "doser_type",
        "n_latent",
        "n_hidden_encoder",
        "n_layers_encoder",
        "n_hidden_decoder",
        "n_layers_decoder",
        "use_batch_norm_encoder",
        "use_layer_norm_encoder",
        "use_batch_norm_decoder",
        "use_layer_norm_decoder",
        "dropout_rate_encoder",
        "dropout_rate_decoder",
        "reg_adv",
        "pen_adv",
    )
    settings = {name: found[name] for name in names} | found["adversary"]
    return Cpa.resolve({**settings, "preset": "upstream", **changes})


def sizes():
    from vcbench.baselines.cpa.network import Sizes

    z = golden()
    n_values = {name: len(z[f"data/{name}_classes"]) for name in COVARIATES}
    return Sizes(48, len(z["data/pert_table"]), n_values)


def network(case: str, **changes):
    import torch
    from vcbench.baselines.cpa.network import CpaNetwork

    external = meta()["cases"][case]["external_embedding_dim"]
    table = None if external is None else torch.zeros(sizes().n_rows, external)
    found = CpaNetwork(config(case, **changes), sizes(), table=table).double()
    found.load_state_dict(tensors(f"{case}/state/"))
    return found


def adversaries(case: str, prefix: str = "adv/", **changes):
    import torch
    from vcbench.baselines.cpa.adversary import Adversaries

    weights = torch.as_tensor(golden()["data/class_weights"])
    found = Adversaries(config(case, **changes), weights, sizes().covariates).double()
    found.load_state_dict(tensors(f"{case}/{prefix}"))
    return found


def data(case: str, rows: np.ndarray):
    """(x, slots, doses, covariates, labels) of some rows of the data."""
    import torch
    from vcbench.baselines.cpa.adversary import Labels

    z = golden()
    kind = "lognorm" if case.startswith("gauss") else "counts"
    covariates = {name: torch.as_tensor(z[f"data/{name}_code"][rows]) for name in COVARIATES}
    conditions = z["data/condition_code"][rows]
    labels = Labels(
        torch.as_tensor(conditions),
        covariates,
        float(z["data/class_weights"][conditions].sum()),
        len(rows),
    )
    x = torch.as_tensor(z[f"data/{kind}/X"][rows]).double()
    slots, doses = (torch.as_tensor(z[f"data/{name}"][rows]) for name in ("perts", "perts_doses"))
    return x, slots, doses, covariates, labels


def forward_data(case: str):
    return data(case, golden()["data/forward_rows"])


def gap(mine, expected: np.ndarray) -> float:
    return float(np.abs(mine.detach().double().numpy() - expected).max())
