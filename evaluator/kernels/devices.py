"""Where rank sums are taken: numba's threads, or torch on a GPU; both give the same integers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...data_specs.errors import UsageError

if TYPE_CHECKING:
    import torch

# `torch` without a GPU: the same code as on CUDA, for machines that have none.
TORCH_ON_CPU = "torch-cpu"
DEVICES = ("cpu", "cuda", "auto", TORCH_ON_CPU)
_PATTERN = re.compile(r"cuda(:\d+)?")


def checked_device(name: str) -> str:
    """The name, when it can be used here. Raises `UsageError` as `torch_device` does."""
    torch_device(name)
    return name


def torch_device(name: str) -> torch.device | None:
    """The torch device of a `--device` name, None for numba on the CPU.

    Parameters
    ----------
    name
        `cpu` (numba), `cuda` or `cuda:N`, `auto` (CUDA where torch sees a GPU, else `cpu`), or `torch-cpu`.

    Raises
    ------
    UsageError
        An unknown name, torch is not installed, or torch does not see that GPU.
    """
    if name == "cpu":
        return None
    if name not in DEVICES and not _PATTERN.fullmatch(name):
        raise UsageError(f"--device {name}: give one of {', '.join(DEVICES)}, or cuda:N.")
    try:
        import torch
    except ImportError as error:
        if name == "auto":
            return None
        raise UsageError(
            f'--device {name} needs torch: pip install "vcbench[train]", or use --device cpu.'
        ) from error
    if name == TORCH_ON_CPU:
        return torch.device("cpu")
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not n_devices:
        return None
    number = int(name.partition(":")[2] or 0)
    if number >= n_devices:
        seen = f"{n_devices} CUDA devices" if n_devices else "no CUDA device"
        raise UsageError(f"--device {name}: this torch sees {seen}; use --device cpu.")
    return torch.device("cuda", number)
