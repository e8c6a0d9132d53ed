"""The report's figures as PNG and CSV, from the same numbers as the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ...data_specs.atomic import atomic_folder
from ...data_specs.errors import OutputError
from .content import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["dots", "scatter", "volcano", "heat", "lines"]
DPI = 120
INDEX = "figures.csv"


@dataclass(frozen=True)
class ReportFigure:
    """One figure: its table, and how it is drawn. Columns of `table` depend on `kind`; see the makers below."""

    name: str
    title: str
    kind: Kind
    table: pd.DataFrame
    labels: tuple[str, str] = ("", "")


def figures_of(report: Report) -> Iterator[ReportFigure]:
    """Every figure of a report: metrics, strata, rows of the first two entries, effects, heat map, curves."""
    yield from _metric_figures(report)
    yield from _strata_figures(report)
    yield from _row_figures(report)
    yield from _effect_figures(report)
    yield from _curve_figures(report)


def check_figures(folder: Path, *, force: bool = False) -> None:
    """Refuse a folder before any work: taken, or (with `force`) not one of figures. Raises `OutputError`."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; --figures needs a folder here.")
    if folder.exists() and not force:
        raise OutputError(f"{folder}: exists already. Choose another --figures or add --force.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise OutputError(f"{folder}: holds no figures of a report, so --force does not replace it.")


def write_figures(report: Report, folder: Path, *, force: bool = False) -> int:
    """Write NAME.png and NAME.csv of every figure and `figures.csv` (name, title) as one folder; their number.

    Raises
    ------
    OutputError
        The folder exists (without `force`), holds other things, or cannot be written.
    """
    check_figures(folder, force=force)
    listed = []
    with atomic_folder(folder, force=force) as part:
        for figure in figures_of(report):
            figure.table.to_csv(part / f"{figure.name}.csv", index=False)
            draw(figure, part / f"{figure.name}.png")
            listed.append((figure.name, figure.title))
        _frame(listed, "name", "title").to_csv(part / INDEX, index=False)
    return len(listed)


def file_name(*parts: str) -> str:
    """A name for files made of any text."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.+-]+", "_", part).strip("_.") or "x" for part in parts)


def _frame(rows: Any, *columns: str) -> pd.DataFrame:
    names: Any = list(columns)
    return pd.DataFrame(rows, columns=names)


def _metric_figures(report: Report) -> Iterator[ReportFigure]:
    for metric in report.data["metrics"]:
        rows = [
            (entry["name"], *entry["values"][metric])
            for entry in report.data["entries"]
            if metric in entry["values"]
        ]
        table = _frame(rows, "entry", "value", "low", "high", "n", "n_total")
        if bool(table["value"].notna().to_numpy().any()):
            yield ReportFigure(file_name("metric", metric), metric, "dots", table, (metric, "entry"))


def _strata_figures(report: Report) -> Iterator[ReportFigure]:
    rows = [
        (axis, level, entry["name"], *values[report.by])
        for entry in report.data["entries"]
        for axis, levels in entry["strata"].items()
        for level, values in levels.items()
        if report.by in values
    ]
    table = _frame(rows, "axis", "level", "entry", "value", "low", "high", "n", "n_total")
    for axis, part in table.groupby("axis", sort=True):
        shown = part.assign(entry=part["level"] + ": " + part["entry"]).drop(columns=["axis"])
        yield ReportFigure(
            file_name("strata", str(axis), report.by),
            f"{report.by} by {axis}",
            "dots",
            shown,
            (report.by, ""),
        )


def _row_figures(report: Report) -> Iterator[ReportFigure]:
    entries = report.data["entries"]
    if len(entries) < 2 or report.by not in entries[0]["rows"]:
        return
    first, second = entries[:2]
    table = _frame(report.data["rows"], "context", "perturbation")
    table["x"], table["y"] = first["rows"][report.by], second["rows"][report.by]
    title = f"{report.by} of every perturbation"
    yield ReportFigure(file_name("rows", report.by), title, "scatter", table, (first["name"], second["name"]))


def _effect_figures(report: Report) -> Iterator[ReportFigure]:
    for effect in report.data["effects"]:
        name = "/".join(part for part in (effect["context"], effect["perturbation"]) if part)
        base = pd.DataFrame({key: effect[key] for key in ("genes", "observed", "p")})
        yield ReportFigure(
            file_name("volcano", name),
            f"{name} ({effect['which']}), observed",
            "volcano",
            base.rename(columns={"genes": "gene", "observed": "x"}),
            ("observed change, log1p", "-log10 p (Welch)"),
        )
        for entry, values in effect["predicted"].items():
            table = base.assign(y=values).rename(columns={"genes": "gene", "observed": "x"})
            yield ReportFigure(
                file_name("effect", name, entry),
                f"{name} ({effect['which']}): {entry}",
                "scatter",
                table,
                ("observed change, log1p", "predicted change, log1p"),
            )
    heat = report.data["heat"]
    if heat:
        table = _frame(heat["values"], *heat["genes"])
        table.insert(0, "row", heat["rows"])
        yield ReportFigure("heat", "Changes of the most changed genes, log1p", "heat", table)


def _curve_figures(report: Report) -> Iterator[ReportFigure]:
    for curve in report.data["curves"]:
        table = pd.DataFrame(curve["columns"])
        yield ReportFigure(
            file_name("training", curve["name"]),
            f"Training of {curve['name']}",
            "lines",
            table,
            ("epoch", ""),
        )


def draw(figure: ReportFigure, path: Path) -> None:
    """One figure as PNG."""
    from matplotlib.figure import Figure

    n = len(figure.table)
    height = {"dots": 1.2 + 0.28 * n, "heat": 1.8 + 0.3 * n, "lines": 4.5}.get(figure.kind, 5.0)
    canvas = Figure(figsize=(8.0 if figure.kind != "heat" else 11.0, min(height, 40.0)), layout="constrained")
    axes = canvas.subplots()
    _DRAW[figure.kind](axes, figure)
    axes.set_title(_plain(figure.title))
    axes.set_xlabel(_plain(figure.labels[0]))
    axes.set_ylabel(_plain(figure.labels[1]))
    # No creation time or version: equal reports give equal bytes.
    canvas.savefig(path, dpi=DPI, metadata={"Software": None})


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _dots(axes: Axes, figure: ReportFigure) -> None:
    table = figure.table.iloc[::-1]
    place = np.arange(len(table))
    values = table["value"].to_numpy(dtype=float)
    low, high = (table[name].to_numpy(dtype=float) for name in ("low", "high"))
    axes.hlines(place, low, high, color="C0", alpha=0.6)
    axes.plot(values, place, "o", color="C0")
    axes.set_yticks(place, [_plain(str(name)) for name in table["entry"]])


def _scatter(axes: Axes, figure: ReportFigure) -> None:
    x, y = (figure.table[name].to_numpy(dtype=float) for name in ("x", "y"))
    axes.plot(x, y, ".", color="C0", alpha=0.6)
    both = np.concatenate([x, y])
    if np.isfinite(both).any():
        ends = [float(np.nanmin(both)), float(np.nanmax(both))]
        axes.plot(ends, ends, "--", color="0.5", linewidth=1)


def _volcano(axes: Axes, figure: ReportFigure) -> None:
    x, p = (figure.table[name].to_numpy(dtype=float) for name in ("x", "p"))
    axes.plot(x, minus_log10(p), ".", color="C0", alpha=0.6)


def minus_log10(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """-log10 of p-values, 320 for those that are 0 in double precision."""
    values = np.asarray(p, dtype=float)
    return np.where(
        values > 0, -np.log10(np.where(values > 0, values, 1.0)), np.where(np.isnan(values), np.nan, 320.0)
    )


def _heat(axes: Axes, figure: ReportFigure) -> None:
    values = figure.table.iloc[:, 1:].to_numpy(dtype=float)
    top = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    axes.set_yticks(range(len(figure.table)), [_plain(str(name)) for name in figure.table["row"]])
    axes.set_xticks(range(values.shape[1]), [_plain(str(g)) for g in figure.table.columns[1:]], rotation=90)
    axes.figure.colorbar(image, ax=axes, shrink=0.8)


def _lines(axes: Axes, figure: ReportFigure) -> None:
    table = figure.table
    for column in table.columns:
        if column not in ("epoch", "step") and bool(table[column].notna().to_numpy().any()):
            axes.plot(
                table["epoch"].to_numpy(dtype=float),
                table[column].to_numpy(dtype=float),
                label=_plain(column),
            )
    axes.set_yscale("symlog")
    axes.legend(fontsize="small")


_DRAW: dict[str, Any] = {
    "dots": _dots,
    "scatter": _scatter,
    "volcano": _volcano,
    "heat": _heat,
    "lines": _lines,
}
