"""Truth and prediction DE tables side by side, one perturbation at a time, over the union of their tested genes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .de import ALPHA, DETable
from .targets import TargetRule, gene_index

GATE_SIZE = 10


@dataclass(frozen=True)
class Side:
    """One side's rows of one perturbation, every array of shape (n_genes_of_union,).

    Genes that the side did not test have `present` false, NaN fold change and p values, and are not significant.
    A NaN fold change is never significant.
    """

    present: np.ndarray
    fold: np.ndarray
    p_value: np.ndarray
    p_adj: np.ndarray

    @cached_property
    def significant(self) -> np.ndarray:
        return self.present & (self.p_adj < ALPHA)

    @cached_property
    def ranked(self) -> np.ndarray:
        """Significant genes by descending absolute fold change, equal ones in gene order."""
        genes = np.flatnonzero(self.significant)
        return genes[np.argsort(-np.abs(self.fold[genes]), kind="stable")]

    @property
    def n_significant(self) -> int:
        return int(self.significant.sum())

    @cached_property
    def signed(self) -> np.ndarray:
        """Genes whose fold change has a sign."""
        return self.present & ~np.isnan(self.fold) & (self.fold != 0)


@dataclass(frozen=True)
class Pair:
    """Both sides of one perturbation. `own` is the column of its own gene in the union, or -1.

    `name_rank` orders genes by name, the last tie break of the reach walk.
    """

    label: str
    real: Side
    pred: Side
    own: int
    name_rank: np.ndarray

    @cached_property
    def others(self) -> np.ndarray:
        """All genes but the own gene."""
        mask = np.ones(len(self.name_rank), dtype=bool)
        if self.own >= 0:
            mask[self.own] = False
        return mask

    @cached_property
    def joint(self) -> np.ndarray:
        """Genes that both sides tested."""
        return self.real.present & self.pred.present

    @cached_property
    def decidable(self) -> np.ndarray:
        """Joint genes whose true fold change has a sign."""
        return self.joint & self.real.signed

    @cached_property
    def match(self) -> np.ndarray:
        """Decidable genes with the same predicted sign."""
        return self.decidable & self.pred.signed & (np.sign(self.real.fold) == np.sign(self.pred.fold))

    @cached_property
    def n_universe(self) -> int:
        """Genes tested by either side."""
        return int((self.real.present | self.pred.present).sum())

    @cached_property
    def n_shared(self) -> int:
        """Genes significant on both sides."""
        return int((self.real.significant & self.pred.significant).sum())

    @cached_property
    def walk_order(self) -> np.ndarray:
        """Genes as the prediction vouches for them: significant first, then by p_adj, p, |fold|, name."""
        fold = np.abs(self.pred.fold)
        keys = (
            self.name_rank,
            -np.where(np.isnan(fold), -np.inf, fold),
            np.where(np.isnan(self.pred.p_value), np.inf, self.pred.p_value),
            np.where(np.isnan(self.pred.p_adj), np.inf, self.pred.p_adj),
            ~self.pred.significant,
        )
        return np.lexsort(keys)

    def walk(self, pool: np.ndarray, purity: float) -> int:
        """Decidable genes up to the furthest place of the walk at which the share of matches is still `purity`.

        `pool` is a mask of the genes to walk through; 0 when the share is never reached.
        """
        genes = self.walk_order[pool[self.walk_order]]
        n = np.cumsum(self.decidable[genes])
        m = np.cumsum(self.match[genes])
        reached = (n > 0) & (m >= 0) & (np.divide(m, n, out=np.zeros(len(n)), where=n > 0) >= purity)
        return int(n[reached].max(initial=0))


@dataclass(frozen=True)
class DEPanel:
    """Both DE tables over the same perturbations.

    Attributes
    ----------
    perturbations, gene_names
        Labels, sorted; the full gene axis that the tables' columns refer to.
    target_rule
        How labels find their own gene among the genes that the truth's table tested.
    """

    perturbations: tuple[str, ...]
    gene_names: tuple[str, ...]
    real: DETable
    pred: DETable
    target_rule: TargetRule

    @cached_property
    def union(self) -> np.ndarray:
        """Columns of the gene axis tested by either side, ascending."""
        return np.union1d(self.real.genes, self.pred.genes)

    @cached_property
    def own(self) -> np.ndarray:
        """Position in the union of each own gene, or -1. Raises `MetricError` when no label resolves."""
        tested = gene_index([self.gene_names[g] for g in self.real.genes])
        columns = self.target_rule.own_genes_checked(
            self.perturbations, tested, where="the genes tested in the truth", trust_map=True
        )
        places = np.searchsorted(self.union, self.real.genes)
        return np.where(columns >= 0, places[columns], -1)

    @cached_property
    def name_rank(self) -> np.ndarray:
        """Rank of each gene of the union by name (code points)."""
        names = np.array([str(self.gene_names[g]) for g in self.union], dtype=object)
        rank = np.empty(len(names), dtype=np.int64)
        rank[np.argsort(names, kind="stable")] = np.arange(len(names))
        return rank

    @cached_property
    def without_own(self) -> tuple[Pair, ...]:
        """The pairs, with their own genes resolved."""
        return tuple(replace(pair, own=int(own)) for pair, own in zip(self.pairs, self.own, strict=True))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs for metrics that keep the own gene: no label has to resolve."""
        return tuple(
            Pair(
                label,
                _side(self.real, row, self.union),
                _side(self.pred, row, self.union),
                -1,
                self.name_rank,
            )
            for row, label in enumerate(self.perturbations)
        )


def _side(table: DETable, row: int, union: np.ndarray) -> Side:
    present = np.isin(union, table.genes, assume_unique=True)

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.full(len(union), np.nan)
        out[present] = values
        return out

    fold = spread(table.log2_fold_change[row])
    p_adj = spread(table.p_adj[row])
    # A fold change that is not a number cannot be called significant.
    p_adj[present & np.isnan(fold)] = 1.0
    return Side(present, fold, spread(table.p_value[row]), p_adj)
