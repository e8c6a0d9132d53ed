"""Whether a pass of training fits into memory, from what each token keeps for the backward pass."""

from __future__ import annotations

import os

import torch

from ...data_specs.errors import ModelError
from .config import ScGPTConfig
from .model import TransformerGenerator

# Bytes per token, layer and unit of width, by counting saved tensors.
KEPT = {"bf16": 24.0, "float32": 36.0, "float64": 72.0}
# The input of a layer is kept, and one layer at a time is whole.
KEPT_RECOMPUTED = {"bf16": 4.0, "float32": 4.0, "float64": 8.0}
SHARE = 0.9


def pass_bytes(config: ScGPTConfig, n_genes: int) -> float:
    """Bytes that one forward pass of `batch_size` cells keeps for the backward pass."""
    length = min(n_genes, config.max_seq_len or n_genes)
    tokens = config.batch_size * length
    # Encoders and decoder keep about two layers' worth.
    whole = tokens * config.d_model * KEPT[config.precision]
    if config.activation_checkpointing:
        return tokens * config.d_model * config.nlayers * KEPT_RECOMPUTED[config.precision] + 3 * whole
    return whole * (config.nlayers + 2)


def free_bytes(device: torch.device) -> float:
    """Free memory of a CUDA device, or the machine's whole memory; infinite where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def check_memory(
    config: ScGPTConfig, n_genes: int, network: TransformerGenerator, device: torch.device
) -> None:
    """Raise `ModelError`, with the settings that help, when a training pass would not fit."""
    # Weights, gradients and two moments.
    static = 4 * sum(p.nbytes for p in network.parameters())
    needed, free = static + pass_bytes(config, n_genes), free_bytes(device)
    if needed <= SHARE * free:
        return
    helps = [] if config.activation_checkpointing else ["activation_checkpointing=true"]
    helps.append(f"batch_size={max(1, config.batch_size // 2)} with accumulate={2 * config.accumulate}")
    raise ModelError(
        f"a pass of {config.batch_size} cells needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
        f"--set {', or --set '.join(helps)}."
    )
