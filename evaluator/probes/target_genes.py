"""The genes that the perturbations of an entry target."""

from __future__ import annotations

import numpy as np

# Fewer target genes tell too little.
MIN_TARGETS = 3


def other_targets(targets: tuple[np.ndarray, ...], keys: tuple[tuple[str, str], ...]) -> list[np.ndarray]:
    """For each key the target genes of the other perturbations of its context that are not its own."""
    pooled: dict[str, set[int]] = {}
    for (context, _), own in zip(keys, targets, strict=True):
        pooled.setdefault(context, set()).update(int(g) for g in own)
    return [
        np.array(sorted(pooled[context] - {int(g) for g in own}), dtype=np.int64)
        for (context, _), own in zip(keys, targets, strict=True)
    ]
