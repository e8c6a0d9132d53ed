"""What a ScoreCard depends on, as one hash: the same files, rules and options have the same key wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data_specs.errors import UsageError
from ..data_specs.hashing import file_sha256
from ..data_specs.remote import input_path, is_path_like
from ..data_specs.spec_models import Edition
from .scorecard import read_scorecard

KEY = "content_key"


def content_key(
    pred: str | os.PathLike[str],
    truths: Sequence[tuple[str | None, Any]],
    *,
    edition: Edition,
    profile: str | None,
    split: Any,
    references: Mapping[str, Any],
    options: Mapping[str, Any],
) -> str:
    """The sha256 of everything that decides the values of a ScoreCard.

    Parameters
    ----------
    options
        Whatever else the caller chose and results depend on, as plain values.

    Raises
    ------
    UsageError
        The entry or a truth is an object in memory, which has no content to hash.
    """
    stated = {
        "vcbench": version("vcbench"),
        "edition": edition.model_dump(mode="json"),
        "profile": profile,
        "prediction": _content(pred),
        "truth": [[context, _content(item)] for context, item in truths],
        "split": None if split is None else _content(split),
        "references": {name: _content_or_text(item) for name, item in sorted(references.items())},
        "options": options,
    }
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _content(item: Any) -> str:
    from .bundles import MANIFEST, is_bundle

    if not is_path_like(item):
        raise UsageError("only files have a content to compare; give paths.")
    # A bundle's manifest has the hashes of all its files.
    file = input_path(item) / MANIFEST if is_bundle(item) else input_path(item)
    try:
        return file_sha256(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error}).") from error


def _content_or_text(item: Any) -> str:
    is_file = is_path_like(item) and input_path(item).is_file()
    return _content(item) if is_file else str(item)


def has_key(folder: Path, key: str) -> bool:
    """Whether a folder holds the ScoreCard of this key. Raises `UsageError` for a broken card."""
    if not (folder / "scorecard.json").is_file():
        return False
    return read_scorecard(folder).parameters.get(KEY) == key
