"""How scoring grows: cells from 10,000 to a million, perturbations from 30 to 3,000, with fitted exponents.

    python benchmarks/scaling.py FOLDER [--most-cells 1000000] [--report FILE.md]

Panels of 2,000 genes are written block by block into FOLDER and removed again; every run is a process of its own that
streams the files; what FOLDER has measured already is kept. An exponent b is the slope of log(quantity) on log(size),
by least squares over the sizes: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from scoring_panels import DEFAULTS, make_panel
from scoring_speed import run

GENES, DEPTH, CONTROL_SHARE = 2000, 3000, 0.1
CELLS, FEW = (10_000, 30_000, 100_000, 300_000, 1_000_000), 100
PERTURBATIONS, MANY = (30, 100, 300, 1000, 3000), 100_000
EDITIONS = {"vcc2026": "vcc2026", "celleval-0.8": "vcc"}
HELD = "measured.jsonl"
Found = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--most-cells", type=int, default=CELLS[-1])
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    measured(args.folder, 2000, 20)  # compiles the kernels
    by_cells = [measured(args.folder, n, FEW) for n in CELLS if n <= args.most_cells]
    by_perturbations = [measured(args.folder, MANY, n) for n in PERTURBATIONS]
    lines = [
        "# How scoring grows",
        "",
        f"`python benchmarks/scaling.py`: {GENES:,} genes, {DEPTH:,} counts per cell, a tenth of the cells control; "
        f"truth and prediction have the same number of cells. {machine()}.",
        "",
        *table(f"Cells, {FEW} perturbations", "cells", by_cells),
        *table(f"Perturbations, {MANY:,} cells", "perturbations", by_perturbations),
        "Time and CPU time per edition; peak is the resident memory of the process.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.report:
        args.report.write_text(text, encoding="utf-8")


def measured(folder: Path, cells: int, perturbations: int) -> dict[str, Any]:
    """Seconds and MiB of every edition on one panel, and its stored values (both sides)."""
    import h5py

    held = folder / HELD
    for line in held.read_text(encoding="utf-8").splitlines() if held.exists() else ():
        found = json.loads(line)
        if found["asked"] == [cells, perturbations]:
            return found
    place = folder / "panel"
    shutil.rmtree(place, ignore_errors=True)
    controls = round(cells * CONTROL_SHARE)
    each = max(2, (cells - controls) // perturbations)
    shape = {"genes": GENES, "perts": perturbations, "cells": each, "controls": controls, "depth": DEPTH}
    make_panel(place, **(DEFAULTS | shape))
    stored = 0
    for side in ("real", "pred"):
        with h5py.File(place / f"{side}.h5ad") as file:
            stored += len(file["X/data"])
    found = {
        "asked": [cells, perturbations],
        "cells": controls + each * perturbations,
        "perturbations": perturbations,
        "values": stored,
    }
    vcbench = str(Path(sys.executable).with_name("vcbench"))
    for edition, profile in EDITIONS.items():
        words = [
            vcbench,
            "score",
            str(place / "pred.h5ad"),
            "--truth",
            str(place / "real.h5ad"),
            "--edition",
            edition,
        ]
        words += ["--profile", profile, "--pert-col", "target_gene", "--format", "json", "--quiet"]
        row = run(words)
        found |= {f"{edition} {name}": float(row[name] or 0) for name in ("wall", "cpu", "peak")}
    shutil.rmtree(place)
    print(json.dumps(found), file=sys.stderr, flush=True)
    with held.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(found) + "\n")
    return found


def exponent(rows: Found, size: str, quantity: str) -> float:
    """The slope of log(quantity) on log(size)."""
    x, y = (np.log([row[name] for row in rows]) for name in (size, quantity))
    return float(np.polyfit(x, y, 1)[0])


def table(title: str, size: str, rows: Found) -> list[str]:
    names = [name for name in rows[0] if name not in ("asked", "cells", "perturbations")]
    lines = [f"## {title}", "", f"| {size} | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for row in rows:
        cells = [f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.1f}" for name in names]
        lines.append(f"| {row[size]:,.0f} | " + " | ".join(cells) + " |")
    slopes = [exponent(rows, size, name) for name in names]
    lines.append(
        "| **exponent** | " + " | ".join("" if math.isnan(b) else f"**{b:.2f}**" for b in slopes) + " |"
    )
    tail = rows[-3:]
    slopes = [exponent(tail, size, name) for name in names]
    lines.append("| **largest three** | " + " | ".join(f"**{b:.2f}**" for b in slopes) + " |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
