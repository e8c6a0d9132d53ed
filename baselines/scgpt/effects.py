"""Predictions of a trained network from control cells: per cell, and as mean effects over a pool of cells."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from .config import ScGPTConfig
from .inputs import InputMaker, LabelTable
from .model import TransformerGenerator
from .sampling import gene_groups
from .vocabulary import GeneTokens, Place

# Tokens of one forward pass; cells per pass follow from the number of genes.
TOKENS_PER_PASS = 64 * 1536
NOWHERE = Place((), ())


class Predictor:
    """Predictions of one network on the genes of its data set. The network must be in evaluation mode.

    Results do not depend on how many cells go through at once, up to rounding.
    """

    def __init__(self, network: TransformerGenerator, tokens: GeneTokens, config: ScGPTConfig, *, seed: int):
        self.network, self.tokens, self.config, self.seed = network, tokens, config, seed
        parameter = network.encoder.embedding.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        self.maker = InputMaker(tokens, self.device)
        self._modelled = np.flatnonzero(tokens.modelled)
        self._without: dict[str, np.ndarray] = {}

    def cells(self, x: sp.csr_array, place: Place, *, label: str = "") -> Tensor:
        """Predicted expression of each cell under a perturbation, shape (n, G), on the device.

        Genes that the network does not see keep their value. Values can be negative.

        Parameters
        ----------
        x
            Expression of control cells, shape (n, G), as in training.
        place
            The perturbation's targets; `NOWHERE` for none.
        label
            Seeds the gene groups of chunked inference.
        """
        parts = [self._pass(block, place, groups) for block, groups in self._blocks(x, place, label)]
        return (
            torch.cat(parts)
            if parts
            else torch.zeros((0, n_columns(x)), dtype=self.dtype, device=self.device)
        )

    def mean(self, x: sp.csr_array, place: Place, *, label: str = "") -> np.ndarray:
        """Mean of `cells` over the cells, float64, shape (G,)."""
        total = torch.zeros(n_columns(x), dtype=torch.float64, device=self.device)
        for block, groups in self._blocks(x, place, label):
            total += self._pass(block, place, groups).double().sum(dim=0)
        return total.cpu().numpy() / n_rows(x)

    def _blocks(
        self, x: sp.csr_array, place: Place, label: str
    ) -> Iterator[tuple[sp.csr_array, list[list[np.ndarray]] | None]]:
        """Cells in blocks, and the gene groups of each repetition (None: each cell its own expressed genes)."""
        config = self.config
        groups: list[list[np.ndarray]] | None = None
        if config.include_zero_gene == "cell-wise":
            longest = int(np.diff(x.indptr).max(initial=1)) + len(place.columns)
        else:
            groups = self._groups(x, place, label)
            longest = max(len(genes) for group in groups for genes in group)
        size = max(1, TOKENS_PER_PASS // max(1, longest + self.tokens.n_slots))
        for start in range(0, n_rows(x), size):
            yield x[start : start + size], groups

    def _groups(self, x: sp.csr_array, place: Place, label: str) -> list[list[np.ndarray]]:
        config = self.config
        genes, forced = self._modelled, np.unique(np.asarray(place.columns, dtype=np.int64))
        if config.include_zero_gene == "batch-wise":
            genes = np.intersect1d(genes, np.unique(x.indices[x.data != 0]))
        if config.inference == "full":
            return [[np.union1d(genes, forced)]]
        code = zlib.crc32(label.encode())
        generators = [np.random.default_rng([self.seed, code, i]) for i in range(config.partitions)]
        return [gene_groups(genes, forced, config.max_seq_len, rng) for rng in generators]

    @torch.no_grad()
    def _pass(
        self, block: sp.csr_array, place: Place, groups: Sequence[Sequence[np.ndarray]] | None
    ) -> Tensor:
        x = torch.as_tensor(block.toarray(), dtype=self.dtype, device=self.device)
        targets = LabelTable.of([place], self.tokens.n_slots).rows(np.zeros(len(x), dtype=np.int64))
        if groups is None:
            return self._own_genes(x, targets, self._expressed(block, place))
        total, times = torch.zeros_like(x), torch.zeros(x.shape[1], dtype=x.dtype, device=self.device)
        for group in groups:
            for genes in group:
                columns, values, _ = self._run(x, targets, genes)
                total.index_add_(1, columns, values)
                times.index_add_(0, columns, torch.ones_like(columns, dtype=x.dtype))
        return torch.where(times > 0, total / times.clamp(min=1), x)

    def _own_genes(self, x: Tensor, targets: LabelTable, own: list[np.ndarray]) -> Tensor:
        columns, values, padding = self._run(x, targets, own)
        if padding is None:
            return x.scatter(1, columns, values)
        # Padding points at column 0, which may be a real position of the same cell: it goes to a column of its own.
        wide = torch.nn.functional.pad(x, (0, 1))
        return wide.scatter(1, columns.masked_fill(padding, x.shape[1]), values)[:, :-1]

    def _expressed(self, block: sp.csr_array, place: Place) -> list[np.ndarray]:
        """Columns of each cell: its expressed genes that the network knows, and the perturbed ones."""
        return [
            expressed_genes(block, row, self.tokens.modelled, np.asarray(place.columns, dtype=np.int64))
            for row in range(n_rows(block))
        ]

    def _run(
        self, x: Tensor, targets: LabelTable, columns: np.ndarray | list[np.ndarray]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Columns, predicted values and padding of the gene positions."""
        inputs = self.maker.make(x, targets, columns)
        with autocast(self.config, self.device):
            output = self.network(*inputs[:5])
            values = self.network.expected(output)[:, : inputs.n_genes]
        return inputs.columns, values.to(self.dtype), inputs.gene_padding

    def effects(
        self, pools: Mapping[str, sp.csr_array], place: Place, *, label: str
    ) -> dict[str, np.ndarray]:
        """Effect of a perturbation on the pool of each context, float64, shape (G,), by `effect` (see `ScGPTConfig`).

        For `absolute` it is measured from the pool's own mean: the caller adds what its control mean differs by.
        """
        found = {}
        for context, pool in pools.items():
            base = self._unperturbed(context, pool) if self.config.effect == "contrast" else mean_rows(pool)
            found[context] = self.mean(pool, place, label=label) - base
        return found

    def _unperturbed(self, context: str, pool: sp.csr_array) -> np.ndarray:
        """The prediction without a perturbation, once per context."""
        if context not in self._without:
            self._without[context] = self.mean(pool, NOWHERE, label="control")
        return self._without[context]


def expressed_genes(x: sp.csr_array, row: int, modelled: np.ndarray, forced: np.ndarray) -> np.ndarray:
    """Columns with expression in a row that are modelled, and the forced ones; sorted."""
    part = slice(x.indptr[row], x.indptr[row + 1])
    own = x.indices[part][x.data[part] != 0]
    return np.union1d(own[modelled[own]].astype(np.int64), forced[forced >= 0])


def mean_rows(x: sp.csr_array) -> np.ndarray:
    """Column means, float64."""
    return np.asarray(x.astype(np.float64).sum(axis=0)).ravel() / n_rows(x)


def n_rows(x: sp.csr_array) -> int:
    """Rows of a matrix."""
    return len(x.indptr) - 1


def n_columns(x: sp.csr_array) -> int:
    """Columns of a matrix."""
    return int(tuple(x.shape)[1])  # type: ignore[misc]


def autocast(config: ScGPTConfig, device: torch.device) -> Any:
    """bf16 autocast where the run trained with it."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if config.precision == "bf16" else nullcontext()
