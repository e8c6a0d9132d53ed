"""Opening an HDF5 file and checking the AnnData structure: what must hold before values are read."""

from __future__ import annotations

import errno
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import InvalidFile
from .hdf5_guard import crash_of
from .issues import Issue, make_issue
from .remote import HDF5_SIGNATURE, is_remote, open_pieces

DEFAULT_BLOCK_BYTES = 16 * 2**20
# A dataset of more bytes than this that stores less than one byte in CREDIBLE_RATIO was never written in full:
# compression of real matrices stays far below that ratio.
CREDIBLE_BYTES = 2**26
CREDIBLE_RATIO = 5000
# What h5py raises for damaged objects: OSError for data, the others for headers and names.
HDF5_ERRORS = (OSError, RuntimeError, KeyError)


def require_regular_file(path: Path, *, expected: str = "an .h5ad file") -> None:
    """Refuse a path that is missing (E001), not a regular file (E002) or not accessible (E004). Opens nothing."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        # Web servers that do not answer come as missing files, too.
        found = "no such file, or no answer" if is_remote(path) else "no such file"
        raise _invalid("E001", path, found, expected) from error
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise unreadable(path, error) from error
        raise _invalid("E001", path, "no such file", expected) from error
    if not stat.S_ISREG(mode):
        found = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise _invalid("E002", path, found, expected)


def open_hdf5(path: Path) -> Any:
    """The file opened for reading. Raises `InvalidFile` (E001 to E004; E016 in commands)."""
    require_regular_file(path)
    try:
        with path.open("rb") as handle:
            head = handle.read(8)
        ending = crash_of(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if ending is not None:
        raise _invalid("E016", path, ending, "a file that the HDF5 library can read")
    remote = is_remote(path)
    if head != HDF5_SIGNATURE if remote else not h5py.is_hdf5(path):
        found = f"a file that starts with {head!r}" if head else "an empty file"
        raise _invalid("E003", path, found, "an HDF5 file")
    try:
        return h5py.File(open_pieces(path) if remote else path, "r")
    except OSError as error:
        raise unreadable(path, error) from error


def streamed(group: Any, name: str) -> Any:
    """A dataset of `group` for reading from front to back; unfiltered chunks come without a stop in HDF5's cache."""
    dataset = group[name]
    if dataset.chunks is None or dataset.id.get_create_plist().get_nfilters():
        return dataset
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(0, 0, 0.0)
    del dataset
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def _invalid(code: str, path: Path, found: str, expected: str) -> InvalidFile:
    return InvalidFile(
        [make_issue(code, where=str(path), found=found, expected=expected, file=shlex.quote(str(path)))]
    )


