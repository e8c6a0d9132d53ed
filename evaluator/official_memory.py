"""How much memory the official 2026 tools take for an entry: the client that packs it, the server that scores it.

Sources: the sizing rules of vcc-cli 0.3.0; all sizes in bytes.
"""

from __future__ import annotations

import os

GIB = 2**30
# Above this many entries scipy's index arrays become 64-bit.
_LARGE = 2**31
SERVER_LIMIT_BYTES = 126_976 * 2**20


def matrix_bytes(n_stored: int) -> int:
    """The matrix in memory as CSR float32: 8 bytes per entry, 12 with 64-bit indices."""
    return n_stored * (8 if n_stored <= _LARGE else 12)


def packing_bytes(n_stored: int, *, sparse_float32: bool, reordered: bool) -> int:
    """The peak of `vcc prep`. A cast or dense input costs more, and so does another gene order."""
    copies = (1.3 if sparse_float32 else 2.2) + (1.0 if reordered else 0.0)
    return int(copies * matrix_bytes(n_stored)) + 2 * GIB


def scoring_bytes(n_stored: int) -> int:
    """The memory of the scoring server; its largest machine has `SERVER_LIMIT_BYTES`."""
    return int(1.12 * matrix_bytes(n_stored)) + 26 * GIB


def physical_bytes() -> int | None:
    """The memory of this machine, or None where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
