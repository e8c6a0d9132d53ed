"""Differential expression of every group against its control: rank-sum test, fold change, gated adjustment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import MetricError
from ..kernels.ranksum import GeneColumns, rank_sums
from .bulks import Bulks
from .cells import Cells, cell_divisors, totals_of
from .kernels import count_slots, pick_entries, place_entries

MIN_CONTROL_CPM = 5.0
FOLD_CHANGE_EPSILON = 1e-9
ALPHA = 0.05
COLUMN_BUDGET_BYTES = 2**30
_BYTES_PER_VALUE = 12


@dataclass(frozen=True)
class DETable:
    """One side's tests.

    Attributes
    ----------
    genes
        Columns of the gene axis that passed the control gate, int64, ascending, shape (n_tested,).
    log2_fold_change, p_value, p_adj
        float64, shape (n_perturbations, n_tested).
    """

    genes: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray
    p_adj: np.ndarray

    @property
    def significant(self) -> np.ndarray:
        """p_adj < 0.05 strictly, boolean, shape (n_perturbations, n_tested)."""
        return self.p_adj < ALPHA


def de_table(
    parts: Sequence[Cells],
    *,
    n_cells: np.ndarray,
    mean_cpm: np.ndarray,
    budget_bytes: int = COLUMN_BUDGET_BYTES,
    threads: int | None = None,
) -> DETable:
    """Tests of every group against the last one, the control.

    Parameters
    ----------
    parts
        Cells whose group codes are rows of `mean_cpm`; the control is the last group.
    n_cells, mean_cpm
        Cells per group, shape (n_groups,), and mean counts per million, shape (n_groups, n_genes).
    budget_bytes
        Memory for the values of one block of genes; fewer bytes mean more passes over the cells.

    Raises
    ------
    MetricError
        No gene passes the control gate (more than 5 counts per million).
    """
    control = len(n_cells) - 1
    genes = np.flatnonzero(mean_cpm[control] > MIN_CONTROL_CPM)
    if not len(genes):
        raise MetricError(
            "no gene has more than 5 counts per million in the control cells, so nothing can be tested."
        )
    p_value = np.empty((control, len(genes)))
    done = 0
    for columns in _column_blocks(parts, genes, mean_cpm.shape[1], budget_bytes):
        two_u, ties = rank_sums(columns, n_cells, control, threads=threads)
        block = slice(done, done + columns.n_genes)
        p_value[:, block] = rank_sum_p(
            two_u[:control], ties[:control], n_cells[:control, None], int(n_cells[control])
        )
        done += columns.n_genes
    fold = np.log2(
        (mean_cpm[:control, genes] + FOLD_CHANGE_EPSILON) / (mean_cpm[control, genes] + FOLD_CHANGE_EPSILON)
    )
    return DETable(genes, fold, p_value, adjust(p_value))


def rank_sum_p(two_u: np.ndarray, ties: np.ndarray, n1: np.ndarray, n2: int) -> np.ndarray:
    """Two-sided p of the Mann-Whitney test: normal approximation, tie and continuity correction; 1 without variance.

    `two_u` is 2*U of the group and `ties` the sum of t^3 - t, both int64 of one shape; `n1` broadcasts to it.
    """
    from scipy.special import erfc

    two_u = np.maximum(two_u, 2 * n1 * n2 - two_u)
    n = (n1 + n2).astype(float)
    pairs = n1 * float(n2)
    variance = pairs / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)))
    z = (two_u / 2.0 - pairs / 2.0 - 0.5) / np.sqrt(np.where(variance > 0, variance, 1.0))
    return np.where(variance > 0, np.clip(erfc(z / np.sqrt(2.0)), 0.0, 1.0), 1.0)


def adjust(p_value: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg within each row over its non-NaN values; NaN stays NaN."""
    from scipy.stats import false_discovery_control

    out = np.full_like(p_value, np.nan)
    for row, values in enumerate(p_value):
        known = ~np.isnan(values)
        if known.any():
            out[row, known] = false_discovery_control(values[known], method="bh")
    return out


def control_bulk_last(pred: Bulks, real: Bulks) -> tuple[np.ndarray, np.ndarray]:
    """(cells per group, mean CPM) of `pred` followed by the control, the last row of `real`."""
    return np.append(pred.n_cells, real.n_cells[-1]), np.vstack([pred.mean_cpm, real.mean_cpm[-1]])


def _column_blocks(
    parts: Sequence[Cells], genes: np.ndarray, n_genes: int, budget_bytes: int
) -> Iterator[GeneColumns]:
    """log1p of counts per million of the wanted genes, gene-major, as many genes at a time as the budget holds."""
    slots = np.full(n_genes, -1, dtype=np.int64)
    slots[genes] = np.arange(len(genes))
    counts = np.zeros(len(genes), dtype=np.int64)
    for part in parts:
        for rows, codes in part.blocks():
            count_slots(rows.indices, rows.indptr, codes, slots, counts)
    start = 0
    while start < len(genes):
        ends = np.cumsum(counts[start:])
        fit = int(np.searchsorted(ends, budget_bytes // _BYTES_PER_VALUE, side="right"))
        stop = start + max(fit, 1)
        slots[:] = -1
        slots[genes[start:stop]] = np.arange(len(genes[start:stop]))
        yield _collect(parts, slots, counts[start:stop])
        start = stop


def _collect(parts: Sequence[Cells], slots: np.ndarray, counts: np.ndarray) -> GeneColumns:
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    values = np.empty(indptr[-1])
    groups = np.empty(indptr[-1], dtype=np.int32)
    cursor = indptr[:-1].copy()
    for part in parts:
        for rows, codes in part.blocks():
            found = np.empty(rows.nnz)
            found_slots = np.empty(rows.nnz, dtype=np.int64)
            found_groups = np.empty(rows.nnz, dtype=np.int32)
            n = pick_entries(
                rows.data,
                rows.indices,
                rows.indptr,
                codes,
                cell_divisors(totals_of(rows)),
                slots,
                found,
                found_slots,
                found_groups,
            )
            # The ranked value is numpy's float64 log1p of the divided count: ties depend on exactly this.
            place_entries(np.log1p(found[:n]), found_slots[:n], found_groups[:n], cursor, values, groups)
    return GeneColumns(values, groups, indptr)
