"""Building blocks of CPA: stacks of linear layers, dose responses, the perturbation encoder. Upstream's state keys."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.distributed import BatchNorm1d
from .config import Doser
from .encoding import CONTROL_ROW

BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-3, 0.01


class Stack(nn.Module):
    """Blocks of linear, batch norm, layer norm without parameters, ReLU and dropout; the last four as asked for."""

    def __init__(
        self, n_in: int, width: int, depth: int, *, batch_norm: bool, layer_norm: bool, dropout: float
    ):
        super().__init__()
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(depth):
            parts: list[nn.Module] = [nn.Linear(n_in if i == 0 else width, width)]
            if batch_norm:
                parts.append(BatchNorm1d(width, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM))
            if layer_norm:
                parts.append(nn.LayerNorm(width, elementwise_affine=False))
            parts.append(nn.ReLU())
            if dropout > 0:
                parts.append(nn.Dropout(dropout))
            blocks[f"Layer {i}"] = nn.Sequential(*parts)
        self.fc_layers = nn.Sequential(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, n_in) to (n, width)."""
        return self.fc_layers(x)


class DoseResponse(nn.Module):
    """The factor on each perturbation's vector at a dose: `linear`, `sigm` or `logsigm`.

    All are 0 at dose 0. `beta` and `bias`, shape (1, P), stay in the state of `linear` too, as upstream has them.
    """

    def __init__(self, kind: Doser, n_rows: int):
        super().__init__()
        self.kind = kind
        self.beta = nn.Parameter(torch.ones(1, n_rows))
        self.bias = nn.Parameter(torch.zeros(1, n_rows))

    def forward(self, doses: Tensor, rows: Tensor) -> Tensor:
        """Factors, shape (n, slots), of doses and table rows of that shape."""
        if self.kind == "linear":
            return doses
        x = torch.log1p(doses) if self.kind == "logsigm" else doses
        beta, bias = self.beta[0][rows], self.bias[0][rows]
        return torch.sigmoid(beta * x + bias) - torch.sigmoid(bias)


class DoseNetwork(nn.Module):
    """A small network per perturbation from dose to factor, 0 at dose 0: the `mlp` dose response."""

    def __init__(self, n_rows: int, width: int, depth: int):
        super().__init__()
        sizes = [1, *([width] * depth), 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for n_in, n_out in pairwise(sizes):
            bound = n_in**-0.5
            self.weights.append(nn.Parameter(torch.empty(n_rows, n_in, n_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(n_rows, n_out).uniform_(-bound, bound)))

    def forward(self, doses: Tensor, rows: Tensor) -> Tensor:
        """As `DoseResponse.forward`."""
        # The networks of the few distinct rows of a batch, not one copy per cell.
        distinct, inverse = torch.unique(rows, return_inverse=True)
        h = doses.reshape(-1, 1)
        flat = inverse.reshape(-1)
        out = torch.zeros_like(h)
        for i, row in enumerate(distinct):
            at = torch.nonzero(flat == i).squeeze(1)
            values = h[at]
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                values = values @ weight[row] + bias[row]
                if layer < len(self.weights) - 1:
                    values = F.relu(values)
            out = out.index_copy(0, at, torch.sigmoid(values))
        return out.view_as(doses) * (doses > 0)


class PerturbationEncoder(nn.Module):
    """The dosed sum of the perturbations' vectors: learned rows, or a fixed table through a projection.

    Attributes
    ----------
    pert_embedding
        Learned vectors (P, L), or the fixed features (P, D); row 0 is padding.
    pert_transformation
        The projection D to L, with features only.
    control, residual
        A learned control vector outside the projection, and learned vectors added to it; None where not asked for.
    """

    def __init__(
        self,
        n_rows: int,
        n_latent: int,
        *,
        doser: Doser,
        doser_sizes: tuple[int, int] = (64, 2),
        table: Tensor | None = None,
        frozen_projection: bool = False,
        own_control: bool = False,
        residual_dropout: float | None = None,
    ):
        super().__init__()
        self.pert_transformation: nn.Linear | None = None
        if table is None:
            self.pert_embedding = nn.Embedding(n_rows, n_latent, padding_idx=0)
        else:
            self.pert_embedding = nn.Embedding.from_pretrained(table, freeze=True, padding_idx=0)
            self.pert_transformation = nn.Linear(table.shape[1], n_latent)
            self.pert_transformation.requires_grad_(not frozen_projection)
        self.dosers: DoseResponse | DoseNetwork = (
            DoseNetwork(n_rows, *doser_sizes) if doser == "mlp" else DoseResponse(doser, n_rows)
        )
        self.control: nn.Parameter | None = None
        if table is not None and own_control:
            self.control = nn.Parameter(torch.randn(n_latent))
        self.residual: nn.Embedding | None = None
        self.residual_dropout = residual_dropout or 0.0
        if table is not None and residual_dropout is not None:
            self.residual = nn.Embedding(n_rows, n_latent, padding_idx=0)
            nn.init.zeros_(self.residual.weight)

    def vectors(self, rows: Tensor) -> Tensor:
        """The vector of each table row at factor 1, shape rows.shape + (L,); 0 for padding."""
        found = self.pert_embedding(rows)
        if self.pert_transformation is not None:
            found = self.pert_transformation(found)
        if self.residual is not None:
            own = self.residual(rows)
            if self.training and self.residual_dropout > 0:
                kept = torch.rand(rows.shape, device=rows.device) >= self.residual_dropout
                own = own * kept.unsqueeze(-1)
            found = found + own
        if self.control is not None:
            found = torch.where((rows == CONTROL_ROW).unsqueeze(-1), self.control, found)
        return found * (rows != 0).unsqueeze(-1)

    def forward(self, rows: Tensor, doses: Tensor) -> Tensor:
        """The perturbations' part of the latent state, shape (n, L), of rows and doses of shape (n, slots)."""
        return (self.dosers(doses, rows).unsqueeze(-1) * self.vectors(rows)).sum(dim=1)
