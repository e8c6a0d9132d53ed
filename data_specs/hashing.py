"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

_CHUNK = 2**20


def file_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`{"bytes", "sha256"}` of a file, read in pieces."""
    digest, file = hashlib.sha256(), Path(path)
    with file.open("rb") as handle:
        while piece := handle.read(_CHUNK):
            digest.update(piece)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}
