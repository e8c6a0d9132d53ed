"""Files that pages start from: what a reader would have downloaded or been handed."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from vcbench.data_specs.panel import simulate_panel
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec


def published_norman(path: str = "SRC.h5ad") -> None:
    """A simulated screen in the shape and columns of `norman2019_subset`: 3,375 cells, 500 genes, 33 perturbations."""
    spec = SimulationSpec(genes=500, singles=18, doubles=15, cells=100, controls=100, contexts=("K562",))
    made = simulate_dataset("simulated.h5ad", spec, 0)
    data = ad.read_h5ad(made.path)[25:].copy()
    n_controls = int((data.obs["perturbation"] == "control").sum())
    labels = data.obs["perturbation"].astype(str).to_numpy()
    if n_controls < 100:
        labels[np.flatnonzero(labels == labels[-1])[: 100 - n_controls]] = "control"
    kinds = np.where(
        labels == "control",
        "control",
        np.where(np.char.find(labels.astype(str), "+") > 0, "double", "single"),
    )
    depth = np.asarray(data.X.sum(axis=1)).ravel() * 3
    obs = {"perturbation": labels, "perturbation_type": kinds, "cell_line": "K562", "total_counts": depth}
    names = [f"CELL{i:05d}-1" for i in range(len(labels))]
    published = ad.AnnData(sp.csr_matrix(data.X), obs=pd.DataFrame(obs, index=names))
    published.var_names = list(data.var_names)
    published.write_h5ad(path)
    for leftover in (made.path, made.truth_path):
        Path(leftover).unlink()


def challenge_inputs(contexts: tuple[str, ...] = ("A", "B", "C")) -> None:
    """`train.h5ad`, a simulated screen, and its panel: `gene_names.csv`, `pert_counts.csv`, `context_A.h5ad` …"""
    spec = SimulationSpec(
        genes=300, singles=12, doubles=0, cells=60, controls=200, contexts=contexts, depth=9000
    )
    simulate_dataset("train.h5ad", spec, 0)
    for context in contexts:
        panel = simulate_panel(
            "train.h5ad", f"panel_{context}", contexts=[context], cells=50, depth=5000
        ).folder
        (panel / "controls.h5ad").rename(f"context_{context}.h5ad")
    for name in ("gene_names.csv", "pert_counts.csv"):
        (panel / name).rename(name)


def broken_entry(path: str = "pred.h5ad") -> None:
    """A prediction of 500 genes with two mistakes: controls named `ctrl`, one NaN."""
    rng = np.random.default_rng(0)
    x = sp.random_array(
        (120, 500), density=0.3, rng=rng, data_sampler=lambda size: rng.poisson(3, size) + 1.0
    )
    labels = ["ctrl"] * 40 + ["SOX2"] * 40 + ["KLF4"] * 40
    obs = pd.DataFrame({"target_gene": labels}, index=[f"CELL{i:05d}-1" for i in range(120)])
    data = ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs)
    data.var_names = [f"GENE{i:04d}" for i in range(500)]
    data.X.data[data.X.indptr[5]] = np.nan
    data.write_h5ad(path)
