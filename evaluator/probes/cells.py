"""Probes of the cells behind a mean: more spread, none, or a few cells again and again."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .emit import rounded
from .registry import Change, NotApplicable, Stage, probe

# Different cells that a repeated group keeps.
REPEATED_CELLS = 5
NO_CELLS = NotApplicable("the entry holds mean profiles, no cells")


@probe(
    "variance-inflation",
    kind="exploit",
    documented="2025 challenge: inflated variance raised scores because the error term was cut at zero (participants' "
    "write-ups, November 2025); 2026: the uncapped error subtracts the entry's own sampling noise",
    caught_by=("inflated-variance",),
)
def variance_inflation(stage: Stage) -> Change | NotApplicable:
    """In perturbed cells every value is doubled or dropped: for each gene in turn along the cells that express it.

    Group means are nearly kept, counts stay whole; which cell begins is random for each group and gene.
    """
    grouped = stage.grouped
    if grouped.rows == "mean":
        return NO_CELLS
    shape = (len(grouped.keys), grouped.source.n_vars)
    doubled = stage.generator("variance-inflation").random(shape) < 0.5
    control = np.append(grouped.is_control, True)

    def inflated(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        data = rows.data.astype(np.float64)
        for i in np.flatnonzero(~control[codes]):
            part = slice(int(rows.indptr[i]), int(rows.indptr[i + 1]))
            state, genes = doubled[codes[i]], rows.indices[part]
            data[part] *= 2.0 * state[genes]
            state[genes] = ~state[genes]
        data = data if stage.cap is None or grouped.kind == "counts" else np.minimum(data, stage.cap)
        return sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)

    return Change(rows=inflated)


@probe(
    "tiled-cells",
    kind="exploit",
    documented="2025 baseline: one profile repeated for every cell, so that rank tests call nearly all genes",
    caught_by=("tiled-cells",),
)
def tiled_cells(stage: Stage) -> Change | NotApplicable:
    """Every cell of a perturbation becomes the group's mean; counts are rounded once per group."""
    if stage.grouped.rows == "mean":
        return NO_CELLS
    entry = stage.entry
    profile = entry.mean if stage.grouped.kind == "log1p" else entry.count_mean
    if stage.grouped.kind == "counts":
        profile = rounded(profile, stage.generator("tiled-cells"))
        empty = profile.sum(axis=1) == 0
        profile[empty, entry.count_mean.argmax(axis=1)[empty]] = 1.0
    return Change(rows=_rows_from(sp.csr_array(profile), np.arange(len(profile)), stage))


@probe(
    "repeated-cells",
    kind="exploit",
    documented="repeated cells count as independent ones in every test and noise estimate",
    caught_by=("repeated-cells",),
)
def repeated_cells(stage: Stage) -> Change | NotApplicable:
    """Each perturbation keeps its first five cells, repeated up to the group's size."""
    grouped = stage.grouped
    if grouped.rows == "mean":
        return NO_CELLS
    if grouped.sizes[~grouped.is_control].max(initial=0) <= REPEATED_CELLS:
        return NotApplicable(f"no perturbation has more than {REPEATED_CELLS} cells")
    rank = _rank_in_group(grouped.codes)
    wanted = (rank < REPEATED_CELLS) & ~np.append(grouped.is_control, True)[grouped.codes]
    held = [rows[wanted[start : start + len(codes)]] for start, rows, codes in grouped.blocks()]
    place = np.cumsum(wanted) - 1
    first = np.zeros((len(grouped.keys), REPEATED_CELLS), dtype=np.int64)
    first[grouped.codes[wanted], rank[wanted]] = place[wanted]
    kept = np.minimum(grouped.sizes, REPEATED_CELLS)
    source = np.where(grouped.codes >= 0, first[grouped.codes, rank % np.maximum(kept, 1)[grouped.codes]], 0)
    return Change(rows=_rows_from(sp.csr_array(sp.vstack(held, format="csr")), source, stage, per_row=True))


def _rows_from(held: sp.csr_array, source: np.ndarray, stage: Stage, *, per_row: bool = False):
    """Perturbed rows taken from `held`: row `source[code]`, or with `per_row` row `source[i]` for row i of the file."""
    control = np.append(stage.grouped.is_control, True)

    def taken(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        chosen = source[start : start + len(codes)] if per_row else source[codes]
        changed = held[chosen]
        keep = sp.diags_array(control[codes].astype(np.float64))
        new = sp.diags_array((~control[codes]).astype(np.float64))
        return sp.csr_array(keep @ rows + new @ changed)

    return taken


def _rank_in_group(codes: np.ndarray) -> np.ndarray:
    """How many rows of the same group stand before each row, int64."""
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    starts = np.searchsorted(sorted_codes, sorted_codes, side="left")
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts
    return rank
