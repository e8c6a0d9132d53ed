"""What a trained network says about perturbation sets: exact effects, and upstream's average over drawn controls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .model import GearsNetwork, Groups, group_cells


def padded_members(sets: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Tensor:
    """Vocabulary rows of each set, int64, shape (n, m) with m the largest set (at least 1), padded with -1."""
    width = max([1, *(len(s) for s in sets)])
    rows = [[*s, *([-1] * (width - len(s)))] for s in sets]
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(sets), width)


@torch.no_grad()
def effects_of(
    network: GearsNetwork, sets: Sequence[Sequence[int]], *, batch_size: int = 64
) -> tuple[Tensor, Tensor | None]:
    """Shift of each perturbation set, shape (n, G), and its log-variance or None; the network is in evaluation mode.

    One row of the network per set. With upstream's co-expression (`first`), whose effect depends on the place in the
    batch, the shift is that of any cell but the first.
    """
    device = network.indv_w1.device
    shifts, spreads = [], []
    for start in range(0, len(sets), batch_size):
        members = padded_members(sets[start : start + batch_size], device)
        counts = torch.ones(len(members), device=device)
        of_cell = torch.arange(len(members), device=device)
        if network.config.coexpression == "first":
            # A leading group of no cells takes the place that the graph reaches.
            members = torch.cat([torch.full_like(members[:1], -1), members])
            counts = torch.cat([torch.zeros_like(counts[:1]), counts])
            shift, spread = network.shifts(Groups(members, counts, of_cell + 1, first_apart=True))
            shift, spread = shift[1:], None if spread is None else spread[1:]
        else:
            shift, spread = network.shifts(Groups(members, counts, of_cell))
        shifts.append(shift)
        if spread is not None:
            spreads.append(spread)
    if not shifts:
        return network.indv_b2.new_empty((0, network.n_genes)), None
    return torch.cat(shifts), torch.cat(spreads) if spreads else None


@torch.no_grad()
def mean_of_draws(
    network: GearsNetwork, members: Sequence[int], drawn: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Mean prediction over drawn control cells run as one batch, shape (G,), and the mean log-variance or None.

    This is upstream's `predict`: `drawn` are its control cells, shape (n, G).
    """
    row = padded_members([list(members)], drawn.device).expand(len(drawn), -1)
    groups = group_cells(row, first_apart=network.config.coexpression == "first")
    shift, spread = network.shifts(groups)
    share = groups.counts.to(shift.dtype) / len(drawn)
    mean = drawn.mean(dim=0) + share @ shift
    return mean, None if spread is None else share @ spread


def uncertainty_of_draws(log_variance: Tensor) -> float:
    """Upstream's score of one perturbation, exp(-mean log-variance): it grows with certainty by its formula."""
    return float(torch.exp(-log_variance.mean()))
