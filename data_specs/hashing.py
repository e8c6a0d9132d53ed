"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from typing import Any

from .remote import AnyPath, input_path

_CHUNK = 2**22


def file_facts(path: AnyPath) -> dict[str, Any]:
    """`{"bytes", "sha256"}` of a file, local or remote, read in pieces."""
    digest, n_bytes = hashlib.sha256(), 0
    with input_path(path).open("rb") as handle:
        while piece := handle.read(_CHUNK):
            digest.update(piece)
            n_bytes += len(piece)
    return {"bytes": n_bytes, "sha256": digest.hexdigest()}


def file_sha256(path: AnyPath) -> str:
    """The sha256 of a file, local or remote, read in pieces."""
    return str(file_facts(path)["sha256"])
