"""What one side of a comparison looks like, gathered in two passes: means, spread, depth, repeated cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...data_specs.labels import CONTROL
from ...data_specs.standard import MatrixMeta
from ..bulk import group_moments
from ..checks.value_scan import row_projection
from .rows import GroupedRows, Key

# Random sums of equal rows agree to rounding; those of different rows differ far earlier.
PRINT_DIGITS = 6


@dataclass(frozen=True)
class Facts:
    """One file in log1p space, its genes in the entry's order.

    Attributes
    ----------
    keys
        (context, perturbation), sorted; controls are (context, "control").
    n, mean, variance
        Rows per key (n_keys,), means and unbiased variances (n_keys, n_genes), float64; the variance is NaN for
        groups of one row and zero for mean profiles.
    count_mean
        Mean of X as stored, same shape; for counts the mean count.
    totals, detected
        Per key the medians over its cells of the total of X and of the number of genes above zero.
    distinct
        Number of different rows per key, int64.
    prints
        Two random sums of each row, (n_obs, 2), float64; equal rows have equal ones.
    """

    grouped: GroupedRows
    target_sum: float
    n: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    count_mean: np.ndarray
    totals: np.ndarray
    detected: np.ndarray
    distinct: np.ndarray
    prints: np.ndarray

    @property
    def keys(self) -> tuple[Key, ...]:
        """The groups."""
        return self.grouped.keys

    def controls(self) -> dict[str, int]:
        """The row of each context's control."""
        return {context: i for i, (context, name) in enumerate(self.keys) if name == CONTROL}

    def noise(self) -> np.ndarray:
        """Sampling variance of each mean summed over genes, (n_keys,); 0 where it is unknown."""
        with np.errstate(invalid="ignore", divide="ignore"):
            noise = (self.variance / self.n[:, None]).sum(axis=1)
        return np.nan_to_num(noise, nan=0.0)


def gather_facts(grouped: GroupedRows, *, target_sum: float, gene_order: np.ndarray | None = None) -> Facts:
    """The facts of one file.

    Parameters
    ----------
    target_sum
        Counts are scaled to this total before the logarithm; log1p values are taken as they are.
    gene_order
        Columns of the file in the order that all arrays shall have; None keeps the file's.
    """
    n_keys, n_genes = len(grouped.keys), grouped.source.n_vars
    order = np.arange(n_genes) if gene_order is None else gene_order
    place = np.empty(n_genes, dtype=np.int64)
    place[order] = np.arange(n_genes)
    projection = row_projection(n_genes)[place]
    moments = group_moments(
        grouped.source,
        grouped.codes,
        n_keys,
        MatrixMeta(grouped.kind, target_sum),
        block_bytes=grouped.block_bytes,
    )
    sums = np.zeros((n_keys, n_genes))
    prints = np.zeros((grouped.source.n_obs, 3))
    detected = np.zeros(grouped.source.n_obs)
    for start, rows, codes in grouped.blocks():
        part = slice(start, start + len(codes))
        prints[part] = rows @ projection
        detected[part] = np.diff(rows.indptr)
        known = np.flatnonzero(codes >= 0)
        member: Any = sp.csr_array((np.ones(len(known)), (codes[known], known)), shape=(n_keys, len(codes)))
        sums += (member @ rows.astype(np.float64)).toarray()
    medians = np.full((n_keys, 2), np.nan)
    distinct = np.zeros(n_keys, dtype=np.int64)
    for i, rows_of in enumerate(_rows_by_key(grouped)):
        if len(rows_of):
            medians[i] = np.median(prints[rows_of, 0]), np.median(detected[rows_of])
            distinct[i] = len(np.unique(rounded_prints(prints[rows_of, 1:]), axis=0))
    means = grouped.rows == "mean"
    variance = np.zeros_like(moments.mean) if means else moments.variance
    return Facts(
        grouped,
        target_sum,
        moments.n,
        moments.mean[:, order],
        variance[:, order],
        (sums / np.maximum(moments.n, 1)[:, None])[:, order],
        medians[:, 0],
        medians[:, 1],
        distinct,
        prints[:, 1:],
    )


def rounded_prints(prints: np.ndarray) -> np.ndarray:
    """Prints with the digits that equal rows share, so that they can be compared."""
    scale = 10.0 ** (PRINT_DIGITS - 1 - np.floor(np.log10(np.maximum(np.abs(prints), 1e-300))))
    return np.round(prints * scale) / scale


def _rows_by_key(grouped: GroupedRows) -> list[np.ndarray]:
    order = np.argsort(grouped.codes, kind="stable")
    bounds = np.searchsorted(grouped.codes[order], np.arange(len(grouped.keys) + 1))
    return [order[a:b] for a, b in pairwise(bounds)]
