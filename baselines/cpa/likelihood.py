"""Negative log-likelihoods of cells, summed over genes and cells: negative binomial, zero-inflated, Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..training.device_matrix import StoredEntries

EPS = 1e-8


# Counts up to here have their log-gamma differences as sums of logarithms, one table for all cells.
TABLE = 12


class _NegativeBinomial(torch.autograd.Function):
    """One dense logarithm and one dense division per entry; everything else only where a count is stored.

    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) is 0 at x = 0, and most counts are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_theta: Tensor,
        x: Tensor,
        library: Tensor,
        stored: Tensor,
        genes: Tensor,
    ) -> Tensor:
        theta = torch.exp(log_theta)
        shifted = theta + EPS
        mu = torch.softmax(logits, dim=1).mul_(library)
        total = mu + shifted
        log_total = torch.log(total)
        counts, rates = _take(x, stored), _take(mu, stored)
        sums = _column_sums(log_total)
        likelihood = theta @ (len(x) * torch.log(shifted) - sums)
        terms = counts * (torch.log(rates + EPS) - _take(log_total, stored))
        whole, rest = _whole(counts)
        rising = _rising(torch.log, torch.lgamma, theta, genes, counts, whole, rest)
        one, first = theta.new_ones(1), torch.zeros_like(genes)
        rising -= _rising(torch.log, torch.lgamma, one, first, counts, whole, rest)
        ctx.save_for_backward(theta, mu, total, sums, stored, genes, counts, rates, library, whole, rest)
        return -(likelihood + terms.sum() + rising.sum())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        theta, mu, total, sums, stored, genes, counts, rates, library, whole, rest = ctx.saved_tensors
        n = len(mu)
        shifted = theta + EPS
        by_mu = theta / total
        part = counts / _take(total, stored)
        by_theta = n * (torch.log(shifted) + theta / shifted) - sums - _column_sums(by_mu)
        terms = _rising(torch.reciprocal, torch.digamma, theta, genes, counts, whole, rest) - part
        by_theta = by_theta.index_add(0, genes, terms)
        by_mu.view(-1).index_add_(0, stored, part - counts / (rates + EPS))
        # Through mu = library * softmax(logits).
        by_mu.mul_(mu)
        by_mu.addcmul_(mu, by_mu.sum(dim=1, keepdim=True) / library, value=-1.0)
        return by_mu.mul_(grads[0]), by_theta.mul_(-grads[0] * theta), None, None, None, None


def _column_sums(x: Tensor) -> Tensor:
    """Sums over rows, as a matrix product: several times faster than a reduction on the CPU."""
    return x.new_ones(len(x)) @ x


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """Entries at flat positions."""
    return x.view(-1).index_select(0, positions)


def _whole(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the table for the counts, and the positions of those that it does not hold."""
    whole = counts.long()
    rest = torch.nonzero((whole > TABLE) | (counts != whole)).squeeze(1)
    return whole.clamp_(max=TABLE), rest


def _rising(
    small: Callable[[Tensor], Tensor],
    any_size: Callable[[Tensor], Tensor],
    theta: Tensor,
    genes: Tensor,
    counts: Tensor,
    whole: Tensor,
    rest: Tensor,
) -> Tensor:
    """f(x + theta) - f(theta) of stored counts, for f = lgamma (`small` = log) or digamma (`small` = 1/x).

    For a whole number x it is the sum of small(theta + k) over k < x. `whole`, `rest`: see `_whole`.
    """
    steps = torch.arange(TABLE, dtype=theta.dtype, device=theta.device).unsqueeze(1)
    table = torch.cat([torch.zeros_like(theta).unsqueeze(0), small(theta + steps).cumsum(dim=0)])
    out = _take(table, whole * len(theta) + genes)
    if len(rest):
        own = theta[genes[rest]]
        out[rest] = any_size(counts[rest] + own) - any_size(own)
    return out


def negative_binomial(
    logits: Tensor, log_theta: Tensor, x: Tensor, stored: StoredEntries | None = None
) -> Tensor:
    """Negative log-likelihood of counts `x` (n, G) of shares softmax(`logits`) and dispersions exp(`log_theta`) (G,).

    Means are the cells' totals times their shares. The sum over genes and cells, a scalar, with eps = 1e-8 inside the
    logarithms as scvi-tools has them. `stored` covers the entries other than 0, each once. Can be differentiated once.
    """
    if stored is None:
        positions = torch.nonzero(x.view(-1)).squeeze(1)
        genes = positions % x.shape[1]
    else:
        positions, genes = stored.positions, stored.columns
    library = x.sum(dim=1, keepdim=True)
    return _NegativeBinomial.apply(logits, log_theta, x, library, positions, genes)  # type: ignore[return-value]


def zero_inflated(mu: Tensor, log_theta: Tensor, logits: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood under extra zeros with logits `logits` (n, G); else as `negative_binomial`."""
    theta = torch.exp(log_theta)
    log_total = torch.log(theta + mu + EPS)
    at_zero = theta * (torch.log(theta + EPS) - log_total) - logits
    softplus = F.softplus(-logits)
    zero = F.softplus(at_zero) - softplus
    more = x * (torch.log(mu + EPS) - log_total)
    more = more + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -torch.where(x < EPS, zero, at_zero - softplus + more).sum()


def gaussian(mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of log1p values `x` (n, G), constant included; the sum over genes and cells."""
    return 0.5 * (math.log(2 * math.pi) + torch.log(variance) + (x - mean) ** 2 / variance).sum()
