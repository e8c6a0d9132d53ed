"""Find and run the official tools: one process scores all panels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from parity.celleval_panels import COLUMN, CONTROL, PanelFiles

HERE = Path(__file__).parent


def tool_python(variable: str, module: str | None) -> str:
    """The interpreter named by an environment variable, or this one if it has `module`; skips otherwise."""
    named = os.environ.get(variable)
    if named:
        return named
    if module is not None and find_spec(module) is not None:
        return sys.executable
    pytest.skip(f"set {variable} to a Python that has the official tool (see docs/differences.md)")


def run_celleval(
    python: str,
    panels: list[PanelFiles],
    folder: Path,
    *,
    profile: str,
    tables: bool = False,
    ceiling: bool = False,
    against: dict[str, str] | None = None,
    score_columns: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The official results of all panels (see run_celleval.py)."""
    job = {
        "profile": profile,
        "tables": tables,
        "ceiling": ceiling,
        "score_columns": score_columns,
        "panels": [
            {
                "name": panel.name,
                "pred": str(panel.pred),
                "truth": str(panel.truth),
                "column": COLUMN,
                "control": CONTROL,
                "score_against": (against or {}).get(panel.name),
            }
            for panel in panels
        ],
    }
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, str(HERE / "run_celleval.py"), str(folder / "job.json"), str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def number(value: Any) -> float:
    """An entry of the official tables as a float; null and NaN are NaN."""
    return float("nan") if value is None else float(value)
