"""Random panels of different shape for comparisons with cell-eval, made from integer hashes alone.

Every panel is (name, prediction, truth): counts or log1p values with one label per cell. The numbers do not
depend on a random generator of any library, so golden results stay valid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

CONTROL = "non-targeting"
COLUMN = "target_gene"


@dataclass(frozen=True)
class Cells:
    """One side: X (dense, CSR or CSC) and the label of every row."""

    x: Any
    labels: list[str]


@dataclass(frozen=True)
class PanelFiles:
    """A panel on disk. `skip` names metrics that are not compared on it, with the reason."""

    name: str
    pred: Path
    truth: Path
    skip: dict[str, str]


def uniform(seed: int, *shape: int) -> np.ndarray:
    """Numbers in (0, 1) by the splitmix64 hash of their position."""
    with np.errstate(over="ignore"):
        z = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5).reshape(shape) / 2.0**53


def counts(
    sizes: dict[str, int], n_genes: int, seed: int, *, effect: float, mean: float = 4.0, wrong: float = 0.0
) -> Cells:
    """Counts with a knocked-down own gene and hashed responses; `wrong` mixes in other responses (a prediction)."""
    labels = [label for label, n in sizes.items() for _ in range(n)]
    base = mean * (0.05 + 2.0 * uniform(7, n_genes) ** 3)
    rates = {}
    for k, label in enumerate(sizes):
        change = (uniform(100 + k, n_genes) - 0.5) * (uniform(200 + k, n_genes) < 0.4)
        other = (uniform(300 + k, n_genes) - 0.5) * (uniform(400 + k, n_genes) < 0.4)
        log_change = effect * 4.0 * ((1 - wrong) * change + wrong * other)
        if label == CONTROL:
            log_change = np.zeros(n_genes)
        elif label.startswith("G") and int(label[1:]) < n_genes:
            log_change[int(label[1:])] = -2.0 * effect
        rates[label] = base * np.exp(log_change)
    depth = 0.5 + uniform(seed + 1, len(labels), 1)
    rate = np.stack([rates[label] for label in labels]) * depth
    x = np.floor(-np.log(uniform(seed, len(labels), n_genes)) * rate).astype(np.float32)
    x[x.sum(axis=1) == 0, 0] = 1
    return Cells(x, labels)


def log1p(cells: Cells, total: float = 100.0, dtype: Any = np.float32) -> Cells:
    """Cells scaled to `total` and logged."""
    x = cells.x.astype(np.float64)
    return Cells(np.log1p(x / x.sum(axis=1, keepdims=True) * total).astype(dtype), cells.labels)


def shuffled(cells: Cells, seed: int) -> Cells:
    """The same cells in another order."""
    order = np.argsort(uniform(seed, len(cells.labels)))
    return Cells(cells.x[order], [cells.labels[i] for i in order])


def _sizes(n_targets: int, cells: Callable[[int], int], n_control: int) -> dict[str, int]:
    return {f"G{3 * k}": cells(k) for k in range(n_targets)} | {CONTROL: n_control}


def _unequal_counts() -> tuple[Cells, Cells]:
    truth = counts(_sizes(12, lambda k: 8 + 5 * k, 70), 60, 1, effect=1.0)
    pred = counts(_sizes(12, lambda k: 40 - 2 * k, 55), 60, 2, effect=1.0, wrong=0.5)
    return shuffled(Cells(sp.csr_matrix(pred.x), pred.labels), 3), shuffled(
        Cells(sp.csr_matrix(truth.x), truth.labels), 4
    )


def _dense_log1p() -> tuple[Cells, Cells]:
    truth = counts(_sizes(20, lambda k: 25, 60), 61, 11, effect=0.7)
    pred = counts(_sizes(20, lambda k: 30, 50), 61, 12, effect=1.2, wrong=0.3)
    return shuffled(log1p(pred), 5), shuffled(log1p(truth), 6)


def _tied_values() -> tuple[Cells, Cells]:
    """Values on a grid of 0.25, so that most ranks are tied."""
    both = []
    for seed, wrong in ((22, 0.4), (21, 0.0)):
        cells = log1p(counts(_sizes(9, lambda k: 15 + k, 40), 40, seed, effect=1.0, wrong=wrong))
        both.append(Cells(sp.csr_matrix(np.round(cells.x * 4) / 4), cells.labels))
    return both[0], both[1]


def _no_effects() -> tuple[Cells, Cells]:
    """Hardly a significant gene on either side; many targets have empty sets."""
    truth = counts(_sizes(7, lambda k: 6, 12), 45, 31, effect=0.15)
    pred = counts(_sizes(7, lambda k: 6, 12), 45, 32, effect=0.0)
    return Cells(sp.csr_matrix(pred.x), pred.labels), Cells(sp.csr_matrix(truth.x), truth.labels)


def _one_cell_groups() -> tuple[Cells, Cells]:
    truth = counts(_sizes(8, lambda k: 1 if k % 3 == 0 else 3 + k, 9), 30, 41, effect=1.5, mean=30.0)
    pred = counts(_sizes(8, lambda k: 1 if k % 2 == 0 else 12, 20), 30, 42, effect=1.5, mean=30.0, wrong=0.2)
    return Cells(pred.x.astype(np.int32), pred.labels), Cells(sp.csc_matrix(truth.x), truth.labels)


def _float64_log1p() -> tuple[Cells, Cells]:
    truth = counts(_sizes(30, lambda k: 12 + k % 4, 80), 120, 51, effect=1.2)
    pred = counts(_sizes(30, lambda k: 20, 80), 120, 52, effect=0.8, wrong=0.6)
    sides = [log1p(cells, 500.0, np.float64) for cells in (pred, truth)]
    return Cells(sp.csr_matrix(sides[0].x), sides[0].labels), Cells(sides[1].x, sides[1].labels)


def _tiled_mean() -> tuple[Cells, Cells]:
    """The prediction repeats one profile for every target and copies the controls, as the 2025 baseline did."""
    truth = log1p(counts(_sizes(10, lambda k: 20, 50), 55, 61, effect=1.0))
    control = np.array([label == CONTROL for label in truth.labels])
    pred = truth.x.copy()
    pred[~control] = pred[~control].mean(axis=0)
    return Cells(sp.csr_matrix(pred), truth.labels), Cells(sp.csr_matrix(truth.x), truth.labels)


def _same_truth_twice() -> tuple[Cells, Cells]:
    """Two targets with the same true cells: their distances are tied."""
    truth = counts({"G0": 14, "G3": 14, "X1": 14, "X2": 14, CONTROL: 30}, 33, 71, effect=1.0)
    truth.x[42:56] = truth.x[28:42]
    pred = counts({"G0": 10, "G3": 18, "X1": 14, "X2": 14, CONTROL: 30}, 33, 72, effect=1.0, wrong=0.3)
    return Cells(sp.csr_matrix(pred.x), pred.labels), Cells(sp.csr_matrix(truth.x), truth.labels)


PANELS: dict[str, Callable[[], tuple[Cells, Cells]]] = {
    "unequal_counts": _unequal_counts,
    "dense_log1p": _dense_log1p,
    "tied_values": _tied_values,
    "no_effects": _no_effects,
    "one_cell_groups": _one_cell_groups,
    "float64_log1p": _float64_log1p,
    "tiled_mean": _tiled_mean,
    "same_truth_twice": _same_truth_twice,
}
SKIP = {
    "same_truth_twice": {
        f"discrimination_score_{d}": "tied distances: the official order is that of an unstable sort"
        for d in ("l1", "l2", "cosine")
    }
}


def write_panels(folder: Path, names: tuple[str, ...] = tuple(PANELS)) -> list[PanelFiles]:
    """All panels as h5ad files, with categories and without stored zeros (the official tools need that)."""
    import anndata
    import pandas as pd

    listed = []
    for name in names:
        paths = []
        for role, cells in zip(("pred", "truth"), PANELS[name](), strict=True):
            index = [str(i) for i in range(len(cells.labels))]
            obs = pd.DataFrame({COLUMN: pd.Categorical(cells.labels)}, index=index)
            var = pd.DataFrame(index=[f"G{i}" for i in range(cells.x.shape[1])])
            path = folder / f"{name}.{role}.h5ad"
            anndata.AnnData(X=cells.x, obs=obs, var=var).write_h5ad(path)
            paths.append(path)
        listed.append(PanelFiles(name, paths[0], paths[1], SKIP.get(name, {})))
    return listed
