"""What a benchmark ran on, for its report."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """Cores that this process may use, the processor's name, Python's version, and the load when asked."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} of {os.cpu_count()} cores ({names[0] if names else platform.processor() or 'unknown'}), Python "
        f"{platform.python_version()}, load average {os.getloadavg()[0]:.1f}"
    )


def torch_on(device: str) -> str:
    """The torch that ran and, for CUDA, the GPU's name."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"torch {torch.__version__}{gpu}"
