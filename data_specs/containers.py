"""Submission containers of both challenge years, opened safely for reading; `container_write` writes them.

A `.vcc` is a tar of a zstd-compressed h5ad and a marker: `watermark.txt` (2025) or `meta.json` (2026). Reading never
extracts by name: the one member `pred.h5ad.zst` is decompressed as a stream into a temporary file with a name of ours.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from .errors import InvalidFile, OutputError
from .issues import Issue, first_of, make_issue
from .remote import HDF5_SIGNATURE, input_path
from .tar_members import (
    BLOCK,
    DAMAGED,
    Member,
    TarProblem,
    is_compressed,
    looks_like_tar,
    open_archive,
    read_member,
    read_members,
)
from .temporary import remove_leftovers, temporary_folder, temporary_path
from .zstd_stream import PAYLOAD, decompress, no_space, payload_problem

Container = Literal["h5ad", "vcc2025", "vcc2026"]
WATERMARK, META = "watermark.txt", "meta.json"
META_SCHEMA = 1
WATERMARK_BYTES = b"vcc-prep"
MAX_META_BYTES = 64 * 1024


@dataclass(frozen=True)
class Entry:
    """An opened entry.

    Attributes
    ----------
    h5ad
        The file to read: the path itself, or a temporary file that is gone when the context ends.
    container
        How it came: `h5ad`, `vcc2025` or `vcc2026`.
    meta
        `meta.json` of a 2026 container; empty when there is none or it cannot be understood.
    notes
        Warnings about the container, as issues.
    """

    h5ad: Path
    container: Container
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[Issue, ...] = ()


@contextmanager
def open_entry(path: str | os.PathLike[str], *, tmp: str | os.PathLike[str] | None = None) -> Iterator[Entry]:
    """The h5ad of an entry: an `.h5ad` as it is, the one inside a `.vcc` unpacked to a temporary file.

    Parameters
    ----------
    tmp
        Folder of the temporary file. Default: beside the entry when that folder is writable, else the system's.
        Temporary files that a killed run of this machine left in the folder are removed first.

    Raises
    ------
    InvalidFile
        The container is damaged, incomplete, of no known year or hostile (codes E501 to E511). A missing path
        and anything that is not a container are left to `H5ad`, which names its own codes.
    """
    file = input_path(path)
    if not is_container(file):
        yield Entry(file, "h5ad")
        return
    layout = _layout(file)
    folder = temporary_folder(file, tmp)
    remove_leftovers(folder)
    with temporary_path(folder, ".h5ad") as target:
        _unpack(file, layout.payload, target)
        yield Entry(target, layout.container, layout.meta, layout.notes)


def is_container(path: str | os.PathLike[str]) -> bool:
    """True for an existing file that is named `.vcc` or begins as a tar does."""
    file = input_path(path)
    if not file.is_file():
        return False
    if file.suffix.lower() == ".vcc":
        return True
    try:
        with file.open("rb") as handle:
            return looks_like_tar(handle.read(BLOCK))
    except OSError:
        return False


def container_issues(
    entry: Entry, allowed: Sequence[str], path: str | os.PathLike[str], edition: str
) -> list[Issue]:
    """The container's warnings, and an error (E540) when the edition does not take this container."""
    file, issues = input_path(path), list(entry.notes)
    if entry.container not in allowed:
        issues.append(
            make_issue(
                "E540",
                where=str(file),
                found=entry.container,
                expected=" or ".join(allowed),
                file=_quoted(file),
                edition=edition,
            )
        )
    return issues


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


@dataclass(frozen=True)
class _Layout:
    container: Container
    payload: Member
    meta: dict[str, Any]
    notes: tuple[Issue, ...]


