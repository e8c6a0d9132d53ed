"""Checks that run inside each of two gloo processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from vcbench.baselines.training.distributed import BatchNorm1d, sum_gradients


def check_batch_norm(processes) -> None:
    """Uneven rows with weights on two processes equal torch's batch norm on the repeated, joined rows."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0, 2.0, 1.0, 1.0, 4.0, 2.0], dtype=torch.float64)
    target = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    own = slice(0, 2) if processes.rank == 0 else slice(2, 7)
    ours, theirs = BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([0.5, 2.0, 1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, -1.0]))
    x = rows[own].clone().requires_grad_(True)
    out = ours(x, weights[own])
    ((out * target[own]).pow(2).sum(1) * weights[own]).sum().backward()
    sum_gradients(list(ours.parameters()))
    repeats = weights.long()
    joined = rows.clone().requires_grad_(True)
    full = theirs(joined.repeat_interleave(repeats, 0))
    (full * target.repeat_interleave(repeats, 0)).pow(2).sum().backward()
    first = torch.cumsum(repeats, 0) - repeats
    torch.testing.assert_close(out, full[first][own], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(x.grad, joined.grad[own], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-13)
    # A process without rows takes part all the same.
    ours(rows[:0] if processes.rank == 0 else rows)


def check_gradient_sums(processes) -> None:
    """Gradients are added; one that a single process has is shared; one that none has stays absent."""
    both, one, none = (nn.Parameter(torch.ones(2)) for _ in range(3))
    both.grad = torch.full((2,), 1.0 + processes.rank)
    one.grad = torch.tensor([5.0, 6.0]) if processes.rank == 1 else None
    sum_gradients([both, one, none])
    assert both.grad.tolist() == [3.0, 3.0] and one.grad.tolist() == [5.0, 6.0] and none.grad is None
    dist.barrier()
