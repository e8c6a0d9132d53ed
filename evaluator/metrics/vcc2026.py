"""The metrics of cell-eval2 0.20 under their official names.

`compute(names, ...)` of every entry is `vcc2026.measure.measure` limited to that metric: it needs the panels of both
sides, `bulks` and `tests`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..vcc2026.catalog import ENTRIES, SOURCE, Entry, resolve
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..vcc2026.de_pair import DEPanel
    from ..vcc2026.expression import BulkPanel

_NEEDS = {
    "bulk": frozenset({"bulk"}),
    "bulk_ratio": frozenset({"bulk"}),
    "de": frozenset({"de", "pred_de"}),
    "de_panel": frozenset({"de", "pred_de"}),
    "cells": frozenset({"cells"}),
}


def _values(
    name: str,
    perturbations: tuple[str, ...],
    *,
    bulks: BulkPanel | None = None,
    tests: DEPanel | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """The metric per perturbation, shape (n_perturbations,); the ratio metric as one value, shape (1,)."""
    from ..vcc2026.measure import measure

    values = measure(resolve([name]), perturbations, bulks=bulks, tests=tests, extra=extra)
    return values.per_perturbation.get(name, np.array([values.aggregate[name]]))


def _register(entry: Entry) -> None:
    title = entry.name.removeprefix("de_wilcoxon_").replace("_", " ")
    register(
        MetricSpec(
            name=entry.name,
            version=1,
            family="vcc2026",
            title=f"{title} (cell-eval: {entry.legacy})" if entry.legacy else title,
            formula=entry.formula,
            source=SOURCE,
            better=entry.better,
            perfect=entry.perfect,
            needs=_NEEDS[entry.kind],
            nulls=entry.nulls,
            scope="panel" if entry.kind in ("bulk_ratio", "de_panel") else "perturbation",
            compute=partial(_values, entry.name),
        )
    )


for _entry in ENTRIES.values():
    _register(_entry)
