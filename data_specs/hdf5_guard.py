"""A first look at an HDF5 file in a process of its own: damaged metadata can crash the HDF5 library itself.

Commands look before they open (`guarded`); library calls open files as they are. The look walks the whole structure:
groups, attributes, shapes, chunk tables and small texts. What merely cannot be read is left to the reader, which codes
it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from .remote import input_path, is_remote, open_pieces

_LONGEST_LOOK_S = 60
_SMALL_BYTES = 2**20
_guarded: ContextVar[bool] = ContextVar("guarded", default=False)
# Files that were looked at: device, inode, size, time of the last change; or URL and what its server says of it.
_seen: set[tuple[Any, ...]] = set()


@contextmanager
def guarded(on: bool = True) -> Iterator[None]:
    """In the block, files are looked at before they are opened, or not (`on` False: files of our own making)."""
    token = _guarded.set(on)
    try:
        yield
    finally:
        _guarded.reset(token)


def crash_of(path: Path) -> str | None:
    """How a process ends that walks through the file; None when it survives, or where no one asked to look."""
    if not _guarded.get():
        return None
    remote = is_remote(path)
    key = _remote_key(path) if remote else _key(path.stat())
    if key in _seen:
        return None
    # A forked child has none of the threads that file systems of a network work with.
    status = _forked(path) if hasattr(os, "fork") and not remote else _spawned(path)
    if status >= 0:
        _seen.add(key)
        return None
    if status == -getattr(signal, "SIGALRM", 0):
        return f"no end after {_LONGEST_LOOK_S} s"
    try:
        return f"the HDF5 library ended with {signal.Signals(-status).name}"
    except ValueError:
        return f"the HDF5 library ended with signal {-status}"


def _key(stat: os.stat_result) -> tuple[Any, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _remote_key(path: Any) -> tuple[Any, ...]:
    return str(path), path.version()


def _forked(path: Path) -> int:
    from h5py._objects import phil  # type: ignore[attr-defined]

    # The child only calls HDF5 and ends without clean-up; the lock of h5py must not be another thread's in it.
    with warnings.catch_warnings(), phil:
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LONGEST_LOOK_S)
            # The parent tells how the child ended; its stack would only be noise.
            faulthandler.disable()
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            walk(path)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _spawned(path: Path) -> int:
    # Through a pipe: a URL may hold a password, and command lines are seen by all.
    code = (
        "import sys; from vcbench.data_specs.hdf5_guard import walk; walk(sys.stdin.buffer.read().decode())"
    )
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, input=str(path).encode(), capture_output=True, timeout=_LONGEST_LOOK_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -getattr(signal, "SIGALRM", 0) or -1
    return min(done.returncode, 0)


def walk(path: str | os.PathLike[str]) -> int:
    """Touch everything of an HDF5 file but its large data; returns the number of objects. Damage is passed over."""
    import h5py

    # h5py ships no types for its low-level modules.
    low_level: Any = h5py

    n_objects = 0
    with (
        contextlib.suppress(Exception),
        h5py.File(open_pieces(input_path(path)) if is_remote(path) else path, "r") as file,
    ):
        waiting: list[Any] = [file]
        seen: set[Any] = set()
        while waiting:
            node = waiting.pop()
            n_objects += 1
            with contextlib.suppress(Exception):
                _touch(node)
            if isinstance(node, h5py.Group):
                with contextlib.suppress(Exception):
                    for name in node:
                        with contextlib.suppress(Exception):
                            if isinstance(node.get(name, getlink=True), h5py.HardLink):
                                child = node[name]
                                place = low_level.h5o.get_info(child.id).addr
                                if place not in seen:
                                    seen.add(place)
                                    waiting.append(child)
    return n_objects


def _touch(node: Any) -> None:
    for name in list(node.attrs):
        with contextlib.suppress(Exception):
            node.attrs[name]
    if not hasattr(node, "dtype") or not hasattr(node, "id"):
        return
    with contextlib.suppress(Exception):
        node.id.get_storage_size()
    if node.shape and node.size:
        row_bytes = node.dtype.itemsize * (node.size // len(node))
        chunk_bytes = 0 if node.chunks is None else node.dtype.itemsize * math.prod(node.chunks)
        # A declared size may be anything: rows and chunks are read only where they are small.
        if max(row_bytes, chunk_bytes) <= 64 * _SMALL_BYTES:
            node[: min(len(node), max(1, _SMALL_BYTES // max(1, row_bytes)), 2**14)]
            node[len(node) - 1]
    elif node.shape == ():
        node[()]
