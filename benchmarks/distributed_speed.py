"""Scoring with workers beside scoring in one process: time on panel M, and memory on a panel four times the budget.

    python benchmarks/distributed_speed.py FOLDER [--workers 2] [--rounds 3] [--report FILE.md]

FOLDER takes the panels (made where they are missing). Every way scores the same files in edition vcc2026, in turn,
after a small panel has compiled the kernels in every process, so the start of workers is not counted. Results are
compared with those of one process. The memory of a worker is the peak resident set of its process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import machine
from scoring_panels import DEFAULTS, make_panel
from scoring_speed import PANELS
from vcbench.evaluator.executors import open_executor
from vcbench.evaluator.scoring import score

LARGE = "30 perturbations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    lines = [
        "# Scoring with workers",
        "",
        f"`python benchmarks/distributed_speed.py`: edition vcc2026, {args.workers} workers of one thread against one "
        f"process of {args.workers} threads; {machine()}. Start of the workers excluded; medians of {args.rounds} runs "
        "in turn. Every value of every run equals that of one process.",
        "",
        *times(args.folder, args.workers, args.rounds),
        "",
        *memory(args.folder, args.workers),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def panel(folder: Path, name: str) -> dict[str, Path]:
    """The files of a panel, made when they are missing."""
    place = folder / name.replace(" ", "_")
    if not (place / "done").exists():
        print(f"making panel {name}", file=sys.stderr)
        make_panel(place, **(DEFAULTS | PANELS[name]))
        (place / "done").touch()
    return {"pred": place / "pred.h5ad", "truth": place / "real.h5ad"}


def scored(files: Mapping[str, Path | str], **options: Any) -> dict[str, Any]:
    """Every value of a run."""
    found = score(
        files["pred"], files["truth"], edition="vcc2026", pert_col="target_gene", intervals=False, **options
    )
    return {name: metric.value for name, metric in found.card.metrics.items()}


def cluster(stack: ExitStack, workers: int) -> str:
    """A Dask cluster on this machine, as an executor's text."""
    from distributed import LocalCluster

    made = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )
    found = stack.enter_context(made)
    return f"dask://{found.scheduler_address.removeprefix('tcp://')}"


def web_server(stack: ExitStack, folder: Path) -> str:
    """The URL of a web server of `folder` in a process of its own."""
    script = Path(__file__).parents[1] / "tests" / "range_server.py"
    server = subprocess.Popen([sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True)
    stack.callback(server.kill)
    assert server.stdout is not None
    return server.stdout.readline().strip()


def times(folder: Path, workers: int, rounds: int) -> list[str]:
    files, small = panel(folder, "M"), panel(folder, "warm")
    walls: dict[str, list[float]] = {}
    expected = None
    with ExitStack() as stack:
        texts = {"one process": "local", f"{workers} processes": f"processes:{workers}"}
        texts[f"Dask, {workers} workers"] = cluster(stack, workers)
        ways = {}
        for name, text in texts.items():
            executor = stack.enter_context(open_executor(text, threads=1))
            ways[name] = {"executor": executor, "threads": workers if executor is None else 1}
            scored(small, **ways[name])
        url = web_server(stack, folder)
        behind = {role: f"{url}/{path.relative_to(folder)}" for role, path in files.items()}
        by_url = f"{workers} processes, files behind a URL"
        ways[by_url] = ways[f"{workers} processes"]
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                values = scored(behind if name == by_url else files, **way)
                walls.setdefault(name, []).append(time.perf_counter() - started)
                expected = expected or values
                if values != expected:
                    raise SystemExit(f"{name}: other values than one process")
    base = statistics.median(walls["one process"])
    lines = ["| panel M | wall s | against one process |", "|---|---|---|"]
    for name, found in walls.items():
        wall = statistics.median(found)
        lines.append(f"| {name} | {wall:.2f} ({min(found):.2f}-{max(found):.2f}) | {wall / base - 1:+.0%} |")
    return lines


def memory(folder: Path, workers: int) -> list[str]:
    import h5py

    files, small = panel(folder, LARGE), panel(folder, "warm")
    held = 0
    for path in files.values():
        with h5py.File(path) as file:
            held += sum(
                file[f"X/{name}"].size * file[f"X/{name}"].dtype.itemsize for name in ("data", "indices")
            )
    budget = held // 4
    expected = scored(files, threads=workers)
    lines = [
        f"The panel of {LARGE} holds {held / 2**20:,.0f} MiB of values and columns; every worker has a quarter of "
        f"that, `--memory {budget // 2**20}MiB`.",
        "",
        "| | wall s | peak of the largest worker, MiB | budget, MiB |",
        "|---|---|---|---|",
    ]
    with ExitStack() as stack:
        for name, text in (("processes", f"processes:{workers}"), ("Dask", cluster(stack, workers))):
            with open_executor(text, threads=1) as executor:
                assert executor is not None
                scored(small, executor=executor)
                started = time.perf_counter()
                values = scored(files, executor=executor, memory=budget)
                wall = time.perf_counter() - started
                if values != expected:
                    raise SystemExit(f"{name}: other values than one process")
                peak = max(executor.map(peak_mib, [0.3] * (4 * workers)))
            lines.append(f"| {name} | {wall:.1f} | {peak:,.0f} | {budget / 2**20:,.0f} |")
    return lines


def peak_mib(pause: float) -> float:
    """Peak resident MiB of the process that runs this."""
    time.sleep(pause)
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
