"""How many bytes a step may use under the caller's memory budget. Results never depend on it, only the passes do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES

# Values held gene-major at a time when the caller sets no budget.
DEFAULT_COLUMN_BYTES = 4 * 2**30
# What a block of genes costs beside its values: rank sums, p-values, the sorting space of each thread.
RESERVE_BYTES = 384 * 2**20
SMALLEST_COLUMN_BYTES = 32 * 2**20
SMALLEST_BLOCK_BYTES = 2**20
# A block of rows and the copies that checking and transforming make of it, as a share of the budget.
_BLOCK_SHARE = 128


def column_bytes(memory: int | None) -> int:
    """Bytes for gene-major values: what the budget leaves beside the memory that this process holds already."""
    if memory is None:
        return DEFAULT_COLUMN_BYTES
    return max(memory - resident_bytes() - RESERVE_BYTES, SMALLEST_COLUMN_BYTES)


def block_bytes(memory: int | None, largest: int = DEFAULT_BLOCK_BYTES) -> int:
    """Bytes for one block of rows under the budget, at most `largest`."""
    if memory is None:
        return largest
    return max(min(largest, memory // _BLOCK_SHARE), SMALLEST_BLOCK_BYTES)


def resident_bytes() -> int:
    """The memory that this process holds now; where the system does not tell, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return _largest_resident_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _largest_resident_bytes() -> int:
    try:
        import resource
    except ImportError:
        # Windows: nothing to ask without another package, so the reserve has to do.
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
