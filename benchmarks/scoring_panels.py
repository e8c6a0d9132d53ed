"""Write a simulated panel (`real.h5ad`) and a prediction of it (`pred.h5ad`) of any size: raw counts, CSR float32.

Usage: scoring_panels.py FOLDER [--genes N] [--perts N] [--cells N] [--controls N] [--depth N] [--seed N]

Cells are gamma-Poisson draws around a log-normal expression profile; each perturbation changes 20 to 400 genes and its
own; the prediction has those effects, damped and with noise. Defaults: one context of the 2026 challenge (4.6 GB per
side).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from vcbench.data_specs.h5ad_write import write_h5ad_stream

ROWS = 500
CONTROL = "non-targeting"
DEFAULTS = {"genes": 18_533, "perts": 300, "cells": 400, "controls": 18_400, "depth": 20_000, "seed": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    make_panel(options.pop("folder"), **options)


def make_panel(
    folder: Path, *, genes: int, perts: int, cells: int, controls: int, depth: int, seed: int
) -> None:
    """Both files of a panel, one block of cells in memory at a time; equal arguments give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 2.3, genes))
    base /= base.sum()
    # More perturbations than genes: several guides of half of the genes, each under a label of its own.
    pool = genes if perts <= genes else genes // 2
    rounds = [rng.choice(genes, min(perts, pool), replace=False)]
    rounds += [rng.permutation(rounds[0]) for _ in range(-(-perts // pool) - 1)]
    targets = np.concatenate(rounds)[:perts]
    names = [f"G{i:05d}" for i in range(genes)]
    called = [names[t] if i < pool else f"{names[t]}_guide{i // pool}" for i, t in enumerate(targets)]
    labels = [CONTROL] * controls + [label for label in called for _ in range(cells)]
    for number, side in enumerate(("real", "pred")):
        draws, effects = np.random.default_rng([seed, 1, number]), np.random.default_rng([seed, 2])
        obs = {"target_gene": np.array(labels, dtype=object)}
        with write_h5ad_stream(folder / f"{side}.h5ad", genes=names, obs=obs) as writer:
            for target, n in [(-1, controls), *((int(target), cells) for target in targets)]:
                effect = np.zeros(genes)
                if target >= 0:
                    changed = effects.choice(genes, int(effects.integers(20, min(400, genes))), replace=False)
                    size = effects.normal(0, 0.8, len(changed))
                    effect[changed] = (
                        size if side == "real" else 0.7 * size + draws.normal(0, 0.3, len(changed))
                    )
                    effect[target] = -2.0
                profile = base * np.exp(effect)
                for start in range(0, n, ROWS):
                    writer.append(_cells(draws, min(ROWS, n - start), profile / profile.sum(), depth))


def _cells(rng: np.random.Generator, n: int, profile: np.ndarray, depth: int) -> sp.csr_array:
    """Counts of n cells, log-normal in depth, gamma-Poisson in every gene."""
    rates = np.exp(rng.normal(np.log(depth), 0.3, n))[:, None] * profile
    return sp.csr_array(rng.poisson(rates * rng.gamma(4.0, 0.25, rates.shape)).astype(np.float32))


if __name__ == "__main__":
    main()
