"""Input files that lie elsewhere (`s3://`, `gs://`, `https://`, whatever fsspec knows): read in pieces, never copied.

Everything that reads an input takes its path through `input_path`. Outputs are local: they appear whole by a rename.
"""

from __future__ import annotations

import io
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .errors import OutputError, UsageError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

# A single letter is a drive of Windows; `::` chains file systems, as in `simplecache::s3://bucket/a.h5ad`.
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+::)*[A-Za-z][A-Za-z0-9+.-]+://")
_PASSWORD, _QUERY = re.compile(r"(://)[^/\s@:]*:[^/\s@]*@"), re.compile(r"(://[^\s?]*\?)[^\s'\"]*")
_PIECE_BYTES, _PIECES_KEPT = 2**22, 16
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

AnyPath: TypeAlias = str | os.PathLike[str]


def is_remote(item: Any) -> bool:
    """Whether a text is a URL, or an object a path of `universal_pathlib` that is no local path."""
    if isinstance(item, str):
        return bool(_URL.match(item)) and not item.startswith("file://")
    return hasattr(item, "fs") and hasattr(item, "protocol") and not isinstance(item, (Path, os.PathLike))


def is_path_like(item: Any) -> TypeIs[str | os.PathLike[str]]:
    """Whether an argument names a file: a text, a path, or a remote path."""
    return isinstance(item, (str, os.PathLike)) or is_remote(item)


def input_path(item: Any) -> Path:
    """The path of an input. A remote one has the methods of `Path` that read, and is no `os.PathLike`.

    Raises
    ------
    UsageError
        A URL without the packages that its file system needs, or of a file system that fsspec does not know.
    """
    if not is_remote(item):
        return Path(str(item).removeprefix("file://") if isinstance(item, str) else item)
    if not isinstance(item, str):
        return cast(Path, item)
    if find_spec("upath") is None:
        raise UsageError(f'{public(item)}: reading URLs needs fsspec: pip install "vcbench[remote]".')
    from upath import UPath

    try:
        found = UPath(item)
        _ = found.fs
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{public(item)}: cannot be read: {error}.") from error
    return cast(Path, found)


def output_path(item: AnyPath) -> Path:
    """The path of an output. Raises `OutputError` for a URL."""
    if is_remote(item):
        raise OutputError(
            f"{public(str(item))}: outputs are local, so that they appear whole. Write to a local path and copy it."
        )
    return Path(item)


def absolute_text(item: Any) -> str:
    """A path as text that means the same in another folder."""
    return str(item) if is_remote(item) else str(input_path(item).absolute())


def recorded_path(path: Path) -> str:
    """A path as outputs record it: resolved, or a URL without its secrets."""
    return public(str(path)) if is_remote(path) else str(path.resolve())


def public(text: str) -> str:
    """A text without the passwords and signed queries of the URLs in it."""
    return _QUERY.sub(r"\1…", _PASSWORD.sub(r"\1", text))


def file_name(path: Path) -> str:
    """The name of a file, without the query of a URL."""
    return path.name.partition("?")[0] if is_remote(path) else path.name


def open_pieces(path: Path) -> io.RawIOBase:
    """A remote file for reading at any position, in pieces of 4 MiB of which 16 are kept.

    Raises
    ------
    OSError
        It cannot be opened, or its server gives no parts of files.
    """
    remote = cast(Any, path)
    try:
        handle = remote.fs.open(
            remote.path,
            "rb",
            block_size=_PIECE_BYTES,
            cache_type="blockcache",
            cache_options={"maxblocks": _PIECES_KEPT},
        )
    except OSError:
        raise
    except Exception as error:
        raise _as_os_error(error) from error
    if not handle.seekable():
        handle.close()
        raise OSError("the server gives whole files only; parts are needed. Copy the file here first")
    return _Pieces(handle, str(path))


class _Pieces(io.RawIOBase):
    """A file of fsspec whose errors are all `OSError`, which readers of HDF5 understand."""

    def __init__(self, handle: Any, name: str):
        self._handle, self._name = handle, name

    def __repr__(self) -> str:
        # h5py calls an opened file by this.
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            return self._handle.readinto(buffer)
        except OSError:
            raise
        except Exception as error:
            raise _as_os_error(error) from error

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def _as_os_error(error: Exception) -> OSError:
    # Each file system brings errors of its network library.
    return OSError(f"{type(error).__name__}: {error}")
