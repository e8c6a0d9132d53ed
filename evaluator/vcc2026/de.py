"""Differential expression of every group against its control: rank-sum test, fold change, gated adjustment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ...data_specs.errors import MetricError
from ..kernels.gene_major import gene_blocks
from ..kernels.rank_buffer import RankBuffer, rank_buffer, values_at_a_time
from ..kernels.threads import numba_threads
from ..memory import column_bytes
from .bulks import FirstPass, first_pass
from .cells import Cells, cell_divisors
from .rank_keys import rank_tables

if TYPE_CHECKING:
    import scipy.sparse as sp

MIN_CONTROL_CPM = 5.0
FOLD_CHANGE_EPSILON = 1e-9
ALPHA = 0.05
OnBlock: TypeAlias = "Callable[[int, sp.csr_array, np.ndarray, np.ndarray], None]"


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
    first: FirstPass | None = None,
    on_block: OnBlock | None = None,
    budget_bytes: int | None = None,
    threads: int | None = None,
) -> DETable:
    """Tests of every group against the last one, the control.

    Parameters
    ----------
    parts
        Cells whose group codes are rows of `mean_cpm`; the control is the last group.
    n_cells, mean_cpm
        Cells per group, shape (n_groups,), and mean counts per million, shape (n_groups, n_genes).
    first
        A first pass over the same parts with their counts; None: it is made here.
    on_block
        Called once with (number of the part, rows, group codes, row totals) of every block, while the tests read it.
    budget_bytes
        Memory for the values of one block of genes; fewer bytes mean more passes over the cells. None: what the
        memory budget of the cells leaves.

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
    if first is None:
        first = first_pass(parts, len(n_cells), mean_cpm.shape[1], with_counts=True, threads=threads)
    p_value = np.empty((control, len(genes)))
    done = 0
    for buffer in _gene_buffers(parts, first, genes, len(n_cells), budget_bytes, on_block, threads):
        two_u, ties = buffer.rank_sums(n_cells, control)
        block = slice(done, done + two_u.shape[1])
        p_value[:, block] = rank_sum_p(
            two_u[:control], ties[:control], n_cells[:control, None], int(n_cells[control])
        )
        done = block.stop
        # The next buffer must not stand beside this one.
        del buffer
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
    """Benjamini-Hochberg within each row over its non-NaN values; NaN stays NaN.

    Equal to `scipy.stats.false_discovery_control(row, method="bh")`.
    """
    out = np.full_like(p_value, np.nan)
    for row, values in enumerate(p_value):
        known = ~np.isnan(values)
        listed = values[known]
        order = np.argsort(listed)
        n = len(listed)
        adjusted = listed[order] * (n / np.arange(1, n + 1))
        adjusted = np.minimum.accumulate(adjusted[::-1])[::-1]
        back = np.empty(n)
        back[order] = np.clip(adjusted, 0.0, 1.0)
        out[row, known] = back
    return out


def _gene_buffers(
    parts: Sequence[Cells],
    first: FirstPass,
    genes: np.ndarray,
    n_groups: int,
    budget_bytes: int | None,
    on_block: OnBlock | None,
    threads: int | None,
) -> Iterator[RankBuffer]:
    """log1p of counts per million of the wanted genes, or their ranks, as many genes at a time as the budget holds."""
    counts = [part for part in first.counts if part is not None]
    tables = rank_tables(counts) if len(counts) == len(parts) else None
    dtype = np.dtype(np.float64 if tables is None else np.uint32)
    device = parts[0].device
    stored = first.stored[genes]
    budget = column_bytes(parts[0].memory) if budget_bytes is None else budget_bytes
    max_values = values_at_a_time(budget, dtype, n_groups, device)
    for start, stop in gene_blocks(stored, max_values=max_values):
        buffer = rank_buffer(
            stored,
            start,
            stop,
            dtype=dtype,
            n_groups=n_groups,
            device=device,
            threads=threads,
            genes=genes,
        )
        for number, part in enumerate(parts):
            for block, (rows, codes) in enumerate(part.blocks()):
                total = first.totals[number][block]
                if start == 0 and on_block is not None:
                    on_block(number, rows, codes, total)
                if tables is None:
                    buffer.add(_ranked_values(rows, total), codes)
                else:
                    with numba_threads(threads) as n_threads:
                        buffer.add(tables[number].ranked(block, rows, n_threads), codes)
        yield buffer
        del buffer


def _ranked_values(rows: sp.csr_array, totals: np.ndarray) -> sp.csr_array:
    """log1p of counts per million, float64. The ranked value is numpy's float64 log1p of the divided count."""
    import scipy.sparse as sp

    values = rows.data / np.repeat(cell_divisors(totals), np.diff(rows.indptr))
    return sp.csr_array((np.log1p(values, out=values), rows.indices, rows.indptr), shape=rows.shape)
