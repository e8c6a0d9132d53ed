"""ScoreCards of simulated entries for the report's tests and its benchmark: values only, no scoring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from vcbench.evaluator.scorecard import MetricValue, Provenance, ScoreCard, ScoreResult, write_scorecard

METRICS = {
    "mse": ("lower", 0.0),
    "mae": ("lower", 0.0),
    "pearson_delta": ("higher", 1.0),
    "direction_accuracy": ("higher", 1.0),
}


def invented_cards(
    folder: Path,
    names: Sequence[str],
    *,
    n_rows: int = 30,
    metrics: Sequence[str] = tuple(METRICS),
    edition: str = "core",
    issues: Sequence[dict[str, str]] = (),
    refused: Sequence[int] = (),
) -> Path:
    """One ScoreCard folder per name, of one truth; the last entry refuses the rows in `refused`."""
    rows = [f"G{i:04d}" for i in range(n_rows)]
    for k, name in enumerate(names):
        rng = np.random.default_rng(k)
        table = pd.DataFrame(
            {"context": "K562", "perturbation": rows, "n_cells_truth": 50, "n_cells_pred": 0}
        )
        for metric in metrics:
            table[metric] = rng.gamma(2.0, 0.2, n_rows) / (k + 1)
        table["status"] = "predicted"
        left_out = list(refused) if k == len(names) - 1 else []
        table.loc[left_out, "status"] = "refused"
        table.loc[left_out, list(metrics)] = np.nan
        values = {metric: _aggregated(table[metric], metric) for metric in metrics}
        halves = {"half=first": slice(0, n_rows // 2), "half=second": slice(n_rows // 2, None)}
        strata = {
            level: {metric: _aggregated(table[metric].iloc[part], metric) for metric in metrics}
            for level, part in halves.items()
        }
        card = ScoreCard(
            name=name,
            edition=edition,
            profile="standard",
            metrics=values,
            strata=strata,
            issues=list(issues),
            refused={f"K562/{rows[i]}": "unknown gene" for i in left_out},
            inputs={
                "truth": {"name": "real.h5ad", "sha256": "ab" * 32},
                "prediction": {"sha256": f"{k:02d}" * 32},
            },
            seeds={"root": 0},
            versions={"vcbench": "0", "numpy": "2"},
            provenance=Provenance(model="ridge", commit="c" * 40, command=f"vcbench score {name}.h5ad"),
        )
        write_scorecard(card, ScoreResult(table, values, strata), folder / f"entry{k:03d}")
    return folder


def _aggregated(values: pd.Series, metric: str) -> MetricValue:
    better, perfect = METRICS.get(metric, ("lower", 0.0))
    known = values.dropna()
    mean, error = float(known.mean()), float(known.std() / np.sqrt(max(len(known), 1)))
    return MetricValue(
        value=mean,
        n=len(known),
        n_total=len(values),
        better=better,  # type: ignore[arg-type]
        perfect=perfect,
        low=mean - 2 * error,
        high=mean + 2 * error,
        level=0.95,
        interval_method="bca",
    )
