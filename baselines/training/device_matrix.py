"""Sparse expression on the training device, made dense batch by batch; or streamed from the host when it is too big."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch

from .protocol import Placement

# Room left on the device for weights, optimizer state and activations.
DEVICE_SHARE = 0.5


def csr_bytes(x: sp.csr_array) -> int:
    """Bytes of a matrix's values and column indices, as they lie on the device."""
    return x.nnz * (4 + np.dtype(_index_dtype(_n_columns(x))).itemsize)


def fits(x: sp.csr_array, device: torch.device) -> bool:
    """Whether the matrix takes at most half of the device's free memory; always on the CPU, where it lies already."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return csr_bytes(x) <= DEVICE_SHARE * free


def _n_columns(x: sp.csr_array) -> int:
    _, n_columns = tuple(x.shape)  # type: ignore[misc]
    return int(n_columns)


def _index_dtype(n_columns: int) -> type[np.signedinteger]:
    return np.int16 if n_columns <= 2**15 else np.int32


class StoredEntries:
    """Where the stored entries of dense rows lie, in stored order.

    `columns` are their columns; `positions`, int64, their places in the flattened rows (made when asked for).
    """

    def __init__(self, columns: torch.Tensor, offsets: Callable[[], torch.Tensor]):
        self.columns, self._offsets = columns, offsets

    @cached_property
    def positions(self) -> torch.Tensor:
        return self._offsets() + self.columns


class DeviceMatrix:
    """Rows of a CSR float32 matrix as dense tensors.

    `where` tells what was chosen: `device`, or `host`, where each batch's stored values travel to the device.
    """

    def __init__(
        self, x: sp.csr_array, placement: Placement, *, where: Literal["auto", "device", "host"] = "auto"
    ):
        self.placement = placement
        self.n_columns = _n_columns(x)
        self.where = where if where != "auto" else ("device" if fits(x, placement.device) else "host")
        # Row bounds stay on the host: batch sizes are then known without waiting for the device.
        self._bounds = x.indptr.astype(np.int64)
        if placement.device.type == "cpu":
            self._x = sp.csr_array(x).astype(np.float32, copy=False)
            return
        values = torch.from_numpy(np.ascontiguousarray(x.data, dtype=np.float32))
        columns = torch.from_numpy(x.indices.astype(_index_dtype(self.n_columns)))
        if self.where == "device":
            values, columns = values.to(placement.device), columns.to(placement.device)
        self._values, self._columns = values, columns

    def rows(self, rows: np.ndarray) -> torch.Tensor:
        """Dense rows, shape (len(rows), G), on the device in the placement's dtype. A row may occur repeatedly."""
        return self.stored_rows(rows)[0]

    def stored_rows(self, rows: np.ndarray) -> tuple[torch.Tensor, StoredEntries]:
        """Dense rows as in `rows`, and where their stored entries lie."""
        device, dtype = self.placement.device, self.placement.dtype
        if device.type == "cpu":
            matrix: Any = self._x
            part = matrix[rows]
            out = torch.empty(part.shape, dtype=torch.float32)
            part.toarray(out=out.numpy())
            counts = np.diff(part.indptr)
            return out.to(dtype), StoredEntries(
                torch.from_numpy(part.indices),
                lambda: torch.from_numpy(np.repeat(np.arange(len(rows)) * self.n_columns, counts)),
            )
        starts = self._bounds[rows]
        counts = self._bounds[rows + 1] - starts
        total = int(counts.sum())
        before = np.cumsum(counts) - counts
        # Stored entry k of batch row r lies at starts[r] + k - before[r].
        shift = torch.from_numpy(np.stack([starts - before, np.arange(len(rows)) * self.n_columns]))
        lengths = torch.from_numpy(counts)
        if self.where == "device":
            shift, lengths = _send(shift, device), _send(lengths, device)
        spread = torch.repeat_interleave(shift, lengths, dim=1, output_size=total)
        at = spread[0] + torch.arange(total, device=spread.device)
        values = _send(self._values[at], device)
        columns, offsets = _send(self._columns[at], device).long(), _send(spread[1], device)
        stored = StoredEntries(columns, lambda: offsets)
        out = torch.zeros(len(rows) * self.n_columns, dtype=dtype, device=device)
        out[stored.positions] = values.to(dtype)
        return out.view(len(rows), self.n_columns), stored


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # A process has one GPU, which may be named with its index or without.
    if tensor.device.type == device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
