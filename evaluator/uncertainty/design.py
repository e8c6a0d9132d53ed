"""Rows of a table as a sample of perturbations: sums per perturbation and context, and their resampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Weights of one chunk of resamples hold at most this many numbers.
CHUNK_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Design:
    """Which rows belong to which perturbation and group.

    `names` are the perturbations (the units that are drawn), `groups` the parts whose means are averaged, both
    sorted; `order` sorts rows by (perturbation, group); `unit` and `group` are the indices of the rows in that order,
    so nothing depends on the order of the rows.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    order: np.ndarray
    unit: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, perturbations: Sequence[str], groups: Sequence[str] | None = None) -> Design:
        """The design of rows with these perturbations; without `groups` all rows are one group."""
        labels = np.asarray([str(name) for name in perturbations], dtype=object)
        parts = np.asarray([""] * len(labels) if groups is None else [str(g) for g in groups], dtype=object)
        names, unit = np.unique(labels.astype(str), return_inverse=True)
        kinds, group = np.unique(parts.astype(str), return_inverse=True)
        order = np.lexsort((group, unit))
        return cls(
            tuple(names.tolist()), tuple(kinds.tolist()), order, unit.ravel()[order], group.ravel()[order]
        )

    @property
    def n(self) -> int:
        """Number of perturbations."""
        return len(self.names)

    def sums(self, numerators: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums per (group, perturbation, column), float64, shape (n_groups, n, M) each.

        A column's mean is the sum of its numerators over the sum of its denominators: values and ones, with
        zeros in both where a row has no value; other denominators make a ratio.
        """
        shape = (len(self.groups), self.n, numerators.shape[1])
        out = np.zeros(shape), np.zeros(shape)
        for total, values in zip(out, (numerators, denominators), strict=True):
            np.add.at(total, (self.group, self.unit), np.asarray(values, dtype=np.float64)[self.order])
        return out

    def resamples(self, n_resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """How often each perturbation is drawn, float64, shape (some resamples, n), `n_resamples` rows in all."""
        step = max(1, CHUNK_NUMBERS // max(1, self.n))
        for start in range(0, n_resamples, step):
            size = min(step, n_resamples - start)
            drawn = rng.integers(0, self.n, size=(size, self.n)) + self.n * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * self.n)
            yield counts.reshape(size, self.n).astype(np.float64)


def table_parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of plain means of the columns of `values`, shape (rows, M); NaN is no value."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0), known.astype(np.float64)


def group_ratios(weights: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Weighted `top` over weighted `bottom`, shape (B, n_groups, M); NaN where the denominator is not positive."""
    numerators = np.stack([weights @ part for part in top], axis=1)
    denominators = np.stack([weights @ part for part in bottom], axis=1)
    out = np.full(numerators.shape, np.nan)
    np.divide(numerators, denominators, out=out, where=denominators > 0)
    return out
