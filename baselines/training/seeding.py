"""One root seed, independent generators by name, and the state of torch's own generators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """The seed of a named purpose: the same for the same (seed, names), independent for different ones."""
    digest = hashlib.blake2b("\x1f".join(str(name) for name in names).encode(), digest_size=16).digest()
    return np.random.SeedSequence([seed, *np.frombuffer(digest, dtype="<u4").tolist()])


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for a named purpose."""
    return np.random.default_rng(seed_sequence(seed, *names))


def torch_seed(seed: int, *names: str | int) -> int:
    """A seed for `torch.manual_seed`, below 2**63."""
    return int(seed_sequence(seed, *names).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def torch_generators(seed: int, *names: str | int, device: torch.device) -> Iterator[None]:
    """Torch's default generators seeded for a named purpose; the caller's states return afterwards."""
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_seed(seed, *names))
        yield


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's default generators, uint8 tensors on the CPU: `cpu`, and `cuda` on such a device."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `generator_states`."""
    import torch

    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
