"""Input files that lie elsewhere (`s3://`, `gs://`, `https://`, whatever fsspec knows): read in pieces, never copied.

Everything that reads an input takes its path through `input_path`. Outputs are local: they appear whole by a rename.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
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
    if isinstance(item, RemotePath):
        return True
    return hasattr(item, "fs") and hasattr(item, "protocol") and not isinstance(item, (Path, os.PathLike))


def is_path_like(item: Any) -> TypeIs[str | os.PathLike[str]]:
    """Whether an argument names a file: a text, a path, or a remote path."""
    return isinstance(item, (str, os.PathLike)) or is_remote(item)


def input_path(item: Any) -> Path:
    """The path of an input; a `RemotePath` for a URL, which has the methods of `Path` that read.

    Raises
    ------
    UsageError
        A URL without the packages that its file system needs, or of a file system that fsspec does not know.
    """
    if not is_remote(item):
        return Path(str(item).removeprefix("file://") if isinstance(item, str) else item)
    if not isinstance(item, str):
        return cast(Path, item if isinstance(item, RemotePath) else RemotePath(item))
    if find_spec("upath") is None:
        raise UsageError(f'{public(item)}: reading URLs needs fsspec: pip install "vcbench[remote]".')
    from upath import UPath

    try:
        found = UPath(item)
        _ = found.fs
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{public(item)}: cannot be read: {error}.") from error
    return cast(Path, RemotePath(found))


@dataclass(frozen=True)
class RemotePath:
    """A file behind a URL: the reading half of `pathlib.Path`, and no `os.PathLike`.

    Whatever the network says is an `OSError`; `exists`, `is_file` and `is_dir` are then False. `inner` is its `UPath`.
    """

    inner: Any

    def __str__(self) -> str:
        return str(self.inner)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.inner / name)

    @property
    def name(self) -> str:
        """The last part of the URL, with its query."""
        return self.inner.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.inner.stem

    @property
    def suffix(self) -> str:
        """The last suffix of the name, without the URL's query."""
        return self.inner.suffix.partition("?")[0]

    @property
    def parent(self) -> RemotePath:
        """The folder that holds it."""
        return RemotePath(self.inner.parent)

    def with_suffix(self, suffix: str) -> RemotePath:
        """The file of this suffix beside it."""
        return RemotePath(self.inner.with_suffix(suffix))

    def absolute(self) -> RemotePath:
        """Itself: a URL means the same everywhere."""
        return self

    def stat(self) -> Any:
        """Its mode and size. Raises `OSError`."""
        return _asked(self.inner.stat)

    def exists(self) -> bool:
        """Whether there is an answer for it."""
        return _answered(self.inner.exists)

    def is_file(self) -> bool:
        """Whether it is a file."""
        return _answered(self.inner.is_file)

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return _answered(self.inner.is_dir)

    def version(self) -> str:
        """A text that changes when the server says that the file changed. Raises `OSError`."""
        return str(_asked(lambda: self.inner.fs.ukey(self.inner.path)))

    def pieces(self, **options: Any) -> io.RawIOBase:
        """The bytes, for reading at any position; `options` are those of the file system. Raises `OSError`."""
        return _Pieces(_asked(lambda: self.inner.fs.open(self.inner.path, "rb", **options)), str(self))

    def open(
        self,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """The file for reading, as `Path.open` gives it. Raises `OSError`."""
        binary = io.BufferedReader(self.pieces())
        if "b" in mode:
            return binary
        return io.TextIOWrapper(binary, encoding=encoding, errors=errors, newline=newline)

    def read_text(self, encoding: str | None = None) -> str:
        """The content as text. Raises `OSError`."""
        with self.open(encoding=encoding) as file:
            return file.read()


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
    pieces = cast(RemotePath, path).pieces(
        block_size=_PIECE_BYTES, cache_type="blockcache", cache_options={"maxblocks": _PIECES_KEPT}
    )
    if not pieces.seekable():
        pieces.close()
        raise OSError("the server gives whole files only; parts are needed. Copy the file here first")
    return pieces


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
        return self._handle.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def readinto(self, buffer: Any) -> int:
        return _asked(lambda: self._handle.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def _asked(question: Callable[[], Any]) -> Any:
    # Each file system brings the errors of its network library.
    try:
        return question()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _answered(question: Callable[[], bool]) -> bool:
    try:
        return bool(_asked(question))
    except OSError:
        return False
