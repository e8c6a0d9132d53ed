"""Downloads of published files: resumed where they were cut, checked by size and checksum, never half in place.

A download grows as `.NAME.part` beside its place, with the server's mark of the version in `.NAME.part.tag`, and gets
its name only when it is whole and its checksum is right.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DownloadError, OutputError, UsageError
from .spec_models import DatasetCard, SourceFile

PIECE_BYTES = 2**20
TIMEOUT_S = (15, 60)
ATTEMPTS = 3
OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class Fetched:
    """A file in place. `verified` names the checksum that was compared ("" where none is published)."""

    path: Path
    n_bytes: int
    verified: str
    resumed_from: int


@dataclass(frozen=True)
class Plan:
    """What a download would cost: `n_bytes` in all (None: unknown), `n_present` of them already there."""

    file: SourceFile
    target: Path
    n_bytes: int | None
    n_present: int
    n_free: int


def chosen_file(spec: DatasetCard, name: str | None = None) -> SourceFile:
    """The file of this name or role; the first one with an address when None. Raises `UsageError`."""
    names = ", ".join(file.name for file in spec.files) or "none"
    for file in spec.files:
        if (name is None and file.urls) or (name is not None and name in (file.name, file.role)):
            if not file.urls:
                raise UsageError(
                    f"{spec.id}: {file.name} has no published address; `vcbench data show {spec.id}`."
                )
            return file
    if name is None:
        raise UsageError(f"{spec.id}: no file has a published address (files: {names}).")
    raise UsageError(f"{spec.id}: no file {name!r}; it has {names}.")


def plan_fetch(file: SourceFile, folder: str | os.PathLike[str], *, force: bool = False) -> Plan:
    """Where the file would go and what is missing. Raises `OutputError` when it exists or the folder does not."""
    target = Path(folder) / Path(file.name).name
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: is no folder; create it first.")
    if target.exists() and not force:
        raise OutputError(f"{target}: exists already. Choose another --out or add --force.")
    part = _part(target)
    present = part.stat().st_size if part.is_file() else 0
    return Plan(file, target, file.bytes, present, shutil.disk_usage(target.parent).free)


def fetch_file(
    file: SourceFile,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    attempts: int = ATTEMPTS,
    on_bytes: OnBytes | None = None,
) -> Fetched:
    """Download `file` into `folder`; an earlier part is continued where the server allows it.

    Addresses are tried in order, each again after a cut (`attempts` times in all).

    Raises
    ------
    DownloadError
        No address answers, the download is cut again and again (the part file stays), or size or checksum is wrong
        (the file is removed).
    OutputError
        The file exists, the folder does not, or the disk is too small or full (the part file stays).
    """
    plan = plan_fetch(file, folder, force=force)
    part = _part(plan.target)
    _require_space(plan.target, file.bytes, plan.n_present)
    resumed, failure = plan.n_present, ""
    for url in file.urls:
        if not url.startswith(("http://", "https://")):
            failure = f"{url}: only http and https are read here; fetch it with the tool of that store"
            continue
        for _ in range(max(1, attempts)):
            failure = _continue(url, part, plan.target, file.bytes, on_bytes)
            if not failure:
                return _finished(file, part, plan.target, resumed)
    kept = (
        f" {part.stat().st_size:,} bytes are kept; run the same command to go on." if part.is_file() else ""
    )
    raise DownloadError(f"{file.name}: {failure}.{kept}")


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _tag(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _require_space(target: Path, n_bytes: int | None, present: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if n_bytes is not None and n_bytes - present > free:
        raise OutputError(
            f"{target}: needs {(n_bytes - present) / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free. "
            "Free space or choose another --out."
        )


def _continue(url: str, part: Path, target: Path, n_bytes: int | None, on_bytes: OnBytes | None) -> str:
    """One attempt; "" when the part file is whole, else what went wrong."""
    import requests

    present = part.stat().st_size if part.is_file() else 0
    if n_bytes is not None and present == n_bytes:
        return ""
    tag = _tag(part).read_text(encoding="utf-8") if _tag(part).is_file() else ""
    # Without the version's mark a part may belong to another file, so the download starts again.
    headers = {"Accept-Encoding": "identity"}
    if present and tag:
        headers |= {"Range": f"bytes={present}-", "If-Range": tag}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code == 416:
                part.unlink(missing_ok=True)
                return f"{url}: the part file is longer than the source; it starts again"
            if answer.status_code not in (200, 206):
                return f"{url}: the server answers {answer.status_code} {answer.reason}"
            start = present if answer.status_code == 206 else 0
            total = _total(answer.headers, start)
            _require_space(target, total, start)
            mark = answer.headers.get("ETag", "")
            mark = answer.headers.get("Last-Modified", "") if not mark or mark.startswith("W/") else mark
            _tag(part).write_text(mark, encoding="utf-8")
            _receive(answer, part, start, total, on_bytes)
    except requests.RequestException as error:
        return (
            f"{url}: no connection or a broken one ({type(error).__name__}). Are you offline? Check the network and "
            "HTTPS_PROXY, or download the file elsewhere and run `vcbench data check` on it"
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{target}: the disk is full; the part file is kept. Free space and run the same command to go on."
            ) from error
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}).") from error
    wanted = n_bytes if total is None else total
    size = part.stat().st_size
    return "" if wanted is None or size >= wanted else f"{url}: cut after {size:,} of {wanted:,} bytes"


def _total(headers: Any, start: int) -> int | None:
    length = headers.get("Content-Length")
    return None if length is None else start + int(length)


def _receive(answer: Any, part: Path, start: int, total: int | None, on_bytes: OnBytes | None) -> None:
    done = start
    with part.open("ab" if start else "wb") as handle:
        for piece in answer.iter_content(PIECE_BYTES):
            handle.write(piece)
            done += len(piece)
            if on_bytes is not None:
                on_bytes(done, total or 0)
        handle.flush()
        os.fsync(handle.fileno())


def _finished(file: SourceFile, part: Path, target: Path, resumed: int) -> Fetched:
    """Check the whole part file and give it its name."""
    from pooch import file_hash

    size = part.stat().st_size
    checks = [("size", str(file.bytes), str(size))] if file.bytes is not None else []
    verified = ""
    for name, wanted in (("sha256", file.sha256), ("md5", file.md5)):
        if wanted:
            verified = verified or name
            checks.append((name, wanted.lower(), str(file_hash(str(part), alg=name))))
    for name, wanted, found in checks:
        if wanted != found:
            part.unlink()
            _tag(part).unlink(missing_ok=True)
            raise DownloadError(
                f"{file.name}: expected {name} {wanted}, got {found} ({size:,} bytes). The download was removed; the "
                "source may have changed."
            )
    part.replace(target)
    _tag(part).unlink(missing_ok=True)
    return Fetched(target, size, verified, resumed)
