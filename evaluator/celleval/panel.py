"""What the metrics of cell-eval read: both measured sides and their DE tables, over the same targets and genes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .de import DeTable, de_table
from .measure import Measured
from .rules import Rules
from .side import Side


@dataclass(frozen=True)
class PanelSide:
    """One side: its means and, when DE was asked for, its table.

    `side` reads the rows again; a side of a truth bundle has none, but what the rows would give (`stored_distances`,
    the energy distances, where the bundle's metrics need them).
    """

    role: str
    measured: Measured
    de: DeTable | None
    side: Side | None = None
    stored_distances: np.ndarray | None = None

    @classmethod
    def of(cls, side: Side, measured: Measured, rules: Rules) -> PanelSide:
        """The side with its DE table when rank sums were measured."""
        return cls(side.role, measured, None if measured.two_u is None else de_table(measured, rules), side)

    @property
    def table(self) -> DeTable:
        """The DE table; asking for it without DE is a programming error."""
        if self.de is None:
            raise ValueError(f"the DE table of {self.role} was not computed")
        return self.de


@dataclass(frozen=True)
class Panel:
    """A prediction and a truth, measured; row i of every array is `targets[i]`."""

    targets: tuple[str, ...]
    genes: np.ndarray
    pred: PanelSide
    truth: PanelSide
    rules: Rules

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    @cached_property
    def own_gene(self) -> np.ndarray:
        """Position of the gene each target is named after, int64, -1 where there is none."""
        lookup = {gene: i for i, gene in enumerate(self.genes)}
        return np.array([lookup.get(target, -1) for target in self.targets], dtype=np.int64)

    @cached_property
    def ranked(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(truth, pred) significant genes of every target, largest absolute fold change first."""
        truth, pred = self.truth.table, self.pred.table
        targets = range(self.n_targets)
        return [truth.ranked(i) for i in targets], [pred.ranked(i) for i in targets]

    def everywhere(self, value: float) -> np.ma.MaskedArray:
        """One number of the whole panel, copied to all targets."""
        return np.ma.masked_array(np.full(self.n_targets, value), mask=False)
