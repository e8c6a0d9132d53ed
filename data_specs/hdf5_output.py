"""HDF5 files for writing that survive a full disk.

The HDF5 library crashes the interpreter at exit when it could not flush a file. So a write that fails is remembered
here and later writes are dropped: the library closes the file in peace, and the error is raised afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class GuardedFile(io.FileIO):
    """A file whose first failed write stays in `error`; what follows is dropped."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        n_bytes = len(view)
        try:
            while self.error is None and len(view):
                view = view[super().write(view) :]
        except OSError as error:
            self.error = error
        return n_bytes

    def raise_error(self) -> None:
        """Raise the remembered error, if there is one."""
        if self.error is not None:
            raise self.error


@contextmanager
def hdf5_output(path: Path) -> Iterator[tuple[h5py.File, GuardedFile]]:
    """A new HDF5 file and the file below it. Call `raise_error` now and then to stop early.

    Raises
    ------
    OSError
        A write failed, for example because the disk is full. The incomplete file is left to the caller.
    """
    with GuardedFile(path, "w+b") as raw:
        with h5py.File(raw, "w", libver=("earliest", "v110")) as file:
            yield file, raw
        raw.raise_error()
