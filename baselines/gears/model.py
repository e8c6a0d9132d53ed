"""The GEARS network. Parameters carry upstream's names, so its state dicts load; embeddings are computed once per step.

The predicted shift depends on the perturbation set alone, so cells that share one are computed as one row and
weighted by their number in every batch statistic. Equal to the cell-by-cell form in exact arithmetic.

Source: Roohani, Huang, Leskovec, Nature Biotechnology 2024 (doi 10.1038/s41587-023-01905-6).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data_specs.errors import ShapeError
from .config import GearsConfig
from .decoder import decode
from .graphs import Graph
from .statistics import Moments, Reduce, alone, batch_normed, moments_of

_NORM_SLACK = 1e-7
_POSITION_WEIGHT = 0.2
_DENSE_UP_TO = 2000


@dataclass(frozen=True)
class Groups:
    """Cells of a batch grouped by perturbation set.

    Attributes
    ----------
    members
        Vocabulary rows of each group's genes, int64, shape (K, m), padded with -1; a group of controls is all -1.
    counts
        Cells of each group, float, shape (K,).
    of_cell
        Group of each cell, int64, shape (B,).
    first_apart
        The first group holds the first cell alone (upstream's co-expression reaches that cell only).
    """

    members: Tensor
    counts: Tensor
    of_cell: Tensor
    first_apart: bool = False


def group_cells(members: Tensor, *, first_apart: bool = False) -> Groups:
    """Groups of the cells of a batch. `members`: vocabulary rows per cell, int64, shape (B, m), -1 for none."""
    ordered = members.sort(dim=1, descending=True).values
    if first_apart:
        apart = torch.ones(len(members), 1, dtype=members.dtype, device=members.device)
        apart[0] = 0
        ordered = torch.cat([apart, ordered], dim=1)
    unique, of_cell, counts = torch.unique(ordered, dim=0, return_inverse=True, return_counts=True)
    return Groups(unique[:, 1:] if first_apart else unique, counts, of_cell, first_apart)


def _mlp(*sizes: int) -> Any:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
    holder: Any = nn.Module()
    holder.network = nn.Sequential(*layers[:-1])
    return holder


class _GraphLayer(nn.Module):
    """Propagation, then a linear map."""

    def __init__(self, hidden: int):
        super().__init__()
        self.lin = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, propagation: Tensor | None, *, before_norm: bool = False) -> Tensor:
        x = x if propagation is None else propagation @ x
        return _linear_before_norm(self.lin, x) if before_norm else self.lin(x)


def _unmoved(bias: Tensor) -> Tensor:
    """A bias whose shift the next batch norm removes: a gradient of exactly 0, where rounding noise would move Adam."""
    return bias.detach() + 0 * bias


def _linear_before_norm(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, linear.weight, _unmoved(linear.bias))


class GearsNetwork(nn.Module):
    """Perturbation sets to expression shifts.

    Parameters
    ----------
    config
        Sizes and switches.
    gene_graph
        Co-expression graph over the G measured genes; its order is the order of predictions.
    perturbation_graph
        GO graph over the P vocabulary genes.
    dtype
        Type of parameters and propagation matrices.
    """

    def __init__(
        self,
        config: GearsConfig,
        gene_graph: Graph,
        perturbation_graph: Graph,
        *,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config = config
        n_genes, n_perts, hidden = gene_graph.n_nodes, perturbation_graph.n_nodes, config.hidden_size
        self.n_genes, self.n_perts = n_genes, n_perts
        # Upstream's unused layers are kept: its weight files hold them, and they cost nothing.
        self.pert_w = nn.Linear(1, hidden)
        self.gene_emb = nn.Embedding(n_genes, hidden)
        self.pert_emb = nn.Embedding(n_perts, hidden)
        self.emb_trans_v2 = _mlp(hidden, hidden, hidden)
        self.emb_pos = nn.Embedding(n_genes, hidden)
        self.layers_emb_pos = nn.ModuleList(_GraphLayer(hidden) for _ in range(config.num_gene_gnn_layers))
        self.sim_layers = nn.ModuleList(_GraphLayer(hidden) for _ in range(config.num_go_gnn_layers))
        self.recovery_w = _mlp(hidden, 2 * hidden, hidden)
        self.indv_w1 = nn.Parameter(torch.empty(n_genes, hidden, 1))
        self.indv_b1 = nn.Parameter(torch.empty(n_genes, 1))
        self.cross_gene_state = _mlp(n_genes, hidden, hidden)
        self.indv_w2 = nn.Parameter(torch.empty(1, n_genes, hidden + 1))
        self.indv_b2 = nn.Parameter(torch.empty(1, n_genes))
        for parameter in (self.indv_w1, self.indv_b1, self.indv_w2, self.indv_b2):
            nn.init.xavier_normal_(parameter)
        self.bn_emb = nn.BatchNorm1d(hidden)
        self.bn_pert_base = nn.BatchNorm1d(hidden)
        self.bn_pert_base_trans = nn.BatchNorm1d(hidden)
        self.pert_fuse = _mlp(hidden, hidden, hidden)
        if config.uncertainty:
            self.uncertainty_w = _mlp(hidden, 2 * hidden, hidden, 1)
        self.to(dtype)
        self.register_buffer("gene_propagation", _as_tensor(gene_graph, dtype), persistent=False)
        self.register_buffer("pert_propagation", _as_tensor(perturbation_graph, dtype), persistent=False)
        self.reduce: Reduce = alone

    def forward(self, members: Tensor, controls: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted expression of each cell, shape (B, G), and its log-variance or None.

        Parameters
        ----------
        members
            Vocabulary rows of the perturbed genes of each cell, int64, shape (B, m), -1 for none. Any m.
        controls
            Control expression that each cell starts from, shape (B, G).
        """
        if controls.shape != (len(members), self.n_genes):
            raise ShapeError(f"controls are {tuple(controls.shape)}, not ({len(members)}, {self.n_genes})")
        groups = group_cells(members, first_apart=self.config.coexpression == "first")
        shift, log_variance = self.shifts(groups)
        spread = None if log_variance is None else log_variance[groups.of_cell]
        return shift[groups.of_cell] + controls, spread

    def shifts(self, groups: Groups) -> tuple[Tensor, Tensor | None]:
        """Shift of each group, shape (K, G), and log-variance or None. In training, updates batch statistics."""
        self._limit_norms()
        counts = groups.counts.to(self.indv_w1.dtype)
        n_cells = self.reduce(counts.sum().detach())
        genes, variants = self._gene_vectors(groups, counts, n_cells)
        perturbed = self._perturbation_vectors(groups, counts)
        genes, perturbed = self._joined(genes, perturbed, variants, counts, n_cells)
        first_stage, log_variance = self._decode(genes, perturbed, variants, counts, n_cells)
        first_stage = first_stage + self.indv_b1[:, 0]
        state = self._weighted_mlp(self.cross_gene_state, first_stage, counts)
        own, shared = self.indv_w2[0, :, 0], self.indv_w2[0, :, 1:]
        return first_stage * own + state @ shared.T + self.indv_b2[0], log_variance

    def _limit_norms(self) -> None:
        """Rows of the embedding tables longer than 1 are shortened to 1, outside the gradient."""
        with torch.no_grad():
            for table in (self.gene_emb, self.emb_pos, self.pert_emb):
                norm = table.weight.norm(dim=1, keepdim=True)
                table.weight.mul_(torch.where(norm > 1, 1 / (norm + _NORM_SLACK), 1.0))

    def _gene_vectors(self, groups: Groups, counts: Tensor, n_cells: Tensor) -> tuple[Tensor, Tensor]:
        """Gene vectors of each variant, shape (V, G, H), and the variant of each group, shape (K,)."""
        n_rows = n_cells * self.n_genes
        table = self.gene_emb.weight
        base = torch.relu(self._normed(self.bn_emb, table, moments_of(table), n_rows))
        variants = torch.zeros_like(groups.of_cell[:1]).expand(len(counts))
        graph = None if self.config.coexpression == "none" else self.gene_propagation
        positions = [self._position_vectors(graph)]
        weights = None
        if groups.first_apart:
            variants = (torch.arange(len(counts), device=counts.device) > 0).to(variants.dtype)
            positions.append(self._position_vectors(None))
            weights = torch.stack([counts[0], counts[1:].sum()])
        vectors = torch.stack([base + _POSITION_WEIGHT * q for q in positions])
        x = vectors.flatten(0, 1)
        rows = None if weights is None else weights.repeat_interleave(self.n_genes)
        linear1, norm1, _, linear2, norm2 = self.emb_trans_v2.network
        x = _linear_before_norm(linear1, x)
        x = torch.relu(self._normed(norm1, x, moments_of(x, rows), n_rows))
        x = _linear_before_norm(linear2, x)
        # `bn_pert_base` removes the shift of this norm as well.
        x = self._normed(norm2, x, moments_of(x, rows), n_rows, bias=_unmoved(norm2.bias))
        return x.view_as(vectors), variants

    def _position_vectors(self, graph: Any) -> Tensor:
        x = self.emb_pos.weight
        for depth, layer in enumerate(self.layers_emb_pos):
            last = depth + 1 == len(self.layers_emb_pos)
            x = layer(x if depth == 0 else torch.relu(x), graph, before_norm=last)
        return x

    def _perturbation_vectors(self, groups: Groups, counts: Tensor) -> Tensor:
        """The fused perturbation vector of each group, shape (K, H); 0 for controls."""
        x = self.pert_emb.weight
        for depth, layer in enumerate(self.sim_layers):
            x = layer(x if depth == 0 else torch.relu(x), self.pert_propagation)
        present = groups.members >= 0
        treated = present.any(dim=1)
        total = (x[groups.members.clamp(min=0)] * present.unsqueeze(-1)).sum(dim=1)
        fused = torch.zeros_like(total)
        if self.training:
            n_treated = self.reduce((counts * treated).sum().detach())
            if n_treated == 0:
                return fused
            # A single treated cell counts twice, as upstream's duplicated row does.
            factor = torch.where(n_treated == 1, 2.0, 1.0).to(counts.dtype)
            weights = counts * treated * factor
            return self._weighted_mlp(self.pert_fuse, total, weights) * treated.unsqueeze(-1)
        return self._weighted_mlp(self.pert_fuse, total, counts) * treated.unsqueeze(-1)

    def _joined(
        self, genes: Tensor, perturbed: Tensor, variants: Tensor, counts: Tensor, n_cells: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gene and perturbation vectors such that relu of their sum is the normalised joint vector.

        The batch statistics of all sums follow from those of the parts: no (B, G, H) array is needed.
        """
        norm: Any = self.bn_pert_base
        if self.training:
            share = (counts / n_cells).unsqueeze(-1)
            within_mean = genes.mean(dim=1)[variants] + perturbed
            mean = self.reduce((share * within_mean).sum(dim=0))
            within = genes.var(dim=1, correction=0)[variants]
            variance = self.reduce((share * (within + (within_mean - mean) ** 2)).sum(dim=0))
            moments = Moments(mean, variance)
            self._track(norm, moments, n_cells * self.n_genes)
        else:
            moments = Moments(norm.running_mean, norm.running_var)
        scale = norm.weight * torch.rsqrt(moments.variance + norm.eps)
        return genes * scale, perturbed * scale + (norm.bias - moments.mean * scale)

    def _decode(
        self, genes: Tensor, perturbed: Tensor, variants: Tensor, counts: Tensor, n_cells: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """First-stage outputs without bias, shape (K, G), and log-variances or None."""
        weights = self.indv_w1[:, :, 0]
        if self.training:
            n_rows = n_cells * self.n_genes
            found = decode(
                *(genes, perturbed, variants, counts, n_rows), self.recovery_w, weights, reduce=self.reduce
            )
            _, norm1, _, _, norm2 = self.recovery_w.network
            self._track(norm1, found.inner, n_rows)
            self._track(norm2, found.outer, n_rows)
            first_stage = found.first_stage
        else:
            first_stage = self._decode_evaluation(genes, perturbed, variants)
        if not self.config.uncertainty:
            return first_stage, None
        joint = torch.relu(genes[variants] + perturbed.unsqueeze(1))
        rows = counts.repeat_interleave(self.n_genes)
        spread = self._weighted_mlp(self.uncertainty_w, joint.flatten(0, 1), rows)
        return first_stage, spread.view(joint.shape[:2])

    def _decode_evaluation(self, genes: Tensor, perturbed: Tensor, variants: Tensor) -> Tensor:
        """The decoder with running statistics: its last two layers and the gene weights become one vector per gene."""
        linear1, norm1, _, linear2, norm2 = self.recovery_w.network
        scale1 = norm1.weight * torch.rsqrt(norm1.running_var + norm1.eps)
        inner = linear1.weight * scale1.unsqueeze(1)
        offset = (linear1.bias - norm1.running_mean) * scale1 + norm1.bias
        scale2 = norm2.weight * torch.rsqrt(norm2.running_var + norm2.eps)
        weights = self.indv_w1[:, :, 0]
        outer = (weights * scale2) @ linear2.weight
        constant = weights @ ((linear2.bias - norm2.running_mean) * scale2 + norm2.bias)
        rows = []
        for variant, vector in zip(variants.tolist(), perturbed, strict=True):
            hidden = torch.relu(torch.addmm(offset, torch.relu(genes[variant] + vector), inner.T))
            rows.append((hidden * outer).sum(dim=-1) + constant)
        return torch.stack(rows) if rows else perturbed.new_empty((0, self.n_genes))

    def _weighted_mlp(self, mlp: Any, x: Tensor, weights: Tensor) -> Tensor:
        """(Linear, batch norm, ReLU) blocks without the last ReLU, rows weighted in the statistics."""
        for layer in mlp.network:
            if isinstance(layer, nn.BatchNorm1d):
                moments = moments_of(x, weights, reduce=self.reduce) if self.training else None
                x = self._normed(layer, x, moments, None)
            else:
                x = _linear_before_norm(layer, x) if isinstance(layer, nn.Linear) else layer(x)
        return x

    def _normed(
        self,
        norm: Any,
        x: Tensor,
        moments: Moments | None,
        n_rows: Tensor | None,
        *,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Batch norm with given moments in training (running ones tracked as over `n_rows` rows), else running ones."""
        shift = norm.bias if bias is None else bias
        if not self.training or moments is None:
            return batch_normed(x, Moments(norm.running_mean, norm.running_var), norm, shift)
        self._track(norm, moments, moments.n if n_rows is None else n_rows)
        return batch_normed(x, moments, norm, shift)

    @staticmethod
    def _track(norm: Any, moments: Moments, n_rows: Tensor) -> None:
        with torch.no_grad():
            rate = norm.momentum
            norm.running_mean.lerp_(moments.mean.to(norm.running_mean.dtype), rate)
            unbiased = moments.variance * (n_rows / (n_rows - 1).clamp(min=1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate)
            norm.num_batches_tracked.add_(1)


def _as_tensor(graph: Graph, dtype: torch.dtype) -> Tensor:
    """The propagation matrix, dense for small graphs, else sparse."""
    matrix = graph.normalised()
    if graph.n_nodes <= _DENSE_UP_TO:
        return torch.as_tensor(matrix.toarray(), dtype=dtype)
    coo = matrix.tocoo()
    return torch.sparse_coo_tensor(
        torch.as_tensor(np.stack([coo.row, coo.col]), dtype=torch.int64),
        torch.as_tensor(coo.data, dtype=dtype),
        size=coo.shape,
        is_coalesced=True,
        check_invariants=False,
    )


def trained_parameters(network: GearsNetwork) -> list[nn.Parameter]:
    """The parameters that training changes: all but those of upstream's unused layers."""
    unused = ("pert_w.", "bn_pert_base_trans.")
    return [p for name, p in network.named_parameters() if not name.startswith(unused)]
