"""Progress on stderr when it is a terminal, and peak memory."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from ..diagnosis import peak_memory_mib

if TYPE_CHECKING:
    import torch


def peak_mib(device: torch.device) -> dict[str, float]:
    """Peak memory in MiB: `host` of this process where the system tells, `device` allocated on CUDA."""
    import torch

    host = peak_memory_mib()
    found = {} if host is None else {"host": round(host, 1)}
    if device.type == "cuda":
        found["device"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return found


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


@dataclass
class Progress:
    """One line that is rewritten at most twice a second; silent unless `enabled` and the stream is a terminal."""

    n_steps: int
    enabled: bool = True
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _shown: float = -1.0
    _started: tuple[float, int] | None = None

    @property
    def visible(self) -> bool:
        """Whether anything is printed."""
        return self.enabled and self.stream.isatty()

    def due(self, step: int) -> bool:
        """True when the line should be renewed; the caller then fetches the loss, which may wait for the device."""
        if not self.visible:
            return False
        now = time.monotonic()
        if self._started is None:
            self._started = (now, step)
        return now - self._shown >= 0.5

    def show(self, step: int, epoch: int, loss: float, cells_per_s: float, peak: dict[str, float]) -> None:
        """Renew the line."""
        self._shown = now = time.monotonic()
        start, first = self._started or (now, step)
        left = (self.n_steps - step) * (now - start) / (step - first) if step > first else float("nan")
        eta = "?" if left != left else duration(left)
        memory = " ".join(f"{name} {value:,.0f} MiB" for name, value in peak.items())
        text = f"epoch {epoch + 1} step {step:,}/{self.n_steps:,} loss {loss:.4g} {cells_per_s:,.0f} cells/s"
        text = f"{text} eta {eta} {memory}"
        self.stream.write(f"\r\x1b[K{text}")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self.visible and self._shown >= 0:
            self.stream.write("\n")
            self.stream.flush()
