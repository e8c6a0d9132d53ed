"""Rank sums of every group against one control group with torch: one sort of all values, then sums of integers.

The results equal those of `kernels.ranksum` to the last bit: every step after the sort adds whole numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...data_specs.errors import ShapeError
from .ranksum import MAX_POOLED_CELLS

if TYPE_CHECKING:
    import scipy.sparse as sp

# The most that sorting and counting hold at a time, per value.
BYTES_PER_VALUE = 112
_FREE_SHARE = 0.8
_WORD_LIMIT = 2**63 - 1
_TORCH_DTYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.uint32): torch.int64,
}


def values_that_fit(budget_bytes: int, device: torch.device) -> int:
    """Values of one block of genes: by the GPU's free memory, on the CPU by the budget."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        budget_bytes = int(free * _FREE_SHARE)
    return max(1, budget_bytes // BYTES_PER_VALUE)


class TorchRankBuffer:
    """The values of genes `start` to `stop` on a torch device, filled row block by row block.

    Parameters are those of `kernels.gene_major.GeneMajorBuffer`; `dtype` is that of the rows: float32, float64 (no
    NaN), or uint32 ranks (0 is a zero).
    """

    def __init__(
        self,
        stored_per_gene: np.ndarray,
        start: int,
        stop: int,
        *,
        dtype: np.dtype,
        n_groups: int,
        device: torch.device,
        genes: np.ndarray | None = None,
    ):
        if np.dtype(dtype) not in _TORCH_DTYPES:
            raise ShapeError(f"ranked values must be float32 or float64 (or uint32 ranks), not {dtype}")
        own = np.arange(start, stop) if genes is None else np.asarray(genes[start:stop], dtype=np.int64)
        n_values = int(np.sum(stored_per_gene[start:stop], dtype=np.int64))
        slots = np.full(int(own[-1]) + 1 if len(own) else 0, -1, dtype=np.int64)
        slots[own] = np.arange(len(own))
        self._dtype, self._device, self._n_groups, self._n_genes = np.dtype(dtype), device, n_groups, len(own)
        self._slots = torch.from_numpy(slots).to(device)
        self._values = torch.empty(n_values, dtype=_TORCH_DTYPES[self._dtype], device=device)
        # Gene and group of each value in one number.
        self._tags = torch.empty(n_values, dtype=torch.int64, device=device)
        self._n = 0

    def add(self, rows: sp.csr_array, groups: np.ndarray) -> None:
        """Add rows; rows of group -1 and genes that are not wanted are left out."""
        if rows.data.dtype != self._dtype:
            raise ShapeError(f"rows of {rows.data.dtype} for a buffer of {self._dtype}")
        if not self._n_genes:
            return
        lengths = self._sent(np.diff(rows.indptr).astype(np.int64))
        codes = torch.repeat_interleave(self._sent(groups.astype(np.int64)), lengths)
        columns = self._sent(rows.indices).to(torch.int64)
        known = columns < len(self._slots)
        slots = torch.where(known, self._slots[torch.where(known, columns, 0)], -1)
        wanted = (slots >= 0) & (codes >= 0)
        tags = (slots * self._n_groups + codes)[wanted]
        stop = self._n + len(tags)
        if stop <= len(self._tags):
            self._tags[self._n : stop] = tags
            self._values[self._n : stop] = self._data(rows.data)[wanted]
        self._n = stop

    def rank_sums(self, group_sizes: np.ndarray, control: int) -> tuple[np.ndarray, np.ndarray]:
        """2 * U and tie terms as `kernels.ranksum.rank_sums` gives them; the values are dropped.

        Raises
        ------
        ShapeError
            Other values came than were announced, or a pooled sample of more than 2,097,151 cells.
        """
        if self._n != len(self._tags):
            raise ShapeError("the rows held other values than were counted")
        others = np.delete(group_sizes, control)
        largest = int(group_sizes[control]) + int(others.max(initial=0))
        if largest > MAX_POOLED_CELLS:
            raise ShapeError(
                f"a group and the control hold {largest:,} cells; at most {MAX_POOLED_CELLS:,} fit"
            )
        values, tags = self._values, self._tags
        self._values = self._tags = torch.empty(0, device=self._device)
        stored = values != 0
        values, tags = values[stored], tags[stored]
        del stored
        ranks, n_negative, n_ranks = _dense_ranks(values)
        del values
        sizes = self._sent(np.asarray(group_sizes, dtype=np.int64))
        # As many genes at a time as words of 63 bits can tell apart; one run of genes for any real panel.
        step = max(1, _WORD_LIMIT // (n_ranks * self._n_groups))
        parts = []
        for low in range(0, max(self._n_genes, 1), step):
            high = min(low + step, self._n_genes)
            if high - low < self._n_genes:
                chosen = (tags >= low * self._n_groups) & (tags < high * self._n_groups)
                own_tags, own_ranks = tags[chosen] - low * self._n_groups, ranks[chosen]
            else:
                own_tags, own_ranks = tags, ranks
                # The last names of the values: their memory serves the sort.
                tags = ranks = torch.empty(0, device=self._device)
            words = (own_tags // self._n_groups * n_ranks + own_ranks) * self._n_groups
            words += own_tags % self._n_groups
            del own_tags, own_ranks
            parts.append(_sums_of_words(words, sizes, control, high - low, n_ranks, n_negative))
            del words
        two_u, ties = (torch.cat(arrays, dim=1).cpu().numpy() for arrays in zip(*parts, strict=True))
        two_u[control] = 0
        ties[control] = 0
        return two_u, ties

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)

    def _data(self, data: np.ndarray) -> torch.Tensor:
        if data.dtype == np.uint32:
            # Torch computes with few unsigned types: the same bits, widened.
            return self._sent(data.view(np.int32)).to(torch.int64) & 0xFFFFFFFF
        return self._sent(data)


def _dense_ranks(values: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """(rank of each value, int64; how many ranks belong to negative values; how many ranks there are, at least 1)."""
    if not len(values):
        return torch.zeros(0, dtype=torch.int64, device=values.device), 0, 1
    if values.dtype == torch.int64:
        return values, 0, int(values.max()) + 1
    ordered, order = torch.sort(values)
    steps = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    steps[1:] = ordered[1:] != ordered[:-1]
    steps = torch.cumsum(steps, 0)
    n_below = int((ordered < 0).sum())
    n_negative = int(steps[n_below - 1]) + 1 if n_below else 0
    n_ranks = int(steps[-1]) + 1
    ranks = torch.empty_like(steps)
    ranks[order] = steps
    return ranks, n_negative, n_ranks


def _sums_of_words(
    words: torch.Tensor, sizes: torch.Tensor, control: int, n_genes: int, n_ranks: int, n_negative: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank sums of words ((gene * n_ranks) + rank) * n_groups + group; int64, shape (n_groups, n_genes)."""
    device, n_groups = words.device, len(sizes)
    words = torch.sort(words)[0]
    runs, count = torch.unique_consecutive(words, return_counts=True)
    del words
    group = runs % n_groups
    key = runs // n_groups
    del runs
    starts = torch.ones(len(key), dtype=torch.bool, device=device)
    starts[1:] = key[1:] != key[:-1]
    block = torch.cumsum(starts, 0) - 1
    block_key = key[starts]
    del key, starts
    block_gene = block_key // n_ranks
    positive = block_key % n_ranks >= n_negative
    gene = block_gene[block]
    of_control = group == control

    place = group * n_genes + gene
    stored = torch.zeros(n_groups * n_genes, dtype=torch.int64, device=device).index_add_(0, place, count)
    zeros = sizes[:, None] - stored.view(n_groups, n_genes)
    zeros_control = zeros[control]

    n_control = torch.zeros(len(block_key), dtype=torch.int64, device=device)
    n_control.index_add_(0, block[of_control], count[of_control])
    stored_control = stored.view(n_groups, n_genes)[control]
    before_gene = torch.cumsum(stored_control, 0) - stored_control
    # Control cells below each tie block of its gene; the zeros lie between the negative and the positive values.
    less = torch.cumsum(n_control, 0) - n_control - before_gene[block_gene]
    less += torch.where(positive, zeros_control[block_gene], 0)
    below_zero = torch.zeros(n_genes, dtype=torch.int64, device=device)
    below_zero.index_add_(0, block_gene, torch.where(positive, 0, n_control))

    shared = n_control[block]
    two_u = torch.zeros(n_groups * n_genes, dtype=torch.int64, device=device)
    two_u.index_add_(0, place, count * (2 * less[block] + shared))
    ties = torch.zeros(n_groups * n_genes, dtype=torch.int64, device=device)
    extra = _cubed_less(count + shared) - _cubed_less(shared)
    ties.index_add_(0, place, torch.where(of_control, 0, extra))
    own_ties = torch.zeros(n_genes, dtype=torch.int64, device=device)
    own_ties.index_add_(0, block_gene, _cubed_less(n_control))

    two_u = two_u.view(n_groups, n_genes) + zeros * (2 * below_zero + zeros_control)
    ties = ties.view(n_groups, n_genes) + own_ties + _cubed_less(zeros + zeros_control)
    return two_u, ties


def _cubed_less(t: torch.Tensor) -> torch.Tensor:
    """t^3 - t."""
    return t * t * t - t
