"""Temporary files that say whose they are: removed on every exit, and by the next run when their owner was killed."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError
from .remote import is_remote

TEMP_PREFIX = ".vcbench-tmp-"
_live: set[Path] = set()


@contextmanager
def temporary_path(folder: Path, suffix: str) -> Iterator[Path]:
    """A free path in `folder` whose name says who uses it; a file or folder made there is removed at the end.

    Should this process be killed, `remove_leftovers` of a later one finds it.
    """
    target = folder.absolute() / f"{TEMP_PREFIX}{_host()}-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
    _live.add(target)
    try:
        yield target
    finally:
        _remove(target)
        _live.discard(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def temporary_folder(path: Path, tmp: str | os.PathLike[str] | None) -> Path:
    """Where the unpacked file goes: `tmp`; else beside `path` where that is local and writable; else the system's.

    Raises `OutputError` when `tmp` is given and is no folder.
    """
    if tmp is not None:
        folder = Path(tmp)
        if not folder.is_dir():
            raise OutputError(f"{folder}: --tmp needs an existing folder.")
        return folder
    if is_remote(path):
        return Path(tempfile.gettempdir())
    beside = path.absolute().parent
    return beside if os.access(beside, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete temporary files and folders that dead processes of this machine left in `folder`; returns their paths."""
    removed = []
    for file in folder.glob(f"{TEMP_PREFIX}{_host()}-*"):
        pid = file.name[len(TEMP_PREFIX) + len(_host()) + 1 :].split("-")[0]
        if pid.isdigit() and file.absolute() not in _live and not _alive(int(pid)):
            _remove(file)
            removed.append(file)
    return removed


def _host() -> str:
    return "".join(c if c.isalnum() or c == "." else "_" for c in socket.gethostname())


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
