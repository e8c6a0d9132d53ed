"""Training throughput and memory of the scGPT network beside upstream's module, on invented cells.

Usage: scgpt_speed.py [--upstream-python PYTHON] [--device cpu|cuda] [--batch N] [--genes N] [--rounds N]
                      [--checkpointing] [--compile] [--report FILE.md]

Each side lives in a process of its own with the same sizes, weights' distribution, cells and threads: ours in float32
and bf16, upstream (scgpt's TransformerGenerator without flash attention) in float32 on the CPU and under fp16 autocast
with a gradient scaler on CUDA. Every round asks each side for one training step (forward, loss, backward, clipping,
Adam), one side after the other, so that other work on the machine meets all of them; the report has medians.
Upstream is left out, visibly, without --upstream-python (an environment from tests/parity/models.txt). On a GPU:
--device cuda --batch 64, and --genes 5000 for the full official size (once with --checkpointing).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import machine

SIZES = {"d_model": 512, "nhead": 8, "d_hid": 512, "nlayers": 12}
ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours float32", "ours bf16", "upstream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream-python", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--genes", type=int, default=1536)
    parser.add_argument("--tokens", type=int, default=60_697)
    parser.add_argument("--layers", type=int, default=SIZES["nlayers"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing on our side")
    parser.add_argument("--compile", action="store_true", help="torch.compile on our side")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    sides = [side for side in args.sides if side != "upstream" or args.upstream_python]
    if sides != args.sides:
        print("no --upstream-python: upstream is left out.", file=sys.stderr)
    figures = measure(sides, args)
    text = report(figures, args)
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def measure(sides: list[str], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Seconds and CPU seconds of each side's steps, and its peak memory; sides take turns."""
    running = {side: start(side, args) for side in sides}
    found: dict[str, dict[str, list[float]]] = {side: {"s": [], "cpu_s": [], "mib": []} for side in sides}
    for round_ in range(args.rounds + 1):
        for side, process in running.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            # The first round warms up.
            if round_:
                for name, value in answer.items():
                    found[side][name].append(value)
    for process in running.values():
        process.communicate()
    return found


def start(side: str, args: argparse.Namespace) -> subprocess.Popen[str]:
    python = str(args.upstream_python) if side == "upstream" else sys.executable
    threads = {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    command = [python, __file__, "--side", side]
    for name in ("device", "batch", "genes", "tokens", "layers"):
        command += [f"--{name}", str(getattr(args, name))]
    command += [f"--{name}" for name in ("checkpointing", "compile") if getattr(args, name)]
    return subprocess.Popen(
        command, env={**os.environ, **threads}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def serve(args: argparse.Namespace) -> None:
    """Make one training step per line of standard input, and print what it took."""
    import torch

    torch.manual_seed(0)
    step = (upstream if args.side == "upstream" else ours)(args)
    for _ in sys.stdin:
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        spent, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = after.ru_maxrss / 1024
        if args.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps({"s": spent, "cpu_s": cpu, "mib": peak}), flush=True)


def invented(args: argparse.Namespace):
    """Token ids, values, flags and targets: a tenth of the genes of a cell is expressed, one is perturbed."""
    import torch

    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, args.genes)
    genes = torch.randperm(args.tokens - 3, generator=generator)[: args.genes]

    def expression():
        return (torch.rand(shape, generator=generator) < 0.1) * 3 * torch.rand(shape, generator=generator)

    flags = torch.zeros(shape, dtype=torch.int64)
    flags[:, 0] = 1
    return tuple(item.to(args.device) for item in (genes, expression(), flags, expression()))


def ours(args: argparse.Namespace):
    import torch
    from vcbench.baselines.scgpt.config import ScGPTConfig
    from vcbench.baselines.scgpt.model import TransformerGenerator

    sizes = {**SIZES, "nlayers": args.layers}
    config = ScGPTConfig(**sizes, activation_checkpointing=args.checkpointing)
    net = TransformerGenerator(config, args.tokens, args.tokens - 3).to(args.device)
    if args.compile:
        net.compile()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=ScGPTConfig.fused)
    genes, values, flags, target = invented(args)
    low = args.side == "ours bf16"

    def step() -> None:
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=low):
            found = net(genes, values, flags).values
            loss = ((found.float() - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def upstream(args: argparse.Namespace):
    import torch

    sys.path.insert(0, str(ROOT / "tests" / "parity"))
    from upstream_scgpt import transformer_generator

    sizes = {**SIZES, "nlayers": args.layers}
    net = transformer_generator()(
        args.tokens,
        **sizes,
        nlayers_cls=3,
        n_cls=1,
        vocab={"<pad>": args.tokens - 3},
        dropout=0.0,
        pert_pad_id=0,
    ).to(args.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    genes, values, flags, target = invented(args)
    half = args.device == "cuda"
    scaler = torch.amp.GradScaler(args.device, enabled=half)

    def step() -> None:
        net.train()
        mask = torch.zeros_like(values, dtype=torch.bool)
        src = genes.repeat(len(values), 1)
        with torch.autocast(args.device, dtype=torch.float16, enabled=half):
            found = net(src, values, flags, src_key_padding_mask=mask)["mlm_output"]
            weights = torch.ones_like(values)
            loss = ((found * weights - target * weights) ** 2).sum() / weights.sum()
        net.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, error_if_nonfinite=False)
        scaler.step(optimizer)
        scaler.update()

    return step


def report(figures: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> str:
    import torch

    median = {side: {n: statistics.median(v) for n, v in found.items()} for side, found in figures.items()}
    flags = [name for name in ("checkpointing", "compile") if getattr(args, name)]
    lines = [
        f"## {args.layers} layers, {SIZES['d_model']} wide, {args.genes:,} genes, batch {args.batch}, {args.device}"
        + (f" ({', '.join(flags)} on our side)" if flags else ""),
        "",
        f"{args.tokens:,} tokens in the gene table, {args.threads} thread(s), medians of {args.rounds} steps, sides in "
        f"turn; {time.strftime('%Y-%m-%d')}, {machine()}, torch {torch.__version__}.",
        "",
        "| | s per step | CPU s per step | cells/s | peak memory (MiB) | against upstream | in CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, f in median.items():
        # Rounds are pairs: the median of ratios is steadier than the ratio of medians.
        against = {"s": "–", "cpu_s": "–"}
        for name in against if "upstream" in median else ():
            pairs = zip(figures["upstream"][name], figures[side][name], strict=True)
            against[name] = f"{statistics.median(theirs / own for theirs, own in pairs):.2f}x"
        lines.append(
            f"| {side} | {f['s']:.3f} | {f['cpu_s']:.2f} | {args.batch / f['s']:.2f} | {f['mib']:,.0f} "
            f"| {against['s']} | {against['cpu_s']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
