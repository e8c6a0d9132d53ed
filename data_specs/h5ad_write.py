"""Streaming writer of AnnData files through h5py: CSR rows appended block by block, renamed into place when whole.

The bytes written are deterministic for equal input (no timestamps), and anndata reads the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from .atomic import atomic_file
from .canonical import canonical
from .errors import ShapeError
from .h5ad_columns import Labels
from .hdf5_output import GuardedFile, hdf5_output

_TEXT = h5py.string_dtype("utf-8")
_CHUNK = 2**18


class CsrWriter:
    """Appends CSR row blocks to a matrix of an open file; `layers` holds the writers of its layers.

    Made by `write_h5ad_stream`.
    """

    def __init__(
        self,
        file: h5py.File,
        n_vars: int,
        dtype: np.dtype,
        compression: str | None,
        raw: GuardedFile,
        location: str = "X",
    ):
        self._n_vars, self._dtype, self._raw = n_vars, dtype, raw
        self.layers: dict[str, CsrWriter] = {}
        self._group: Any = file.create_group(location)
        options: dict[str, Any] = {"maxshape": (None,), "chunks": (_CHUNK,), "track_times": False}
        if compression:
            options["compression"] = compression
        self._data: Any = self._group.create_dataset("data", (0,), dtype, **options)
        self._indices: Any = self._group.create_dataset("indices", (0,), np.int32, **options)
        self._row_ends: list[np.ndarray] = []
        self.n_rows = 0
        self.n_stored = 0

    def append(self, block: sp.csr_array | sp.csr_matrix | np.ndarray) -> sp.csr_array:
        """Add rows. Stored zeros are dropped, column indices sorted. `block` is not modified.

        Returns the rows as they were written, which may be `block` itself.
        """
        rows: Any = sp.csr_array(block)
        if rows.shape[1] != self._n_vars:
            raise ShapeError(f"a block has {rows.shape[1]:,} genes, the file {self._n_vars:,}.")
        rows = canonical(rows)
        stop = self.n_stored + rows.nnz
        for dataset, values in ((self._data, rows.data), (self._indices, rows.indices)):
            dataset.resize((stop,))
            dataset[self.n_stored : stop] = values
        self._raw.raise_error()
        self._row_ends.append(rows.indptr[1:].astype(np.int64) + self.n_stored)
        self.n_rows += rows.shape[0]
        self.n_stored = stop
        return rows

    def finish(self) -> None:
        """Write indptr and the encoding attributes."""
        indptr = np.concatenate([np.zeros(1, np.int64), *self._row_ends])
        kind = np.int32 if self.n_stored < 2**31 else np.int64
        self._group.create_dataset("indptr", data=indptr.astype(kind), track_times=False)
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        self._group.attrs["shape"] = np.array([self.n_rows, self._n_vars], dtype=np.int64)


@contextmanager
def write_h5ad_stream(
    path: str | os.PathLike[str],
    *,
    genes: Sequence[str],
    obs: Mapping[str, Any],
    obs_names: Sequence[str] | None = None,
    var: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    layers: Sequence[str] = (),
    dtype: Any = np.float32,
    compression: str | None = None,
    durable: bool = True,
) -> Iterator[CsrWriter]:
    """An open writer for CSR rows; the file appears at `path` only when the block ends without an error.

    Parameters
    ----------
    obs, var
        Columns by name: `Labels` or text become categoricals, numbers and booleans arrays. Their length
        must equal the rows appended (for `var`, the genes).
    obs_names
        The obs index; `"0", "1", ...` when None.
    uns
        Nested dicts of scalars, text, None and arrays; stored when the block ends.
    layers
        Names of layers; `writer.layers[NAME]` takes their rows, as many as X gets.
    durable
        Wait until the data are on the disk.

    Raises
    ------
    ShapeError
        Column lengths and appended rows disagree.
    OutputError
        The disk is full or the folder cannot be written.
    """
    with atomic_file(path, durable=durable) as part, hdf5_output(part) as (file, raw):
        _root(file)
        writer = CsrWriter(file, len(genes), np.dtype(dtype), compression, raw)
        for name in layers:
            place = f"layers/{name}"
            writer.layers[name] = CsrWriter(file, len(genes), np.dtype(dtype), compression, raw, place)
        yield writer
        writer.finish()
        for name, layer in writer.layers.items():
            if layer.n_rows != writer.n_rows:
                raise ShapeError(f"layer {name} has {layer.n_rows:,} rows for {writer.n_rows:,} of X.")
            layer.finish()
        names = [str(i) for i in range(writer.n_rows)] if obs_names is None else obs_names
        _finish(file, names, obs, genes, var, uns, writer.n_rows)


def write_h5ad_dense(
    path: str | os.PathLike[str],
    x: np.ndarray,
    *,
    genes: Sequence[str],
    obs: Mapping[str, Any],
    obs_names: Sequence[str] | None = None,
    var: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write a dense float32 matrix, shape (rows, genes), for example mean effects. Arguments as `write_h5ad_stream`."""
    with atomic_file(path) as part, hdf5_output(part) as (file, _):
        _root(file)
        data = file.create_dataset("X", data=np.asarray(x, dtype=np.float32), track_times=False)
        data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        names = [str(i) for i in range(x.shape[0])] if obs_names is None else obs_names
        if x.shape[1] != len(genes):
            raise ShapeError(f"x has {x.shape[1]:,} columns for {len(genes):,} genes.")
        _finish(file, names, obs, genes, var, uns, x.shape[0])


