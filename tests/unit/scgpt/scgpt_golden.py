"""The reference network and inputs of the published values: every weight is a sine of its place."""

from __future__ import annotations

import math

import torch
from vcbench.baselines.scgpt.config import ScGPTConfig
from vcbench.baselines.scgpt.model import TransformerGenerator

N_TOKENS, PAD = 12, 9
SIZES = {"d_model": 8, "nhead": 2, "d_hid": 12, "nlayers": 2, "n_layers_cls": 3}
ONE_CENTRED = (
    "norm.weight",
    "norm1.weight",
    "norm2.weight",
    "_decoder.2.weight",
    "_decoder.5.weight",
    "bn.weight",
    "bn.running_var",
)
SRC = [0, 3, 7, 9, 4]
VALUES = [[0, 1.5, 2.25, 0, 3], [0.75, 0, 0.5, 4, 0]]
FLAGS = [[0, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
TARGET = [[0.5, 0, 2, 1, 3.5], [1, 0.25, 0, 3, 0]]


def fill(state) -> None:
    """Give tensor k, in state-dict order, the values of sin(1.3 (k + 1) + 0.9 (j + 1))."""
    for k, (name, tensor) in enumerate(state.items()):
        if tensor.dtype == torch.int64:
            continue
        flat = [math.sin(1.3 * (k + 1) + 0.9 * (j + 1)) for j in range(tensor.numel())]
        s = torch.tensor(flat, dtype=torch.float64).view(tensor.shape)
        tensor.copy_(1 + 0.3 * s if name.endswith(ONE_CENTRED) else 0.5 * s)


def network(*, dtype=torch.float64, mvc="inner product", **changes) -> TransformerGenerator:
    config = ScGPTConfig(**{**SIZES, **changes})
    found = TransformerGenerator(config, N_TOKENS, PAD, mvc=mvc).double()
    with torch.no_grad():
        fill(found.state_dict())
        found.pert_encoder.weight[config.pert_pad_id] = 0.0
    return found.to(dtype)


def inputs(dtype=torch.float64):
    """(tokens, values, flags, target)."""
    return (
        torch.tensor(SRC),
        torch.tensor(VALUES, dtype=dtype),
        torch.tensor(FLAGS),
        torch.tensor(TARGET, dtype=dtype),
    )
