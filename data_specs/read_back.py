"""Proof that a zstd frame reads back from its file as it went in, while the rest of it is still being written."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_READ = 2**18
# One piece can grow about 32,000-fold, so pieces stay small.
_PIECE = 8 * 1024
# What lies on the disk already need not be waited for at the end.
_SYNC_EVERY = 32 * 2**20


class ReadBack:
    """A stream for writing one zstd frame to `file`, at whose `path` another thread reads it. A context manager.

    After the block, `n_bytes` is what the frame decompresses to; -1 when it does not read back: the frame is
    incomplete or its checksum fails. Without `follow`, reading begins when writing has ended, in the same thread.
    """

    def __init__(self, file: IO[bytes], path: Path, *, follow: bool = True):
        self.n_bytes = -1
        self._file, self._path, self._follow = file, path, follow
        self._start = self._written = file.tell()
        self._ended = False
        self._change = threading.Condition()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._read, name="read-back", daemon=True)

    def __enter__(self) -> ReadBack:
        if self._follow:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._change:
            self._ended = True
            self._change.notify()
        if self._follow:
            self._thread.join()
        elif kind is None:
            self._read()
        if self._error is not None and kind is None:
            raise self._error

    def write(self, data: Any, /) -> int:
        """As that of the file; what is written can be read at once."""
        n_bytes = self._file.write(data)
        self._file.flush()
        with self._change:
            self._written += n_bytes
            self._change.notify()
        return n_bytes

    def _read(self) -> None:
        import zstandard

        frame, n_bytes = zstandard.ZstdDecompressor().decompressobj(), 0
        try:
            with self._path.open("rb", buffering=0) as stream:
                stream.seek(self._start)
                at = synced = self._start
                while left := self._available(at):
                    view = memoryview(stream.read(min(_READ, left)))
                    if not view:
                        return
                    at += len(view)
                    if at - synced >= _SYNC_EVERY:
                        os.fsync(stream.fileno())
                        synced = at
                    for low in range(0, len(view), _PIECE):
                        n_bytes += len(frame.decompress(view[low : low + _PIECE]))
        except zstandard.ZstdError:
            return
        except OSError as error:
            self._error = error
            return
        if frame.eof and not frame.unused_data:
            self.n_bytes = n_bytes

    def _available(self, at: int) -> int:
        """How many bytes were written beyond `at`, once there are some; 0 when there will be none."""
        with self._change:
            while self._written == at and not self._ended:
                self._change.wait()
            return self._written - at
