"""SHA-256 of files, and in the background while a stream is read: hashing then costs no time of the reader."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_CHUNK = 2**20
# Pieces that wait for their hash; a reader that is faster waits in turn.
_WAITING = 8


def file_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`{"bytes", "sha256"}` of a file, read in pieces."""
    digest, file = hashlib.sha256(), Path(path)
    with file.open("rb") as handle:
        while piece := handle.read(_CHUNK):
            digest.update(piece)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}


class HashedStream:
    """A binary stream whose pieces are hashed by another thread as they are read. Use as a context manager."""

    def __init__(self, stream: IO[bytes]):
        self._stream, self._digest = stream, hashlib.sha256()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="sha256", daemon=True)

    def __enter__(self) -> HashedStream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pieces.put(None)
        self._thread.join()

    def read(self, size: int = -1) -> bytes:
        """As that of the stream; pieces of at least a MiB are worth a thread."""
        piece = self._stream.read(size)
        if piece:
            self._pieces.put(piece)
        return piece

    def hexdigest(self) -> str:
        """SHA-256 of everything that was read; call it after the block."""
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._digest.update(piece)
