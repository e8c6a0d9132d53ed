"""The CPA network: basal state, dosed perturbations and covariates add up; a decoder gives the likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..training.distributed import BatchNorm1d
from .config import CpaConfig
from .layers import PerturbationEncoder, Stack

VARIANCE_FLOOR = 1e-4
LOG_VARIANCE_LIMIT = 10.0


@dataclass(frozen=True)
class Sizes:
    """What shapes a network beside the config: genes, table rows, and the number of values of each covariate."""

    n_genes: int
    n_rows: int
    covariates: Mapping[str, int]


@dataclass(frozen=True)
class Mixing:
    """Partners of a batch's cells and the weight of the cells themselves; codes and slots of the partners."""

    weight: float
    rows: Tensor
    doses: Tensor
    covariates: Mapping[str, Tensor]


@dataclass(frozen=True)
class Latents:
    """The latent state of cells, each (n, L): `basal`, the dosed perturbations, and the vector of each covariate."""

    basal: Tensor
    perturbation: Tensor
    covariates: Mapping[str, Tensor]

    def total(self, *, perturbation: bool = True, without: str = "") -> Tensor:
        """basal + perturbation + covariates; without the perturbation, or the covariate `without`, where asked."""
        z = self.basal + self.perturbation if perturbation else self.basal
        for name, vector in self.covariates.items():
            if name != without:
                z = z + vector
        return z


class Encoder(nn.Module):
    """Expression to the basal state."""

    def __init__(self, n_genes: int, config: CpaConfig):
        super().__init__()
        self.network = Stack(
            n_genes,
            config.n_hidden_encoder,
            config.n_layers_encoder,
            batch_norm=config.use_batch_norm_encoder,
            layer_norm=config.use_layer_norm_encoder,
            dropout=config.dropout_rate_encoder,
        )
        self.z = nn.Linear(config.n_hidden_encoder, config.n_latent)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, G) to (n, L)."""
        return self.z(self.network(x))


class CountDecoder(nn.Module):
    """Latent state to the shares of all genes, and for `zinb` the logits of extra zeros."""

    def __init__(self, n_genes: int, config: CpaConfig):
        super().__init__()
        self.px_decoder = _decoder_stack(config, dropout=not config.dead_heads)
        width = config.n_hidden_decoder
        self.px_scale_decoder = nn.Sequential(nn.Linear(width, n_genes), nn.Softmax(dim=-1))
        if config.dead_heads:
            self.px_r_decoder = nn.Linear(width, n_genes)
        self.zero_inflated = config.recon_loss == "zinb"
        if config.dead_heads or self.zero_inflated:
            self.px_dropout_decoder = nn.Linear(width, n_genes)

    def hidden(self, z: Tensor) -> Tensor:
        """The last hidden layer, shape (n, width)."""
        return self.px_decoder(z)

    def logits(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the shares and of extra zeros (None without them), both (n, G)."""
        hidden = self.hidden(z)
        zeros = self.px_dropout_decoder(hidden) if self.zero_inflated else None
        return self.px_scale_decoder[0](hidden), zeros

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shares (n, G), rows of sum 1, and zero-inflation logits (n, G) or None."""
        logits, zeros = self.logits(z)
        return torch.softmax(logits, dim=-1), zeros


class GaussianDecoder(nn.Module):
    """Latent state to mean and variance of log1p expression."""

    def __init__(self, n_genes: int, config: CpaConfig):
        super().__init__()
        self.encoder = _decoder_stack(config, dropout=True)
        self.mean_encoder = nn.Linear(config.n_hidden_decoder, n_genes)
        self.var_encoder = nn.Linear(config.n_hidden_decoder, n_genes)
        self.clamp = config.clamp_variance

    def hidden(self, z: Tensor) -> Tensor:
        """The last hidden layer, shape (n, width)."""
        return self.encoder(z)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, both (n, G)."""
        hidden = self.hidden(z)
        log_variance = self.var_encoder(hidden)
        if self.clamp:
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return self.mean_encoder(hidden), torch.exp(log_variance) + VARIANCE_FLOOR


def _decoder_stack(config: CpaConfig, *, dropout: bool) -> Stack:
    return Stack(
        config.n_latent,
        config.n_hidden_decoder,
        config.n_layers_decoder,
        batch_norm=config.use_batch_norm_decoder,
        layer_norm=config.use_layer_norm_decoder,
        dropout=config.dropout_rate_decoder if dropout else 0.0,
    )


class CpaNetwork(nn.Module):
    """The autoencoder without its adversaries; state keys are upstream's.

    Parts are created in upstream's order, so equal torch seeds give upstream's weights. `table`, shape (P, D), holds
    fixed features of the perturbations.
    """

    def __init__(self, config: CpaConfig, sizes: Sizes, *, table: Tensor | None = None):
        super().__init__()
        self.config = config
        self.counts = config.recon_loss != "gauss"
        self.encoder = Encoder(sizes.n_genes, config)
        if self.counts:
            self.px_r = nn.Parameter(torch.randn(sizes.n_genes))
        self.decoder: CountDecoder | GaussianDecoder = (
            CountDecoder(sizes.n_genes, config) if self.counts else GaussianDecoder(sizes.n_genes, config)
        )
        self.pert_network = PerturbationEncoder(
            sizes.n_rows,
            config.n_latent,
            doser=config.doser_type,
            doser_sizes=(config.n_hidden_doser, config.n_layers_doser),
            table=table,
            frozen_projection=config.projection == "frozen",
            own_control=config.control_row == "learned",
            residual_dropout=config.residual_dropout if config.residual_rows else None,
        )
        self.covars_embeddings = nn.ModuleDict(
            {name: nn.Embedding(n, config.n_latent) for name, n in sizes.covariates.items()}
        )

    def basal(self, x: Tensor) -> Tensor:
        """The basal state (n, L) of expression (n, G): counts, or log1p values for `gauss`."""
        return self.encoder(torch.log1p(x) if self.counts else x)

    def latents(
        self,
        x: Tensor,
        rows: Tensor,
        doses: Tensor,
        covariates: Mapping[str, Tensor],
        *,
        mixing: Mixing | None = None,
    ) -> Latents:
        """The latent state of cells. With `mixing`, `x` is mixed already, the other parts are mixed here."""
        perturbation = self.pert_network(rows, doses)
        vectors = {name: self.covars_embeddings[name](codes) for name, codes in covariates.items()}
        if mixing is not None:
            w = mixing.weight
            perturbation = w * perturbation + (1 - w) * self.pert_network(mixing.rows, mixing.doses)
            for name, codes in mixing.covariates.items():
                table = self.covars_embeddings[name]
                if isinstance(table, nn.Embedding) and table.num_embeddings > 1:
                    vectors[name] = w * vectors[name] + (1 - w) * table(codes)
        return Latents(self.basal(x), perturbation, vectors)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion of each gene, shape (G,); count likelihoods only."""
        return torch.exp(self.px_r)

    def advance_decoder(self, z: Tensor) -> None:
        """Move the decoder's batch statistics as a forward pass would, without its output layers."""
        if any(isinstance(layer, BatchNorm1d) for layer in self.decoder.modules()):
            self.decoder.hidden(z)