def write_h5ad_layers(
    path: str | os.PathLike[str],
    layers: Mapping[str, np.ndarray],
    *,
    genes: Sequence[str],
    obs: Mapping[str, Any],
    obs_names: Sequence[str],
    var: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write dense layers, shape (rows, genes), in their own dtype, without X. Arguments as `write_h5ad_stream`."""
    shape = (len(obs_names), len(genes))
    with atomic_file(path) as part, hdf5_output(part) as (file, _):
        _root(file)
        _finish(file, obs_names, obs, genes, var, uns, shape[0])
        group: Any = file["layers"]
        for key, values in layers.items():
            if values.shape != shape:
                raise ShapeError(
                    f"layer {key} has shape {values.shape} for {shape[0]:,} rows, {shape[1]:,} genes."
                )
            data = group.create_dataset(key, data=values, track_times=False)
            data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _root(file: h5py.File) -> None:
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _finish(
    file: h5py.File,
    names: Sequence[str],
    obs: Mapping[str, Any],
    genes: Sequence[str],
    var: Mapping[str, Any] | None,
    uns: Mapping[str, Any] | None,
    n_rows: int,
) -> None:
    _frame(file, "obs", names, obs, n_rows)
    _frame(file, "var", genes, var or {}, len(genes))
    for key in ("layers", "obsm", "varm", "obsp", "varp"):
        _mapping_group(file, key)
    _write_mapping(_mapping_group(file, "uns"), uns or {})


def _mapping_group(parent: h5py.Group, key: str) -> h5py.Group:
    group = parent.require_group(key)
    group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    return group


def _frame(file: h5py.File, key: str, index: Sequence[str], columns: Mapping[str, Any], n_rows: int) -> None:
    if len(index) != n_rows:
        raise ShapeError(f"{key} has {len(index):,} names for {n_rows:,} rows of X.")
    group = file.create_group(key)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs.create(
        "column-order", np.array(list(columns), dtype=object), dtype=_TEXT, shape=(len(columns),)
    )
    _text(group, "_index", index)
    for name, values in columns.items():
        n_values = len(values.codes) if isinstance(values, Labels) else len(values)
        if n_values != n_rows:
            raise ShapeError(f"{key}/{name} has {n_values:,} values for {n_rows:,} rows of X.")
        _column(group, name, values)


def _column(group: h5py.Group, name: str, values: Any) -> None:
    if isinstance(values, Labels):
        _categorical(group, name, values)
        return
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        _categorical(group, name, Labels.from_values(array))
        return
    data = group.create_dataset(name, data=array, track_times=False)
    data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _categorical(group: h5py.Group, name: str, labels: Labels) -> None:
    node = group.create_group(name)
    node.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    n = len(labels.categories)
    kind = np.int8 if n < 2**7 else np.int16 if n < 2**15 else np.int32
    codes = node.create_dataset("codes", data=labels.codes.astype(kind), track_times=False)
    codes.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _text(node, "categories", labels.categories)


def _text(group: h5py.Group, name: str, values: Any) -> None:
    data = group.create_dataset(name, (len(values),), _TEXT, track_times=False)
    if len(values):
        data[:] = np.array([str(v) for v in values], dtype=object)
    data.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def _write_mapping(group: h5py.Group, mapping: Mapping[str, Any]) -> None:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            _write_mapping(_mapping_group(group, key), value)
        elif value is None:
            data = group.create_dataset(key, data=h5py.Empty("f4"))
            data.attrs.update({"encoding-type": "null", "encoding-version": "0.1.0"})
        elif isinstance(value, str):
            data = group.create_dataset(key, data=value, dtype=_TEXT, track_times=False)
            data.attrs.update({"encoding-type": "string", "encoding-version": "0.2.0"})
        elif isinstance(value, (bool, int, float, np.generic)):
            data = group.create_dataset(key, data=value, track_times=False)
            data.attrs.update({"encoding-type": "numeric-scalar", "encoding-version": "0.2.0"})
        else:
            array = np.asarray(value)
            if array.dtype.kind in "OUS":
                _text(group, key, array)
            else:
                data = group.create_dataset(key, data=array, track_times=False)
                data.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
