"""What `train --dry-run` promises beside one real epoch, on a simulated screen of challenge size.

Usage: training_estimate.py OUT_FOLDER [--cells N] [--genes N] [--model NAME] [--set KEY=VALUE ...] [--report FILE.md]

The screen is simulated once and kept in OUT_FOLDER. Estimate and epoch run one after the other, each in a process of
its own whose peak memory is the kernel's figure; graphs, reading and normalising are part of `load_s`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec

SINGLES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=18_080)
    parser.add_argument("--model", default="gears")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data, gmt = args.out / "data.h5ad", args.out / "go.gmt"
    if not data.exists():
        per_group = args.cells // (SINGLES + 2)
        spec = SimulationSpec(
            genes=args.genes,
            singles=SINGLES,
            doubles=0,
            cells=per_group,
            controls=args.cells - SINGLES * per_group,
            depth=3000.0,
        )
        simulate_dataset(data, spec, seed=5, gmt=gmt)
    settings = [word for text in ("epochs=1", *args.settings) for word in ("--set", text)]
    common = [
        "train",
        args.model,
        str(data),
        "--features",
        f"go:{gmt}",
        "--device",
        "cpu",
        "--quiet",
        *settings,
    ]
    text, estimate_mib = timed([*common, "--dry-run", "--format", "json"])
    estimate = json.loads(text)
    run = args.out / f"run-{int(time.time())}"
    text, epoch_mib = timed([*common, "-o", str(run), "--format", "json"])
    result = json.loads(text)
    with H5ad(data) as file:
        size = f"{file.n_obs:,} cells x {file.n_vars:,} genes, {file.matrix.n_stored:,} stored values"
    lines = report(args, size, estimate, estimate_mib, result, epoch_mib)
    report_text = "\n".join(lines) + "\n"
    (args.report or args.out / "report.md").write_text(report_text, encoding="utf-8")
    print(report_text)


def timed(words: list[str]) -> tuple[str, float]:
    """Standard output of a vcbench command and its peak resident memory in MiB."""
    command = [sys.executable, "-c", "from vcbench.evaluator.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"vcbench {' '.join(words)} failed")
    return text, usage.ru_maxrss / 1024


def report(
    args: argparse.Namespace,
    size: str,
    estimate: dict[str, object],
    estimate_mib: float,
    result: dict[str, object],
    epoch_mib: float,
) -> list[str]:
    promised, took = float(str(estimate["epoch_s"])), float(str(result["fit_s"]))
    peak = estimate["peak_mib"]
    assert isinstance(peak, dict)
    host = float(peak["host"])
    return [
        "# What --dry-run promises, and one epoch",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}. {size}; "
        f"{args.model} with {', '.join(args.settings) or 'its defaults'}.",
        "",
        "| | estimate | one epoch | epoch / estimate |",
        "|---|---|---|---|",
        f"| time (s) | {promised:.0f} | {took:.0f} | {took / promised:.2f} |",
        f"| peak host memory (MiB) | {host:,.0f} | {epoch_mib:,.0f} | {epoch_mib / host:.2f} |",
        "",
        f"The dry run itself peaked at {estimate_mib:,.0f} MiB and loaded in {estimate['load_s']} s.",
    ]


if __name__ == "__main__":
    main()
