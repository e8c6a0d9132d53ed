"""The transformer of scGPT: post-norm layers on scaled dot-product attention, with upstream's parameter names."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class SelfAttention(nn.Module):
    """Multi-head self-attention; parameters are those of `nn.MultiheadAttention`.

    Rows 0 to D-1 of `in_proj_weight` are the queries, then keys, then values; head h owns D/H rows of each in order.
    """

    def __init__(self, d_model: int, nhead: int, dropout: float = 0.0):
        super().__init__()
        self.nhead, self.dropout = nhead, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """Attention output, shape (B, L, D); `attend`, bool (B, 1, 1, L), marks the keys that may be attended to."""
        n, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (B, L, 3, H, D/H) -> three of (B, H, L, D/H)
        q, k, v = qkv.view(n, length, 3, self.nhead, width // self.nhead).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
        return self.out_proj(found.transpose(1, 2).reshape(n, length, width))


class EncoderLayer(nn.Module):
    """Attention and a ReLU feed-forward network, each followed by residual addition and layer norm."""

    def __init__(self, d_model: int, nhead: int, d_hid: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.self_attn = SelfAttention(d_model, nhead, dropout)
        self.linear1 = nn.Linear(d_model, d_hid)
        self.linear2 = nn.Linear(d_hid, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """Shape (B, L, D) in and out."""
        x = self.norm1(x + self._drop(self.self_attn(x, attend)))
        hidden = self._drop(torch.relu(self.linear1(x)))
        return self.norm2(x + self._drop(self.linear2(hidden)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Encoder(nn.Module):
    """A stack of encoder layers without a final norm.

    With `recompute` each layer is run again in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        d_hid: int,
        nlayers: int,
        dropout: float = 0.0,
        *,
        init: Literal["independent", "upstream"] = "independent",
        recompute: bool = False,
    ):
        super().__init__()
        self.recompute = recompute
        first = EncoderLayer(d_model, nhead, d_hid, dropout)
        rest = [
            copy.deepcopy(first) if init == "upstream" else EncoderLayer(d_model, nhead, d_hid, dropout)
            for _ in range(nlayers - 1)
        ]
        self.layers = nn.ModuleList([first, *rest])

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Shape (B, L, D) in and out; `padding`, bool (B, L), marks tokens that nothing attends to.

        Outputs at padded positions mean nothing. Without padding no mask is built, so that flash kernels apply.
        """
        attend = None if padding is None else ~padding[:, None, None, :]
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, attend, use_reentrant=False)  # type: ignore[assignment]
            else:
                x = layer(x, attend)
        return x
