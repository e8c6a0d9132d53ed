"""What cell-gears 0.1.2 makes of a screen: its split and its loaders; run by a Python that has it (models.txt).

Usage: python run_gears_loader.py JOB.json OUT.json

JOB.json: {"cells": h5ad in GEARS' layout, "gene2go": {gene: [terms]}, "split", "seed", "batch_size", "folder"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
from upstream_gears import open_data


def main(job_path: str, out: str) -> None:
    job = json.loads(Path(job_path).read_text())
    terms = {gene: set(found) for gene, found in job["gene2go"].items()}
    folder = Path(job["folder"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = open_data(folder, ad.read_h5ad(Path(job["cells"]).resolve()), terms, seed=0)
    data.prepare_split(split=job["split"], seed=job["seed"])
    data.get_dataloader(batch_size=job["batch_size"], test_batch_size=job["batch_size"])
    found: dict[str, object] = {
        "parts": {part: list(map(str, names)) for part, names in data.set2conditions.items()},
        "subgroups": {name: list(map(str, m)) for name, m in data.subgroup["test_subgroup"].items()},
        "genes": [str(name) for name in data.adata.var["gene_name"]],
        "vocabulary": [str(name) for name in data.pert_names],
        "n_cells": int(data.adata.n_obs),
    }
    sums: dict[str, np.ndarray] = {}
    cells: dict[str, int] = {}
    # The train loader is shuffled and drops its last incomplete batch; the test loader gives every cell.
    for batch in data.dataloader["test_loader"]:
        values = batch.y.numpy().astype(np.float64).reshape(len(batch.pert), -1)
        for condition, row in zip(batch.pert, values, strict=True):
            sums[condition] = sums.get(condition, 0.0) + row
            cells[condition] = cells.get(condition, 0) + 1
    found["test_cells"] = cells
    found["test_means"] = {name: (total / cells[name]).tolist() for name, total in sums.items()}
    found["train_batches"] = len(data.dataloader["train_loader"])
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
