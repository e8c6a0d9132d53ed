"""The rules of quality filters. Each looks at what is left and says what goes. Controls stay unless a rule says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from ..errors import InvalidFile, UsageError
from ..issues import first_of
from ..split_file import Key
from .knockdown import cell_knockdown, target_knockdown, target_percentile
from .state import FilterState, Removal
from .variable_genes import dispersion_ranks

Rule = Callable[..., Removal]


def min_genes_per_cell(state: FilterState, *, min_genes: int) -> Removal:
    """Cells, controls included, that express fewer than `min_genes` of the genes left."""
    n_genes = np.zeros(state.file.n_obs, dtype=np.int64)
    for rows, values in state.blocks():
        kept = state.genes[values.indices]
        entry_rows = np.repeat(np.arange(len(rows)), np.diff(values.indptr))
        n_genes[rows] = np.bincount(entry_rows[kept], minlength=len(rows))
    return Removal(cells=n_genes < min_genes)


def min_cells_per_gene(state: FilterState, *, min_cells: int) -> Removal:
    """Genes that fewer than `min_cells` of the cells left express."""
    n_cells = np.zeros(state.file.n_vars, dtype=np.int64)
    for _, values in state.blocks():
        n_cells += np.bincount(values.indices, minlength=state.file.n_vars)
    return Removal(genes=n_cells < min_cells)


def min_cells_per_perturbation(state: FilterState, *, min_cells: int) -> Removal:
    """Perturbations with fewer than `min_cells` cells left in a context go from that context."""
    sizes = state.key_sizes()
    few = (sizes < min_cells) & (sizes > 0) & ~state.is_control_key
    why: dict[Key, str] = {state.keys[i]: f"{sizes[i]:,} cells" for i in np.flatnonzero(few)}
    return Removal(cells=state.cells_of(few), why=why)


def measured_targets(state: FilterState) -> Removal:
    """Perturbations with a target that is not among the genes left."""
    gone = ~state.measured()
    names = {str(name) for name in state.perturbation.categories[gone]}
    why = {key: "target not measured" for key in state.keys if key[1] in names}
    return Removal(cells=gone[state.perturbation.codes], why=why)


def min_de_genes(state: FilterState, *, more_than: int) -> Removal:
    """Perturbations without more than `more_than` DE genes, by the numbers of the user's table.

    Raises
    ------
    UsageError
        There is no table.
    InvalidFile
        It lacks a perturbation that is still there (E655).
    """
    if state.de_counts is None:
        raise UsageError(
            f"recipe {state.recipe} needs the number of DE genes of each perturbation: give --de-genes TABLE.csv."
        )
    sizes, controls = state.key_sizes(), state.is_control_key
    present = [int(i) for i in np.flatnonzero((sizes > 0) & ~controls)]
    counts = {
        i: state.de_counts.get(state.keys[i], state.de_counts.get(("", state.keys[i][1]))) for i in present
    }
    lacking = [state.keys[i][1] for i in present if counts[i] is None]
    if lacking:
        expected = "a row for every perturbation"
        raise InvalidFile(
            [state.issue("E655", "obs/perturbation", f"none for {first_of(lacking)}", expected)]
        )
    few = np.zeros(len(state.keys), dtype=bool)
    few[np.array([i for i in present if (counts[i] or 0) <= more_than], dtype=np.int64)] = True
    why = {state.keys[i]: f"{counts[int(i)]} DE genes" for i in np.flatnonzero(few)}
    return Removal(cells=state.cells_of(few), why=why)


def cap_cells(
    state: FilterState, *, per_perturbation: int | Literal["mean"] | None = None, control: int | None = None
) -> Removal:
    """A random choice of at most `per_perturbation` cells of each perturbation and `control` controls, per context.

    `mean` is the mean number of cells of the perturbations left, rounded down. The choice follows the seed.
    """
    sizes, controls = state.key_sizes(), state.is_control_key
    groups = sizes[~controls & (sizes > 0)]
    limit = int(groups.mean()) if per_perturbation == "mean" and len(groups) else per_perturbation
    gone = np.zeros(state.file.n_obs, dtype=bool)
    left = np.flatnonzero(state.cells)
    order = left[np.argsort(state.key_codes[left], kind="stable")]
    for i, members in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        most = control if controls[i] else limit
        if most is not None and len(members) > int(most):
            gone[members] = True
            gone[state.rng.choice(members, int(most), replace=False)] = False
    return Removal(cells=gone)


def variable_genes(state: FilterState, *, n_genes: int, keep_targets: bool = True) -> Removal:
    """Genes that are neither among the `n_genes` most variable ones of the cells left nor, optionally, targets.

    Variability is the normalised dispersion of Satija et al. 2015 on scaled counts (scanpy's default flavour).
    """
    ranks = dispersion_ranks(state)
    keep = ranks < n_genes
    if keep_targets:
        here = np.bincount(state.perturbation.codes[state.cells], minlength=len(state.target_columns)) > 0
        columns = state.target_columns[here]
        keep[columns[columns >= 0]] = True
    return Removal(genes=~keep)


RULES: dict[str, Rule] = {
    "min_genes_per_cell": min_genes_per_cell,
    "min_cells_per_gene": min_cells_per_gene,
    "min_cells_per_perturbation": min_cells_per_perturbation,
    "measured_targets": measured_targets,
    "target_knockdown": target_knockdown,
    "cell_knockdown": cell_knockdown,
    "target_percentile": target_percentile,
    "min_de_genes": min_de_genes,
    "cap_cells": cap_cells,
    "variable_genes": variable_genes,
}
KNOCKDOWN_RULES = ("target_knockdown", "cell_knockdown", "target_percentile")
