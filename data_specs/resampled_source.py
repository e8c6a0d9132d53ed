"""A source whose rows appear several times or not at all: the cells of a bootstrap sample, streamed like a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from .errors import ShapeError
from .h5ad import DEFAULT_BLOCK_BYTES, MatrixInfo, RowBlock
from .h5ad_columns import Labels

if TYPE_CHECKING:
    from .sources import Source


class ResampledSource:
    """Reads row i of another source `times[i]` times in a row, in its order; the other source stays as it is.

    Parameters
    ----------
    times
        Whole numbers of at least 0, shape (n_obs,).

    Raises
    ------
    ShapeError
        Not one number per row.
    """

    def __init__(self, source: Source, times: np.ndarray):
        if len(times) != source.n_obs:
            raise ShapeError(f"{len(times):,} numbers for {source.n_obs:,} rows")
        self._source, self._times = source, np.asarray(times, dtype=np.int64)
        self._ends = np.cumsum(self._times)
        n_obs = int(self._ends[-1]) if len(self._ends) else 0
        share = n_obs / max(1, source.n_obs)
        self.matrix = MatrixInfo(
            source.matrix.storage,
            source.matrix.dtype,
            (n_obs, source.n_vars),
            int(source.matrix.n_stored * share),
        )

        self.name: str = source.name
        self.path: Path = source.path
        self.location: str = source.location

    @property
    def genes(self) -> np.ndarray:
        """The var index."""
        return self._source.genes

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The columns of obs, without the index."""
        return self._source.obs_columns

    @property
    def uns(self) -> dict[str, Any]:
        """`uns` of the other source."""
        return self._source.uns

    @property
    def vcbench(self) -> dict[str, Any]:
        """`uns["vcbench"]` of the other source."""
        return self._source.vcbench

    def stored_categories(
        self, column: str, *, axis: Literal["obs", "var"] = "obs"
    ) -> tuple[str, ...] | None:
        """The categories of a column in stored order, unused ones included; None for other columns."""
        return self._source.stored_categories(column, axis=axis)

    @property
    def n_obs(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_vars(self) -> int:
        return self.matrix.shape[1]

    @property
    def obs_names(self) -> np.ndarray:
        """The obs index, names repeated with their rows."""
        return np.repeat(self._source.obs_names, self._times)

    def labels(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> Labels:
        """A column as text labels."""
        found = self._source.labels(column, axis=axis)
        return found if axis == "var" else Labels.from_values(np.repeat(found.values(), self._times))

    def values(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> np.ndarray:
        """A column as an array."""
        found = self._source.values(column, axis=axis)
        return found if axis == "var" else np.repeat(found, self._times)

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """X in row order; see `H5ad.row_blocks`. Blocks may be larger by the rows that are repeated."""
        for block in self._source.row_blocks(
            max_bytes=max_bytes, canonical=canonical, wanted=self._needed(wanted)
        ):
            times = self._times[block.start : block.stop]
            if times.any():
                rows = np.repeat(np.arange(len(times)), times)
                yield RowBlock(self._start(block.start), sp.csr_array(block.matrix[rows]))

    def value_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values, row bounds) of blocks of rows; see `H5ad.value_blocks`."""
        for start, values, bounds in self._source.value_blocks(
            max_bytes=max_bytes, wanted=self._needed(wanted)
        ):
            times = self._times[start : start + len(bounds) - 1]
            if times.any():
                rows = np.repeat(np.arange(len(times)), times)
                lengths = np.diff(bounds)[rows]
                inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                at = np.repeat(np.asarray(bounds)[rows], lengths) + inside
                yield self._start(start), values[at], np.concatenate([[0], np.cumsum(lengths)])

    def _start(self, row: int) -> int:
        return int(self._ends[row] - self._times[row])

    def _needed(self, wanted: np.ndarray | None) -> np.ndarray:
        """The rows of the source that a row wanted here comes from."""
        if wanted is None:
            return self._times > 0
        origin = np.repeat(np.arange(len(self._times)), self._times)
        needed = np.zeros(len(self._times), dtype=bool)
        needed[origin[wanted]] = True
        return needed
