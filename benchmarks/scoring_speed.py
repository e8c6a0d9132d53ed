"""Scoring time, CPU time and peak memory, beside the official tools and rank-sum libraries, as a table and a plot.

Usage: scoring_speed.py FOLDER [--official PYTHON] [--parts pair,de,context,linear,header,device] [--rounds N]
                        [--device cuda] [--results benchmarks/results/scoring_speed]

FOLDER takes the panels (made where they are missing; the whole 2026 context needs 10 GB). PYTHON is an interpreter with
cell-eval 0.8.2, cell-eval2 0.20.0, pdex 0.3.0 and illico 0.6.0; without it the peers are left out, visibly. The two
sides of a pair run alternately; medians are reported. Kernels are compiled by a small panel first. Results of parts
that are not run again are kept. The part `device` compares `--device` with the CPU and is only run when named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from machine import machine
from scoring_panels import DEFAULTS, make_panel

HERE = Path(__file__).parent
PANELS = {
    "warm": {"genes": 2000, "perts": 4, "cells": 40, "controls": 200, "depth": 3000},
    "M": {"perts": 60, "cells": 200, "controls": 4000},
    "wide": {"genes": 4000},
    "eighth": {"cells": 50, "controls": 2300},
    "context": {},
    "30 perturbations": {"perts": 30, "cells": 1000, "controls": 5000},
    "300 perturbations": {"cells": 100, "controls": 5000},
}
COMMON = ["--pert-col", "target_gene"]
Row = dict[str, float | str | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--official", metavar="PYTHON")
    parser.add_argument("--parts", default=",".join(part for part in PARTS if part != "device"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scoring_speed")
    args = parser.parse_args()
    stored = args.results.with_suffix(".json")
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    bench = Bench(args.folder, args.official, args.rounds, args.device)
    bench.compile_kernels()
    for part in args.parts.split(","):
        found[part] = PARTS[part](bench)
        found.setdefault("machines", {})[part] = f"{machine()}, numba {version('numba')}"
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_report(found, args.results)


class Bench:
    """Panels and timed runs."""

    def __init__(self, folder: Path, official: str | None, rounds: int, device: str = "cuda"):
        self.folder, self.official, self.rounds, self.device = folder, official, rounds, device

    def panel(self, name: str) -> Path:
        """The folder of a panel, made when it is missing."""
        place = self.folder / name.replace(" ", "_")
        if not (place / "done").exists():
            print(f"making panel {name}", file=sys.stderr)
            make_panel(place, **(DEFAULTS | PANELS[name]))
            (place / "done").touch()
        return place

    def compile_kernels(self) -> None:
        """Run every command once on a small panel, so that no timed run compiles."""
        for command in (self.ours("warm"), self.ours("warm", edition="celleval-0.8", profile="vcc")):
            run(command)
        run(self.build("warm"))

    def ours(
        self, panel: str, *extra: str, edition: str = "vcc2026", profile: str | None = None
    ) -> list[str]:
        """The command that scores a panel."""
        place = self.panel(panel)
        chosen = ["--profile", profile] if profile else []
        truth = [] if "--truth" in extra else ["--truth", str(place / "real.h5ad")]
        out = ["-o", str(place / f"card_{edition}"), "--force", "--format", "json"]
        vcbench = str(Path(sys.executable).with_name("vcbench"))
        return [
            vcbench,
            "score",
            str(place / "pred.h5ad"),
            "--edition",
            edition,
            *chosen,
            *truth,
            *extra,
            *COMMON,
            *out,
        ]

    def build(self, panel: str, *extra: str) -> list[str]:
        """The command that builds a panel's truth bundle."""
        place = self.panel(panel)
        vcbench = str(Path(sys.executable).with_name("vcbench"))
        out = ["-o", str(place / "bundle"), "--force", "--format", "json"]
        return [
            vcbench,
            "truth",
            "build",
            str(place / "real.h5ad"),
            "--edition",
            "vcc2026",
            *extra,
            *COMMON,
            *out,
        ]

    def peer(self, tool: str, *arguments: str) -> list[str]:
        """A command of the official environment."""
        return [str(Path(str(self.official)).with_name(tool)), *arguments]


