"""An AnnData object in memory, read through the same interface as a file and never changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from .canonical import make_canonical
from .errors import UsageError
from .h5ad import DEFAULT_BLOCK_BYTES, MatrixInfo, RowBlock, Storage
from .h5ad_columns import Labels

if TYPE_CHECKING:
    # Type checkers take a cached_property for no match of a protocol's property.
    cached_property = property
else:
    from functools import cached_property


class MemorySource:
    """Reads an AnnData (or anything with its X, obs, var, uns) as `H5ad` reads a file.

    Parameters
    ----------
    adata
        In memory, not backed. Neither it nor its arrays are modified; blocks are copies.
    name
        How issues and ScoreCards call it.

    Raises
    ------
    UsageError
        X is missing, backed by a file, or not a numeric two-dimensional matrix.
    """

    def __init__(self, adata: Any, *, name: str = "AnnData"):
        self.name = name
        self.path = Path(name)
        self._adata = adata
        if getattr(adata, "isbacked", False):
            raise UsageError(f"{name}: a backed AnnData is not read; pass the path of its file.")
        x: Any = adata.X
        if x is None:
            raise UsageError(f"{name}: has no X.")
        sparse = bool(sp.issparse(x))
        if not sparse:
            x = np.asarray(x)
        if x.ndim != 2 or x.dtype.kind not in "fiub":
            raise UsageError(f"{name}: X is {x.ndim}-dimensional {x.dtype}; a 2-d numeric matrix is needed.")
        storage: Storage = "dense" if not sparse else "csc" if x.format == "csc" else "csr"
        n_stored = int(x.nnz if sparse else x.size)
        self.matrix = MatrixInfo(storage, x.dtype, (int(x.shape[0]), int(x.shape[1])), n_stored)
        self._x: Any = x

    @property
    def location(self) -> str:
        """Where the matrix is, as issues name it: always X."""
        return "X"

    def __enter__(self) -> MemorySource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close; here so that files and objects are used alike."""

    @property
    def n_obs(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_vars(self) -> int:
        return self.matrix.shape[1]

    @cached_property
    def genes(self) -> np.ndarray:
        """The var index, object array of str, shape (n_vars,)."""
        return np.array([str(v) for v in self._adata.var_names], dtype=object)

    @cached_property
    def obs_names(self) -> np.ndarray:
        """The obs index, object array of str, shape (n_obs,)."""
        return np.array([str(v) for v in self._adata.obs_names], dtype=object)

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """The columns of obs, without the index."""
        return tuple(str(c) for c in self._adata.obs.columns)

    @property
    def var_columns(self) -> tuple[str, ...]:
        """The columns of var, without the index."""
        return tuple(str(c) for c in self._adata.var.columns)

    @property
    def groups(self) -> tuple[str, ...]:
        """Non-empty slots other than X, obs and var."""
        slots = ("layers", "obsm", "obsp", "uns", "varm", "varp")
        found = [slot for slot in slots if len(getattr(self._adata, slot, ()))]
        return tuple(found + (["raw"] if getattr(self._adata, "raw", None) is not None else []))

    def labels(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> Labels:
        """A column as text labels. Numbers become their text. Raises `UsageError` when it is absent."""
        series = self._column(axis, column)
        if hasattr(series, "cat"):
            return Labels.from_codes(series.cat.codes.to_numpy(), series.cat.categories)
        return Labels.from_values(_plain(series))

    def stored_categories(
        self, column: str, *, axis: Literal["obs", "var"] = "obs"
    ) -> tuple[str, ...] | None:
        """The categories of a categorical column in stored order, unused ones included; None for other columns."""
        series = self._column(axis, column)
        return tuple(str(c) for c in series.cat.categories) if hasattr(series, "cat") else None

    def values(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> np.ndarray:
        """A column as an array: numbers and booleans in their dtype, text and categories as str objects."""
        series = self._column(axis, column)
        return self.labels(column, axis=axis).values() if hasattr(series, "cat") else _plain(series)

    @cached_property
    def uns(self) -> dict[str, Any]:
        """`uns` as nested dicts of scalars, text and arrays; other objects in it are left out."""
        return _mapping(self._adata.uns)

    @property
    def vcbench(self) -> dict[str, Any]:
        """`uns["vcbench"]` of a standard object, or an empty dict."""
        entry = self.uns.get("vcbench", {})
        return entry if isinstance(entry, dict) else {}

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """X in row order as CSR blocks of at most about `max_bytes`; see `H5ad.row_blocks`."""
        x = self._rows
        per_row = x.dtype.itemsize * self.n_vars
        if sp.issparse(x):
            per_row = (x.data.itemsize + 4) * max(1, -(-x.nnz // max(1, self.n_obs)))
        step = max(1, max_bytes // max(1, per_row))
        for start in range(0, self.n_obs, step):
            if wanted is not None and not wanted[start : start + step].any():
                continue
            part = x[start : start + step]
            block = sp.csr_array(part, copy=True) if sp.issparse(part) else sp.csr_array(part)
            if canonical:
                make_canonical(block)
            block.indices = block.indices.astype(np.int32, copy=False)
            yield RowBlock(start, block)

    def value_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values, row bounds) of blocks of rows, the values as stored; see `H5ad.value_blocks`."""
        for block in self.row_blocks(max_bytes=max_bytes, canonical=False, wanted=wanted):
            yield block.start, block.matrix.data, block.matrix.indptr

    @cached_property
    def _rows(self) -> Any:
        return sp.csr_array(self._x) if sp.issparse(self._x) else self._x

    def _column(self, axis: str, column: str) -> Any:
        frame = getattr(self._adata, axis)
        if column not in frame.columns:
            listed = ", ".join(str(c) for c in frame.columns) or "none"
            raise UsageError(f"{self.name}: {axis} has no column {column!r}; it has {listed}.")
        return frame[column]


def _plain(series: Any) -> np.ndarray:
    """A pandas column as H5ad returns it: missing entries of nullable and text columns are None."""
    values = series.to_numpy()
    if values.dtype.kind != "O":
        return values
    missing = series.isna().to_numpy()
    return np.array([None if gone else v for v, gone in zip(values, missing, strict=True)], dtype=object)


def _mapping(table: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            out[str(key)] = _mapping(value)
        elif isinstance(value, np.generic):
            out[str(key)] = value.item()
        elif value is None or isinstance(value, (str, bool, int, float)):
            out[str(key)] = value
        elif isinstance(value, (np.ndarray, list, tuple)):
            array = np.asarray(value)
            out[str(key)] = array.astype(object) if array.dtype.kind in "US" else array
    return out
