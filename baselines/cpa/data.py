"""What CPA reads from the cells: slots, doses, condition classes and covariates of every cell, control pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import ModelError
from ...data_specs.labels import CONTROL
from ..base import Key
from ..training.data import CellData
from .config import CpaConfig
from .encoding import DoseScale, PerturbationTable, condition_of, padded

CONTEXT = "context"


@dataclass(frozen=True)
class Covariates:
    """Values of each covariate, `context` first, and their codes for the cells of the data set, int64."""

    values: Mapping[str, tuple[str, ...]]
    codes: Mapping[str, np.ndarray]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of values of each covariate."""
        return {name: len(values) for name, values in self.values.items()}

    @classmethod
    def of(cls, cells: CellData, rows: np.ndarray, columns: Sequence[str]) -> Covariates:
        """Covariates whose values are those of `rows`; a cell with another value has code -1."""
        found: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {
            CONTEXT: (cells.context_codes, cells.contexts)
        }
        found |= {name: cells.extras["columns"][name] for name in columns}
        values, codes = {}, {}
        for name, (own, categories) in found.items():
            seen = np.unique(own[rows])
            ordered = sorted(seen.tolist(), key=lambda code: categories[code])
            place = np.full(len(categories), -1, dtype=np.int64)
            place[ordered] = np.arange(len(ordered))
            values[name] = tuple(categories[code] for code in ordered)
            codes[name] = place[own]
        return cls(values, codes)


@dataclass(frozen=True)
class EncodedRows:
    """Cells with their slots: `rows` index the data set; `slots` (n, M) int64, `doses` (n, M), codes (n,) each."""

    rows: np.ndarray
    slots: np.ndarray
    doses: np.ndarray
    conditions: np.ndarray
    covariates: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Conditions:
    """Classes of the condition adversary and the cells that their weights count, int64, shape (C,)."""

    names: tuple[str, ...]
    n_cells: np.ndarray


def training_cells(
    cells: CellData, known: Sequence[Key], *, empty_cells: str
) -> tuple[np.ndarray, list[str]]:
    """Rows that train, in file order: cells of `known` training keys and all controls; and notes.

    Raises
    ------
    ModelError
        A cell without counts with `empty_cells="error"`, or nothing to train on.
    """
    wanted = np.zeros(len(cells.keys), dtype=bool)
    wanted[[cells.position[key] for key in known]] = True
    rows = np.flatnonzero((wanted[cells.codes] & ~cells.held_out) | cells.is_control)
    if not wanted.any():
        raise ModelError("no training perturbation can be encoded; the card of another run tells why.")
    notes = []
    empty = rows[np.diff(cells.x.indptr)[rows] == 0] if cells.space == "counts" else rows[:0]
    if len(empty):
        if empty_cells == "error":
            raise ModelError(
                f"{len(empty)} training cells have no counts in these genes, so no library size; "
                "filter them, or leave them out with --set empty_cells=leave-out."
            )
        rows = np.setdiff1d(rows, empty)
        notes.append(f"{len(empty)} training cells without counts were left out.")
    return rows, notes


def encode_cells(
    cells: CellData,
    rows: np.ndarray,
    covariates: Covariates,
    table: PerturbationTable,
    scale: DoseScale,
    conditions: Sequence[str],
    config: CpaConfig,
) -> EncodedRows:
    """Slots, doses and classes of some cells. A condition that is no class has code -1."""
    used = np.unique(cells.codes[rows])
    place = {name: i for i, name in enumerate(conditions)}
    labels = [cells.keys[code][1] for code in used.tolist()]
    slots, doses = padded([table.encode(label, scale, match_doses=config.match_doses) for label in labels])
    classes = np.array([place.get(condition_of(label), -1) for label in labels], dtype=np.int64)
    at = np.searchsorted(used, cells.codes[rows])
    return EncodedRows(
        rows,
        slots[at],
        doses[at],
        classes[at],
        {name: codes[rows] for name, codes in covariates.codes.items()},
    )


def condition_classes(cells: CellData, rows: np.ndarray, *, everything: bool) -> Conditions:
    """Sorted conditions of the training rows with their cells, or of all cells of the file (upstream)."""
    counts: dict[str, int] = {}
    if everything:
        sizes = cells.extras["n_cells"]
        pairs = [(label, n) for (_, label), n in sizes.items()]
    else:
        own = np.bincount(cells.codes[rows], minlength=len(cells.keys))
        pairs = [(label, int(n)) for (_, label), n in zip(cells.keys, own, strict=True) if n]
    for label, n in pairs:
        name = condition_of(label)
        counts[name] = counts.get(name, 0) + n
    names = tuple(sorted(counts))
    return Conditions(names, np.array([counts[name] for name in names], dtype=np.int64))


@dataclass(frozen=True)
class Pool:
    """Control cells of one context for predictions: expression (n, G) in the model's space, covariate codes (n,)."""

    x: sp.csr_array
    covariates: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return self.x.shape[0]  # type: ignore[index]


def control_pools(
    cells: CellData, encoded: EncodedRows, limit: int, rng: np.random.Generator
) -> dict[str, Pool]:
    """At most `limit` drawn control cells of each context that has some, in file order."""
    pools = {}
    for context in cells.contexts:
        key = (context, CONTROL)
        if key not in cells.position:
            continue
        own = np.flatnonzero(cells.codes[encoded.rows] == cells.position[key])
        if not len(own):
            continue
        if len(own) > limit:
            own = np.sort(rng.choice(own, limit, replace=False))
        pools[context] = Pool(
            sp.csr_array(cells.x[encoded.rows[own]]),
            {name: codes[own] for name, codes in encoded.covariates.items()},
        )
    return pools
