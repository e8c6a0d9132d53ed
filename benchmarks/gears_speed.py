"""One epoch and one prediction of GEARS beside cell-gears 0.1.2, on invented data of a real size.

Usage: gears_speed.py [--genes N] [--conditions N] [--cells N] [--threads N] [--device cpu|cuda] [--report FILE.md]

Each side runs in its own process with the same cells, graphs, batch size and number of threads; upstream is left out,
visibly, where `gears` cannot be imported. An epoch is every training step, then what model selection needs: upstream
evaluates all training and validation cells, ours each validation perturbation once. A prediction is one perturbation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from machine import machine, torch_on

BATCH = 32
N_DRAWS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=5000)
    parser.add_argument("--conditions", type=int, default=150)
    parser.add_argument("--cells", type=int, default=100, help="cells of each condition")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--side", choices=["ours", "upstream"])
    args = parser.parse_args()
    if args.side:
        found = {"ours": ours, "upstream": upstream}[args.side](args)
        found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        print(json.dumps(found))
        return
    figures = {"ours": run_side("ours", args)}
    if find_spec("gears") and find_spec("torch_geometric"):
        figures["upstream"] = run_side("upstream", args)
    else:
        print("cell-gears is not installed: upstream is left out.", file=sys.stderr)
    text = report(figures, args)
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def run_side(side: str, args: argparse.Namespace) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    sizes = [f"--{name}={getattr(args, name)}" for name in ("genes", "conditions", "cells", "device")]
    command = [sys.executable, __file__, f"--side={side}", *sizes]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def invented(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Cells, pairs and edges: every tenth gene of a cell is expressed, each node has twenty neighbours."""
    rng = np.random.default_rng(0)
    n, genes = args.conditions * args.cells, args.genes
    edges = []
    for k in (2, 20):
        target, source = np.repeat(np.arange(genes), k), rng.integers(0, genes, genes * k)
        key = np.unique(target * genes + source)
        edges.append(np.stack([key % genes, key // genes]))
    return {
        "x": (rng.random((200, genes)) < 0.1) * rng.gamma(2.0, 0.7, (200, genes)).astype(np.float32),
        "condition": np.repeat(np.arange(args.conditions), args.cells),
        "target": rng.permutation(genes)[: args.conditions],
        "cell": rng.integers(0, 200, n),
        "control": rng.integers(0, 200, n),
        "order": rng.permutation(n),
        "gene_edges": edges[0],
        "go_edges": edges[1],
    }


def ours(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from vcbench.baselines.gears.config import GearsConfig
    from vcbench.baselines.gears.effects import effects_of
    from vcbench.baselines.gears.graphs import Graph
    from vcbench.baselines.gears.loss import autofocus_loss, cell_weights
    from vcbench.baselines.gears.model import GearsNetwork, trained_parameters

    data = invented(args)
    graphs = [
        Graph(args.genes, edges, np.full(edges.shape[1], 0.5, dtype=np.float32))
        for edges in (data["gene_edges"], data["go_edges"])
    ]
    torch.manual_seed(0)
    device = torch.device(args.device)
    network = GearsNetwork(GearsConfig(), *graphs).to(device)
    optimizer = torch.optim.Adam(trained_parameters(network), lr=1e-3, weight_decay=5e-4)
    x = torch.as_tensor(data["x"], dtype=torch.float32, device=device)
    targets = torch.as_tensor(data["target"], device=device)
    retained = torch.ones(args.conditions, args.genes, dtype=torch.bool, device=device)
    conditions = torch.as_tensor(data["condition"], device=device)
    start = time.perf_counter()
    network.train()
    n_steps = len(data["order"]) // BATCH
    for step in range(n_steps):
        rows = data["order"][step * BATCH : (step + 1) * BATCH]
        codes = conditions[torch.as_tensor(rows, device=device)]
        control, cell = (torch.as_tensor(data[name][rows], device=device) for name in ("control", "cell"))
        predicted, _ = network(targets[codes].unsqueeze(1), x[control])
        weights = cell_weights(codes, codes, retained.sum(dim=1))
        terms = autofocus_loss(
            *(predicted, x[cell], x.mean(dim=0), retained[codes], weights),
            direction="none",
            direction_lambda=0.0,
        )
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 1.0)
        optimizer.step()
    wait(args)
    train_s = time.perf_counter() - start
    network.eval()
    effects_of(network, [[int(t)] for t in data["target"]])
    wait(args)
    epoch_s = time.perf_counter() - start
    predict_s = fastest(lambda: effects_of(network, [[int(data["target"][0])]]))
    return {
        "steps": n_steps,
        "train_s": train_s,
        "epoch_s": epoch_s,
        "predict_s": predict_s,
        **device_peak(args),
    }


def wait(args: argparse.Namespace) -> None:
    """Until the device has done its work."""
    import torch

    if args.device == "cuda":
        torch.cuda.synchronize()


def device_peak(args: argparse.Namespace) -> dict[str, float]:
    """MiB of GPU memory at most, on a GPU."""
    import torch

    return {"device_mib": torch.cuda.max_memory_allocated() / 2**20} if args.device == "cuda" else {}


def upstream(args: argparse.Namespace) -> dict[str, float]:
    import torch
    from gears.inference import evaluate
    from gears.model import GEARS_Model
    from gears.utils import loss_fct
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    data = invented(args)
    settings = {
        "hidden_size": 64,
        "num_go_gnn_layers": 1,
        "num_gene_gnn_layers": 1,
        "decoder_hidden_size": 16,
        "uncertainty": False,
        "no_perturb": False,
        "device": args.device,
        "num_genes": args.genes,
        "num_perts": args.genes,
    }
    for name, edges in (("G_coexpress", data["gene_edges"]), ("G_go", data["go_edges"])):
        settings |= {name: torch.as_tensor(edges), f"{name}_weight": torch.full((edges.shape[1],), 0.5)}
    model = GEARS_Model(settings).to(args.device)
    x = torch.as_tensor(data["x"], dtype=torch.float32)
    names = [f"G{t}+ctrl" for t in data["target"]]
    retained = {name: np.arange(args.genes) for name in names}

    def cell(row: int) -> Data:
        condition = data["condition"][row]
        return Data(
            x=x[data["control"][row]].unsqueeze(1),
            y=x[data["cell"][row]].unsqueeze(0),
            pert_idx=[int(data["target"][condition])],
            pert=names[condition],
            de_idx=list(range(20)),
        )

    cells = [cell(row) for row in data["order"]]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=5e-4)
    control_mean = x.mean(dim=0).to(args.device)
    start = time.perf_counter()
    model.train()
    n_steps = 0
    for batch in DataLoader(cells, batch_size=BATCH, drop_last=True):
        batch.to(args.device)
        optimizer.zero_grad()
        loss = loss_fct(
            model(batch), batch.y, batch.pert, ctrl=control_mean, dict_filter=retained, direction_lambda=0.1
        )
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), clip_value=1.0)
        optimizer.step()
        n_steps += 1
    wait(args)
    train_s = time.perf_counter() - start
    evaluate(DataLoader(cells, batch_size=BATCH), model, False, args.device)
    epoch_s = time.perf_counter() - start

    def predict() -> None:
        drawn = [Data(x=x[i % len(x)].unsqueeze(1), pert_idx=[0], pert="p") for i in range(N_DRAWS)]
        with torch.no_grad():
            for batch in DataLoader(drawn, batch_size=N_DRAWS):
                model(batch.to(args.device)).mean(dim=0)
        wait(args)

    return {
        "steps": n_steps,
        "train_s": train_s,
        "epoch_s": epoch_s,
        "predict_s": fastest(predict, repeats=2),
        **device_peak(args),
    }


