"""Tables of differential expression: h5ad files that hold layers and need no X, and the id map of the task."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.h5ad_columns import member_name, read_mapping, read_values
from ...data_specs.h5ad_structure import (
    HDF5_ERRORS,
    first_values,
    index_key,
    is_dataset,
    is_group,
    open_hdf5,
    sparse_kind,
    sparse_shape,
    unreadable,
)
from ...data_specs.issues import Issue, first_of, make_issue
from ...data_specs.remote import input_path, is_path_like

Key = tuple[str, str]
ID_COLUMNS = ("id", "cell_type", "sm_name")
_FORMATS: Mapping[str, Any] = {"csr_matrix": sp.csr_array, "csc_matrix": sp.csc_array}


@dataclass(frozen=True)
class EffectTable:
    """A table in memory: rows are (cell type, compound), columns genes.

    `obs` maps column names to object arrays of str (None: missing); `layers` maps names to arrays as stored;
    `path` is the file, or the name of an object in memory (then `from_file` is false).
    """

    name: str
    path: Path
    from_file: bool
    obs_names: np.ndarray
    genes: np.ndarray
    obs: Mapping[str, np.ndarray]
    layers: Mapping[str, np.ndarray]
    uns: Mapping[str, Any]

    @property
    def n_obs(self) -> int:
        return len(self.obs_names)

    @property
    def n_vars(self) -> int:
        return len(self.genes)

    def keys(self, columns: tuple[str, str]) -> list[Key] | None:
        """(cell type, compound) of every row; None when a column is absent. Missing values become ""."""
        if any(column not in self.obs for column in columns):
            return None
        left, right = (self.obs[column] for column in columns)
        return [
            ("" if a is None else str(a), "" if b is None else str(b))
            for a, b in zip(left, right, strict=True)
        ]


def open_table(source: Any, *, name: str = "table", layers: tuple[str, ...] = ()) -> EffectTable:
    """The table of a path or of an AnnData in memory; neither is modified.

    `layers` limits what is read (those that exist; every one when empty). Values keep their dtype.

    Raises
    ------
    InvalidFile
        The file cannot be read (E001 to E004), has no obs or var (E005, E006), or a layer is not numeric or has
        another shape (E702).
    UsageError
        `source` is neither.
    """
    if isinstance(source, EffectTable):
        return source
    if is_path_like(source):
        return _from_file(input_path(source), layers)
    if all(hasattr(source, slot) for slot in ("obs", "var", "uns", "layers")):
        return _from_memory(source, name, layers)
    raise UsageError(f"the {name} is a {type(source).__name__}; a path or an AnnData is needed.")


def _from_file(path: Path, wanted: tuple[str, ...]) -> EffectTable:
    file = open_hdf5(path)
    try:
        with file:
            frames = {axis: file.get(axis) for axis in ("obs", "var")}
            issues = [issue for axis, frame in frames.items() for issue in _frame_issues(path, axis, frame)]
            if issues:
                raise InvalidFile(issues)
            index = {axis: _text(read_values(frame[index_key(frame)])) for axis, frame in frames.items()}
            shape = (len(index["obs"]), len(index["var"]))
            group = file.get("layers")
            listed = [member_name(key) for key in group] if is_group(group) else []
            chosen = [key for key in listed if not wanted or key in wanted]
            layers = {key: _layer(group[key], key, shape, path) for key in chosen}
            obs = {
                member_name(key): _text(_column(frames["obs"], key))
                for key in frames["obs"]
                if key not in (index_key(frames["obs"]), "__categories")
            }
            uns = read_mapping(file["uns"]) if is_group(file.get("uns")) else {}
    except HDF5_ERRORS as error:
        raise unreadable(path, error) from error
    return EffectTable(path.name, path, True, index["obs"], index["var"], obs, layers, uns)


def _frame_issues(path: Path, axis: str, frame: Any) -> list[Issue]:
    if frame is None:
        return [table_issue("E005", path, f"/{axis}", "nothing", f"/{axis}", key=axis)]
    ok = is_group(frame) and index_key(frame) in frame and is_dataset(first_values(frame[index_key(frame)]))
    if ok:
        return []
    return [table_issue("E006", path, f"/{axis}", "no data frame group", "a group with an index", key=axis)]


def _column(frame: Any, key: str) -> np.ndarray:
    legacy = frame.get("__categories")
    values = read_values(frame[key])
    if legacy is not None and key in legacy and values.dtype.kind in "iu":
        names = read_values(legacy[key]).astype(object)
        return np.array([names[code] if code >= 0 else None for code in values], dtype=object)
    return values


def _text(values: np.ndarray) -> np.ndarray:
    return np.array([None if v is None or v != v else str(v) for v in values], dtype=object)


def _layer(node: Any, key: str, shape: tuple[int, int], path: Path) -> np.ndarray:
    found = ""
    values = np.empty((0, 0))
    if is_dataset(node):
        found = "" if node.ndim == 2 and node.dtype.kind in "fiub" else f"{node.ndim}-d {node.dtype}"
        if not found and node.shape == shape:
            values = node[()]
        found = found or _shape_problem(node.shape, shape)
    elif is_group(node) and sparse_kind(node) in _FORMATS:
        found = _shape_problem(sparse_shape(node), shape)
        if not found:
            parts = tuple(node[part][()] for part in ("data", "indices", "indptr"))
            values = _FORMATS[sparse_kind(node)](parts, shape=shape).toarray()
    else:
        found = "neither an array nor a sparse matrix"
    if found:
        expected = f"numbers, {shape[0]:,} rows x {shape[1]:,} genes"
        raise InvalidFile([table_issue("E702", path, f"/layers/{key}", found, expected, key=key)])
    return values


def _shape_problem(found: tuple[int, ...], wanted: tuple[int, int]) -> str:
    return "" if tuple(found) == wanted else " x ".join(f"{n:,}" for n in found)


def _from_memory(adata: Any, name: str, wanted: tuple[str, ...]) -> EffectTable:
    shape = (len(adata.obs_names), len(adata.var_names))
    layers = {}
    for key, value in adata.layers.items():
        if wanted and key not in wanted:
            continue
        values = value.toarray() if sp.issparse(value) else np.asarray(value)
        if values.dtype.kind not in "fiub" or values.shape != shape:
            found, expected = (
                f"{values.shape} {values.dtype}",
                f"numbers, {shape[0]:,} rows x {shape[1]:,} genes",
            )
            raise InvalidFile([table_issue("E702", Path(name), f"/layers/{key}", found, expected, key=key)])
        layers[str(key)] = values
    obs = {str(column): _text(adata.obs[column].astype(object).to_numpy()) for column in adata.obs.columns}
    index = [np.array([str(v) for v in names], dtype=object) for names in (adata.obs_names, adata.var_names)]
    return EffectTable(name, Path(name), False, index[0], index[1], obs, layers, dict(adata.uns))


@dataclass(frozen=True)
class IdMap:
    """The rows to predict, in order: `ids[i]` stands for `keys[i]` = (cell type, compound)."""

    name: str
    ids: tuple[str, ...]
    keys: tuple[Key, ...]


def read_id_map(path: str | os.PathLike[str]) -> IdMap:
    """The `id_map.csv` of the task. Raises `InvalidFile` (E001, E002, E004, E710) with all its problems."""
    from ...data_specs.h5ad_structure import require_regular_file

    file = input_path(path)
    require_regular_file(file, expected="a CSV with columns id, cell_type, sm_name")
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle)
            header, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(file, error) from error
    problems: list[tuple[str, str]] = []
    if any(column not in header for column in ID_COLUMNS):
        problems.append((", ".join(header) or "no header", "columns id, cell_type, sm_name"))
        rows = []
    elif not rows:
        problems.append(("no row", "at least one row"))
    ids = [str(row["id"]).strip() for row in rows]
    keys = [(str(row["cell_type"] or ""), str(row["sm_name"] or "")) for row in rows]
    for what, values in (("id", ids), ("(cell type, compound)", ["/".join(key) for key in keys])):
        if repeated := repeats(values):
            problems.append((f"repeated {first_of(repeated)}", f"each {what} once"))
    if problems:
        raise InvalidFile([table_issue("E710", file, "", found, expected) for found, expected in problems])
    return IdMap(file.name, tuple(ids), tuple(keys))


def repeats(values: Any) -> list[str]:
    """The values that occur more than once, sorted."""
    unique, counts = np.unique(np.array([str(v) for v in values], dtype=object), return_counts=True)
    return [str(name) for name in unique[counts > 1]]


def table_issue(code: str, path: Path, place: str, found: str, expected: str, *, key: str = "") -> Issue:
    """An issue of a table file; `place` is the path inside it, `key` the name that its title shows."""
    where = f"{path.name}:{place}" if place else path.name
    return make_issue(code, where=where, found=found, expected=expected, file=shlex.quote(str(path)), key=key)
