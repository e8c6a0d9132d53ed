"""Plots of measured results, drawn from the tables in `benchmarks/results` when the pages are built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Plot:
    """One bar chart: rows of the table of `source` that has `column` and stands after the heading `after`.

    `rows` is a regular expression for the labels of the rows that are shown, `label` the column they are taken from.
    """

    name: str
    title: str
    source: str
    column: str
    after: str = ""
    rows: str = ".*"
    label: int = 0
    log: bool = False


PLOTS = (
    Plot("scoring", "Whole profiles: wall seconds", "scoring_speed.md", "wall s", "Whole profiles", log=True),
    Plot("de", "Differential expression: wall seconds", "scoring_speed.md", "wall s", "DE tables", log=True),
    Plot("scoring-memory", "Whole profiles: peak MiB", "scoring_speed.md", "peak MiB", "Whole profiles"),
    Plot("packing", "Packing 59,400 cells: peak MiB", "packing_speed.md", "peak memory, MiB"),
    Plot("gears", "GEARS: seconds per training step", "gears_speed_cpu.md", "s per step", log=True),
    Plot("cpa", "CPA: cells per second", "cpa_speed_cpu.md", "cells per second", rows="alternating", label=1),
    Plot(
        "scgpt",
        "scGPT, 12 layers, batch 1: seconds per step",
        "scgpt_speed_cpu.md",
        "s per step",
        "batch 1, cpu",
    ),
    Plot(
        "norman",
        "Norman 2019 subset, GEARS split: Pearson delta",
        "norman_simple_baselines.md",
        "pearson_delta",
        "All rows",
        rows="[0-9]+",
        label=1,
    ),
)


def bars(plot: Plot) -> list[tuple[str, float]]:
    """(label, value) of each bar. Raises `ValueError` when the results file has no such table, column or row."""
    text = (RESULTS / plot.source).read_text(encoding="utf-8")
    at = text.find(plot.after)
    lines = text[max(at, 0) :].splitlines()
    for i, line in enumerate(lines):
        header = _cells(line)
        if line.startswith("|") and plot.column in header and lines[i + 1].startswith("|"):
            column = header.index(plot.column)
            found = []
            for row in lines[i + 2 :]:
                if not row.startswith("|"):
                    break
                values = _cells(row)
                number = re.match(r"-?[0-9][0-9,]*(\.[0-9]+)?(e-?[0-9]+)?", values[column])
                if number and re.fullmatch(plot.rows, values[0]):
                    found.append((values[plot.label].replace("`", ""), float(number[0].replace(",", ""))))
            if at >= 0 and found:
                return found
            break
    raise ValueError(
        f"{plot.source}: no rows {plot.rows!r} in a table with {plot.column!r} after {plot.after!r}"
    )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def draw(folder: Path) -> list[Path]:
    """Write every plot as an SVG into `folder`; the same results give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in PLOTS:
        found = bars(plot)
        with matplotlib.rc_context({"svg.hashsalt": plot.name, "font.size": 9}):
            figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.3 * len(found)), layout="constrained")
            drawn = axes.barh([name for name, _ in found], [value for _, value in found], color="#4c72b0")
            axes.bar_label(drawn, [f" {value:,.6g}" for _, value in found])
            axes.invert_yaxis()
            axes.set_title(plot.title, loc="left")
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.15)
            if plot.log:
                axes.set_xscale("log")
            path = folder / f"{plot.name}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
        written.append(path)
    return written


def plots_page() -> str:
    """The page that shows every plot and links to the table behind it."""
    lines = [
        "# Measurements in pictures",
        "",
        "Drawn from the tables of the results, which name the machine, the versions and how to repeat them. Times of "
        "two tools in one picture were measured side by side on one machine.",
    ]
    for plot in PLOTS:
        lines += ["", f"## {plot.title}", "", f"![{plot.title}](plots/{plot.name}.svg)"]
        lines += ["", f"[The table]({plot.source})"]
    return "\n".join(lines) + "\n"
