"""Everything that a CellOT run trains: the space of the maps, the maps, and the best ones so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder, Genes, Projection
from .conditional import UNSET, ConditionalNets
from .config import CellotConfig
from .icnn import StackedIcnn
from .solver import Duel

Embedding = Autoencoder | Projection | Genes


@dataclass(frozen=True)
class Sizes:
    """Sizes that data decide: genes, perturbations with a map of their own, dimensions of their features (0: none)."""

    n_genes: int
    n_labels: int
    n_features: int = 0


class CellotModule(nn.Module):
    """The embedding, `duel` (maps in training), and `best` (g of each map at its best validation).

    Maps are those of the perturbations in order, then the pooled one. Buffers: `center`, the profile that the embedding
    sees as 0; `scale` of the codes; `ready` once codes are fixed; of each map `best_value` (`UNSET` before there is
    one) and `stale`, its validations without a better one.
    """

    center: Tensor
    scale: Tensor
    ready: Tensor
    best_value: Tensor
    stale: Tensor

    def __init__(self, config: CellotConfig, sizes: Sizes, *, dtype: torch.dtype):
        super().__init__()
        self.config, self.sizes = config, sizes
        self.embedding = _embedding(config, sizes.n_genes, dtype)
        dim, n_maps = self.embedding.latent, sizes.n_labels + 1
        hidden = [config.hidden] * config.layers

        def potential() -> StackedIcnn:
            return StackedIcnn(
                n_maps,
                dim,
                hidden,
                activation=config.activation,
                softplus_beta=config.softplus_beta,
                init=config.init,
                dtype=dtype,
            )

        self.duel = Duel(potential(), potential(), fnorm_penalty=config.fnorm_penalty)
        self.best = potential().requires_grad_(False)
        self.best.load_state_dict(self.duel.g.state_dict())
        self.conditional = (
            ConditionalNets(config, dim, sizes.n_features, dtype=dtype) if sizes.n_features else None
        )
        self.register_buffer("center", torch.zeros(sizes.n_genes, dtype=dtype))
        self.register_buffer("scale", torch.ones((), dtype=dtype))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("best_value", torch.full((n_maps,), UNSET, dtype=torch.float64))
        self.register_buffer("stale", torch.zeros(n_maps, dtype=torch.int64))

    @property
    def n_maps(self) -> int:
        """Maps, the pooled one included."""
        return self.sizes.n_labels + 1

    def encode(self, x: Tensor) -> Tensor:
        """Scaled codes, (n, d), of log1p cells (n, G)."""
        return self.embedding.encode(x - self.center) * self.scale

    def decode(self, codes: Tensor) -> Tensor:
        """Expression, (n, G), of scaled codes (n, d)."""
        return self.embedding.decode(codes / self.scale) + self.center

    @torch.no_grad()
    def keep(self, better: Tensor, values: Tensor) -> None:
        """Take g of the maps where `better` (bool, one per map) is True as their best; `values` are theirs."""
        for target, source in zip(self.best.parameters(), self.duel.g.parameters(), strict=True):
            target.copy_(torch.where(better.view(-1, *[1] * (target.dim() - 1)), source, target))
        self.best_value.copy_(torch.where(better, values, self.best_value))

    def transported(self, maps: Tensor, codes: Tensor) -> Tensor:
        """∇g of some best maps, int64 (m,), at the same codes (n, d): (m, n, d)."""
        from .icnn import transport

        weights = self.best.weights().rows(maps)
        return transport(weights, codes.expand(len(maps), -1, -1))


def _embedding(config: CellotConfig, n_genes: int, dtype: torch.dtype) -> Embedding:
    if config.embedding == "genes":
        return Genes(n_genes)
    latent = min(config.latent, n_genes)
    if config.embedding == "pca":
        return Projection(n_genes, latent, dtype=dtype)
    widths = [config.ae_hidden] * config.ae_layers
    return Autoencoder(n_genes, widths, latent, dropout=config.ae_dropout, dtype=dtype)
