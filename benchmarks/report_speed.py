"""Time, memory and size of the report about many entries.

    python benchmarks/report_speed.py [--entries 20] [--rows 300] [--rounds 3] [--report FILE.md]

Invented ScoreCards of 20 metrics and three strata with the perturbations of one truth; the command is a process of its
own, once with and once without the PNG and CSV of every figure.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from machine import machine
from report_support import METRICS, invented_cards

EXTRA = [f"metric_{i:02d}" for i in range(16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("entries", 20), ("rows", 300), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        names = [*(f"model-{i:02d}" for i in range(args.entries - 1)), "mean"]
        invented_cards(place / "cards", names, n_rows=args.rows, metrics=[*METRICS, *EXTRA])
        lines = [
            f"# A report about {args.entries} entries",
            "",
            f"`python benchmarks/report_speed.py`: {args.entries} entries x {args.rows} perturbations x "
            f"{len(METRICS) + len(EXTRA)} metrics; {machine()}; medians of {args.rounds} runs.",
            "",
            "| | wall s | CPU s | peak memory, MiB | size, MiB |",
            "|---|---|---|---|---|",
        ]
        for title, more in (("page", []), ("page and figures", ["--figures", str(place / "figures")])):
            runs = [measured(place, more) for _ in range(args.rounds)]
            wall, cpu, peak = (statistics.median(run[i] for run in runs) for i in range(3))
            size = (place / "report.html").stat().st_size / 2**20
            lines.append(f"| {title} | {wall:.1f} | {cpu:.1f} | {peak:,.0f} | {size:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def measured(place: Path, more: list[str]) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak MiB of one report."""
    vcbench = str(Path(sys.executable).with_name("vcbench"))
    command = [
        vcbench,
        "report",
        str(place / "cards"),
        "-o",
        str(place / "report.html"),
        "--force",
        "--quiet",
        *more,
    ]
    started = time.perf_counter()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
