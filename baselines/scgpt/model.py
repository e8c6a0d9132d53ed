"""The scGPT generator: gene, value and perturbation vectors, a transformer over genes, and the expression decoder."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.distributed import BatchNorm1d
from .attention import Encoder
from .config import ScGPTConfig
from .parts import AffineDecoder, ClsDecoder, Decoded, ExprDecoder, GeneEncoder, MVCDecoder, ValueEncoder

N_FLAGS = 3
BN_EPS = 6.1e-5
ECS_THRESHOLD = 0.3
CellStyle = Literal["cls", "avg-pool", "w-pool"]


class Output(NamedTuple):
    """What a forward pass gives: `values` and `nonzero` (see `Decoded`), token vectors (B, L, D), gene vectors."""

    values: Tensor
    nonzero: Tensor | None
    tokens: Tensor
    genes: Tensor


class TransformerGenerator(nn.Module):
    """Expression after a perturbation from expression before it and flags on the perturbed genes.

    State-dict names and shapes are upstream's: `variant=affine` is its release 0.2.2 to 0.2.5, `legacy_bn` 0.2.1.
    There are no positions: outputs follow any reordering of the genes.
    """

    def __init__(
        self,
        config: ScGPTConfig,
        n_tokens: int,
        pad: int,
        *,
        prior: Tensor | None = None,
        n_cls: int = 1,
        mvc: Literal["none", "inner product", "inner product, detach"] = "none",
    ):
        super().__init__()
        width, zero_prob = config.d_model, config.explicit_zero_prob
        self.config = config
        self.encoder = GeneEncoder(n_tokens, width, pad, prior=prior)
        self.value_encoder = ValueEncoder(width, config.dropout)
        self.pert_encoder = nn.Embedding(N_FLAGS, width, padding_idx=config.pert_pad_id)
        self.bn = BatchNorm1d(width, eps=BN_EPS) if config.variant == "legacy_bn" else None
        self.transformer_encoder = Encoder(
            width,
            config.nhead,
            config.d_hid,
            config.nlayers,
            config.dropout,
            init=config.init,
            recompute=config.activation_checkpointing,
        )
        self.decoder = (
            ExprDecoder(width, zero_prob=zero_prob)
            if config.variant == "legacy_bn"
            else AffineDecoder(
                width,
                zero_prob=zero_prob,
                activation=config.decoder_activation,
                adaptive_bias=config.decoder_adaptive_bias,
            )
        )
        self.cls_decoder = ClsDecoder(width, n_cls, config.n_layers_cls)
        self.mvc_decoder = (
            None if mvc == "none" else MVCDecoder(width, zero_prob=zero_prob, detach=mvc.endswith("detach"))
        )

    @property
    def n_tokens(self) -> int:
        return self.encoder.embedding.num_embeddings

    def forward(
        self,
        genes: Tensor,
        values: Tensor,
        flags: Tensor,
        padding: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> Output:
        """One pass.

        Parameters
        ----------
        genes
            Token ids, int64, shape (L,) for all cells alike, or (B, L).
        values
            Expression before the perturbation, shape (B, L + m).
        flags
            1 at perturbed genes, otherwise 0, int64, shape (B, L + m).
        padding
            True at padded positions, bool, shape (B, L + m); None without padding.
        extra
            Token ids of each cell's own m further inputs, int64, shape (B, m); they follow the genes.

        Returns
        -------
        Output over all L + m positions; values at padded positions mean nothing.
        """
        vectors = self.encoder(genes)
        if vectors.dim() == 2:
            vectors = vectors.expand(len(values), -1, -1)
        if extra is not None:
            vectors = torch.cat([vectors, self.encoder(extra)], dim=1)
        x = vectors + self.value_encoder(values) + self.pert_encoder(flags)
        if self.bn is not None:
            x = self._normalised(x, padding)
        x = self.transformer_encoder(x, padding)
        found: Decoded = self.decoder(x, values)
        return Output(found.values, found.nonzero, x, vectors)

    def _normalised(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Batch norm over all tokens of all cells; padded ones do not count."""
        assert self.bn is not None
        weights = None if padding is None else (~padding).reshape(-1)
        return self.bn(x.reshape(-1, x.shape[-1]), weights).view_as(x)

    def expected(self, output: Output) -> Tensor:
        """Predicted expression, shape (B, L + m): the values, times the probability of being non-zero where known."""
        return output.values if output.nonzero is None else output.values * output.nonzero

    def sampled(self, output: Output, generator: torch.Generator) -> Tensor:
        """As `expected`, with zeros drawn from the probabilities; the values themselves without them."""
        if output.nonzero is None:
            return output.values
        return output.values * torch.bernoulli(output.nonzero, generator=generator)

    def cell_vectors(self, output: Output, values: Tensor, style: CellStyle = "cls") -> Tensor:
        """Cell vectors, shape (B, D): the first token's (`cls`), the mean, or the value-weighted sum of length one."""
        if style == "cls":
            return output.tokens[:, 0]
        if style == "avg-pool":
            return output.tokens.mean(dim=1)
        return F.normalize((output.tokens * values.unsqueeze(2)).sum(dim=1), dim=1)

    def mvc(self, cell: Tensor, output: Output) -> Decoded:
        """Values from the cell vector; needs `mvc`."""
        assert self.mvc_decoder is not None
        return self.mvc_decoder(cell, output.genes)


def elastic_cell_similarity(cell: Tensor, threshold: float = ECS_THRESHOLD) -> Tensor:
    """Upstream's elastic cell similarity loss of cell vectors, shape (B, D)."""
    unit = F.normalize(cell, dim=1)
    similar = (unit @ unit.T).masked_fill(torch.eye(len(cell), dtype=torch.bool, device=cell.device), 0.0)
    return (1 - (torch.relu(similar) - threshold) ** 2).mean()
