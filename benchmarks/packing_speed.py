"""Time and peak memory of packing a 2026 entry: against the official client on one h5ad, and from mean effects.

    python benchmarks/packing_speed.py peer --cells 60000 --client /path/to/vcc --work DIR
    python benchmarks/packing_speed.py means --cells-per-target 400 --work DIR

`peer` packs one h5ad of counts with both tools, in turn, `--repeats` times. `means` packs mean effects of 3 contexts
x 300 targets with control cells and verifies the result. Every command is a process of its own; its CPU seconds, wall
seconds and peak resident memory come from the operating system.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from machine import machine
from vcbench.data_specs.h5ad_columns import Labels
from vcbench.data_specs.h5ad_write import write_h5ad_dense, write_h5ad_stream
from vcbench.data_specs.normalize import lognormalize
from vcbench.data_specs.standard import MatrixMeta, StandardMeta

N_GENES, CONTEXTS, N_TARGETS, DEPTH = 18_533, ("A", "B", "C"), 300, 20_000
GENES = [f"G{i:05d}" for i in range(N_GENES)]
TARGETS = GENES[:N_TARGETS]


def control_cells(n_cells: int, rng: np.random.Generator) -> sp.csr_array:
    """Overdispersed counts of about 20,000 per cell in about 5,000 genes."""
    rates = np.exp(rng.normal(0, 2.1, N_GENES))
    rates *= DEPTH / rates.sum()
    blocks = []
    for start in range(0, n_cells, 250):
        n = min(250, n_cells - start)
        size = rng.lognormal(0, 0.3, (n, 1))
        blocks.append(
            sp.csr_array(rng.poisson(size * rates * rng.gamma(4, 0.25, (n, N_GENES))).astype(np.float32))
        )
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def write_lists(folder: Path, cells_per_target: int) -> tuple[Path, Path]:
    """The gene list and the perturbation list."""
    genes, perts = folder / "gene_names.csv", folder / "pert_counts.csv"
    genes.write_text("\n".join(GENES) + "\n")
    perts.write_text("\n".join(["target_gene,n_cells", *(f"{t},{cells_per_target}" for t in TARGETS)]) + "\n")
    return genes, perts


def write_cells(path: Path, cells_per_target: int) -> float:
    """Cell predictions drawn from a pool of 600 cells; returns the stored entries per cell."""
    rng = np.random.default_rng(0)
    pool = control_cells(600, rng)
    keys = [(c, t) for c in CONTEXTS for t in TARGETS for _ in range(cells_per_target)]
    obs = {
        "target_gene": Labels.from_values([t for _, t in keys]),
        "context": Labels.from_values([c for c, _ in keys]),
    }
    with write_h5ad_stream(path, genes=GENES, obs=obs) as writer:
        for start in range(0, len(keys), 1000):
            rows = sp.csr_array(pool[rng.integers(0, pool.shape[0], min(1000, len(keys) - start))])
            rows.data = rows.data + rng.poisson(0.3, rows.nnz).astype(np.float32)
            writer.append(rows)
    return writer.n_stored / writer.n_rows


def write_means(folder: Path, controls_per_context: int) -> tuple[Path, Path]:
    """Mean effects of every context and target, and control cells."""
    rng = np.random.default_rng(1)
    means, controls = folder / "means.h5ad", folder / "controls.h5ad"
    profiles, kept = [], []
    for _ in CONTEXTS:
        pool = control_cells(600, rng)
        base = np.asarray(lognormalize(pool, float(DEPTH)).mean(axis=0)).ravel()
        change = np.exp(rng.normal(0, 0.3, (N_TARGETS, N_GENES)) * (rng.random((N_TARGETS, N_GENES)) < 0.05))
        profiles.append(base * change)
        kept.append(pool)
    meta = StandardMeta("benchmark", MatrixMeta("log1p", float(DEPTH)), rows="mean")
    obs = {"perturbation": TARGETS * len(CONTEXTS), "context": [c for c in CONTEXTS for _ in TARGETS]}
    write_h5ad_dense(means, np.concatenate(profiles), genes=GENES, obs=obs, uns=meta.to_uns())
    n = controls_per_context
    labels = {
        "target_gene": Labels.from_values(["non-targeting"] * n * len(CONTEXTS)),
        "context": Labels.from_values([c for c in CONTEXTS for _ in range(n)]),
    }
    with write_h5ad_stream(controls, genes=GENES, obs=labels) as writer:
        for pool in kept:
            for start in range(0, n, 1000):
                rows = sp.csr_array(pool[rng.integers(0, pool.shape[0], min(1000, n - start))])
                rows.data = rows.data + rng.poisson(0.2, rows.nnz).astype(np.float32)
                writer.append(rows)
    return means, controls


def measured(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak MiB of a command. Raises when it fails."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        text = process.stderr.read().decode() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{text[-2000:]}")
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }


def vcbench(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("vcbench")), *(str(w) for w in words)]


def peer(args: argparse.Namespace) -> None:
    per_target = args.cells // (len(CONTEXTS) * N_TARGETS)
    genes, perts = write_lists(args.work, per_target)
    cells = args.work / "cells.h5ad"
    density = write_cells(cells, per_target)
    shared = ["--contexts", ",".join(CONTEXTS)]
    ours = vcbench(
        "pack", cells, "--edition", "vcc2026", "--genes", genes, "--perts", perts, *shared, "--force"
    )
    theirs = [args.client, "prep", str(cells), "-g", str(genes), "--perts", str(perts), *shared, "--force"]
    runs: dict[str, list[dict[str, float]]] = {"vcbench": [], "vcc": []}
    for _ in range(args.repeats):
        runs["vcbench"].append(measured([*ours, "-o", str(args.work / "ours.vcc"), "--quiet"]))
        runs["vcc"].append(measured([*theirs, "-o", str(args.work / "theirs.vcc")]))
    report({"cells": per_target * 900, "stored_per_cell": density}, runs)


def means(args: argparse.Namespace) -> None:
    genes, perts = write_lists(args.work, args.cells_per_target)
    predicted, controls = write_means(args.work, args.controls)
    entry = args.work / "entry.vcc"
    lists = ["--edition", "vcc2026", "--genes", genes, "--perts", perts, "--contexts", ",".join(CONTEXTS)]
    pack = vcbench("pack", predicted, *lists, "--controls", controls, "-o", entry, "--force", "--quiet")
    runs = {"pack": [measured(pack)]}
    print(json.dumps(runs), flush=True)
    runs["verify"] = [measured(vcbench("verify", entry, *lists, "--quiet"))]
    report({"cells": args.cells_per_target * 900, "entry_mib": entry.stat().st_size / 2**20}, runs)


def report(facts: dict[str, Any], runs: dict[str, list[dict[str, float]]]) -> None:
    medians = {
        name: {key: round(statistics.median(run[key] for run in some), 1) for key in some[0]}
        for name, some in runs.items()
    }
    facts = {"machine": machine(), **facts}
    print(json.dumps({"facts": facts, "median": medians, "runs": runs}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("peer")
    one.add_argument("--cells", type=int, default=60_000)
    one.add_argument("--client", required=True)
    one.add_argument("--repeats", type=int, default=3)
    two = commands.add_parser("means")
    two.add_argument("--cells-per-target", type=int, default=400)
    two.add_argument("--controls", type=int, default=18_400)
    for command, run in ((one, peer), (two, means)):
        command.add_argument("--work", type=Path, required=True)
        command.set_defaults(run=run)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.run(args)


if __name__ == "__main__":
    main()
