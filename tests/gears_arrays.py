"""Where the arrays of cell-gears are: the golden file, or the file that VCBENCH_GEARS_ARRAYS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GOLDEN = Path(
    os.environ.get("VCBENCH_GEARS_ARRAYS")
    or Path(__file__).parents[1] / "../shared/data/golden/gears_0.1.2.npz"
)
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no arrays of cell-gears at {GOLDEN}")
