"""The deterministic golden panel of edition vcc2026 (integers only) and random panels for its tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

MASK = (1 << 64) - 1
PERTURBATIONS = ("G1", "G2", "G3", "G10", "G11", "G12", "G20", "G21", "G31", "X1")
GENES = tuple(f"G{i + 1}" for i in range(80))
CONTROL = "non-targeting"
SEEDS = {"real": 1, "pred": 2, "base": 3}
SILENT = (40, 41)


def mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(a: int, b: int, c: int) -> int:
    return mix(mix(mix(a) ^ b) ^ c)


def _base(g: int) -> int:
    return 1 if g in SILENT else 2 + (7 * g * g + 3 * g) % 23


def _bound(p: int, g: int, e: int) -> int:
    base = _base(g)
    if base == 1:
        return 1
    if PERTURBATIONS[p] == GENES[g]:
        return max(1, base // 4)
    if e < 2:
        return base + 1 + base // 2
    return max(1, base - base // 3) if e < 4 else base


def _cap(arm: str, p: int, g: int) -> int:
    if arm == "base":
        return (2 * sum(_cap("real", k, g) for k in range(10)) + 10) // 20
    source = p
    if arm == "pred" and draw(13, p, g) % 10 < 5:
        source = (p + 1) % 10
    return _bound(p, g, draw(11, source, g) % 10)


@cache
def golden_counts(arm: str, cells_per_slot: int = 36) -> tuple[np.ndarray, tuple[str, ...]]:
    """(counts float32, labels) of one arm: 13 slots, ten perturbations and three of control."""
    caps = [[_cap(arm, p, g) for g in range(80)] for p in range(10)]
    caps += [[_base(g) for g in range(80)]]
    n = 13 * cells_per_slot
    x = np.zeros((n, 80), dtype=np.float32)
    for i in range(n):
        for g in range(80):
            x[i, g] = ((draw(SEEDS[arm], i, g) >> 40) * caps[min(i % 13, 10)][g]) >> 24
    labels = tuple(PERTURBATIONS[i % 13] if i % 13 < 10 else CONTROL for i in range(n))
    return x, labels


def golden(arm: str, cells_per_slot: int = 36) -> ad.AnnData:
    """One arm as AnnData with the plain text column `target`."""
    x, labels = golden_counts(arm, cells_per_slot)
    return annotated(x, labels, GENES)


def annotated(x: np.ndarray, labels: tuple[str, ...] | list[str], genes: tuple[str, ...]) -> ad.AnnData:
    """CSR float32 counts with labels in `target` and cells c0, c1, ..."""
    obs = pd.DataFrame({"target": list(labels)}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=list(genes)))


def random_panel(
    seed: int,
    *,
    n_genes: int = 60,
    cells: tuple[int, ...] = (40, 35, 30, 25),
    n_control: int = 60,
    depth: float = 6.0,
    effect: float = 0.6,
    targets: bool = True,
) -> dict[str, ad.AnnData]:
    """`real`, `pred` and `base` arms of gamma-Poisson counts (small values, many ties), rows shuffled.

    Targets are genes, except the last label; with `targets` False none is. `base` shows the mean response.
    """
    rng = np.random.default_rng(seed)
    genes = tuple(f"G{i}" for i in range(n_genes))
    labels = [f"G{3 * p}" if targets else f"drug{p}" for p in range(len(cells) - 1)] + ["Z9"]
    base = 0.3 + rng.gamma(1.5, depth, n_genes)
    shape = (len(cells), n_genes)
    effects = np.exp(rng.normal(0, effect, shape) * (rng.random(shape) < 0.5))
    wrong = np.exp(rng.normal(0, effect / 2, shape))
    factors = {
        "real": effects,
        "pred": np.where(rng.random(shape) < 0.3, wrong, effects),
        "base": np.tile(effects.mean(axis=0), (len(cells), 1)),
    }
    out = {}
    for arm, factor in factors.items():
        x, names = [rng.poisson(base * rng.gamma(8, 1 / 8, (n_control, 1)))], [CONTROL] * n_control
        for p, n in enumerate(cells):
            x.append(rng.poisson(base * factor[p] * rng.gamma(8, 1 / 8, (n, 1))))
            names += [labels[p]] * n
        order = rng.permutation(len(names))
        counts = np.concatenate(x)[order]
        counts[counts.sum(axis=1) == 0, 0] = 1
        out[arm] = annotated(counts, [names[i] for i in order], genes)
    return out


def write(adata: ad.AnnData, path: Path) -> Path:
    """The object as h5ad; labels become categories in natural order, as anndata stores them."""
    adata.copy().write_h5ad(path)
    return path
