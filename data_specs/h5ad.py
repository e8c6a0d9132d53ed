"""Streaming reader of AnnData files through h5py: header first, then row blocks. No anndata import.

Reads CSR, CSC and dense X of any real dtype. Blocks come as CSR rows with the file's own values; nothing
is loaded beyond the block. Problems of the file raise `InvalidFile` with coded issues.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from .canonical import make_canonical
from .errors import InvalidFile, UsageError
from .h5ad_columns import Labels, member_name, read_categorical, read_mapping, read_strings, read_values
from .h5ad_structure import (
    DEFAULT_BLOCK_BYTES,
    HDF5_ERRORS,
    index_key,
    index_problem,
    is_dataset,
    is_group,
    open_hdf5,
    sparse_kind,
    sparse_shape,
    streamed,
    structure_issues,
    unreadable,
)
from .issues import make_issue
from .remote import input_path

if TYPE_CHECKING:
    # Type checkers take a cached_property for no match of a protocol's property.
    cached_property = property
else:
    from functools import cached_property

Storage = Literal["csr", "csc", "dense"]
CSC_WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class MatrixInfo:
    """How X is stored: `n_stored` counts stored entries (all entries when dense)."""

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, int]
    n_stored: int


@dataclass(frozen=True)
class RowBlock:
    """Rows `start` to `start + matrix.shape[0]` of X as CSR, in the file's dtype (float16 comes as float32)."""

    start: int
    matrix: sp.csr_array

    @property
    def stop(self) -> int:
        return self.start + len(self.matrix.indptr) - 1


