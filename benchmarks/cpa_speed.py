"""Training throughput of CPA beside cpa-tools 0.8.8, on invented counts of a real size.

Usage: cpa_speed.py [--upstream PYTHON] [--cells N] [--genes N] [--conditions N] [--epochs N] [--rounds N]
                    [--threads N] [--device cpu|cuda] [--report FILE.md]

Both sides train the same network (upstream's defaults) with their own loop, batch 128, in processes of their own that
take turns; the first epoch of each process warms up and is not counted. PYTHON is an interpreter with cpa-tools
(scvi-tools 0.20.3, pytorch-lightning 1.9.5; rdkit and the tuner are replaced by empty modules here); without it
upstream is left out, visibly. Upstream's R2 of training batches is switched off; neither side validates. Two plans: the
default one, where the autoencoder learns in every third batch, and pretraining, where autoencoder and adversaries
learn in each batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine, torch_on

BATCH = 128
PLANS = ("alternating", "pretraining")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", type=Path, help="interpreter with cpa-tools")
    parser.add_argument("--cells", type=int, default=8000)
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--conditions", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2, help="counted epochs of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of our side")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--side", choices=["ours", "upstream"])
    parser.add_argument("--plan", choices=PLANS)
    args = parser.parse_args()
    if args.side:
        found = {"ours": ours, "upstream": upstream}[args.side](args)
        found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        print(json.dumps(found))
        return
    sides = ["ours", "upstream"] if args.upstream else ["ours"]
    if not args.upstream:
        print("no --upstream interpreter: upstream is left out.", file=sys.stderr)
    figures: dict[tuple[str, str], list[dict[str, float]]] = {}
    for plan in PLANS:
        for _ in range(args.rounds):
            for side in sides:
                figures.setdefault((plan, side), []).append(run_side(side, plan, args))
                print(plan, side, figures[plan, side][-1], file=sys.stderr)
    text = report(figures, sides, args)
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def run_side(side: str, plan: str, args: argparse.Namespace) -> dict[str, float]:
    threads = str(args.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    sizes = [
        f"--{name}={getattr(args, name)}"
        for name in ("cells", "genes", "conditions", "epochs", "threads", "device")
    ]
    python = sys.executable if side == "ours" else str(args.upstream)
    command = [python, __file__, f"--side={side}", f"--plan={plan}", *sizes]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def invented(args: argparse.Namespace):
    """Counts as CSR (about one in seven stored) and the condition of each cell; code 0 is control."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(args.genes, 0.3))
    depth = rng.lognormal(np.log(2500), 0.3, args.cells)
    blocks = [
        sp.csr_matrix(rng.poisson(depth[i : i + 500, None] * shares).astype(np.float32))
        for i in range(0, args.cells, 500)
    ]
    return sp.vstack(blocks).tocsr(), rng.integers(0, args.conditions, args.cells)


def names(args: argparse.Namespace) -> list[str]:
    return ["control", *(f"G{i:04d}" for i in range(1, args.conditions))]


def ours(args: argparse.Namespace) -> dict[str, float]:
    import scipy.sparse as sp
    import torch
    from vcbench.baselines.cpa.baseline import Cpa
    from vcbench.baselines.deep import placement_of
    from vcbench.baselines.training.data import CellData
    from vcbench.baselines.training.distributed import Processes
    from vcbench.baselines.training.loop import fit

    torch.set_num_threads(args.threads)
    x, codes = invented(args)
    labels = names(args)
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    place = np.argsort(order)
    keys = tuple(("A", labels[i]) for i in order)
    cells = CellData(
        x=sp.csr_array(x),
        codes=place[codes],
        keys=keys,
        train_keys=tuple(key for key in keys if key[1] != "control"),
        validation_keys=(),
        held_out=np.zeros(len(codes), dtype=bool),
        genes=np.array([f"X{i}" for i in range(args.genes)]),
        target_sum=2500.0,
        space="counts",
        extras={"labels": tuple(labels), "n_cells": dict(zip(keys, np.bincount(place[codes]), strict=True))},
    )
    settings = {"preset": "upstream", "validation": "none", "patience": 0, "epochs": args.epochs + 1}
    settings |= {"validate_every": args.epochs + 1, "select": ""}
    if args.plan == "pretraining":
        settings["n_epochs_pretrain_ae"] = args.epochs + 1
    model = Cpa(Cpa.resolve(settings))
    device = torch.device(args.device)
    torch.manual_seed(0)
    trainable = model.start(
        cells,
        placement_of(model.config, device),
        rng=np.random.default_rng(0),
        data=cells.log1p.training_data,
    )
    clock = Clock()
    start, step = trainable.start_epoch, trainable.train_step

    def start_epoch(epoch, rng):
        clock.start()
        start(epoch, rng)

    def train_step(batch, optimizers, position):
        found = step(batch, optimizers, position)
        if args.device == "cuda":
            torch.cuda.synchronize()
        clock.stop()
        return found

    trainable.start_epoch, trainable.train_step = start_epoch, train_step
    with tempfile.TemporaryDirectory() as folder:
        fit(trainable, model.config, seed=0, folder=Path(folder), processes=Processes(device))
    return clock.result(args)


