"""Weights of cpa-tools: state dicts of its network, without pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data_specs.errors import ModelError
from ..training.config import resolve_config
from .config import CpaConfig
from .encoding import PAD, PerturbationTable
from .network import CpaNetwork, Sizes

# Output heads that no likelihood of the default mode reads.
DEAD = ("decoder.px_r_decoder.", "decoder.px_dropout_decoder.")


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file that holds tensors alone.

    Raises
    ------
    ModelError
        The file cannot be read, or holds anything but tensors (cpa-tools' own `model.pt` does: export it first).
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: not a file of tensors ({text}); see the README of cpa.") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: not a state dict of tensors; see the README of cpa.")
    return found


def load_weights(network: CpaNetwork, path: Path) -> None:
    """Load upstream's network weights into a network of the same sizes; heads that it lacks are dropped.

    Raises
    ------
    ModelError
        The file cannot be used, or names and shapes differ.
    """
    state, own = read_state(path), network.state_dict()
    state = {key: value for key, value in state.items() if key in own or not key.startswith(DEAD)}
    if not set(state) & set(own):
        raise ModelError(f"{path}: is no CPA state dict; see the README of cpa.")
    differing = [
        f"{key} {tuple(state[key].shape)} and {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    differing += sorted(set(own) ^ set(state))
    if differing:
        raise ModelError(
            f"{path}: {len(differing)} tensors differ from the network (first: {differing[0]}); sizes, norms, genes, "
            "perturbations and covariates must be those of the file."
        )
    network.load_state_dict(state)


@dataclass(frozen=True)
class UpstreamModel:
    """A network of cpa-tools with its names: genes, rows of the perturbation table, values of each covariate."""

    network: CpaNetwork
    genes: tuple[str, ...]
    table: PerturbationTable
    covariates: Mapping[str, tuple[str, ...]]


def upstream_model(weights: Path, description: Path) -> UpstreamModel:
    """The network of an exported cpa-tools model (the README of cpa shows how to export one), in evaluation mode.

    The description lists the arguments that differ from upstream's defaults.

    Raises
    ------
    ModelError
        A file cannot be used, or the two do not belong together.
    """
    try:
        record: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
        genes = tuple(str(gene) for gene in record["genes"])
        table = PerturbationTable(_in_order(record["pert_encoder"]))
        covariates = {name: _in_order(values) for name, values in record["covars_encoder"].items()}
        settings = dict(record["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{description}: not an exported CPA description ({error}).") from error
    if table.names[:1] != (PAD,):
        raise ModelError(f"{description}: row 0 of pert_encoder is {table.names[:1]}, not {PAD!r}.")
    state = read_state(weights)
    external = state.get("pert_network.pert_transformation.weight")
    chosen = {**settings, "preset": "upstream"}
    config = resolve_config(CpaConfig, chosen, model="cpa", presets=Path(__file__).parent)
    sizes = Sizes(len(genes), len(table), {name: len(values) for name, values in covariates.items()})
    placeholder = None if external is None else torch.zeros(len(table), external.shape[1])
    network = CpaNetwork(config, sizes, table=placeholder)
    load_weights(network, weights)
    return UpstreamModel(network.eval(), genes, table, covariates)


def _in_order(codes: Mapping[str, int] | Sequence[str]) -> tuple[str, ...]:
    """Names by their code: 0, 1, 2 and on."""
    if not isinstance(codes, Mapping):
        return tuple(str(name) for name in codes)
    ordered = sorted(codes, key=lambda name: int(codes[name]))
    if [int(codes[name]) for name in ordered] != list(range(len(ordered))):
        raise ValueError(f"codes of {ordered[:3]} are not 0 to {len(ordered) - 1}")
    return tuple(str(name) for name in ordered)
