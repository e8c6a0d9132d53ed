"""Train cell-gears 0.1.2 on a screen; run by `gears_norman.py` with a Python that has it (tests/parity/models.txt).

Usage: gears_norman_upstream.py JOB.json

JOB.json: {"cells": log-normalised h5ad, "gene2go": {gene: [terms]}, "split": {part: [conditions]}, "epochs",
"batch_size", "seeds": [...], "queries": [[gene, ...], ...], "folder"}. For each seed the folder gets `initial-SEED.pt`
(the weights before training) and `trained-SEED.npz` (predicted means of the queries, and upstream's own test metrics).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import anndata as ad
import numpy as np
import torch
from gears import GEARS, inference
from upstream_gears import open_data, set_split


def main(path: str) -> None:
    job = json.loads(Path(path).read_text())
    folder = Path(job["folder"]).resolve()
    terms = {gene: set(found) for gene, found in job["gene2go"].items()}
    data = open_data(folder, ad.read_h5ad(job["cells"]), terms, seed=0)
    set_split(data, job["split"], job["batch_size"])
    for seed in job["seeds"]:
        torch.manual_seed(seed)
        model = GEARS(data, device="cpu")
        model.model_initialize()
        torch.save(model.model.state_dict(), folder / f"initial-{seed}.pt")
        start = time.perf_counter()
        model.train(epochs=job["epochs"])
        train_s = time.perf_counter() - start
        found = model.predict(job["queries"])
        results = inference.evaluate(data.dataloader["test_loader"], model.best_model, False, "cpu")
        own = {"pearson_delta": inference.deeper_analysis(data.adata, results)}
        own["mse_top20_de_non_dropout"] = inference.non_dropout_analysis(data.adata, results)
        metrics = {name: float(np.mean([row[name] for row in table.values()])) for name, table in own.items()}
        np.savez(
            folder / f"trained-{seed}.npz",
            profiles=np.stack([found["_".join(query)] for query in job["queries"]]),
            train_s=train_s,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            **metrics,
        )


if __name__ == "__main__":
    main(sys.argv[1])