class H5ad:
    """A read-only AnnData file. Use as a context manager; opening checks the structure, not the values.

    `location` is the matrix that is read: `X`, or a layer such as `layers/counts` (then the file may lack X).

    Column indices of a sparse X are checked as they are read (E008), so opening a file of any size takes a moment.

    Raises
    ------
    InvalidFile
        The path is missing, not HDF5, truncated, or lacks X, obs or var (codes E001 to E011).
    """

    def __init__(self, path: str | os.PathLike[str], *, location: str = "X"):
        self.path = input_path(path)
        # Whoever unpacked a container calls the file by the container's name; this is where it lies.
        self.opened_path = self.path.absolute()
        self.location = location
        self._file: Any = open_hdf5(self.path)
        try:
            issues = structure_issues(self._file, self.path, location)
            if issues:
                raise InvalidFile(issues)
            self.matrix = _matrix_info(self._file[location])
        except HDF5_ERRORS as error:
            self._file.close()
            raise unreadable(self.path, error) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> H5ad:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def name(self) -> str:
        """The file name, as issues show it."""
        return self.path.name

    @property
    def n_obs(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_vars(self) -> int:
        return self.matrix.shape[1]

    @cached_property
    def genes(self) -> np.ndarray:
        """The var index, object array of str, shape (n_vars,)."""
        return self._index("var")

    @cached_property
    def obs_names(self) -> np.ndarray:
        """The obs index, object array of str, shape (n_obs,)."""
        return self._index("obs")

    @cached_property
    def obs_columns(self) -> tuple[str, ...]:
        """The columns of obs, without the index."""
        return self._columns("obs")

    @cached_property
    def var_columns(self) -> tuple[str, ...]:
        """The columns of var, without the index."""
        return self._columns("var")

    def labels(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> Labels:
        """A column as text labels. Numbers become their text. Raises `UsageError` when it is absent.

        Raises `InvalidFile` (E012) when its encoding is unknown or its codes lie outside its categories.
        """
        node = self._column(axis, column)
        with self._reading():
            if is_group(node) and "codes" in node:
                return read_categorical(node)
            legacy = self._legacy_categories(axis, column)
            if legacy is not None and is_dataset(node):
                return Labels.from_codes(node[()], legacy)
            return Labels.from_values(read_values(node))

    def stored_categories(
        self, column: str, *, axis: Literal["obs", "var"] = "obs"
    ) -> tuple[str, ...] | None:
        """The categories of a categorical column in stored order, unused ones included; None for other columns."""
        node = self._column(axis, column)
        with self._reading():
            if is_group(node) and "categories" in node:
                return tuple(read_strings(node["categories"]))
            legacy = self._legacy_categories(axis, column)
            return None if legacy is None else tuple(legacy)

    def values(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> np.ndarray:
        """A column as an array: numbers and booleans in their dtype, text and categories as str objects."""
        node = self._column(axis, column)
        if is_group(node) and "codes" in node:
            return self.labels(column, axis=axis).values()
        with self._reading():
            return read_values(node)

    @cached_property
    def uns(self) -> dict[str, Any]:
        """`uns` as nested dicts of scalars, text and arrays. Sparse matrices and data frames in it are left out."""
        with self._reading():
            node = self._file.get("uns")
            return read_mapping(node) if is_group(node) else {}

    @property
    def vcbench(self) -> dict[str, Any]:
        """`uns["vcbench"]` of a standard file, or an empty dict."""
        entry = self.uns.get("vcbench", {})
        return entry if isinstance(entry, dict) else {}

    @property
    def groups(self) -> tuple[str, ...]:
        """Non-empty top-level groups other than X, obs, var (layers, obsm, raw, ...)."""
        rest = {key: self._file.get(key) for key in self._file if key not in ("X", "obs", "var")}
        # A link that leads nowhere has no node; an empty group would be skipped all the same.
        return tuple(k for k, node in rest.items() if node is not None and (not is_group(node) or len(node)))

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of layers, obsm, varm and uns, as `layers/counts`."""
        places = ("layers", "obsm", "varm", "uns")
        return tuple(f"{p}/{key}" for p in places if is_group(self._file.get(p)) for key in self._file[p])

    def value_sample(self, location: str, n_values: int = 2**16) -> np.ndarray | None:
        """Some stored values of a matrix of the file, the first ones; None where `location` is no numeric matrix."""
        with self._reading():
            node = self._file.get(location)
            if is_group(node):
                node = node.get("data")
            if not is_dataset(node) or node.dtype.kind not in "fiub":
                return None
            if node.ndim == 1:
                return _supported(node[:n_values])
            rows = max(1, n_values // max(1, node.shape[-1]))
            return _supported(np.asarray(node[:rows])).ravel()

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """X in row order, in blocks of at most about `max_bytes` (always at least one row).

        With `canonical`, stored zeros are dropped, duplicates summed and column indices sorted; without it
        the stored entries come as they are (dense rows always come without their zeros). `wanted`, boolean,
        shape (n_obs,), allows to leave out blocks without a wanted row; a given block may hold unwanted rows.

        Raises `InvalidFile` where X cannot be read to its end (E004) or an index lies outside its axis (E008).
        """
        with self._reading():
            for block in self._raw_blocks(max_bytes, wanted):
                if canonical:
                    make_canonical(block.matrix)
                yield block

    def value_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values, row bounds) of blocks of rows: the values as stored, without reading their columns.

        `wanted`: see `row_blocks`.
        """
        with self._reading():
            if self.matrix.storage != "csr":
                for block in self._raw_blocks(max_bytes, wanted):
                    yield block.start, block.matrix.data, block.matrix.indptr
                return
            indptr = self._file[self.location]["indptr"][()].astype(np.int64)
            data = streamed(self._file[self.location], "data")
            for start, stop in row_windows(np.diff(indptr), max(1, max_bytes // data.dtype.itemsize)):
                if wanted is None or wanted[start:stop].any():
                    low, high = int(indptr[start]), int(indptr[stop])
                    yield start, _supported(data[low:high]), indptr[start : stop + 1] - low

    def _raw_blocks(self, max_bytes: int, wanted: np.ndarray | None) -> Iterator[RowBlock]:
        if self.matrix.storage == "dense":
            yield from self._dense_blocks(max_bytes, wanted)
        elif self.matrix.storage == "csr":
            yield from self._csr_blocks(max_bytes, wanted)
        else:
            yield from self._csc_blocks(max_bytes)

    def _dense_blocks(self, max_bytes: int, wanted: np.ndarray | None) -> Iterator[RowBlock]:
        x = self._file[self.location]
        step = max(1, max_bytes // max(1, self.n_vars * x.dtype.itemsize))
        for start in range(0, self.n_obs, step):
            if wanted is None or wanted[start : start + step].any():
                yield RowBlock(start, _sparse_rows(_supported(x[start : start + step])))

    def _csr_blocks(self, max_bytes: int, wanted: np.ndarray | None) -> Iterator[RowBlock]:
        x = self._file[self.location]
        indptr = x["indptr"][()].astype(np.int64)
        data, indices = streamed(x, "data"), streamed(x, "indices")
        per_block = max(1, max_bytes // (data.dtype.itemsize + indices.dtype.itemsize))
        for start, stop in row_windows(np.diff(indptr), per_block):
            if wanted is not None and not wanted[start:stop].any():
                continue
            low, high = int(indptr[start]), int(indptr[stop])
            parts = (
                _supported(data[low:high]),
                self._checked(indices[low:high], low).astype(np.int32, copy=False),
                (indptr[start : stop + 1] - low).astype(np.int32 if high - low < 2**31 else np.int64),
            )
            yield RowBlock(start, sp.csr_array(parts, shape=(stop - start, self.n_vars)))

    def _indices(self, low: int, high: int) -> np.ndarray:
        return self._checked(self._file[self.location]["indices"][low:high], low)

    def _checked(self, part: np.ndarray, low: int) -> np.ndarray:
        """Stored indices from number `low` on. Raises `InvalidFile` (E008) where one lies outside its axis."""
        n_minor = self.n_vars if self.matrix.storage == "csr" else self.n_obs
        problem = index_problem(part, low, n_minor)
        if problem:
            found, expected = problem, "a well-formed sparse matrix"
            quoted = shlex.quote(str(self.path))
            issue = make_issue(
                "E008",
                where=f"{self.name}:/{self.location}",
                found=found,
                expected=expected,
                file=quoted,
                key="",
            )
            raise InvalidFile([issue])
        return part

    def _csc_blocks(self, max_bytes: int) -> Iterator[RowBlock]:
        # A column-major file is read once per window of rows, so windows are larger than row blocks.
        x = self._file[self.location]
        itemsize = x["data"].dtype.itemsize + 8
        row_counts = self._csc_row_counts(max_bytes)
        bounds = row_windows(row_counts, max(max_bytes, CSC_WINDOW_BYTES) // itemsize)
        for start, stop in bounds:
            parts = list(self._csc_window(start, stop, max_bytes))
            data = (
                np.concatenate([p[0] for p in parts]) if parts else _supported(np.array([], x["data"].dtype))
            )
            rows = np.concatenate([p[1] for p in parts]) if parts else np.array([], np.int64)
            cols = np.concatenate([p[2] for p in parts]) if parts else np.array([], np.int32)
            order = np.argsort(rows, kind="stable")
            counts = np.bincount(rows, minlength=stop - start)
            indptr = np.concatenate([[0], np.cumsum(counts)])
            yield RowBlock(
                start, sp.csr_array((data[order], cols[order], indptr), shape=(stop - start, self.n_vars))
            )

    def _csc_chunks(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        n_live = int(self._file[self.location]["indptr"][-1])
        step = max(2**16, max_bytes // 16)
        for low in range(0, n_live, step):
            yield low, min(low + step, n_live)

    def _csc_row_counts(self, max_bytes: int) -> np.ndarray:
        counts = np.zeros(self.n_obs, dtype=np.int64)
        for low, high in self._csc_chunks(max_bytes):
            counts += np.bincount(self._indices(low, high), minlength=self.n_obs)
        return counts

    def _csc_window(
        self, start: int, stop: int, max_bytes: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        x = self._file[self.location]
        indptr = x["indptr"][()].astype(np.int64)
        for low, high in self._csc_chunks(max_bytes):
            rows = self._indices(low, high).astype(np.int64)
            keep = np.flatnonzero((rows >= start) & (rows < stop))
            cols = np.searchsorted(indptr, keep + low, side="right") - 1
            yield _supported(x["data"][low:high])[keep], rows[keep] - start, cols.astype(np.int32)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except HDF5_ERRORS as error:
            raise unreadable(self.path, error) from error

    def _frame(self, axis: str) -> Any:
        return self._file[axis]

    def _index(self, axis: str) -> np.ndarray:
        frame = self._frame(axis)
        with self._reading():
            values = read_values(frame[index_key(frame)])
        return np.array([str(v) for v in values], dtype=object)

    def _columns(self, axis: str) -> tuple[str, ...]:
        frame = self._frame(axis)
        skip = {index_key(frame), "__categories"}
        return tuple(member_name(key) for key in frame if key not in skip)

    def _column(self, axis: str, column: str) -> Any:
        frame = self._frame(axis)
        if column not in self._columns(axis):
            raise UsageError(
                f"{self.path}: {axis} has no column {column!r}; it has {', '.join(self._columns(axis)) or 'none'}."
            )
        return frame[column]

    def _legacy_categories(self, axis: str, column: str) -> np.ndarray | None:
        legacy = self._frame(axis).get("__categories")
        return read_strings(legacy[column]) if legacy is not None and column in legacy else None


def _matrix_info(x: Any) -> MatrixInfo:
    if is_dataset(x):
        return MatrixInfo("dense", x.dtype, (x.shape[0], x.shape[1]), x.shape[0] * x.shape[1])
    shape = sparse_shape(x)
    storage: Storage = "csr" if sparse_kind(x).startswith("csr") else "csc"
    return MatrixInfo(storage, x["data"].dtype, (shape[0], shape[1]), int(x["indptr"][-1]))


def _sparse_rows(rows: np.ndarray) -> sp.csr_array:
    """The non-zero values (NaN included) of dense rows as CSR, columns sorted."""
    # Row by row the values stay in the cache, which is several times faster than scipy's search of the whole block.
    columns = [np.flatnonzero(row != 0).astype(np.int32) for row in rows]
    data = [row[found] for row, found in zip(rows, columns, strict=True)]
    indptr = np.concatenate([[0], np.cumsum([len(found) for found in columns], dtype=np.int64)])
    kind = np.int32 if indptr[-1] < 2**31 else np.int64
    joined = (np.concatenate(data), np.concatenate(columns), indptr.astype(kind)) if len(rows) else None
    return sp.csr_array(joined or rows, shape=rows.shape)


def _supported(values: np.ndarray) -> np.ndarray:
    """The values in a dtype that scipy's sparse arrays accept: native byte order, float16 as float32."""
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def row_windows(row_counts: np.ndarray, per_window: int) -> list[tuple[int, int]]:
    """Runs of rows, in order, that hold at most `per_window` stored values each (always at least one row)."""
    ends = np.concatenate([[0], np.cumsum(row_counts)])
    windows, start = [], 0
    while start < len(row_counts):
        stop = int(np.searchsorted(ends, ends[start] + per_window, side="right")) - 1
        stop = min(max(stop, start + 1), len(row_counts))
        windows.append((start, stop))
        start = stop
    return windows
