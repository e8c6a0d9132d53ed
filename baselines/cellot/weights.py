"""Upstream's names: one network's state dict to and from a row of the stacked ones; upstream's checkpoint files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data_specs.errors import ModelError
from .icnn import StackedIcnn


@torch.no_grad()
def put_network(network: StackedIcnn, row: int, state: Mapping[str, Tensor]) -> None:
    """Copy upstream's state dict of one convex network into one row.

    Raises
    ------
    ModelError
        Names or shapes differ.
    """
    targets = _views(network, row)
    if targets.keys() != state.keys():
        missing, foreign = sorted(targets.keys() - state.keys()), sorted(state.keys() - targets.keys())
        raise ModelError(
            f"not this convex network's state dict: {missing} are missing, {foreign} are foreign."
        )
    for name, view in targets.items():
        if view.shape != state[name].shape:
            raise ModelError(f"{name} is {tuple(state[name].shape)}, this network has {tuple(view.shape)}.")
        view.copy_(state[name])


def take_network(network: StackedIcnn, row: int) -> dict[str, Tensor]:
    """One row as upstream's state dict, in upstream's registration order; copies."""
    return {name: view.detach().clone() for name, view in _views(network, row).items()}


def _views(network: StackedIcnn, row: int) -> dict[str, Tensor]:
    """A row's tensors under upstream's names, sharing memory with the network."""
    out = {f"W.{level}.weight": w[row] for level, w in enumerate(network.W)}
    for level, (a, b) in enumerate(zip(network.A, network.b, strict=True)):
        out |= {f"A.{level}.weight": a[row], f"A.{level}.bias": b[row, 0]}
    last = len(network.hidden)
    out[f"A.{last}.weight"] = network.A_out[row]
    out[f"A.{last}.bias"] = network.b_out[row, 0]
    return out


def read_upstream(path: Path) -> dict[str, Any]:
    """An upstream checkpoint (`f_state`, `g_state`, or `model_state`, ...), on the CPU; nothing in it is executed.

    The best file of CellOT holds a numpy number, which is allowed beside tensors.

    Raises
    ------
    ModelError
        The file cannot be read, or holds anything else.
    """
    allowed: list[Any] = [np.dtype, np.float32, np.float64, np.dtypes.Float32DType, np.dtypes.Float64DType]
    scalar = np.float64(0.0).__reduce__()[0]
    # The module's name in files written with numpy 1.
    allowed += [scalar, (scalar, "numpy.core.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}: not a CellOT checkpoint ({text}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: not a CellOT checkpoint (a {type(found).__name__}).")
    return found
