"""The spaces that maps live in: codes of a plain autoencoder, principal components, or the genes themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Autoencoder(nn.Module):
    """CellOT's deterministic autoencoder: ReLU layers of widths `hidden`, mirrored, with a linear output.

    With `n_conditions` it is the conditional one: the one-hot condition joins the input and the code. Keys of the
    state dict are upstream's.
    """

    def __init__(
        self,
        n_genes: int,
        hidden: Sequence[int],
        latent: int,
        *,
        dropout: float = 0.0,
        n_conditions: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.n_genes, self.latent, self.n_conditions = n_genes, latent, n_conditions
        self.encoder_net = _layers([n_genes + n_conditions, *hidden, latent], dropout, dtype)
        self.decoder_net = _layers([latent + n_conditions, *reversed(hidden), n_genes], dropout, dtype)

    def encode(self, x: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Codes, shape (n, latent), of cells (n, G) with integer `conditions` (n,) where there are some."""
        return self.encoder_net(self._joined(x, conditions))

    def decode(self, codes: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Expression, shape (n, G), of codes (n, latent)."""
        return self.decoder_net(self._joined(codes, conditions))

    def _joined(self, x: Tensor, conditions: Tensor | None) -> Tensor:
        if conditions is None:
            return x
        return torch.cat([x, functional.one_hot(conditions, self.n_conditions).to(x.dtype)], dim=1)


def _layers(widths: Sequence[int], dropout: float, dtype: torch.dtype) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1], dtype=dtype))
        if i < len(widths) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def reconstruction_loss(x: Tensor, reconstructed: Tensor, codes: Tensor, beta: float) -> Tensor:
    """mean_j (x̂_j - x_j)² + beta·|code|² of each cell, shape (n,)."""
    return ((reconstructed - x) ** 2).mean(dim=1) + beta * (codes**2).sum(dim=1)


class Projection(nn.Module):
    """A fixed linear space: codes (x - mean)·axes, back codes·axesᵀ + mean."""

    mean: Tensor
    axes: Tensor

    def __init__(self, n_genes: int, latent: int, *, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.n_genes, self.latent = n_genes, latent
        self.register_buffer("mean", torch.zeros(n_genes, dtype=dtype))
        self.register_buffer("axes", torch.zeros(n_genes, latent, dtype=dtype))

    def encode(self, x: Tensor) -> Tensor:
        """Codes, shape (n, latent)."""
        return (x - self.mean) @ self.axes

    def decode(self, codes: Tensor) -> Tensor:
        """Expression, shape (n, G)."""
        return codes @ self.axes.mT + self.mean


class Genes(nn.Module):
    """No space of its own: codes are the expression itself."""

    def __init__(self, n_genes: int):
        super().__init__()
        self.n_genes = self.latent = n_genes

    def encode(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x

    def decode(self, codes: Tensor) -> Tensor:
        """`codes` themselves."""
        return codes