def run(command: Sequence[str]) -> Row:
    """Wall and CPU seconds and peak MiB of a command; its output is dropped. Raises when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\n{message.decode(errors='replace')[-3000:]}")
    wall = time.perf_counter() - started
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1024}


def alternately(commands: dict[str, Sequence[str]], rounds: int) -> list[Row]:
    """The median of each command over `rounds`, the commands taking turns."""
    runs: dict[str, list[Row]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(run(command))
    return [{"what": name, **_median(rows)} for name, rows in runs.items()]


def _median(rows: list[Row]) -> Row:
    return {key: statistics.median(float(row[key] or 0) for row in rows) for key in ("wall", "cpu", "peak")}


def pair(bench: Bench) -> list[Row]:
    """Whole profiles on panel M, files in, results out; and the largest difference of their numbers."""
    rows: list[Row] = []
    place = bench.panel("M")
    for edition, profile, name, arguments in (
        ("vcc2026", "vcc2026", "cell-eval2", ["--preset", "vcc2026", *COMMON]),
        ("celleval-0.8", "vcc", "cell-eval", ["--profile", "vcc", "--num-threads", "2"]),
    ):
        commands: dict[str, Sequence[str]] = {
            f"vcbench, {edition}": bench.ours("M", edition=edition, profile=profile)
        }
        out = place / f"peer_{name}"
        if bench.official:
            files = ["-ap", str(place / "pred.h5ad"), "-ar", str(place / "real.h5ad")]
            commands[name] = bench.peer(name, "run", *files, *arguments, "-o", str(out))
            shutil.rmtree(out, ignore_errors=True)
        rows += alternately(commands, bench.rounds)
        if bench.official:
            rows[-2]["difference"] = _difference(place / f"card_{edition}" / "scorecard.json", out)
    return rows


def _difference(card: Path, out: Path) -> float:
    """The largest absolute difference between our aggregates and the means of a peer's `agg_results.csv`."""
    import pandas as pd

    ours = json.loads(card.read_text(encoding="utf-8"))["metrics"]
    table = pd.read_csv(next(out.rglob("*agg_results*.csv")))
    means = table[table["statistic"] == "mean"].iloc[0]
    shared = [name for name in ours if name in means.index and ours[name]["value"] is not None]
    if not shared:
        raise SystemExit(f"{out}: no metric of {card} in its aggregate.")
    return max(abs(ours[name]["value"] - float(means[name])) for name in shared)


def de(bench: Bench) -> list[Row]:
    """DE tables of one side in memory: float64 log1p of counts per million, 2 threads."""
    rows: list[Row] = []
    for panel in ("M", "wide"):
        for tool, python in (
            ("vcbench", sys.executable),
            ("illico", bench.official),
            ("pdex", bench.official),
        ):
            if not python:
                continue
            command = [
                python,
                str(HERE / "scoring_de.py"),
                tool,
                str(bench.panel(panel) / "real.h5ad"),
                # A run of pdex takes minutes.
                str(1 if tool == "pdex" else bench.rounds),
            ]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"what": f"{tool}, {panel}", **json.loads(text.splitlines()[-1])})
    return rows


def context(bench: Bench) -> list[Row]:
    """One whole context: against the real file, with little memory, its bundle, against the bundle."""
    bundle = str(bench.panel("context") / "bundle")
    commands = {
        "against the real cells": bench.ours("context"),
        "against the real cells, --memory 3GB": bench.ours("context", "--memory", "3GB"),
        "truth build, context mean": bench.build("context"),
        "truth build, generic dispersed": bench.build(
            "context", "--baseline", "generic", "--emission", "dispersed"
        ),
        "against the bundle": bench.ours("context", "--truth", bundle),
    }
    return [{"what": name, **run(command)} for name, command in commands.items()]


