"""One file, several, or one per context (`CONTEXT=FILE`), opened and read as one source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

from .containers import open_entry
from .errors import UsageError
from .h5ad import H5ad
from .joined_source import JoinedSource
from .memory_source import MemorySource
from .remote import input_path, is_path_like, is_remote
from .sources import Source
from .standard import CONTEXT

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
        return [(str(context), input_path(path)) for context, path in files.items()]
    listed = [files] if is_path_like(files) else list(files)
    out: list[NamedFile] = []
    for item in listed:
        if not isinstance(item, str):
            out.append((None, input_path(item)))
            continue
        context, sign, name = item.partition("=")
        if not sign or is_remote(item) or Path(item).exists():
            context, name = "", item
        if not name:
            raise UsageError(f"{option} {item!r}: names no file.")
        if context and any(context == other for other, _ in out):
            raise UsageError(f"{option} gives the context {context!r} twice.")
        out.append((context or None, input_path(name)))
    if not out:
        raise UsageError(f"{option}: names no file.")
    return out


def open_files(stack: ExitStack, files: Sequence[NamedFile], tmp: PathLike | None = None) -> Source:
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
