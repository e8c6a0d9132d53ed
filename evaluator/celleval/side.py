"""One side of a comparison: an opened file, the group of each row, and its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from ...data_specs.sources import Source
from .scale import Scale, ValueScan


@dataclass(frozen=True)
class Side:
    """Rows of one file, grouped.

    Attributes
    ----------
    role
        `pred` or `truth`, for messages.
    targets
        Perturbations in code-point order; group i is `targets[i]`, group `len(targets)` the control.
    groups
        int32, shape (n_obs,): the group of each row, -1 for rows left out.
    scan, scale
        What the values look like and how they become log1p values.
    memory
        The caller's budget in bytes.
    device
        Where rank sums are taken; see `kernels.devices`.
    counted
        Whether the scan's stored values per gene are those of the rows in `groups`.
    """

    role: str
    source: Source
    targets: tuple[str, ...]
    groups: np.ndarray
    scan: ValueScan
    scale: Scale
    block_bytes: int
    memory: int | None = None
    device: str = "cpu"
    counted: bool = True

    @property
    def control(self) -> int:
        """The group index of the control."""
        return len(self.targets)

    @property
    def sizes(self) -> np.ndarray:
        """Cells of each group, int64, shape (n_targets + 1,)."""
        return np.bincount(self.groups[self.groups >= 0], minlength=len(self.targets) + 1).astype(np.int64)

    def with_groups(self, groups: np.ndarray, targets: tuple[str, ...]) -> Side:
        """The same file and scale with other rows chosen."""
        return replace(self, groups=groups, targets=targets, counted=False)

    def blocks(self) -> Iterator[tuple[int, sp.csr_array, np.ndarray]]:
        """(first row, rows in log1p space, their groups) in file order; nothing else is in memory."""
        for block in self.source.row_blocks(max_bytes=self.block_bytes, wanted=self.groups >= 0):
            groups = self.groups[block.start : block.stop]
            if (groups >= 0).any():
                yield block.start, self.scale.rows(block.matrix, block.start), groups


def group_codes(labels: np.ndarray, targets: tuple[str, ...], control: str) -> np.ndarray:
    """The group of each label (object array of str or None), int32; -1 where it is none of them."""
    lookup = {name: i for i, name in enumerate((*targets, control))}
    return np.fromiter((lookup.get(label, -1) for label in labels), dtype=np.int32, count=len(labels))
