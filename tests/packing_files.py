"""Predictions, lists and archives that the packing tests start from."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.normalize import lognormalize
from vcbench.data_specs.standard import MatrixMeta, StandardMeta

TARGETS = ("G000", "G001", "G002", "G003")
TARGET_SUM = 80.0


@dataclass(frozen=True)
class PackFiles:
    """`cells`: a standard file of counts; `means`: its group means; the lists; genes in reverse order."""

    cells: Path
    means: Path
    genes: Path
    perts: Path
    gene_order: tuple[str, ...]


def pack_files(folder: Path, *, targets: Sequence[str] = TARGETS, genes: Sequence[str] = GENES) -> PackFiles:
    cells = standard_h5ad(folder / "cells.h5ad", perturbations=targets, controls=60, cells=12, genes=genes)
    labels, logs = labels_of(cells), lognormalize(sp.csr_array(dense_of(cells)), TARGET_SUM).toarray()
    profiles = np.array([logs[labels == name].mean(axis=0) for name in targets])
    means = write_means(folder / "means.h5ad", profiles, targets, genes=genes)
    order = tuple(reversed(genes))
    (folder / "genes.csv").write_text("\n".join(order) + "\n")
    rows = [f"{name},{15 + i},80.0" for i, name in enumerate(targets)]
    (folder / "perts.csv").write_text("\n".join(["target_gene,n_cells,median_umi_per_cell", *rows]) + "\n")
    return PackFiles(cells, means, folder / "genes.csv", folder / "perts.csv", order)


def write_means(
    path: Path,
    profiles: np.ndarray,
    targets: Sequence[str],
    *,
    genes: Sequence[str] = GENES,
    contexts: Sequence[str] | None = None,
    target_sum: float | None = TARGET_SUM,
) -> Path:
    meta = StandardMeta("test", MatrixMeta("log1p", target_sum), rows="mean", extra={"refused": "[]"})
    obs: dict[str, Any] = {
        "perturbation": list(targets),
        "context": list(contexts or ["K562"] * len(targets)),
        "status": ["predicted"] * len(targets),
        "reason": [""] * len(targets),
    }
    write_h5ad_dense(path, profiles, genes=genes, obs=obs, uns=meta.to_uns())
    return path


def dense_of(path: Path) -> np.ndarray:
    with H5ad(path) as file:
        return sp.vstack([block.matrix for block in file.row_blocks()]).toarray().astype(np.float64)


def labels_of(path: Path, column: str = "perturbation") -> np.ndarray:
    with H5ad(path) as file:
        return file.labels(column).values()


def write_tar(
    path: Path, members: Sequence[tuple[str, bytes]], *, mode: str = "w", format: int = tarfile.GNU_FORMAT
) -> Path:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def edit(path: Path, change: Any) -> Path:
    """Apply `change(file)` to an h5ad in place."""
    with h5py.File(path, "r+") as file:
        change(file)
    return path
