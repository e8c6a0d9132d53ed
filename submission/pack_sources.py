"""Which files a pack starts from: one path, several, or one per context; opened and read as one source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from ..data_specs.containers import open_entry
from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.joined_source import JoinedSource
from ..data_specs.memory_source import MemorySource
from ..data_specs.sources import Source
from ..data_specs.standard import CONTEXT
from .pack_inputs import Problems, prediction_path

PathLike: TypeAlias = str | os.PathLike[str]
Files: TypeAlias = PathLike | Sequence[PathLike] | Mapping[str, PathLike]
# (context or None, path); the context names all rows of its file.
NamedFile: TypeAlias = tuple[str | None, Path]


def named_files(files: Files, option: str) -> list[NamedFile]:
    """(context, path) of each file. Text of the form `CONTEXT=FILE` is split, unless a file has that very name.

    Raises
    ------
    UsageError
        No file, an empty name, or a context given twice. `option` is how messages call the argument.
    """
    if isinstance(files, Mapping):
        return [(str(context), Path(path)) for context, path in files.items()]
    listed = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    out: list[NamedFile] = []
    for item in listed:
        context, sign, name = str(item).partition("=")
        if not sign or not isinstance(item, str) or Path(item).exists():
            context, name = "", str(item)
        if not name:
            raise UsageError(f"{option} {item!r}: names no file.")
        if context and any(context == other for other, _ in out):
            raise UsageError(f"{option} gives the context {context!r} twice.")
        out.append((context or None, Path(name)))
    if not out:
        raise UsageError(f"{option}: names no file.")
    return out


def prediction_files(pred: Files, problems: Problems) -> list[NamedFile]:
    """The files of a prediction: as given, with `prediction.h5ad` for a run folder. Raises `InvalidFile` (E532)."""
    return [(context, prediction_path(path, problems)) for context, path in named_files(pred, "PRED")]


def open_source(stack: ExitStack, files: Sequence[NamedFile], tmp: Path) -> Source:
    """The files as one source, open until the stack closes. Raises as `H5ad`, `open_entry` and `JoinedSource` do."""
    parts: list[tuple[str | None, H5ad | MemorySource]] = []
    for context, path in files:
        entry = stack.enter_context(open_entry(path, tmp=tmp))
        source = stack.enter_context(H5ad(entry.h5ad))
        source.path = path
        parts.append((context, source))
    context, only = parts[0]
    if len(parts) == 1 and context is None:
        return only
    return JoinedSource(parts, context_column=CONTEXT)


def in_memory(pred: Any) -> bool:
    """Whether the prediction is an AnnData (or looks like one), not a path."""
    return hasattr(pred, "obs") and hasattr(pred, "X")
