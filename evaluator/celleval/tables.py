"""Results in cell-eval's own layout: `results.csv` and `agg_results.csv`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = ("count", "null_count", "mean", "std", "min", "25%", "50%", "75%", "max")
Columns = Mapping[str, np.ma.MaskedArray]


def aggregate(column: np.ma.MaskedArray) -> dict[str, float | None]:
    """The nine statistics of one metric column; None is null.

    Nulls are skipped. Mean and standard deviation (ddof 1, null below two values) propagate NaN, minimum and
    maximum ignore it. A quantile q is element floor((n - 1) q + 1/2) of the sorted values, NaN last.
    """
    values = np.asarray(column.compressed(), dtype=np.float64)
    n = len(values)
    out: dict[str, float | None] = dict.fromkeys(STATISTICS)
    out["count"], out["null_count"] = float(n), float(len(column) - n)
    if n:
        out["mean"] = float(values.mean())
        defined = values[~np.isnan(values)]
        out["min"] = float(defined.min()) if len(defined) else math.nan
        out["max"] = float(defined.max()) if len(defined) else math.nan
        ordered = np.sort(values)
        for name, q in (("25%", 0.25), ("50%", 0.5), ("75%", 0.75)):
            out[name] = float(ordered[math.floor((n - 1) * q + 0.5)])
    if n > 1:
        out["std"] = float(values.std(ddof=1))
    return out


def results_table(targets: Sequence[str], columns: Columns) -> pd.DataFrame:
    """One row per target, first column `perturbation`; null is None and NaN the text `NaN`, so that CSV keeps both."""
    import pandas as pd

    table = {name: [_cell(None if gone else float(value)) for value, gone in _entries(column)]
             for name, column in columns.items()}  # fmt: skip
    return pd.DataFrame({"perturbation": list(targets), **table}, dtype=object)


def aggregate_table(columns: Columns) -> pd.DataFrame:
    """The layout of `agg_results.csv`: column `statistic`, then the metrics; null and NaN as in `results_table`."""
    import pandas as pd

    summaries = {name: aggregate(column) for name, column in columns.items()}
    rows = {name: [_cell(summary[s]) for s in STATISTICS] for name, summary in summaries.items()}
    return pd.DataFrame({"statistic": list(STATISTICS), **rows}, dtype=object)


def _entries(column: np.ma.MaskedArray) -> list[tuple[float, bool]]:
    return list(zip(column.data.tolist(), np.ma.getmaskarray(column).tolist(), strict=True))


def _cell(value: float | None) -> float | str | None:
    return "NaN" if value is not None and math.isnan(value) else value
