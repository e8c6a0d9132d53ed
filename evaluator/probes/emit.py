"""Changed rows from changed profiles: factors on stored values, whole numbers for counts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ...data_specs.normalize import row_totals
from .registry import RowChange, Stage


def rows_with_profile(stage: Stage, wanted: np.ndarray, keys: np.ndarray, name: str) -> RowChange:
    """Rows whose group means follow `wanted` (log1p space, (n_keys, n_genes)) for the chosen `keys` (bool).

    Mean profiles are replaced. In cells every stored value of a gene is multiplied by one factor, so a gene that no
    cell of the group expresses stays silent and the pattern of zeros is kept; log1p cells then have the wanted mean,
    counts the wanted composition at their own depth, rounded to whole numbers at random without bias.
    """
    entry, grouped = stage.entry, stage.grouped
    target = np.clip(wanted, 0.0, stage.cap)
    if grouped.rows == "mean":

        def replaced(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
            dense = rows.toarray()
            chosen = (codes >= 0) & keys[codes]
            dense[chosen] = target[codes[chosen]]
            return sp.csr_array(dense)

        return replaced
    counts = grouped.kind == "counts"
    now, then = (np.expm1(entry.mean), np.expm1(target)) if counts else (entry.mean, target)
    factors = np.ones((len(keys) + 1, now.shape[1]))
    factors[:-1][keys] = np.divide(then, now, out=np.ones_like(now), where=now > 0)[keys]
    rng = stage.generator(name)

    def scaled(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        lengths = np.diff(rows.indptr)
        data = rows.data * factors[np.repeat(codes, lengths), rows.indices]
        if counts:
            return whole_counts(_like(rows, data), row_totals(rows), rng)
        return _like(rows, data if stage.cap is None else np.minimum(data, stage.cap))

    return scaled


def whole_counts(rows: sp.csr_array, totals: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    """Rows rescaled to `totals`, rounded up or down at random so that every expectation is kept."""
    now = row_totals(rows)
    factor = np.divide(totals, now, out=np.zeros_like(now), where=now > 0)
    data = rows.data * np.repeat(factor, np.diff(rows.indptr))
    return _like(rows, rounded(data, rng))


def rounded(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers, up with the probability of the fraction. One draw per value, in order."""
    whole = np.floor(values)
    return whole + (rng.random(values.shape) < values - whole)


def _like(rows: sp.csr_array, data: np.ndarray) -> sp.csr_array:
    return sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
