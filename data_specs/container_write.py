"""Write the submission containers of both challenge years: an uncompressed tar of a zstd frame and a marker.

The bytes depend only on the h5ad, the marker and the zstd version: members have mode 0644, owner 0 and time 0, and the
zstd frame (level 3) is the multithreaded one whatever `threads`. A container is read back and compared before it
appears.
"""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from .atomic import atomic_file
from .containers import MAX_META_BYTES, META, META_SCHEMA, WATERMARK, WATERMARK_BYTES
from .errors import OutputError, UsageError
from .read_back import ReadBack
from .tar_members import BLOCK, TarProblem, open_archive, read_members
from .zstd_stream import PAYLOAD

_TAR_RECORD = 20 * BLOCK
_PIECE = 2**20
Extra = tuple[str, bytes]


class WritingStopped(Exception):
    """The writer was told to stop; nothing is kept."""


def write_vcc2025(
    h5ad_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int = 1,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Write the 2025 container of an h5ad: `pred.h5ad.zst`, then `watermark.txt`.

    Parameters
    ----------
    stop
        Once set, by another thread, the writer gives up.

    Returns
    -------
    `{"h5ad_bytes", "payload_bytes", "bytes", "zstd"}`.

    Raises
    ------
    OutputError
        The disk is full, the folder cannot be written, or the read-back differs.
    WritingStopped
        `stop` was set.
    """
    after = [(WATERMARK, WATERMARK_BYTES)]
    return _write(h5ad_path, out, after=after, threads=threads, stop=stop)


def write_vcc2026(
    h5ad_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    meta: Mapping[str, Any],
    threads: int = 1,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Write the 2026 container of an h5ad: `meta.json`, then `pred.h5ad.zst`.

    Parameters
    ----------
    meta
        What the marker says besides its schema version: `nnz`, `n_obs`, `n_vars`, `cli_version`, `contexts`,
        `perts_fingerprint`, `panel_id`. A key whose value is None is left out.
    stop
        As in `write_vcc2025`.

    Returns
    -------
    As `write_vcc2025`, and `"meta"`, the object that was written.

    Raises
    ------
    OutputError, WritingStopped
        As `write_vcc2025`.
    UsageError
        `meta` takes more than 64 KiB.
    """
    record = {"schema": META_SCHEMA, **{key: value for key, value in meta.items() if value is not None}}
    text = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_META_BYTES:
        raise UsageError(f"meta.json would take {len(text):,} bytes; readers stop at {MAX_META_BYTES:,}.")
    written = _write(h5ad_path, out, before=[(META, text)], threads=threads, stop=stop)
    return {**written, "meta": record}


def _write(
    h5ad_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    before: Sequence[Extra] = (),
    after: Sequence[Extra] = (),
    threads: int,
    stop: threading.Event | None,
) -> dict[str, Any]:
    import zstandard

    source = Path(h5ad_path)
    size = source.stat().st_size
    with atomic_file(out) as part:
        with part.open("wb") as tar, source.open("rb") as plain:
            for extra in before:
                _add(tar, *extra)
            header_at = tar.tell()
            tar.write(bytes(BLOCK))
            options = {"level": 3, "write_checksum": True, "write_content_size": True}
            frame = zstandard.ZstdCompressor(threads=max(1, threads), **options)
            with ReadBack(tar, part, follow=threads > 1) as written:
                pieces, frames = cast("IO[bytes]", _Stoppable(plain, stop)), cast("IO[bytes]", written)
                _, payload_bytes = frame.copy_stream(pieces, frames, size=size, read_size=_PIECE)
            tar.write(bytes(-payload_bytes % BLOCK))
            for extra in after:
                _add(tar, *extra)
            end = tar.tell() + 2 * BLOCK
            tar.write(bytes(2 * BLOCK + -end % _TAR_RECORD))
            total = tar.tell()
            tar.seek(header_at)
            tar.write(_header(PAYLOAD, payload_bytes))
        if written.n_bytes != size or not _holds(part, payload_bytes):
            raise OutputError(_differs(Path(out)))
    return {
        "h5ad_bytes": size,
        "payload_bytes": payload_bytes,
        "bytes": total,
        "zstd": ".".join(str(n) for n in zstandard.ZSTD_VERSION),
    }


class _Stoppable:
    """A binary stream that raises `WritingStopped` once `stop` is set."""

    def __init__(self, stream: IO[bytes], stop: threading.Event | None):
        self._stream, self._stop = stream, stop

    def read(self, size: int = -1) -> bytes:
        if self._stop is not None and self._stop.is_set():
            raise WritingStopped
        return self._stream.read(size)


def _holds(part: Path, payload_bytes: int) -> bool:
    """Whether the archive, as it lies on the disk, has the payload with this size."""
    try:
        with open_archive(part) as stream:
            return any(m.name == PAYLOAD and m.size == payload_bytes for m in read_members(stream))
    except TarProblem:
        return False


def _differs(out: Path) -> str:
    return f"{out}: what was written does not read back equal; nothing was kept. Check the disk."


def _add(tar: IO[bytes], name: str, data: bytes) -> None:
    tar.write(_header(name, len(data)))
    tar.write(data)
    tar.write(bytes(-len(data) % BLOCK))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(format=tarfile.GNU_FORMAT)
