"""From expression rows and labels to what the network reads: tokens, values, flags, slots for unmeasured targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .sampling import padded
from .vocabulary import GeneTokens, Place


class LabelTable(NamedTuple):
    """Targets by label code: gene columns, (n, k), and tokens of unmeasured targets, (n, m), both padded with -1."""

    columns: np.ndarray
    extra: np.ndarray

    @classmethod
    def of(cls, places: Sequence[Place], n_slots: int) -> LabelTable:
        """A table of some places, with at least `n_slots` columns for unmeasured targets."""
        width = max([1, *(len(place.columns) for place in places)])
        slots = max([n_slots, *(len(place.extra) for place in places)])
        columns = np.full((len(places), width), -1, dtype=np.int64)
        extra = np.full((len(places), slots), -1, dtype=np.int64)
        for row, place in enumerate(places):
            columns[row, : len(place.columns)] = place.columns
            extra[row, : len(place.extra)] = place.extra
        return cls(columns, extra)

    def rows(self, codes: np.ndarray) -> LabelTable:
        """The rows of some labels."""
        return LabelTable(self.columns[codes], self.extra[codes])

    def forced(self) -> np.ndarray:
        """All gene columns in the table, sorted, without repeats."""
        found = np.unique(self.columns)
        return found[found >= 0]


class Inputs(NamedTuple):
    """Arguments of `TransformerGenerator.forward` for n cells of L genes and m slots, and how to read its result.

    `columns` are the gene columns of the first L positions, int64 on the device, shape (L,) or (n, L).
    """

    genes: Tensor
    values: Tensor
    flags: Tensor
    padding: Tensor | None
    extra: Tensor | None
    columns: Tensor

    @property
    def n_genes(self) -> int:
        return self.columns.shape[-1]

    @property
    def gene_padding(self) -> Tensor | None:
        """Padding of the L gene positions, bool, shape (n, L)."""
        return None if self.padding is None else self.padding[:, : self.n_genes]


class InputMaker:
    """Builds inputs on one device for one data set.

    Every cell has as many slots as the labels of the data set ever need; a slot without a target holds `<pad>` without
    value and flag. So shapes do not change between batches, nor between training and prediction.
    """

    def __init__(self, tokens: GeneTokens, device: torch.device):
        self.tokens, self.device = tokens, device
        self._ids = torch.as_tensor(tokens.ids, device=device)

    def make(self, x: Tensor, targets: LabelTable, columns: np.ndarray | Sequence[np.ndarray]) -> Inputs:
        """Inputs of cells with expression `x`, shape (n, G), whose targets are the rows of a table.

        `columns` are the genes of all cells alike, or of each cell alone (padded where their numbers differ). A
        perturbed gene that is not among them gets no flag.
        """
        if isinstance(columns, np.ndarray):
            chosen = self._send(columns)
            values, is_padding = x.index_select(1, chosen), None
            positions = _shared_positions(targets.columns, columns, x.shape[1])
        else:
            ragged = len({len(own) for own in columns}) > 1
            table, empty = padded(columns, multiple=64 if ragged else 1)
            chosen, is_padding = self._send(table), self._send(empty) if ragged else None
            values = x.gather(1, chosen)
            positions = _own_positions(targets.columns, table, empty)
        genes = self._ids[chosen]
        if is_padding is not None:
            values = values.masked_fill(is_padding, 0.0)
            genes = genes.masked_fill(is_padding, self.tokens.vocabulary.pad)
        n, n_slots = len(x), targets.extra.shape[1]
        length = values.shape[1] + n_slots
        if n_slots:
            positions = np.concatenate([positions, _slot_positions(targets.extra, values.shape[1])], axis=1)
            values = torch.nn.functional.pad(values, (0, n_slots))
            if is_padding is not None:
                is_padding = torch.nn.functional.pad(is_padding, (0, n_slots), value=False)
        flags = torch.zeros(n * length, dtype=torch.int64, device=self.device)
        row, slot = np.nonzero(positions >= 0)
        flags[self._send(row * length + positions[row, slot])] = 1
        return Inputs(genes, values, flags.view(n, length), is_padding, self._extra(targets), chosen)

    def _extra(self, targets: LabelTable) -> Tensor | None:
        if not targets.extra.shape[1]:
            return None
        return self._send(np.where(targets.extra >= 0, targets.extra, self.tokens.vocabulary.pad))

    def _send(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (
            tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor
        )


def _shared_positions(wanted: np.ndarray, columns: np.ndarray, n_genes: int) -> np.ndarray:
    """Position of each wanted column among `columns`, shape of `wanted`; -1 where it is not there."""
    at = np.full(n_genes + 1, -1, dtype=np.int64)
    at[columns] = np.arange(len(columns))
    return at[wanted]


def _own_positions(wanted: np.ndarray, columns: np.ndarray, empty: np.ndarray) -> np.ndarray:
    same = (columns[:, None, :] == wanted[:, :, None]) & ~empty[:, None, :]
    return np.where(same.any(axis=2), same.argmax(axis=2), -1)


def _slot_positions(extra: np.ndarray, n_genes: int) -> np.ndarray:
    return np.where(extra >= 0, n_genes + np.arange(extra.shape[1]), -1)
