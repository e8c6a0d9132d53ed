"""Outputs that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError
from .remote import is_remote, output_path

PART_PREFIX = ".vcbench-part-"


def check_output(
    path: str | os.PathLike[str], *, inputs: Iterable[str | os.PathLike[str]] = (), force: bool = False
) -> Path:
    """The output path, when it may be written.

    Raises
    ------
    OutputError
        It is a directory, its parent is missing, it exists and `force` is false, or it is the same file
        as one of `inputs` (never allowed, not even with `force`).
    """
    out = output_path(path)
    for source in inputs:
        if is_remote(source):
            continue
        if os.path.realpath(source) == os.path.realpath(out) or _same_file(source, out):
            raise OutputError(f"{out}: is also an input; inputs are never overwritten. Choose another --out.")
    if out.is_dir():
        raise OutputError(f"{out}: is a directory; --out needs a file name inside it.")
    if out.exists() and not force:
        raise OutputError(f"{out}: exists already. Choose another --out or add --force.")
    parent = out.absolute().parent
    if not parent.is_dir():
        why = "is not a folder" if parent.exists() else "does not exist: create it first"
        raise OutputError(f"{out}: {parent} {why}.")
    return out


def _same_file(left: str | os.PathLike[str], right: Path) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:
        return False


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """A temporary path in the folder of `path`; renamed to `path` on success, removed on any failure.

    Without `durable`, the data may not have reached the disk yet: for files that the caller removes again.

    Raises
    ------
    OutputError
        The disk is full, or the folder cannot be written.
    """
    target = output_path(path).absolute()
    part = target.parent / f"{PART_PREFIX}{os.getpid()}-{target.name}"
    try:
        yield part
        if durable:
            with part.open("rb+") as handle:
                os.fsync(handle.fileno())
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _as_output_error(error, target) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; renamed into place on success, removed on any failure.

    With `force`, an existing folder is replaced only after the new one is complete.
    """
    target = output_path(path).absolute()
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already. Choose another --out or add --force.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target}: is a file; --out needs a folder here.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{PART_PREFIX}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise _as_output_error(error, target) from error
    try:
        part.chmod(0o755)
        yield part
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=PART_PREFIX, dir=target.parent)) / "old"
            target.rename(old)
            part.rename(target)
            shutil.rmtree(old.parent)
        else:
            part.rename(target)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _as_output_error(error, target) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _as_output_error(error: OSError, target: Path) -> OutputError:
    if isinstance(error, OutputError):
        return error
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return OutputError(
            f"{target}: the disk is full; nothing was kept. Free space or choose another --out."
        )
    return OutputError(f"{target}: cannot be written ({error.strerror or error}).")
