"""A strict walker over tar headers: where each member lies and how long it is. Nothing is ever extracted by name.

Python's `tarfile` reads extended headers of any size into memory and stops silently at damaged ones; entries
come from strangers, so their headers are read here with limits. Format: POSIX.1-1988 ustar, GNU long names and
base-256 sizes, and the `path` and `size` records of pax headers.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from .remote import input_path

BLOCK = 512
MAX_EXTENDED_HEADER = 64 * 1024
MAX_MEMBERS = 1000
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_FILE_TYPES = (b"0", b"\0", b"7")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


class TarProblem(Exception):
    """An archive that cannot be walked. `first` is true when not even the first header is one."""

    def __init__(self, found: str, *, first: bool = False):
        super().__init__(found)
        self.found, self.first = found, first


@dataclass(frozen=True)
class Member:
    """One member: `offset` and `size` of its data in the (decompressed) archive, in bytes."""

    name: str
    size: int
    offset: int
    regular: bool

    @property
    def safe_name(self) -> bool:
        """False for absolute names and names with `..`, which unpacked with tar would leave the folder."""
        return not (self.name.startswith(("/", "\\")) or ".." in self.name.replace("\\", "/").split("/"))


def looks_like_tar(head: bytes) -> bool:
    """True when the first 512 bytes of a file carry the ustar magic (POSIX or GNU)."""
    return head[257:262] == b"ustar"


def is_compressed(head: bytes) -> bool:
    """True when the first bytes of a file are those of gzip, bzip2 or xz."""
    return head.startswith(tuple(_COMPRESSED))


@contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The archive as a seekable stream of tar blocks; gzip, bzip2 and xz are decompressed on the way."""
    file = input_path(path)
    with file.open("rb") as handle:
        head = handle.read(8)
    opener = next((o for magic, o in _COMPRESSED.items() if head.startswith(magic)), None)
    stream: IO[bytes] = file.open("rb") if opener is None else opener(file, "rb")  # type: ignore[assignment]
    try:
        yield stream
    finally:
        stream.close()


def read_members(stream: IO[bytes]) -> list[Member]:
    """All members in archive order.

    Raises
    ------
    TarProblem
        A header is not one, an extended header is larger than 64 KiB, data ends early, or there are more
        than 1,000 members.
    """
    members: list[Member] = []
    name: str | None = None
    size: int | None = None
    position = 0
    while True:
        header = stream.read(BLOCK)
        if not header.strip(b"\0"):
            if not members and len(header) < BLOCK:
                raise TarProblem("an empty file" if not header else "fewer than 512 bytes", first=True)
            return members
        first = position == 0
        if len(header) < BLOCK or not _checksum_holds(header):
            raise TarProblem(f"no tar header at byte {position:,}", first=first)
        kind, own_size = header[156:157], _number(header[124:136], position)
        position += BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            body = _extended(stream, own_size, position)
            if kind == b"L":
                name = body.rstrip(b"\0").decode("utf-8", "replace")
            elif kind == b"x":
                records = _pax_records(body)
                name = records.get("path", name)
                size = _pax_size(records, position) if "size" in records else size
            position += _padded(own_size)
            continue
        regular = kind in _FILE_TYPES
        data_size = (own_size if size is None else size) if regular else 0
        members.append(Member(name or _plain_name(header), data_size, position, regular))
        if len(members) > MAX_MEMBERS:
            raise TarProblem(f"more than {MAX_MEMBERS:,} members")
        _skip_data(stream, position, data_size)
        position += _padded(data_size)
        name = size = None


def read_member(stream: IO[bytes], member: Member, limit: int) -> bytes:
    """The data of a small member, at most `limit` bytes of it."""
    stream.seek(member.offset)
    return stream.read(min(member.size, limit))


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _skip_data(stream: IO[bytes], position: int, size: int) -> None:
    if size:
        stream.seek(position + size - 1)
        if not stream.read(1):
            raise TarProblem(
                f"the archive ends inside a member of {size:,} bytes that starts at byte {position:,}"
            )
    stream.seek(position + _padded(size))


def _extended(stream: IO[bytes], size: int, position: int) -> bytes:
    if size > MAX_EXTENDED_HEADER:
        raise TarProblem(f"an extended header of {size:,} bytes at byte {position:,}")
    body = stream.read(_padded(size))[:size]
    if len(body) < size:
        raise TarProblem(f"the archive ends inside a header at byte {position:,}")
    return body


def _checksum_holds(header: bytes) -> bool:
    try:
        stored = int(header[148:156].strip(b"\0 ") or b"0", 8)
    except ValueError:
        return False
    blanked = header[:148] + b" " * 8 + header[156:]
    return stored in (sum(blanked), sum(b - 256 if b > 127 else b for b in blanked))


def _number(field: bytes, position: int) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise TarProblem(f"no member size in the header at byte {position:,}", first=position == 0) from error


def _plain_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_records(body: bytes) -> dict[str, str]:
    records = {}
    while body:
        length, _, _ = body.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(body):
            break
        key, _, value = body[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        body = body[int(length) :]
    return records


def _pax_size(records: dict[str, str], position: int) -> int:
    if not records["size"].isdigit():
        raise TarProblem(f"an extended header at byte {position:,} with size {records['size']!r}")
    return int(records["size"])
