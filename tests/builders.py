"""Tiny valid files and one-defect mutators: the only fixtures factory of the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.labels import split_label
from vcbench.data_specs.standard import MatrixMeta, StandardMeta

GENES = tuple(f"G{i:03d}" for i in range(40))


def counts(n_cells: int, n_genes: int, rng: np.random.Generator, *, mean: float = 2.0) -> np.ndarray:
    """Poisson counts with gene-specific means, float32, shape (n_cells, n_genes); no empty cell."""
    means = rng.gamma(1.0, mean, n_genes)
    x = rng.poisson(means, (n_cells, n_genes)).astype(np.float32)
    x[x.sum(axis=1) == 0, 0] = 1
    return x


def standard_h5ad(
    path: Path,
    *,
    perturbations: Sequence[str] = ("G000", "G001", "G002", "G000+G001"),
    contexts: Sequence[str] = ("K562",),
    cells: int = 12,
    controls: int = 20,
    genes: Sequence[str] = GENES,
    seed: int = 0,
    kind: str = "counts",
    target_sum: float | None = 80.0,
    effect: float = 1.0,
    obs: Mapping[str, Any] | None = None,
    x: np.ndarray | None = None,
) -> Path:
    """A valid standard file: each target's own gene falls and three others rise, by `effect` (log space)."""
    rng = np.random.default_rng(seed)
    labels, places = [], []
    for context in contexts:
        for name, n in [("control", controls), *((p, cells) for p in perturbations)]:
            labels += [name] * n
            places += [context] * n
    if x is None:
        x = counts(len(labels), len(genes), rng)
        position = {gene: i for i, gene in enumerate(genes)}
        for row, label in enumerate(labels):
            for target in split_label(label):
                if target in position:
                    j = position[target]
                    x[row, j] = np.floor(x[row, j] * np.exp(-effect))
                    for up in (j + 3, j + 5, j + 9):
                        x[row, up % len(genes)] += rng.poisson(3 * effect)
        if kind == "log1p":
            x = np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * float(target_sum or 1.0)).astype(
                np.float32
            )
    columns: dict[str, Any] = {
        "perturbation": labels,
        "context": places,
        "is_control": np.array([name == "control" for name in labels]),
        "n_targets": np.array([len(split_label(name)) for name in labels], dtype=np.int8),
        "label_source": labels,
        **(obs or {}),
    }
    meta = StandardMeta("test", MatrixMeta(kind, target_sum), modality="CRISPRi", organism="Homo sapiens")  # type: ignore[arg-type]
    with write_h5ad_stream(path, genes=genes, obs=columns, uns=meta.to_uns()) as writer:
        writer.append(sp.csr_array(x))
    return path
