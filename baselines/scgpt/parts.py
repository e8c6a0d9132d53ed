"""Encoders of genes and values, and the decoders of scGPT, with upstream's parameter names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

# Upstream clamps values from above before encoding them.
MAX_VALUE = 512.0
INIT_RANGE = 0.1


class GeneEncoder(nn.Module):
    """Layer-normed token vectors; with a prior, plus a linear map of fixed features of the token.

    `prior`, shape (V, F), is kept as a buffer and not trained.
    """

    prior: Tensor | None

    def __init__(self, n_tokens: int, d_model: int, pad: int, *, prior: Tensor | None = None):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, d_model, padding_idx=pad)
        self.enc_norm = nn.LayerNorm(d_model)
        # The padding row too, as upstream: genes without a token of their own share it.
        nn.init.uniform_(self.embedding.weight, -INIT_RANGE, INIT_RANGE)
        self.register_buffer("prior", prior)
        if prior is not None:
            self.from_prior = nn.Linear(prior.shape[1], d_model, bias=False)
            nn.init.normal_(self.from_prior.weight, std=INIT_RANGE / prior.shape[1] ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors of token ids of any shape, shape (*tokens.shape, D)."""
        found = self.embedding(tokens)
        if self.prior is not None:
            found = found + self.from_prior(self.prior[tokens])
        return self.enc_norm(found)


class ValueEncoder(nn.Module):
    """Vectors of expression values: two layers and a layer norm."""

    def __init__(self, d_model: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(1, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Shape (B, L) to (B, L, D)."""
        hidden = torch.relu(self.linear1(values.clamp(max=MAX_VALUE).unsqueeze(-1)))
        return self.dropout(self.norm(self.linear2(hidden)))


class Decoded(NamedTuple):
    """Predicted values, and the probability of being non-zero where the decoder has it; both shape (B, L)."""

    values: Tensor
    nonzero: Tensor | None


def _mlp(d_model: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_model, d_model),
        nn.LeakyReLU(),
        nn.Linear(d_model, d_model),
        nn.LeakyReLU(),
        nn.Linear(d_model, 1),
    )


class ExprDecoder(nn.Module):
    """One number per token, and with `zero_prob` the probability that it is not zero."""

    def __init__(self, d_model: int, *, zero_prob: bool = False):
        super().__init__()
        self.fc = _mlp(d_model)
        self.zero_logit = _mlp(d_model) if zero_prob else None

    def forward(self, x: Tensor, values: Tensor | None = None) -> Decoded:
        """From token vectors, shape (B, L, D). `values` are not used."""
        nonzero = None if self.zero_logit is None else torch.sigmoid(self.zero_logit(x).squeeze(-1).float())
        return Decoded(self.fc(x).squeeze(-1), nonzero)


class AffineDecoder(nn.Module):
    """Expression as a * value + b, both from the token vector.

    `adaptive_bias` multiplies b by the mean non-zero value of the cell (an empty cell counts as one of 0).
    """

    def __init__(
        self, d_model: int, *, zero_prob: bool = False, activation: str = "", adaptive_bias: bool = False
    ):
        super().__init__()
        self.adaptive_bias = adaptive_bias
        self.coeff_decoder = ExprDecoder(d_model, zero_prob=zero_prob)
        self.bias_decoder = ExprDecoder(d_model, zero_prob=zero_prob)
        self.activation = getattr(nn, activation)() if activation else None

    def forward(self, x: Tensor, values: Tensor) -> Decoded:
        """From token vectors, shape (B, L, D), and input values, shape (B, L)."""
        a, nonzero = self.coeff_decoder(x)
        # The bias decoder's own probability is not used; skipping it leaves its weights without gradient.
        b = self.bias_decoder.fc(x).squeeze(-1)
        if self.activation is not None:
            a, b = self.activation(a), self.activation(b)
        if self.adaptive_bias:
            n = (values != 0).sum(dim=1, keepdim=True).clamp(min=1)
            b = b * (values.sum(dim=1, keepdim=True) / n)
        return Decoded(a * values + b, nonzero)


class ClsDecoder(nn.Module):
    """Classification head on the cell vector."""

    def __init__(self, d_model: int, n_cls: int = 1, nlayers: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(nlayers - 1):
            layers += [nn.Linear(d_model, d_model), nn.ReLU(), nn.LayerNorm(d_model)]
        self._decoder = nn.ModuleList(layers)
        self.out_layer = nn.Linear(d_model, n_cls)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, D) to (B, n_cls)."""
        for layer in self._decoder:
            x = layer(x)
        return self.out_layer(x)


class MVCDecoder(nn.Module):
    """Values from the cell vector and gene queries: their inner product."""

    def __init__(self, d_model: int, *, zero_prob: bool = False, detach: bool = False):
        super().__init__()
        self.detach = detach
        self.gene2query = nn.Linear(d_model, d_model)
        self.W = nn.Linear(d_model, d_model, bias=False)
        self.W_zero_logit = nn.Linear(d_model, d_model) if zero_prob else None

    def forward(self, cell: Tensor, genes: Tensor) -> Decoded:
        """From cell vectors, shape (B, D), and gene vectors, shape (B, L, D)."""
        queries = torch.sigmoid(self.gene2query(genes.detach() if self.detach else genes))
        at = cell.unsqueeze(2)
        nonzero = None
        if self.W_zero_logit is not None:
            nonzero = torch.sigmoid((self.W_zero_logit(queries) @ at).squeeze(2).float())
        return Decoded((self.W(queries) @ at).squeeze(2), nonzero)