def fastest(call, repeats: int = 5) -> float:
    """The shortest of some runs, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def report(figures: dict[str, dict[str, float]], args: argparse.Namespace) -> str:
    lines = [
        f"# GEARS: one epoch and one prediction on the {'GPU' if args.device == 'cuda' else 'CPU'}",
        "",
        f"{args.genes:,} genes, {args.conditions} training conditions of {args.cells} cells, "
        f"batch {BATCH}, hidden size 64, float32, {args.threads} thread(s) each; "
        f"{time.strftime('%Y-%m-%d')}, {machine()}, {torch_on(args.device)}.",
        "",
        "| | steps | training (s) | epoch with evaluation (s) | s per step | one prediction (s) | peak memory (MiB) "
        + ("| of the GPU (MiB) |" if args.device == "cuda" else "|"),
        "|---|---|---|---|---|---|---|" + ("---|" if args.device == "cuda" else ""),
    ]
    for side, f in figures.items():
        lines.append(
            f"| {side} | {f['steps']:.0f} | {f['train_s']:.1f} | {f['epoch_s']:.1f} | {f['train_s'] / f['steps']:.3f} "
            f"| {f['predict_s']:.4f} | {f['peak_mib']:,.0f} |"
            + (f" {f['device_mib']:,.0f} |" if "device_mib" in f else "")
        )
    if len(figures) == 2:
        a, b = figures["ours"], figures["upstream"]
        lines += [
            "",
            f"Epoch {b['epoch_s'] / a['epoch_s']:.1f}x, prediction {b['predict_s'] / a['predict_s']:.0f}x, "
            f"memory {b['peak_mib'] / a['peak_mib']:.1f}x.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
