"""Inputs of 2026 kind for the packing tests: control cells and mean effects of two contexts, and the official lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from packing_files import TARGET_SUM, dense_of, labels_of, write_means
from vcbench.data_specs.h5ad_columns import Labels
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.normalize import lognormalize

CONTEXTS = ("A", "B")
TARGETS = ("G000", "G001", "G002")
CELLS = 30


@dataclass(frozen=True)
class Files2026:
    """`controls` is a standard file, `bundle` one official file per context; `perts` asks for 30 cells each."""

    means: Path
    controls: Path
    bundle: dict[str, Path]
    genes: Path
    perts: Path

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "genes": self.genes,
            "perts": self.perts,
            "controls": self.controls,
            "contexts": CONTEXTS,
            **more,
        }


def files_2026(
    folder: Path, *, genes: Sequence[str] = GENES, controls: int = 60, contexts: Sequence[str] = CONTEXTS
) -> Files2026:
    """Two contexts of different control profile; a mean effect per context and target, genes in reverse order."""
    cells = standard_h5ad(
        folder / "cells.h5ad",
        perturbations=TARGETS,
        contexts=contexts,
        controls=controls,
        cells=12,
        genes=genes,
    )
    x, names, places = dense_of(cells), labels_of(cells), labels_of(cells, "context")
    x[places == contexts[0], 20:25] += 9
    logs = lognormalize(sp.csr_array(x), TARGET_SUM).toarray()
    keys = [(c, t) for c in contexts for t in TARGETS]
    profiles = np.array([logs[(places == c) & (names == t)].mean(axis=0) for c, t in keys])
    order = list(reversed(range(len(genes))))
    means = write_means(
        folder / "means.h5ad",
        profiles[:, order],
        [t for _, t in keys],
        genes=[genes[i] for i in order],
        contexts=[c for c, _ in keys],
    )
    control = names == "control"
    standard = standard_h5ad(
        folder / "controls.h5ad",
        perturbations=(),
        contexts=contexts,
        controls=controls,
        genes=genes,
        x=x[control],
    )
    bundle = {
        c: official_cells(folder / f"context_{c}.h5ad", x[control & (places == c)], "non-targeting", c, genes)
        for c in contexts
    }
    lists = folder / "lists"
    lists.mkdir()
    (lists / "gene_names.csv").write_text("gene_name\n" + "\n".join(genes) + "\n")
    rows = [f"{t},{CELLS}" for t in reversed(TARGETS)]
    (lists / "pert_counts.csv").write_text("\n".join(["target_gene,n_cells", *rows]) + "\n")
    return Files2026(means, standard, bundle, lists / "gene_names.csv", lists / "pert_counts.csv")


def official_cells(
    path: Path, x: np.ndarray, labels: str | Sequence[str], context: str | Sequence[str], genes: Sequence[str]
) -> Path:
    """Cells as the official bundle stores them: columns `target_gene` and `context`, no record in uns."""
    n = len(x)
    obs: dict[str, Any] = {
        "target_gene": Labels.from_values([labels] * n if isinstance(labels, str) else list(labels)),
        "context": Labels.from_values([context] * n if isinstance(context, str) else list(context)),
    }
    names = [f"{context if isinstance(context, str) else 'c'}_ctrl_{i:06d}" for i in range(n)]
    with write_h5ad_stream(path, genes=genes, obs=obs, obs_names=names) as writer:
        writer.append(sp.csr_array(x.astype(np.float32)))
    return path


def write_manifest(folder: Path, **fields: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"contexts": list(CONTEXTS), "panel_id": "panel-1", **fields}))
    return path
