"""Several processes: start-up under torchrun, sums over processes, and batch norm over all of their rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...data_specs.errors import ModelError, ShapeError, UsageError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that validates, writes and prints."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The main process's value (numbers, text, lists, dicts), in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The equally shaped tensors of all processes by rank, on the CPU."""
        if self.size == 1:
            return [tensor.cpu()]
        found = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, tensor.to(self.device))
        return [item.cpu() for item in found]

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise `UsageError` in every process when processes differ in one of the named facts."""
        names = sorted(facts)
        digests = [hashlib.sha256(facts[name].encode()).digest()[:7] for name in names]
        mine = torch.tensor([int.from_bytes(digest, "big") for digest in digests], dtype=torch.int64)
        found = torch.stack(self.gather(mine))
        other = [name for name, column in zip(names, found.T, strict=True) if (column != column[0]).any()]
        if other:
            raise UsageError(
                f"processes that train together differ in: {', '.join(other)}. Every node needs the same command and "
                "files, and --out on a disk that all nodes share."
            )

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def choose_device(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto`: CUDA where there is one. Under torchrun each process takes its own GPU.

    Raises
    ------
    UsageError
        `cuda` where torch sees none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: this torch sees no CUDA device; use --device cpu.")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def start_processes(device: torch.device) -> Processes:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on the CPU); alone without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(device, dist.get_rank(), dist.get_world_size())


def stop_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def n_processes() -> int:
    """Processes that train together: 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        # The loss is the sum of all processes' shares, and every share depends on this process's term. The same
        # function again, so that gradients can themselves be differentiated.
        return _SumOverProcesses.apply(grads[0])  # type: ignore[return-value]


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of `x` over all processes, differentiable under the rule that losses are shares of one sum.

    Every process must call it in the same order. Without torchrun it is `x` itself.
    """
    return x if n_processes() == 1 else _SumOverProcesses.apply(x)  # type: ignore[return-value]


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over processes; one communication per dtype.

    A parameter without gradient in every process keeps none (optimizers then skip it).
    """
    if n_processes() == 1:
        return
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for dtype, group in by_dtype.items():
        present = torch.tensor([p.grad is not None for p in group], dtype=dtype, device=group[0].device)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in group]
        flat = torch.cat([present, *parts])
        dist.all_reduce(flat)
        counts = flat[: len(group)].cpu().tolist()
        sizes = [p.numel() for p in group]
        for parameter, count, total in zip(group, counts, flat[len(group) :].split(sizes), strict=True):
            parameter.grad = total.view_as(parameter).clone() if count else None


def any_process(flag: torch.Tensor) -> torch.Tensor:
    """True in every process when the bool scalar is true in one."""
    if n_processes() == 1:
        return flag
    raised = flag.to(torch.int32)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return raised > 0


def broadcast_module(module: nn.Module) -> None:
    """Give every process the main process's parameters and buffers."""
    if n_processes() > 1:
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor, src=0)


class BatchNorm1d(nn.BatchNorm1d):
    """torch's BatchNorm1d with statistics over the rows of all processes, on CPU and CUDA, and with row weights.

    Parameters and buffers have torch's names. Without torchrun and weights it is torch's own function. Every
    process must call it in each pass, also with no rows; a population of one row gives the bias (torch raises).
    """

    def forward(self, input: torch.Tensor, row_weights: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised rows, shape (n, features).

        `row_weights`, shape (n,), says how many rows each row stands for: statistics, and the N of the unbiased
        running variance, count it so often.
        """
        if row_weights is None and (not self.training or n_processes() == 1):
            return super().forward(input)
        if input.dim() != 2:
            raise ShapeError(
                f"batch norm over processes or with weights takes (rows, features), not {tuple(input.shape)}"
            )
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        weights = x.new_ones(len(x)) if row_weights is None else row_weights.to(x.dtype)
        first = sum_over_processes(torch.cat([weights @ x, weights.sum().reshape(1)]))
        n = first[-1]
        mean = first[:-1] / n
        variance = sum_over_processes(weights @ (x - mean) ** 2) / n
        self._track(mean.detach(), variance.detach(), n.detach())
        out = (x - mean) * torch.rsqrt(variance + self.eps)
        if self.affine:
            out = out * self.weight + self.bias
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, n: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        unbiased = variance * (n / (n - 1).clamp(min=1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)


def require_one_process(what: str) -> None:
    """Raise `ModelError` under torchrun with several processes."""
    if n_processes() > 1:
        raise ModelError(f"{what} runs in one process; start it without torchrun.")