def _layout(path: Path) -> _Layout:
    head = _head(path)
    try:
        with open_archive(path) as stream:
            members = read_members(stream)
            return _checked_layout(path, head, members, stream)
    except TarProblem as problem:
        code = "E501" if problem.first else "E502"
        found = _kind_of(head) if problem.first else problem.found
        raise InvalidFile(
            [
                make_issue(
                    code,
                    where=str(path),
                    found=found,
                    expected="an uncompressed tar archive",
                    file=_quoted(path),
                )
            ]
        ) from problem
    except DAMAGED as error:
        raise InvalidFile(
            [
                make_issue(
                    "E502", where=str(path), found=error, expected="a complete archive", file=_quoted(path)
                )
            ]
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(BLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidFile:
    found = error.strerror or str(error)
    return InvalidFile(
        [make_issue("E502", where=str(path), found=found, expected="a readable archive", file=_quoted(path))]
    )


def _kind_of(head: bytes) -> str:
    if head.startswith(HDF5_SIGNATURE):
        return "a plain HDF5 file"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "a bare zstd stream"
    return f"a file that starts with {head[:8]!r}" if head else "an empty file"


def _checked_layout(path: Path, head: bytes, members: list[Member], stream: IO[bytes]) -> _Layout:
    issues = _member_issues(path, members)
    by_name = {member.name: member for member in members}
    payload = by_name.get(PAYLOAD)
    if payload is None:
        found = first_of(by_name)
        issues.append(make_issue("E503", where=str(path), found=found, expected=PAYLOAD, file=_quoted(path)))
    container: Container = "vcc2026" if META in by_name else "vcc2025"
    if META not in by_name and WATERMARK not in by_name:
        expected = f"{WATERMARK} (2025) or {META} (2026)"
        issues.append(
            make_issue(
                "E504", where=str(path), found=first_of(by_name), expected=expected, file=_quoted(path)
            )
        )
    elif container == "vcc2025":
        mark = read_member(stream, by_name[WATERMARK], 64)
        if mark != WATERMARK_BYTES or by_name[WATERMARK].size != len(WATERMARK_BYTES):
            where = f"{path.name}:{WATERMARK}"
            issues.append(
                make_issue(
                    "E505", where=where, found=repr(mark), expected=repr(WATERMARK_BYTES), file=_quoted(path)
                )
            )
    if issues or payload is None:
        raise InvalidFile(issues)
    notes = _notes(path, head, [m.name for m in members], container)
    meta: dict[str, Any] = {}
    if container == "vcc2026":
        meta, problem = _meta(stream, by_name[META])
        if problem:
            where = f"{path.name}:{META}"
            notes.append(
                make_issue("W504", where=where, found=problem, expected="a JSON object", file=_quoted(path))
            )
    return _Layout(container, payload, meta, tuple(notes))


def _member_issues(path: Path, members: list[Member]) -> list[Issue]:
    issues = []
    unsafe = [
        m.name for m in members if not m.safe_name or (m.name in (PAYLOAD, WATERMARK, META) and not m.regular)
    ]
    if unsafe:
        issues.append(
            make_issue(
                "E506",
                where=str(path),
                found=first_of(unsafe),
                expected="regular files with plain names",
                file=_quoted(path),
            )
        )
    names = [m.name for m in members]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        issues.append(
            make_issue(
                "E507",
                where=str(path),
                found=first_of(twice),
                expected="each member once",
                file=_quoted(path),
            )
        )
    return issues


def _notes(path: Path, head: bytes, names: list[str], container: Container) -> list[Issue]:
    where = str(path)
    order = [PAYLOAD, WATERMARK] if container == "vcc2025" else [META, PAYLOAD]
    notes = []
    extra = [name for name in names if name not in (PAYLOAD, WATERMARK, META)]
    if extra:
        notes.append(
            make_issue(
                "W501", where=where, found=first_of(extra), expected=" and ".join(order), file=_quoted(path)
            )
        )
    if WATERMARK in names and META in names:
        notes.append(
            make_issue(
                "W502",
                where=where,
                found=f"{WATERMARK} and {META}",
                expected="one of them",
                file=_quoted(path),
            )
        )
    elif not extra and names != order:
        notes.append(
            make_issue(
                "W503", where=where, found=", ".join(names), expected=", ".join(order), file=_quoted(path)
            )
        )
    if is_compressed(head):
        notes.append(
            make_issue(
                "W505",
                where=where,
                found="a compressed tar",
                expected="an uncompressed tar",
                file=_quoted(path),
            )
        )
    return notes


def _meta(stream: IO[bytes], member: Member) -> tuple[dict[str, Any], str]:
    if member.size > MAX_META_BYTES:
        return {}, f"{member.size:,} bytes (limit {MAX_META_BYTES:,})"
    try:
        value = json.loads(read_member(stream, member, MAX_META_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits is a ValueError of its own.
        return {}, str(error)
    if not isinstance(value, dict) or value.get("schema") != 1:
        return {}, "no object with schema 1"
    return value, ""


def _unpack(path: Path, payload: Member, target: Path) -> None:
    try:
        with open_archive(path) as stream:
            stream.seek(payload.offset)
            descriptor = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                for piece in decompress(stream, payload.size, path, folder=target.parent):
                    out.write(piece)
    except DAMAGED as error:
        raise payload_problem("E508", path, str(error), "a complete zstd stream") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise no_space(path, target.parent, None) from error
        raise OutputError(
            f"{target}: cannot be written ({error.strerror or error}). Choose another --tmp."
        ) from error
    with target.open("rb") as handle:
        head = handle.read(8)
    if head != HDF5_SIGNATURE:
        found = f"a file that starts with {head!r}" if head else "an empty file"
        raise payload_problem("E511", path, found, "an HDF5 file")
