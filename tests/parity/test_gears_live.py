"""Every test of the golden GEARS arrays again, on new data that cell-gears 0.1.2 is run on here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from parity.official import tool_python

pytestmark = pytest.mark.parity
ROOT = Path(__file__).parents[1]
MODULES = (
    "unit/gears/test_gears_golden_parity.py",
    "unit/gears/test_gears_graphs.py",
    "unit/data_specs/test_splits_gears.py",
    "unit/evaluator/test_core_gears.py",
)


@pytest.mark.parametrize("seed", [7, 8])
def test_arrays_of_a_live_run(seed, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    python = tool_python("VCBENCH_PARITY_MODELS_PYTHON", "gears")
    script = ROOT / "parity" / "run_gears.py"
    arrays = tmp_path / "gears.npz"
    command = [python, str(script), str(arrays), str(seed), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    checked = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(ROOT / module) for module in MODULES)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.parent,
        env={**os.environ, "VCBENCH_GEARS_ARRAYS": str(arrays)},
    )
    assert checked.returncode == 0, checked.stdout[-5000:]
    passed = re.search(r"(\d+) passed", checked.stdout)
    assert passed is not None and int(passed[1]) >= 150, checked.stdout[-1000:]
    assert "skipped" not in checked.stdout.splitlines()[-1]
