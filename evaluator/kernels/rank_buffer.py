"""Collect the values of a block of genes and take their rank sums, on the CPU (numba) or on a torch device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from .devices import torch_device
from .gene_major import GeneMajorBuffer, code_dtype
from .ranksum import rank_sums

if TYPE_CHECKING:
    import scipy.sparse as sp


class RankBuffer(Protocol):
    """Filled row block by row block, then asked once."""

    def add(self, rows: sp.csr_array, groups: np.ndarray) -> None:
        """Add rows whose column indices are sorted; rows of group -1 are left out."""
        ...

    def rank_sums(self, group_sizes: np.ndarray, control: int) -> tuple[np.ndarray, np.ndarray]:
        """2 * U and tie terms, int64, shape (n_groups, n_genes); see `kernels.ranksum`. The values are dropped."""
        ...


class HostRankBuffer:
    """On the CPU; parameters as `GeneMajorBuffer`."""

    def __init__(
        self,
        stored_per_gene: np.ndarray,
        start: int,
        stop: int,
        *,
        dtype: np.dtype,
        n_groups: int,
        threads: int | None = None,
        genes: np.ndarray | None = None,
    ):
        self._threads = threads
        self._buffer: GeneMajorBuffer | None = GeneMajorBuffer(
            stored_per_gene, start, stop, dtype=dtype, n_groups=n_groups, threads=threads, genes=genes
        )

    def add(self, rows: sp.csr_array, groups: np.ndarray) -> None:
        assert self._buffer is not None
        self._buffer.add(rows, groups)

    def rank_sums(self, group_sizes: np.ndarray, control: int) -> tuple[np.ndarray, np.ndarray]:
        assert self._buffer is not None
        columns = self._buffer.columns()
        self._buffer = None
        return rank_sums(columns, group_sizes, control, threads=self._threads)


def rank_buffer(
    stored_per_gene: np.ndarray,
    start: int,
    stop: int,
    *,
    dtype: np.dtype,
    n_groups: int,
    device: str = "cpu",
    threads: int | None = None,
    genes: np.ndarray | None = None,
) -> RankBuffer:
    """The buffer for genes `start` to `stop` on a device; parameters as `GeneMajorBuffer` and `torch_device`."""
    chosen = torch_device(device)
    if chosen is None:
        return HostRankBuffer(
            stored_per_gene, start, stop, dtype=dtype, n_groups=n_groups, threads=threads, genes=genes
        )
    from .torch_ranksum import TorchRankBuffer

    return TorchRankBuffer(
        stored_per_gene, start, stop, dtype=dtype, n_groups=n_groups, device=chosen, genes=genes
    )


def values_at_a_time(budget_bytes: int, dtype: np.dtype, n_groups: int, device: str = "cpu") -> int:
    """How many values a buffer may hold: `budget_bytes` of the host's memory, or what is free on the GPU."""
    chosen = torch_device(device)
    if chosen is None:
        return max(1, budget_bytes // (dtype.itemsize + code_dtype(n_groups).itemsize))
    from .torch_ranksum import values_that_fit

    return values_that_fit(budget_bytes, chosen)
