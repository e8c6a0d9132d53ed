"""Weight files of upstream GEARS (`model.pt`) and vcbench (safetensors), read without opening pickles."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data_specs.errors import ModelError
from .config import GearsConfig
from .graphs import Graph
from .model import GearsNetwork

_IGNORED = ("cell_fitness_mlp.",)


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a state dict say about its network."""

    n_genes: int
    n_perts: int
    hidden_size: int
    num_gene_gnn_layers: int
    num_go_gnn_layers: int
    uncertainty: bool


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a weight file under GEARS' names, a leading `module.` removed.

    `.safetensors`, or a torch file that holds tensors only: nothing else is unpickled.

    Raises
    ------
    ModelError
        The file cannot be read, or is no GEARS state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: not a file of tensors ({str(error).splitlines()[0]}).") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: holds no state dict.")
    state = {str(key).removeprefix("module."): value for key, value in found.items()}
    state = {key: value for key, value in state.items() if not key.startswith(_IGNORED)}
    if "gene_emb.weight" not in state or "pert_emb.weight" not in state:
        raise ModelError(f"{path}: is no GEARS state dict (first tensor: {next(iter(state), 'none')}).")
    return state


def sizes_of(state: Mapping[str, Tensor]) -> Sizes:
    """Sizes of the network that a state dict belongs to."""
    n_genes, hidden = state["gene_emb.weight"].shape

    def depth(prefix: str) -> int:
        return sum(key.startswith(prefix) and key.endswith(".lin.weight") for key in state)

    return Sizes(
        n_genes=n_genes,
        n_perts=len(state["pert_emb.weight"]),
        hidden_size=hidden,
        num_gene_gnn_layers=depth("layers_emb_pos."),
        num_go_gnn_layers=depth("sim_layers."),
        uncertainty=any(key.startswith("uncertainty_w.") for key in state),
    )


def load_weights(network: GearsNetwork, path: Path) -> None:
    """Put the weights of a file into a network.

    Layers that upstream does not use may be missing. Gene and vocabulary order are not stored in upstream's files:
    they must be those of the network.

    Raises
    ------
    ModelError
        The file cannot be read, its sizes differ from the network's, or tensors are missing or unknown.
    """
    state = read_weights(path)
    config = network.config
    own = Sizes(
        network.n_genes,
        network.n_perts,
        config.hidden_size,
        config.num_gene_gnn_layers,
        config.num_go_gnn_layers,
        config.uncertainty,
    )
    if sizes_of(state) != own:
        hint = " (P = G: trained before December 2022, perturbations index measured genes)"
        old = sizes_of(state).n_perts == sizes_of(state).n_genes != network.n_perts
        raise ModelError(f"{path}: {sizes_of(state)}{hint if old else ''}; the network has {own}.")
    result = network.load_state_dict(dict(state), strict=False)
    unused = ("pert_w.", "bn_pert_base_trans.")
    missing = [key for key in result.missing_keys if not key.startswith(unused)]
    if missing or result.unexpected_keys:
        raise ModelError(f"{path}: missing {missing[:3]}, unknown {result.unexpected_keys[:3]}.")


def network_from_upstream(weights: Path, exported: Path) -> GearsNetwork:
    """The network of an upstream checkpoint, in evaluation mode, predicting as upstream does (`coexpression=first`).

    `exported` is the JSON that the snippet of the README writes from upstream's `config.pkl` in upstream's
    environment: the four graph entries as lists.

    Raises
    ------
    ModelError
        A file cannot be read, or the two do not belong together.
    """
    state = read_weights(weights)
    sizes = sizes_of(state)
    try:
        record = json.loads(exported.read_text(encoding="utf-8"))
        graphs = [
            Graph(
                n,
                np.array(record[name], dtype=np.int64).reshape(2, -1),
                np.array(record[f"{name}_weight"], "f4"),
            )
            for name, n in (("G_coexpress", sizes.n_genes), ("G_go", sizes.n_perts))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{exported}: not an exported GEARS configuration ({error}).") from error
    config = GearsConfig(
        hidden_size=sizes.hidden_size,
        num_gene_gnn_layers=sizes.num_gene_gnn_layers,
        num_go_gnn_layers=sizes.num_go_gnn_layers,
        uncertainty=sizes.uncertainty,
        coexpression="first",
    )
    network = GearsNetwork(config, *graphs)
    load_weights(network, weights)
    return network.eval()
