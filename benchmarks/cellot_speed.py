"""CPU time of CellOT maps trained together beside a loop over modules, one map after the other, on one thread.

Usage: cellot_speed.py [--maps 64] [--iterations 200] [--rounds 5] [--device cpu] [--report FILE.md]

Both sides: dimension 50, four layers of 64, 256 cells, ten steps of g for each of f, Adam. The sides alternate; a round
trains all maps for iterations/rounds outer iterations on our side, and one map as long on the other. `--device cuda`
measures our side alone, beside our own CPU run.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from cellot_loop import Loop
from cellot_stack import Stack
from machine import machine
from vcbench.baselines.cellot.config import CellotConfig

DIM, CELLS = 50, 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    source, target = torch.randn(args.maps, CELLS, DIM), torch.randn(args.maps, CELLS, DIM) + 0.5
    stack = Stack(source, target, CellotConfig(init="upstream"))
    loop = Loop(source[0], target[0])
    stack.iteration()
    loop.iteration()
    n = max(1, args.iterations // args.rounds)
    ours, theirs = [], []
    for _ in range(args.rounds):
        theirs.append(cpu_seconds(loop.iteration, n) / n)
        ours.append(cpu_seconds(stack.iteration, n) / n / args.maps)
    together, alone = statistics.median(ours), statistics.median(theirs)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    lines = [
        "# CellOT: all maps together beside one after the other",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} on {machine()}, torch "
        f"{version('torch')} CPU, one thread; {args.maps} maps, dimension {DIM}, batch 256, {n * args.rounds} outer "
        f"iterations of ten steps of g and one of f, in {args.rounds} alternating rounds; medians of CPU seconds.",
        "",
        "| training | CPU ms per map and outer iteration | ratio |",
        "|---|---|---|",
        f"| module loop, one map | {1000 * alone:.1f} | 1 |",
        f"| {args.maps} maps together | {1000 * together:.1f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |",
        "",
        f"Peak memory of the process, both sides: {peak:.0f} MiB.",
    ]
    if args.device == "cuda":
        lines += ["", *on_cuda(source, target, n, together)]
    text = "\n".join(lines) + "\n"
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    print(text)


def cpu_seconds(step, n: int) -> float:
    """CPU time of `n` calls."""
    start = time.process_time()
    for _ in range(n):
        step()
    return time.process_time() - start


def on_cuda(source: torch.Tensor, target: torch.Tensor, n: int, cpu: float) -> list[str]:
    """Wall time of our side on the GPU."""
    stack = Stack(source.cuda(), target.cuda(), CellotConfig(init="upstream"))
    stack.iteration()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(n):
        stack.iteration()
    torch.cuda.synchronize()
    spent = (time.perf_counter() - start) / n / len(source)
    name = torch.cuda.get_device_name()
    return [
        f"On {name}: {1e6 * spent:.1f} µs of wall time per map and outer iteration, {cpu / spent:.0f} times less."
    ]


if __name__ == "__main__":
    main()