def unreadable(path: Path, error: Exception) -> InvalidFile:
    """The exception (E004) for what h5py or the system said about `path`."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _invalid("E004", path, first_line, "a complete HDF5 file")


def structure_issues(file: Any, path: Path, location: str = "X") -> list[Issue]:
    """Every structural problem of an open file (codes E005 to E011); empty when `location` can be read."""
    issues = [
        _issue("E005", path, f"/{key}", "nothing", f"/{key}", key=key)
        for key in (location, "obs", "var")
        if key not in file
    ]
    for axis in ("obs", "var"):
        if axis in file and not _is_frame(file[axis]):
            issues.append(
                _issue("E006", path, f"/{axis}", "no data frame group", "a group with an index", key=axis)
            )
    if not issues:
        issues = list(_size_issues(file, path, location))
    if not issues:
        issues = [*_x_issues(file, path, location), *_column_issues(file, path)]
    return issues


def _issue(code: str, path: Path, place: str, found: str, expected: str, *, key: str = "") -> Issue:
    quoted = shlex.quote(str(path))
    return make_issue(
        code, where=f"{path.name}:{place}", found=found, expected=expected, file=quoted, key=key
    )


def _is_frame(node: Any) -> bool:
    if not is_group(node) or index_key(node) not in node:
        return False
    index = first_values(node[index_key(node)])
    return is_dataset(index) and index.ndim == 1


def _size_issues(file: Any, path: Path, location: str) -> Iterator[Issue]:
    x = file[location]
    nodes = [x] if is_dataset(x) else []
    if is_group(x):
        nodes += [x[key] for key in ("data", "indices", "indptr") if key in x]
    nodes += [first_values(file[axis][index_key(file[axis])]) for axis in ("obs", "var")]
    for node in filter(is_dataset, nodes):
        if node.is_virtual or node.external:
            continue
        n_bytes, stored = _declared_bytes(node), node.id.get_storage_size()
        if n_bytes > CREDIBLE_BYTES and stored < n_bytes / CREDIBLE_RATIO:
            yield _issue(
                "E010",
                path,
                node.name,
                f"{n_bytes:,} bytes declared (shape {' x '.join(f'{n:,}' for n in node.shape)}), {stored:,} stored",
                "a dataset that was written in full",
            )


def _declared_bytes(dataset: Any) -> int:
    # Python integers: a declared shape may exceed what a 64-bit product holds.
    n_bytes = int(dataset.dtype.itemsize)
    for n in dataset.shape or ():
        n_bytes *= int(n)
    return n_bytes


def _column_issues(file: Any, path: Path) -> Iterator[Issue]:
    for axis in ("obs", "var"):
        frame = file[axis]
        n_rows = len(first_values(frame[index_key(frame)]))
        for key in frame:
            node = first_values(frame[key])
            if not is_dataset(node):
                continue
            shape = node.shape
            if key != "__categories" and (not shape or shape[0] != n_rows):
                found = f"{shape[0]:,} values" if shape else "a single value"
                yield _issue("E011", path, f"/{axis}/{key}", found, f"{n_rows:,}, one per row", key=key)


def _x_issues(file: Any, path: Path, location: str) -> list[Issue]:
    x = file[location]
    n_obs, n_vars = (len(first_values(file[axis][index_key(file[axis])])) for axis in ("obs", "var"))
    if is_dataset(x):
        if x.ndim != 2 or x.dtype.kind not in "fiub":
            return [_issue("E007", path, f"/{location}", f"{x.ndim}-d {x.dtype}", "a 2-d numeric matrix")]
        shape = x.shape
    else:
        problem, place = _encoding_problem(x, location)
        if problem:
            return [
                _issue(
                    "E007", path, place, problem, "csr_matrix, csc_matrix or a dense array of real numbers"
                )
            ]
        shape = sparse_shape(x)
        problem = _sparse_problem(x, sparse_kind(x)[:3], shape)
        if problem:
            return [_issue("E008", path, f"/{location}", problem, "a well-formed sparse matrix")]
    if tuple(shape) != (n_obs, n_vars):
        found, expected = f"{shape[0]:,} x {shape[1]:,}", f"{n_obs:,} obs x {n_vars:,} var"
        return [_issue("E009", path, f"/{location}", found, expected)]
    return []


def _encoding_problem(x: Any, location: str) -> tuple[str, str]:
    """What is wrong with the encoding of a sparse matrix and where; ("", "") when nothing is."""
    kind = sparse_kind(x)
    if not kind.startswith(("csr", "csc")):
        return f"encoding {kind!r}", f"/{location}"
    for key in ("data", "indices", "indptr"):
        if key not in x or not is_dataset(x[key]) or x[key].ndim != 1:
            return f"no one-dimensional {key}", f"/{location}/{key}"
        if x[key].dtype.kind not in ("fiub" if key == "data" else "iu"):
            return str(x[key].dtype), f"/{location}/{key}"
    return "", ""


def _sparse_problem(x: Any, storage: str, shape: tuple[int, ...]) -> str:
    if len(shape) != 2 or min(shape) < 0:
        return f"shape attribute {shape}"
    n_major = shape[0] if storage == "csr" else shape[1]
    rows = "rows" if storage == "csr" else "columns"
    if len(x["indptr"]) != n_major + 1:
        return f"indptr has {len(x['indptr']):,} entries for {n_major:,} {rows}"
    indptr = x["indptr"][()].astype(np.int64)
    if indptr[0] != 0:
        return f"indptr starts at {indptr[0]}"
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if len(falls):
        return f"indptr decreases at position {falls[0] + 1:,}"
    if len(x["indices"]) != len(x["data"]):
        return f"{len(x['indices']):,} indices for {len(x['data']):,} values"
    if indptr[-1] > len(x["data"]):
        return f"indptr ends at {indptr[-1]:,} with {len(x['data']):,} values"
    return ""


def index_problem(part: np.ndarray, start: int, n_minor: int) -> str:
    """What is wrong with stored indices, the first of them entry `start` of the file; empty when nothing is."""
    if not len(part) or (part.min() >= 0 and part.max() < n_minor):
        return ""
    at = int(np.flatnonzero((part < 0) | (part >= n_minor))[0])
    return f"index {part[at]} at entry {start + at:,} is outside 0 to {n_minor - 1:,}"


def sparse_kind(x: Any) -> str:
    """The encoding of a sparse group, `csr_matrix` or `csc_matrix`; empty when it has none."""
    kind = x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", ""))
    return kind.decode("utf-8", "replace") if isinstance(kind, bytes) else str(kind)


def sparse_shape(x: Any) -> tuple[int, ...]:
    """The declared shape of a sparse group; empty when it has none."""
    shape = x.attrs.get("shape", x.attrs.get("h5sparse_shape", ()))
    return tuple(int(n) for n in np.atleast_1d(shape))


def index_key(frame: Any) -> str:
    """The name of the index of a data frame group."""
    key = frame.attrs.get("_index", "_index")
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def first_values(node: Any) -> Any:
    """The dataset that has one entry per row: `values` of a nullable column, `codes` of a categorical."""
    if is_group(node):
        return next((node[key] for key in ("values", "codes") if key in node), node)
    return node


def is_group(node: Any) -> bool:
    """True for an HDF5 group."""
    return isinstance(node, h5py.Group)


def is_dataset(node: Any) -> bool:
    """True for an HDF5 dataset."""
    return isinstance(node, h5py.Dataset)
