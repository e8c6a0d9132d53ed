"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
import os
from importlib import resources
from typing import Any

from ...data_specs.atomic import write_text
from ..leaderboard import format_column, format_value
from .content import Report

SECTIONS = (
    ("leaderboard", "Leaderboard"),
    ("metrics", "Metrics"),
    ("strata", "Strata"),
    ("rows", "Perturbations"),
    ("effects", "Effects"),
    ("curves", "Training"),
    ("calibration", "Calibration"),
    ("probes", "Probes"),
    ("issues", "Issues"),
    ("provenance", "Provenance"),
)


def render(report: Report) -> str:
    """The HTML of a report: equal reports give equal text. Names and texts of files are escaped."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["four"] = four
    present = {
        "metrics": bool(report.data["entries"]),
        "strata": any(entry["strata"] for entry in report.data["entries"]),
        "rows": any(entry["rows"] for entry in report.data["entries"]),
        "effects": bool(report.effects),
        "curves": bool(report.curves),
        "calibration": report.calibration is not None,
        "probes": bool(report.probes),
    }
    # In a script element only "<" can end or open something.
    data = json.dumps(report.data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return environment.from_string(_template("report.html")).render(
        report=report,
        sections=[(name, text) for name, text in SECTIONS if present.get(name, True)],
        has_strata=present["strata"],
        has_rows=present["rows"],
        issues=_issues(report),
        css=Markup(_template("report.css")),
        js=Markup(_template("report.js")),
        data=Markup(data),
        format_value=format_value,
        format_column=format_column,
        plain=plain,
    )


def write_report(report: Report, path: str | os.PathLike[str]) -> int:
    """Write the page, whole or not at all; its bytes. Raises `OutputError`."""
    text = render(report)
    write_text(path, text)
    return len(text.encode())


def _template(name: str) -> str:
    return resources.files("vcbench.evaluator").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _issues(report: Report) -> list[tuple[str, str, str, str, str]]:
    """(entry, code, severity, what, found) of every issue of the cards, and of every refused row."""
    out = []
    for entry in report.entries:
        for issue in entry.card.issues:
            what = f"{issue.get('message', '')} ({issue.get('where', '')})"
            out.append(
                (entry.name, issue.get("code", ""), issue.get("severity", ""), what, issue.get("found", ""))
            )
        for row, reason in entry.card.refused.items():
            out.append((entry.name, "", "refused", row, reason))
    return out


def plain(value: Any) -> str:
    """A number in full, for sorting; empty for a null."""
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def four(value: Any) -> str:
    """Four significant digits; an en dash for a null."""
    return "–" if value is None else format_value(float(value))
