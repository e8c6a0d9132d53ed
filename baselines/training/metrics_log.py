"""`metrics.jsonl`: one JSON object per epoch, in step order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data_specs.atomic import write_text


class MetricsLog:
    """Appends lines; NaN and infinities become null. Does nothing unless `enabled`."""

    def __init__(self, path: Path, *, enabled: bool = True):
        self.path = path
        self.enabled = enabled

    def keep_until(self, step: int) -> None:
        """Drop the lines after `step` (and a line that a kill cut short), so that a resume repeats none."""
        if not self.enabled:
            return
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step and step > 0)
        if kept != text or not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, kept)

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line."""
        if not self.enabled:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(plain) + "\n")
