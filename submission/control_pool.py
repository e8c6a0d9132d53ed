"""Real control cells that emission starts from, with the statistics every rule needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import ShapeError, UsageError
from ..data_specs.normalize import lognormalize, row_totals

SMALL_POOL = 500
SAMPLE_CELLS = 1024


@dataclass(frozen=True)
class ControlPool:
    """Control cells of one context.

    Attributes
    ----------
    counts
        CSR, shape (n_cells, n_genes): raw counts, or log1p values when `kind` is `log1p`. Not modified.
    target_sum
        The total each cell is scaled to before ln(1 + x); the space of the mean profiles.

    Raises
    ------
    UsageError
        No cell has a count; counts that are not whole; a target sum that is not positive.
    """

    counts: Any
    target_sum: float
    kind: Literal["counts", "log1p"] = "counts"

    def __post_init__(self) -> None:
        if not np.isfinite(self.target_sum) or self.target_sum <= 0:
            raise UsageError(f"target_sum {self.target_sum!r} is not a positive number.")
        rows = sp.csr_array(self.counts, dtype=np.float64, copy=not self._canonical())
        rows.sum_duplicates()
        rows.eliminate_zeros()
        if not np.isfinite(rows.data).all() or (rows.data < 0).any():
            raise UsageError("control cells hold values that are negative or not finite.")
        if self.kind == "counts" and (rows.data != np.rint(rows.data)).any():
            raise UsageError("control cells are declared as counts and hold fractions.")
        filled = np.diff(rows.indptr) > 0
        if not filled.any():
            raise UsageError("no control cell has a count.")
        object.__setattr__(self, "counts", rows if filled.all() else sp.csr_array(rows[filled]))

    def _canonical(self) -> bool:
        rows: Any = self.counts
        return (
            sp.issparse(rows)
            and rows.format == "csr"
            and rows.has_canonical_format
            and not (rows.data == 0).any()
        )

    def subset(self, rows: np.ndarray) -> ControlPool:
        """The cells at `rows`, each once or more, as a pool of their own."""
        part: ControlPool = object.__new__(ControlPool)
        for name, value in (
            ("counts", sp.csr_array(self.counts[rows])),
            ("target_sum", self.target_sum),
            ("kind", self.kind),
        ):
            object.__setattr__(part, name, value)
        part.__dict__["totals"] = self.totals[rows]
        part.__dict__["count_table"] = self.count_table
        return part

    @property
    def n_cells(self) -> int:
        """Cells with at least one count."""
        return self.counts.shape[0]

    @property
    def n_genes(self) -> int:
        return self.counts.shape[1]

    @property
    def small(self) -> bool:
        """Fewer than 500 cells: resampling would repeat the same few cells, so counts are drawn instead."""
        return self.n_cells < SMALL_POOL

    @cached_property
    def sample(self) -> ControlPool:
        """At most 1,024 evenly spaced cells that stand for the pool where a rule is fitted to it."""
        step = -(-self.n_cells // SAMPLE_CELLS)
        return self if step == 1 else self.subset(np.arange(0, self.n_cells, step))

    @cached_property
    def totals(self) -> np.ndarray:
        """Total of each cell, float64, shape (n_cells,). Of log1p values: the total of expm1."""
        return row_totals(self.counts if self.kind == "counts" else np.expm1(self.counts))

    @cached_property
    def median_total(self) -> float:
        """The median library size."""
        return float(np.median(self.totals))

    @cached_property
    def scales(self) -> np.ndarray:
        """target_sum / total of each cell."""
        return self.target_sum / self.totals

    @cached_property
    def log_mean(self) -> np.ndarray:
        """Mean of ln(1 + scaled x) per gene, float64, shape (n_genes,)."""
        logs = self.counts if self.kind == "log1p" else lognormalize(self.counts, self.target_sum)
        return np.asarray(logs.mean(axis=0)).ravel()

    @cached_property
    def mean_counts(self) -> np.ndarray:
        """Mean count per gene, float64, shape (n_genes,)."""
        return np.asarray(self.counts.mean(axis=0)).ravel()

    @cached_property
    def fano(self) -> np.ndarray:
        """Variance / mean of the counts per gene, float64, shape (n_genes,); 0 for silent genes."""
        squares = np.bincount(self.counts.indices, weights=self.counts.data**2, minlength=self.n_genes)
        variance = squares / self.n_cells - self.mean_counts**2
        return np.divide(variance, self.mean_counts, out=np.zeros_like(variance), where=self.mean_counts > 0)

    @cached_property
    def columns(self) -> sp.csc_array:
        """The counts gene by gene."""
        return sp.csc_array(self.counts)

    @cached_property
    def count_table(self) -> tuple[np.ndarray, np.ndarray]:
        """The table of the counts rule for these library sizes; see `emission_solve.count_table`."""
        from .emission_solve import count_table

        return count_table(self.totals, self.target_sum)

    @cached_property
    def median_detected(self) -> float:
        """The median number of genes with a count per cell."""
        return float(np.median(np.diff(self.counts.indptr)))

    def log_rows(self, rows: np.ndarray) -> sp.csr_array:
        """Some cells in log1p space, CSR float64."""
        picked = sp.csr_array(self.counts[rows])
        return picked if self.kind == "log1p" else lognormalize(picked, self.target_sum)

    def check_genes(self, n_genes: int) -> None:
        """Raises `ShapeError` when a profile has another number of genes."""
        if n_genes != self.n_genes:
            raise ShapeError(f"the profile has {n_genes:,} genes, the control cells {self.n_genes:,}.")
