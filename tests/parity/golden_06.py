"""Official cell-eval 0.6.6 results on the panels, for comparisons where that tool is not installed.

Command: VCBENCH_PARITY06_PYTHON=DIR/bin/python python tests/parity/golden_06.py tests/golden/celleval_0.6.6.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.celleval_panels import PANELS, PanelFiles, write_panels
from parity.official import run_celleval

GOLDEN = Path(__file__).parents[1] / "golden" / "celleval_0.6.6.json"
VCC = ("overlap_at_N", "mae", "discrimination_score_l1")
GENERALIST = (*VCC, "de_spearman_sig", "de_spearman_lfc_sig", "pr_auc", "pearson_delta")
BASELINE = "tiled_mean"


def run_06(python: str, panels: list[PanelFiles], folder: Path) -> dict[str, Any]:
    """Per panel: the seven generalist metrics of every target, and the 2025 terms against the panel `tiled_mean`."""
    ordered = sorted(panels, key=lambda panel: panel.name != BASELINE)
    against = {panel.name: BASELINE for panel in panels}
    out = run_celleval(python, ordered, folder, profile="full", against=against, score_columns=VCC)
    kept = ("perturbation", *GENERALIST)
    found = {
        name: {
            "results": {column: entry["results"][column] for column in kept if column in entry["results"]},
            "from_baseline": entry["from_baseline"],
        }
        for name, entry in out["panels"].items()
    }
    return {"versions": out["versions"], "panels": found}


def main(path: str) -> None:
    """Write the golden file."""
    with tempfile.TemporaryDirectory() as folder:
        panels = write_panels(Path(folder), tuple(PANELS))
        results = run_06(os.environ["VCBENCH_PARITY06_PYTHON"], panels, Path(folder))
    Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
