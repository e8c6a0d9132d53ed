"""`unpack`: the h5ad inside a submission file, as it was packed."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from ..data_specs.atomic import check_output
from ..data_specs.containers import Container, open_entry
from ..data_specs.errors import InvalidFile, OutputError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.issues import Issue
from ..data_specs.remote import input_path


@dataclass(frozen=True)
class UnpackResult:
    """The written file, its shape, and what was noticed about the container."""

    h5ad: Path
    container: Container
    n_obs: int
    n_vars: int
    notes: tuple[Issue, ...]


def unpack(
    entry: str | os.PathLike[str], *, out: str | os.PathLike[str], force: bool = False
) -> UnpackResult:
    """Write the h5ad of a `.vcc` to `out`, byte for byte, whole or not at all.

    Raises
    ------
    InvalidFile
        The entry does not exist, is damaged, or holds no readable AnnData.
    OutputError
        The output exists, is a folder or the entry itself, or the disk is full.
    UsageError
        The entry is an h5ad already.
    """
    path = input_path(entry)
    target = check_output(out, inputs=[path], force=force)
    folder = target.absolute().parent
    with open_entry(path, tmp=folder) as opened:
        if opened.container == "h5ad":
            with H5ad(path):
                raise UsageError(f"{path}: is an h5ad already; there is nothing to unpack.")
        try:
            with H5ad(opened.h5ad) as file:
                n_obs, n_vars = file.n_obs, file.n_vars
        except InvalidFile as error:
            raise InvalidFile([_renamed(issue, opened.h5ad, path) for issue in error.issues]) from error
        try:
            opened.h5ad.chmod(0o666 & ~_umask())
            opened.h5ad.replace(target)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written ({error.strerror or error}).") from error
    return UnpackResult(target, opened.container, n_obs, n_vars, opened.notes)


def _renamed(issue: Issue, inner: Path, entry: Path) -> Issue:
    where = issue.where.replace(str(inner), str(entry)).replace(inner.name, entry.name)
    return replace(issue, where=where, fix=issue.fix.replace(str(inner), shlex.quote(str(entry))))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
