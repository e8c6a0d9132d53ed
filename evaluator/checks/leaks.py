"""Cells of the entry that are real cells: of the held-out truth, or of the training data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ...data_specs.issues import Issue
from ...data_specs.sources import Source
from ...data_specs.standard import read_meta
from .case import Case
from .controls import control_mask, placed_rows, print_keys
from .value_scan import ValueScan, row_projection


def comparable(kind: str | None, cells: Source) -> bool:
    """Whether an entry of this kind holds counts, and the cells do not say that they hold something else."""
    meta = read_meta(cells)
    return kind == "counts" and (meta is None or (meta.matrix.kind == "counts" and meta.rows == "cell"))


def cell_prints(source: Source, case: Case, *, block_bytes: int = DEFAULT_BLOCK_BYTES) -> np.ndarray:
    """Prints of the perturbed cells of a file of counts on the genes of the entry, float64, shape (n_cells, 2).

    Genes that the entry lacks are left out; control cells and empty rows have no print.
    """
    is_control = control_mask(source, case, without_column=False)
    place = {str(gene): i for i, gene in enumerate(case.source.genes)}
    order = np.array([place.get(str(gene), -1) for gene in source.genes], dtype=np.int64)
    projection = row_projection(case.source.n_vars)
    prints = [np.empty((0, 2))]
    for block in source.row_blocks(max_bytes=block_bytes):
        n_rows = len(block.matrix.indptr) - 1
        chosen = np.flatnonzero(~is_control[block.start : block.start + n_rows])
        rows = placed_rows(sp.csr_array(block.matrix[chosen]), order, case.source.n_vars)
        sums = rows @ projection
        prints.append(sums[np.diff(rows.indptr) > 0, 1:])
    return np.concatenate(prints)


def leak_issues(case: Case, scan: ValueScan, code: str, known: np.ndarray, kind: str) -> Iterator[Issue]:
    """One issue (`code`) when predicted cells equal known cells gene by gene. `known` is from `cell_prints`.

    Control cells of the entry are left out: editions that want them want the real ones.
    """
    control = np.array([name == case.control for _, name in case.groups], dtype=bool)
    rows = np.flatnonzero((case.group_codes >= 0) & (scan.n_detected > 0))
    rows = rows[~control[case.group_codes[rows]]]
    if not len(rows) or not len(known):
        return
    same = np.isin(print_keys(scan.prints[rows]), print_keys(known))
    if same.any():
        first = case.row_name(int(rows[np.argmax(same)]))
        found = f"{int(same.sum()):,} of {len(rows):,} predicted cells (first: {first})"
        yield case.issue(code, "/X", found=found, expected=f"cells that no {kind} cell equals")
