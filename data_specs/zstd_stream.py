"""Decompression of zstd streams from strangers: bounded memory, bounded disk, every lie of the frame header coded."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import InvalidFile
from .issues import make_issue

PAYLOAD = "pred.h5ad.zst"
DISK_RESERVE_BYTES = 16 * 2**20
# One input piece can grow about 32,000-fold in a decompression bomb, so pieces stay small.
_PIECE = 8 * 1024
_CHECK_EVERY = 64 * 2**20


def decompress(stream: IO[bytes], size: int, path: Path, *, folder: Path | None = None) -> Iterator[bytes]:
    """The decompressed pieces of the next `size` bytes of `stream`, one or more zstd frames.

    With `folder`, its free space is checked: first against the declared size, then while the data grow.

    Raises
    ------
    InvalidFile
        Not zstd, damaged, cut short (E508), more or less data than declared (E509), no space (E510).
    """
    import zstandard

    left, carry, n_out, next_check = size, b"", 0, 0
    declared: int | None = None
    first = True
    while left or carry:
        more = stream.read(min(_PIECE, left)) if len(carry) < _PIECE else b""
        head = carry + more
        left -= len(more)
        if not head:
            raise payload_problem("E508", path, "data that end early", "a complete zstd stream")
        try:
            content = zstandard.frame_content_size(head)
        except zstandard.ZstdError as error:
            raise payload_problem(
                "E508", path, f"data that start with {head[:4]!r}", "a zstd stream"
            ) from error
        declared = content if first and content >= 0 else None
        if first and declared is not None and folder is not None:
            _check_space(path, folder, declared)
        first, frame_out = False, 0
        frame = zstandard.ZstdDecompressor().decompressobj()
        piece = head
        while True:
            try:
                plain = frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise payload_problem("E508", path, str(error), "a complete zstd stream") from error
            frame_out += len(plain)
            n_out += len(plain)
            if content >= 0 and frame_out > content:
                raise payload_problem("E509", path, f"more than {content:,} bytes", f"{content:,} bytes")
            if folder is not None and n_out >= next_check:
                _check_space(path, folder, len(plain))
                next_check = n_out + _CHECK_EVERY
            if plain:
                yield plain
            if frame.eof:
                break
            piece = stream.read(min(_PIECE, left))
            left -= len(piece)
            if not piece:
                raise payload_problem("E508", path, "a zstd frame that ends early", "a complete zstd stream")
        carry = frame.unused_data


def _check_space(path: Path, folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed + DISK_RESERVE_BYTES:
        raise no_space(path, folder, needed)


def no_space(path: Path, folder: Path, needed: int | None) -> InvalidFile:
    """The refusal for a folder without the `needed` bytes (None: unknown)."""
    free = shutil.disk_usage(folder).free
    need = "more" if needed is None else f"{(needed + DISK_RESERVE_BYTES) / 2**20:,.0f} MiB"
    return InvalidFile(
        [
            make_issue(
                "E510",
                where=str(folder),
                found=f"{free / 2**20:,.0f} MiB free",
                expected=need,
                file=shlex.quote(str(path)),
            )
        ]
    )


def payload_problem(code: str, path: Path, found: str, expected: str) -> InvalidFile:
    """The refusal for a problem of the compressed member."""
    return InvalidFile(
        [
            make_issue(
                code,
                where=f"{path.name}:{PAYLOAD}",
                found=found,
                expected=expected,
                file=shlex.quote(str(path)),
            )
        ]
    )
