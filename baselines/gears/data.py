"""What GEARS reads from the cells: vocabulary rows of perturbations, retained genes, paired controls, graph cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data_specs.errors import ModelError
from ...data_specs.labels import CONTROL, targets_of
from ..training.data import CellData

_ROWS_PER_BLOCK = 4096


@dataclass(frozen=True)
class Vocabulary:
    """The genes that can be perturbed; a gene's place is its row of the perturbation embedding."""

    genes: tuple[str, ...]
    position: Mapping[str, int]

    @classmethod
    def of(cls, genes: Sequence[str] | np.ndarray) -> Vocabulary:
        names = tuple(str(gene) for gene in genes)
        return cls(names, {gene: i for i, gene in enumerate(names)})

    def members(self, label: str) -> list[int] | None:
        """Rows of a label's targets, `[]` for control, None when a target is not in the vocabulary."""
        rows = [self.position.get(target) for target in targets_of(label)]
        return None if None in rows else [row for row in rows if row is not None]

    def missing(self, label: str) -> list[str]:
        """Targets of a label that are not in the vocabulary, in label order."""
        return [target for target in targets_of(label) if target not in self.position]


def candidate_genes(cells: CellData) -> set[str]:
    """Genes that could be vocabulary: all measured ones, and the targets of every label of the file and its split."""
    labels = cells.extras.get("labels", tuple(label for _, label in cells.keys))
    return {str(gene) for gene in cells.genes} | {t for label in labels for t in targets_of(label)}


@dataclass(frozen=True)
class TrainingRows:
    """The training cells of a run, controls included, in file order.

    Attributes
    ----------
    rows
        Rows of `CellData.x`, int64, shape (n,).
    conditions
        Condition of each row in the loss, int64, shape (n,).
    members
        Vocabulary rows of each row's targets, int64, shape (n, m), padded with -1.
    retained
        Genes of each condition that enter the loss, bool, shape (n_conditions, G): those with expression in any of
        its training cells; all for control.
    dropped
        Training labels left out because a target is not in the vocabulary.
    """

    rows: np.ndarray
    conditions: np.ndarray
    members: np.ndarray
    retained: np.ndarray
    dropped: tuple[str, ...]


def training_rows(cells: CellData, vocabulary: Vocabulary, *, published: bool = False) -> TrainingRows:
    """Control cells and the cells of covered training perturbations that are not held out.

    A condition is a (context, perturbation), with `published` also split by the published label.

    Raises
    ------
    ModelError
        No training perturbation is covered, or the file does not keep published labels.
    """
    members = {key: vocabulary.members(key[1]) for key in cells.train_keys}
    covered = [key for key in cells.train_keys if members[key] is not None]
    dropped = tuple(sorted({key[1] for key in cells.train_keys if members[key] is None}))
    if not covered:
        raise ModelError(
            f"none of the {len(cells.train_keys)} training perturbations has GO terms for all its targets "
            f"(first: {dropped[0] if dropped else 'none'}); names must match the annotation."
        )
    used = np.zeros(len(cells.keys), dtype=bool)
    used[[cells.position[key] for key in covered]] = True
    rows = np.flatnonzero((used[cells.codes] & ~cells.held_out) | cells.is_control)
    width = max(len(members[key] or ()) for key in covered)
    table = np.full((len(cells.keys), width), -1, dtype=np.int64)
    for key in covered:
        own = members[key] or []
        table[cells.position[key], : len(own)] = own
    codes = cells.codes[rows].astype(np.int64)
    if published:
        source = cells.extras.get("published")
        if source is None:
            raise ModelError("conditions=published needs the obs column label_source in the data.")
        codes = codes * (int(source.max()) + 2) + source[rows] + 1
        codes = np.where(cells.is_control[rows], cells.codes[rows] * (int(source.max()) + 2), codes)
    _, first, conditions = np.unique(codes, return_index=True, return_inverse=True)
    retained = _expressed(cells.x, rows, conditions, len(first))
    retained[cells.is_control[rows[first]]] = True
    return TrainingRows(rows, conditions.astype(np.int64), table[cells.codes[rows]], retained, dropped)


def _expressed(x: Any, rows: np.ndarray, conditions: np.ndarray, n_conditions: int) -> np.ndarray:
    found = np.zeros((n_conditions, x.shape[1]), dtype=bool)
    for start in range(0, len(rows), _ROWS_PER_BLOCK):
        part = slice(start, start + _ROWS_PER_BLOCK)
        block = x[rows[part]]
        stored = block.data != 0
        condition = np.repeat(conditions[part], np.diff(block.indptr))
        found[condition[stored], block.indices[stored]] = True
    return found


def graph_cells(cells: CellData, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of the co-expression graph, sorted: controls and training cells with one target, at most `limit` drawn.

    0 takes all of them. Held-out cells are not among them.
    """
    single = [key for key in cells.train_keys if len(targets_of(key[1])) == 1]
    wanted = np.array([key[1] == CONTROL or key in set(single) for key in cells.keys], dtype=bool)
    rows = np.flatnonzero(wanted[cells.codes] & ~cells.held_out)
    if limit and len(rows) > limit:
        rows = np.sort(rng.choice(rows, limit, replace=False))
    return rows
