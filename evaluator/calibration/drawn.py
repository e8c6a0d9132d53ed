"""Rows drawn from a source as a source of their own: any row any number of times, under new labels, values rescaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES, MatrixInfo, RowBlock
from ...data_specs.h5ad_columns import Labels
from ...data_specs.sources import Source

# Multiples of these modulo 1 fill the unit interval evenly: of the golden ratio, and of the plastic number's powers.
GOLDEN, PLASTIC, PLASTIC_SQUARE = 0.6180339887498949, 0.7548776662466927, 0.5698402909980532


@dataclass(frozen=True)
class Rescaling:
    """One factor per group and gene on the values of drawn rows.

    Attributes
    ----------
    factors
        float32, shape (n_groups, n_genes).
    groups, places
        int64, shape (n_rows,): the group of each drawn row, and how many of its group's rows stand before it.
    whole
        Round to whole numbers, evenly up and down along the rows of a group, so that its means are kept.
    cap
        Largest value; None without a limit.
    """

    factors: np.ndarray
    groups: np.ndarray
    places: np.ndarray
    whole: bool
    cap: float | None = None

    def apply(self, rows: sp.csr_array, start: int) -> sp.csr_array:
        """Drawn rows `start` and following, rescaled, without zeros. Equal however rows are cut into blocks."""
        lengths = np.diff(rows.indptr)
        part = slice(start, start + len(lengths))
        group, place = np.repeat(self.groups[part], lengths), np.repeat(self.places[part], lengths)
        data = rows.data.astype(np.float64) * self.factors[group, rows.indices]
        if self.whole:
            even = place * GOLDEN + rows.indices * PLASTIC + group * PLASTIC_SQUARE
            data = np.floor(data + even % 1.0)
        if self.cap is not None:
            data = np.minimum(data, self.cap)
        out = sp.csr_array(
            (data.astype(rows.dtype), rows.indices.copy(), rows.indptr.copy()), shape=rows.shape
        )
        out.eliminate_zeros()
        return out


class DrawnRows:
    """Some rows of a source, read like a file: it streams the source once per pass and holds nothing.

    Parameters
    ----------
    rows
        Positions in the source, int64, ascending; a row may occur more than once.
    obs
        Text columns of the drawn rows by name, each of shape (n_rows,). The source's own columns are not carried over.
    rescaling
        How values change; None leaves them.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        obs: Mapping[str, np.ndarray],
        *,
        name: str,
        rescaling: Rescaling | None = None,
    ):
        self._source, self._rows, self._rescaling = source, rows, rescaling
        self._columns = {column: Labels.from_values(values) for column, values in obs.items()}
        self.name, self.path = name, Path(name)
        share = len(rows) / max(1, source.n_obs)
        stored = source.matrix
        self.matrix = MatrixInfo(
            stored.storage, stored.dtype, (len(rows), source.n_vars), round(stored.n_stored * share)
        )

    @property
    def location(self) -> str:
        """Where the source's matrix is."""
        return self._source.location

    @property
    def n_obs(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_vars(self) -> int:
        return self.matrix.shape[1]

    @property
    def genes(self) -> np.ndarray:
        """The source's genes."""
        return self._source.genes

    @property
    def obs_names(self) -> np.ndarray:
        """Numbers as text: a row that was drawn twice has no name of its own."""
        return np.array([str(i) for i in range(self.n_obs)], dtype=object)

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The given columns."""
        return tuple(self._columns)

    @property
    def uns(self) -> dict[str, Any]:
        """`uns` of the source."""
        return self._source.uns

    @property
    def vcbench(self) -> dict[str, Any]:
        """`uns["vcbench"]` of the source."""
        return self._source.vcbench

    def labels(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> Labels:
        """A given column; those of `var` are the source's."""
        return self._source.labels(column, axis=axis) if axis == "var" else self._columns[column]

    def values(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> np.ndarray:
        """A column as an array."""
        return self._source.values(column, axis=axis) if axis == "var" else self._columns[column].values()

    def stored_categories(
        self, column: str, *, axis: Literal["obs", "var"] = "obs"
    ) -> tuple[str, ...] | None:
        """None: the columns are plain text."""
        return self._source.stored_categories(column, axis=axis) if axis == "var" else None

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """The drawn rows in order as CSR blocks, always canonical; see `H5ad.row_blocks`."""
        needed = np.zeros(self._source.n_obs, dtype=bool)
        needed[self._rows if wanted is None else self._rows[wanted]] = True
        for block in self._source.row_blocks(max_bytes=max_bytes, wanted=needed):
            first, last = np.searchsorted(self._rows, [block.start, block.stop])
            if first == last or (wanted is not None and not wanted[first:last].any()):
                continue
            rows = sp.csr_array(block.matrix[self._rows[first:last] - block.start])
            if self._rescaling is not None:
                rows = self._rescaling.apply(rows, int(first))
            yield RowBlock(int(first), rows)

    def value_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values, row bounds) of blocks of rows; see `H5ad.value_blocks`."""
        for block in self.row_blocks(max_bytes=max_bytes, wanted=wanted):
            yield block.start, block.matrix.data, block.matrix.indptr