def linear(bench: Bench) -> list[Row]:
    """Time per stored value (both sides) as panels grow."""
    import h5py

    def stored(panel: str) -> int:
        n_stored = 0
        for side in ("real", "pred"):
            with h5py.File(bench.panel(panel) / f"{side}.h5ad") as file:
                n_stored += len(file["X/data"])
        return n_stored

    small = ("eighth", "30 perturbations", "300 perturbations")
    rows = alternately({panel: bench.ours(panel) for panel in small}, bench.rounds)
    rows[1:1] = alternately({"context": bench.ours("context")}, 1)
    for row in rows:
        n_stored = stored(str(row["what"]))
        row |= {
            "wall_ns": float(row["wall"] or 0) / n_stored * 1e9,
            "cpu_ns": float(row["cpu"] or 0) / n_stored * 1e9,
        }
    return rows


def header(bench: Bench) -> list[Row]:
    """Checks of a whole context's header, and of all its values."""
    path = str(bench.panel("context") / "pred.h5ad")
    vcbench = str(Path(sys.executable).with_name("vcbench"))
    # The panel is no complete entry, so both commands end with issues; the checks are the same.
    command = [
        "bash",
        "-c",
        '"$@" > /dev/null || true',
        "bash",
        vcbench,
        "validate",
        path,
        "--edition",
        "vcc2026",
    ]
    return alternately({"header only": [*command, "--dry-run"], "all values": command}, bench.rounds)


def device(bench: Bench) -> list[Row]:
    """Rank sums by `--device` beside the CPU: DE tables in memory, and a whole profile."""
    rows: list[Row] = []
    for panel in ("M", "wide"):
        for name in ("cpu", bench.device):
            path = str(bench.panel(panel) / "real.h5ad")
            command = [sys.executable, str(HERE / "scoring_de.py"), "vcbench", path, str(bench.rounds), name]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"what": f"{name}, DE of {panel}", **json.loads(text.splitlines()[-1])})
    commands = {
        f"{name}, whole profile of M": bench.ours("M", "--device", name) for name in ("cpu", bench.device)
    }
    return rows + alternately(commands, bench.rounds)


PARTS = {
    "pair": pair,
    "de": de,
    "context": context,
    "linear": linear,
    "header": header,
    "device": device,
}
COLUMNS = {
    "what": "",
    "wall": "wall s",
    "cpu": "CPU s",
    "peak": "peak MiB",
    "difference": "largest difference",
    "wall_ns": "wall ns per value",
    "cpu_ns": "CPU ns per value",
}


def write_report(found: dict[str, object], results: Path) -> None:
    """The table (`.md`) and the plot (`.png`) of stored results."""
    lines = [
        "# Scoring: time and memory",
        "",
        "Rerun: `python benchmarks/scoring_speed.py FOLDER --official PYTHON`.",
        "",
    ]
    machines = found["machines"]
    assert isinstance(machines, dict)
    for name, part in PARTS.items():
        rows = found.get(name)
        if not isinstance(rows, list):
            continue
        shown = [column for column in COLUMNS if any(row.get(column) is not None for row in rows)]
        lines += [
            f"## {(part.__doc__ or '').splitlines()[0]}",
            "",
            f"{machines[name]}.",
            "",
            "| " + " | ".join(COLUMNS[c] for c in shown) + " |",
        ]
        lines += ["|" + " --- |" * len(shown)]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in shown) + " |" for row in rows] + [""]
    results.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    plot(found, results.with_suffix(".png"))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if abs(value) < 0.1 else f"{value:,.1f}"
    return str(value)


def plot(found: dict[str, object], path: Path) -> None:
    """CPU seconds of every row, longest bars last, one colour per part."""
    from matplotlib.figure import Figure

    rows = [(part, row) for part in PARTS for row in found.get(part) or ()]  # type: ignore[union-attr]
    figure = Figure(figsize=(8, 1 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {part: f"C{i}" for i, part in enumerate(PARTS)}
    axes.barh(
        [row["what"] for _, row in rows], [row["cpu"] for _, row in rows], color=[colours[p] for p, _ in rows]
    )
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
