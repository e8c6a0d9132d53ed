"""Structure checks of an AnnData file: what must hold before values are read. Reads headers and indices only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .issues import Issue, make_issue

DEFAULT_BLOCK_BYTES = 64 * 2**20


def structure_issues(file: Any, path: Path) -> list[Issue]:
    """Every structural problem of an open file (codes E005 to E009); empty when its values can be read."""
    issues = []
    for key in ("X", "obs", "var"):
        if key not in file:
            issues.append(
                make_issue(
                    "E005",
                    where=f"{path.name}:/{key}",
                    found="nothing",
                    expected=f"/{key}",
                    file=path,
                    key=key,
                )
            )
    for axis in ("obs", "var"):
        if axis in file and (not is_group(file[axis]) or index_key(file[axis]) not in file[axis]):
            issues.append(
                make_issue(
                    "E006",
                    where=f"{path.name}:/{axis}",
                    found="no data frame group",
                    expected="a group with an index",
                    file=path,
                    key=axis,
                )
            )
    if not issues:
        issues += _x_issues(file, path)
    return issues


def _x_issues(file: Any, path: Path) -> list[Issue]:
    x, where = file["X"], f"{path.name}:/X"
    n_obs, n_vars = (len(_first(file[axis][index_key(file[axis])])) for axis in ("obs", "var"))
    if is_dataset(x):
        if x.ndim != 2 or x.dtype.kind not in "fiub":
            return [
                make_issue(
                    "E007",
                    where=where,
                    found=f"{x.ndim}-d {x.dtype}",
                    expected="a 2-d numeric matrix",
                    file=path,
                )
            ]
        shape = x.shape
    else:
        kind = x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", ""))
        kind = kind.decode() if isinstance(kind, bytes) else str(kind)
        if not kind.startswith(("csr", "csc")) or not {"data", "indices", "indptr"} <= set(x):
            return [
                make_issue(
                    "E007",
                    where=where,
                    found=f"encoding {kind!r}",
                    expected="csr_matrix, csc_matrix or a dense array",
                    file=path,
                )
            ]
        if x["data"].dtype.kind not in "fiub":
            return [
                make_issue(
                    "E007",
                    where=f"{where}/data",
                    found=str(x["data"].dtype),
                    expected="a numeric dtype",
                    file=path,
                )
            ]
        shape = tuple(int(n) for n in x.attrs.get("shape", x.attrs.get("h5sparse_shape", (-1, -1))))
        problem = _sparse_problem(x, kind[:3], shape)
        if problem:
            return [
                make_issue(
                    "E008", where=where, found=problem, expected="a well-formed sparse matrix", file=path
                )
            ]
    if tuple(shape) != (n_obs, n_vars):
        return [
            make_issue(
                "E009",
                where=where,
                found=f"{shape[0]:,} x {shape[1]:,}",
                expected=f"{n_obs:,} obs x {n_vars:,} var",
                file=path,
            )
        ]
    return []


def _sparse_problem(x: Any, storage: str, shape: tuple[int, ...]) -> str:
    n_major, n_minor = shape if storage == "csr" else shape[::-1]
    indptr = x["indptr"][()].astype(np.int64)
    if len(indptr) != n_major + 1:
        return (
            f"indptr has {len(indptr):,} entries for {n_major:,} {'rows' if storage == 'csr' else 'columns'}"
        )
    if indptr[0] != 0:
        return f"indptr starts at {indptr[0]}"
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if len(falls):
        return f"indptr decreases at position {falls[0] + 1:,}"
    if len(x["indices"]) != len(x["data"]):
        return f"{len(x['indices']):,} indices for {len(x['data']):,} values"
    if indptr[-1] > len(x["data"]):
        return f"indptr ends at {indptr[-1]:,} with {len(x['data']):,} values"
    return _index_range_problem(x["indices"], int(indptr[-1]), n_minor)


def _index_range_problem(indices: Any, n_live: int, n_minor: int) -> str:
    step = DEFAULT_BLOCK_BYTES // max(1, indices.dtype.itemsize)
    for low in range(0, n_live, step):
        part = indices[low : min(low + step, n_live)]
        if len(part) and (part.min() < 0 or part.max() >= n_minor):
            at = int(np.flatnonzero((part < 0) | (part >= n_minor))[0])
            return f"index {part[at]} at entry {low + at:,} is outside 0 to {n_minor - 1:,}"
    return ""


def index_key(frame: Any) -> str:
    """The name of the index of a data frame group."""
    key = frame.attrs.get("_index", "_index")
    return key.decode() if isinstance(key, bytes) else str(key)


def _first(node: Any) -> Any:
    return node["values"] if is_group(node) and "values" in node else node


def is_group(node: Any) -> bool:
    """True for an HDF5 group."""
    return isinstance(node, h5py.Group)


def is_dataset(node: Any) -> bool:
    """True for an HDF5 dataset."""
    return isinstance(node, h5py.Dataset)
