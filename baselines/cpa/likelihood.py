"""Negative log-likelihoods of cells, summed over genes and cells: negative binomial, zero-inflated, Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-8


class _NegativeBinomial(torch.autograd.Function):
    """One dense logarithm per entry; log-gamma and its derivative only where a count is stored.

    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) is 0 at x = 0, and most counts are.
    """

    @staticmethod
    def forward(ctx: Any, mu: Tensor, log_theta: Tensor, x: Tensor) -> Tensor:
        theta = torch.exp(log_theta)
        shifted = theta + EPS
        log_shifted = torch.log(shifted)
        total = mu + shifted
        log_total = torch.log(total)
        cells, genes = torch.nonzero(x, as_tuple=True)
        flat = cells * x.shape[1] + genes
        counts, rates, own = x.view(-1)[flat], mu.reshape(-1)[flat], theta[genes]
        likelihood = theta @ (len(x) * log_shifted - log_total.sum(dim=0))
        stored = counts * (torch.log(rates + EPS) - log_total.view(-1)[flat])
        stored += torch.lgamma(counts + own) - torch.lgamma(own) - torch.lgamma(counts + 1)
        ctx.save_for_backward(x, theta, total, log_total, flat, genes, counts, rates)
        return -(likelihood + stored.sum())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, theta, total, log_total, flat, genes, counts, rates = ctx.saved_tensors
        ratio = (x + theta).div_(total)
        shifted = theta + EPS
        by_theta = len(x) * (torch.log(shifted) + theta / shifted) - log_total.sum(dim=0) - ratio.sum(dim=0)
        own = theta[genes]
        by_theta = by_theta.index_add(0, genes, torch.digamma(counts + own) - torch.digamma(own))
        by_mu = (x + theta).div_(total)
        by_mu.view(-1)[flat] -= counts / (rates + EPS)
        return by_mu.mul_(grads[0]), by_theta.mul_(-grads[0] * theta), None


def negative_binomial(mu: Tensor, log_theta: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of counts `x` (n, G) with means `mu` and inverse dispersions exp(`log_theta`) (G,).

    The sum over genes and cells, a scalar. With eps = 1e-8 inside the logarithms, as scvi-tools has them. Can be
    differentiated once.
    """
    return _NegativeBinomial.apply(mu, log_theta, x)  # type: ignore[return-value]


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