def upstream(args: argparse.Namespace) -> dict[str, float]:
    import warnings
    from importlib.machinery import ModuleSpec
    from unittest.mock import MagicMock

    warnings.filterwarnings("ignore")
    for name in ("rdkit", "rdkit.Chem", "cpa._tuner"):
        stand_in = MagicMock()
        stand_in.__path__, stand_in.__spec__ = [], ModuleSpec(name, None)
        sys.modules[name] = stand_in
    import anndata
    import cpa
    import pandas as pd
    import pytorch_lightning
    import torch

    torch.set_num_threads(args.threads)
    x, codes = invented(args)
    labels = names(args)
    obs = pd.DataFrame(
        {
            "condition": [labels[code] for code in codes],
            "context": "A",
            "split": "train",
        },
        index=[str(i) for i in range(len(codes))],
    )
    # Upstream wants a validation split; one batch of it is never evaluated.
    obs.loc[obs.index[:BATCH], "split"] = "test"
    data = anndata.AnnData(x, obs=obs)
    cpa.CPA.setup_anndata(
        data,
        perturbation_key="condition",
        control_group="control",
        categorical_covariate_keys=["context"],
        is_count_data=True,
        max_comb_len=1,
    )
    model = cpa.CPA(data, split_key="split", train_split="train", valid_split="test", test_split="ood")
    model.module.r2_metric = lambda *_, **__: (0.0, 0.0)
    clock = Clock()

    class Timer(pytorch_lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            clock.start()

        def on_train_batch_end(self, *_):
            clock.stop()

    plan = {} if args.plan == "alternating" else {"n_epochs_pretrain_ae": args.epochs + 1}
    with tempfile.TemporaryDirectory() as folder:
        model.train(
            max_epochs=args.epochs + 1,
            use_gpu=False,
            batch_size=BATCH,
            plan_kwargs=plan,
            check_val_every_n_epoch=1000,
            callbacks=[Timer()],
            save_path=folder,
            enable_progress_bar=False,
        )
    return clock.result(args, left_out=BATCH)


class Clock:
    """Wall and CPU seconds from each epoch's start to its last batch."""

    def __init__(self):
        self.epochs: list[list[float]] = []

    def start(self) -> None:
        now = [time.perf_counter(), time.process_time()]
        self.epochs.append([*now, *now])

    def stop(self) -> None:
        self.epochs[-1][2:] = [time.perf_counter(), time.process_time()]

    def result(self, args: argparse.Namespace, left_out: int = 0) -> dict[str, float]:
        counted = self.epochs[1:]
        n = args.cells - left_out
        wall = statistics.median(stop - start for start, _, stop, _ in counted)
        cpu = statistics.median(stop - start for _, start, _, stop in counted)
        return {"cells_per_s": n / wall, "cells_per_cpu_s": n / cpu, "epochs": float(len(counted))}


def report(
    figures: dict[tuple[str, str], list[dict[str, float]]], sides: list[str], args: argparse.Namespace
) -> str:
    def median(plan: str, side: str, name: str) -> float:
        return statistics.median(found[name] for found in figures[plan, side])

    lines = [
        f"# CPA: training throughput on the {'GPU' if args.device == 'cuda' else 'CPU'}",
        "",
        f"{args.cells:,} cells x {args.genes:,} genes, {args.conditions} conditions, batch {BATCH}, upstream's default "
        f"network on both sides, float32, {args.threads} thread(s); medians of {args.rounds} interleaved processes of "
        f"{args.epochs} counted epochs each. {time.strftime('%Y-%m-%d')}, {machine()}, "
        f"{torch_on(args.device)}.",
        "",
        "| plan | side | cells per second | cells per CPU second | peak memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    for plan in PLANS:
        for side in sides:
            values = [median(plan, side, name) for name in ("cells_per_s", "cells_per_cpu_s", "peak_mib")]
            lines.append(f"| {plan} | {side} | " + " | ".join(f"{value:,.0f}" for value in values) + " |")
    if len(sides) == 2:
        for plan in PLANS:
            wall, cpu = (
                [
                    a[name] / b[name]
                    for a, b in zip(figures[plan, "ours"], figures[plan, "upstream"], strict=True)
                ]
                for name in ("cells_per_s", "cells_per_cpu_s")
            )
            lines += [
                "",
                f"{plan}: {statistics.median(wall):.1f}x in wall time ({min(wall):.1f} to {max(wall):.1f}), "
                f"{statistics.median(cpu):.1f}x in CPU time ({min(cpu):.1f} to {max(cpu):.1f}).",
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
