"""Input files that lie elsewhere (`s3://`, `gs://`, `https://`, whatever fsspec knows): read in pieces, never copied.

Everything that reads an input takes its path through `input_path`. Outputs are local: they appear whole by a rename.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
        return self._derived(lambda path: path / name)

    @property
    def name(self) -> str:
        """The last part of the URL, without its query."""
        return self.inner.name.partition("?")[0]

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
        return self._derived(lambda path: path.parent)

    def with_suffix(self, suffix: str) -> RemotePath:
        """The file of this suffix beside it."""
        return self._derived(lambda path: path.with_suffix(suffix))

    def _derived(self, change: Callable[[Any], Any]) -> RemotePath:
        # The query of a web address belongs behind the whole path, of this file as of its neighbours.
        base, mark, query = str(self.inner).partition("?")
        if not mark or self.inner.protocol not in ("http", "https"):
            return RemotePath(change(self.inner))
        made, options = type(self.inner), dict(self.inner.storage_options)
        return RemotePath(made(f"{change(made(base, **options))}?{query}", **options))

    def absolute(self) -> RemotePath:
        """Itself: a URL means the same everywhere."""
        return self

    def iterdir(self) -> Iterator[RemotePath]:
        """What a folder holds. Raises `OSError`."""
        return iter(_asked(lambda: [RemotePath(item) for item in self.inner.iterdir()]))

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

    def pieces(self, *, whole: bool = False, **options: Any) -> io.RawIOBase:
        """The bytes, for reading at any position; `options` are those of the file system. Raises `OSError`.

        With `whole`, a read that ends early is an error.
        """
        handle = _asked(lambda: self.inner.fs.open(self.inner.path, "rb", **options))
        return _Pieces(handle, str(self), whole=whole)

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


def open_pieces(path: Path) -> io.RawIOBase:
    """A remote file for reading at any position, in pieces of 4 MiB of which 16 are kept.

    Raises
    ------
    OSError
        It cannot be opened, or its server gives no parts of files.
    """
    return cast(RemotePath, path).pieces(
        whole=True,
        block_size=_PIECE_BYTES,
        cache_type="blockcache",
        cache_options={"maxblocks": _PIECES_KEPT},
    )


class _Pieces(io.RawIOBase):
    """A file of fsspec whose errors are all `OSError`, which readers of HDF5 understand.

    With `whole` a read of fewer bytes than asked for is an error: h5py takes every read for a full one, and what is
    missing would be whatever the memory held.
    """

    def __init__(self, handle: Any, name: str, *, whole: bool):
        self._handle, self._name, self._whole = handle, name, whole

    def __repr__(self) -> str:
        # h5py calls an opened file by this.
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return _asked(lambda: self._handle.seek(offset, whence))

    def tell(self) -> int:
        return self._handle.tell()

    def readinto(self, buffer: Any) -> int:
        left = memoryview(buffer).cast("B")
        while len(left) and (n := _asked(partial(self._handle.readinto, left))):
            left = left[n:]
        if len(left) and self._whole:
            raise OSError(f"{len(buffer) - len(left):,} of {len(buffer):,} bytes came")
        return len(buffer) - len(left)

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def _asked(question: Callable[[], Any]) -> Any:
    # Each file system brings the errors of its network library, which share no class; ours stay what they are.
    try:
        return question()
    except (OSError, MemoryError, AttributeError, NameError, TypeError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _answered(question: Callable[[], bool]) -> bool:
    try:
        return bool(_asked(question))
    except OSError:
        return False
