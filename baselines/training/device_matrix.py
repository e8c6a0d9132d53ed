"""Sparse expression on the training device, made dense batch by batch; or streamed from the host when it is too big."""

from __future__ import annotations

from typing import Literal

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
        values = torch.from_numpy(np.ascontiguousarray(x.data, dtype=np.float32))
        if placement.device.type == "cpu":
            columns = torch.from_numpy(np.ascontiguousarray(x.indices))
        else:
            columns = torch.from_numpy(x.indices.astype(_index_dtype(self.n_columns)))
        if self.where == "device":
            values, columns = values.to(placement.device), columns.to(placement.device)
        self._values, self._columns = values, columns

    def rows(self, rows: np.ndarray) -> torch.Tensor:
        """Dense rows, shape (len(rows), G), on the device in the placement's dtype. A row may occur repeatedly."""
        return self.stored_rows(rows)[0]

    def stored_rows(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense rows as in `rows`, and the flat positions of their stored entries, int64, in stored order."""
        device, dtype = self.placement.device, self.placement.dtype
        starts = self._bounds[rows]
        counts = self._bounds[rows + 1] - starts
        total = int(counts.sum())
        before = np.cumsum(counts) - counts
        if device.type == "cpu":
            shifts = np.repeat(starts - before, counts)
            at = torch.from_numpy(np.arange(total) + shifts)
            target = torch.from_numpy(np.repeat(np.arange(len(rows)) * self.n_columns, counts))
            target += self._columns.index_select(0, at)
            out = torch.zeros(len(rows) * self.n_columns, dtype=dtype)
            out[target] = self._values.index_select(0, at).to(dtype)
            return out.view(len(rows), self.n_columns), target
        # Stored entry k of batch row r lies at starts[r] + k - before[r].
        shift = torch.from_numpy(np.stack([starts - before, np.arange(len(rows)) * self.n_columns]))
        lengths = torch.from_numpy(counts)
        if self.where == "device":
            shift, lengths = _send(shift, device), _send(lengths, device)
        spread = torch.repeat_interleave(shift, lengths, dim=1, output_size=total)
        at = spread[0] + torch.arange(total, device=spread.device)
        values = _send(self._values[at], device)
        target = _send(spread[1] + self._columns[at], device)
        out = torch.zeros(len(rows) * self.n_columns, dtype=dtype, device=device)
        out[target] = values.to(dtype)
        return out.view(len(rows), self.n_columns), target


def _send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cpu" or tensor.device == device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
