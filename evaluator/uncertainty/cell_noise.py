"""What the number of cells leaves open: standard errors of every value by a bootstrap over cells.

Intervals over perturbations say how a panel of other perturbations might score; this says how other cells of the same
perturbations might. Cells are drawn with replacement within each (context, perturbation), controls included, in the
truth and, when it holds cells, in the prediction; every draw is scored whole. Source: Efron & Tibshirani, An
Introduction to the Bootstrap (1993), chapter 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ...data_specs.errors import MetricError, UsageError
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.standard import read_meta
from ..calibration.drawn import DrawnRows
from ..score_options import ScoreOptions
from ..scorecard import ScoreResult

if TYPE_CHECKING:
    from ..pipelines import Progress

# Mixed with the root seed, so that these draws are none of a metric's.
STREAM = 0xCE11
FEWEST = 10
KEYS = ["context", "perturbation"]
Measure = Callable[[Any, Any], ScoreResult]


@dataclass(frozen=True)
class Draw:
    """The scores of one draw of the cells: every metric's value (NaN without one), and its rows per perturbation."""

    values: dict[str, float]
    rows: pd.DataFrame


def check_resamples(n_resamples: int) -> None:
    """Raise `UsageError` for fewer than 10 draws."""
    if n_resamples < FEWEST:
        raise UsageError(f"{n_resamples} draws of the cells; at least {FEWEST} are needed.")


def score_draws(
    numbers: Sequence[int],
    pred: Source,
    truth: Source,
    measure: Measure,
    *,
    edition: Edition,
    options: ScoreOptions,
    progress: Progress,
) -> list[Draw | None]:
    """The draws of these numbers, each scored; None for one that leaves a metric undefined.

    A draw depends on its number and the root seed alone, so any part of them can be scored anywhere.

    Parameters
    ----------
    measure
        Scores a prediction against a truth.
    """
    sides = [(source, _labelled(source, edition, options)) for source in (pred, truth)]
    out: list[Draw | None] = []
    for done, i in enumerate(numbers):
        progress(done, len(numbers), "drawing the cells anew")
        drawn = [
            source if cells is None else cells.drawn(np.random.default_rng([options.seed, STREAM, i, side]))
            for side, (source, cells) in enumerate(sides)
        ]
        try:
            found = measure(*drawn)
        except MetricError:
            # A draw may leave a metric undefined (a gene without any count); it counts as a draw without values.
            out.append(None)
            continue
        metrics = [name for name in found.metrics if name in found.per_perturbation]
        values = {name: _number(found, name) for name in found.metrics}
        out.append(Draw(values, found.per_perturbation.loc[:, [*KEYS, *metrics]]))
    progress(len(numbers), len(numbers), "drawing the cells anew")
    return out


def with_cell_noise(result: ScoreResult, draws: Sequence[Draw | None]) -> ScoreResult:
    """The result with the tables `cell_noise` and `cell_noise_rows`.

    Parameters
    ----------
    draws
        All draws, by number, as `score_draws` gives them.

    Returns
    -------
    ScoreResult
        `cell_noise`: one row per metric with its `value`, the standard error `se` over draws, the `bias` (mean of the
        draws minus the value) and the number of draws that gave a value. `cell_noise_rows`: the standard error of
        every metric per (context, perturbation). A standard error of fewer than two values is NaN. Deterministic in
        the seed, for any block size, number of threads and division of the draws.
    """
    metrics = list(result.metrics)
    missing = dict.fromkeys(metrics, float("nan"))
    values = np.array([[(draw.values if draw else missing)[name] for name in metrics] for draw in draws])
    rows = [draw.rows for draw in draws if draw]
    given = np.array([_number(result, name) for name in metrics])
    known = np.isfinite(values).sum(axis=0)
    noise = pd.DataFrame(
        {
            "metric": metrics,
            "value": given,
            "se": _over_draws(values, known, np.nanstd),
            "bias": _over_draws(values, known, np.nanmean) - given,
            "draws": known,
        }
    )
    return replace(
        result,
        tables={**result.tables, "cell_noise": noise, "cell_noise_rows": _row_errors(result, rows, metrics)},
        parameters={**result.parameters, "cell_resamples": len(draws)},
    )


def _over_draws(values: np.ndarray, known: np.ndarray, statistic: Callable[..., np.ndarray]) -> np.ndarray:
    """A statistic of every column over its draws with a value; NaN with fewer than two."""
    out = np.full(values.shape[1], np.nan)
    enough = known >= 2
    if enough.any():
        extra = {"ddof": 1} if statistic is np.nanstd else {}
        out[enough] = statistic(values[:, enough], axis=0, **extra)
    return out


def _number(result: ScoreResult, name: str) -> float:
    found = result.metrics.get(name)
    return float("nan") if found is None or found.value is None else float(found.value)


def _row_errors(result: ScoreResult, rows: list[pd.DataFrame], metrics: list[str]) -> pd.DataFrame:
    keys: Any = result.per_perturbation[KEYS]
    shown = [name for name in metrics if name in result.per_perturbation]
    if not rows:
        return keys.assign(**dict.fromkeys(shown, np.nan))
    spread: Any = pd.concat(rows).groupby(KEYS, dropna=False)[shown].std(ddof=1)
    return keys.merge(spread.reset_index(), on=KEYS, how="left")


@dataclass(frozen=True)
class _Labelled:
    """A source with the columns that scoring reads, and the group of each row, -1 for rows without a label."""

    source: Source
    columns: dict[str, np.ndarray]
    groups: np.ndarray

    def drawn(self, rng: np.random.Generator) -> DrawnRows:
        """As many rows of every group, drawn with replacement; rows without a label stay."""
        times = np.ones(len(self.groups), dtype=np.int64)
        order = np.argsort(self.groups, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1):
            if len(rows) and self.groups[rows[0]] >= 0:
                times[rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)))
        rows = np.repeat(np.arange(len(times)), times)
        columns = {name: values[rows] for name, values in self.columns.items()}
        return DrawnRows(self.source, rows, columns, name=self.source.name)


def _labelled(source: Source, edition: Edition, options: ScoreOptions) -> _Labelled | None:
    """What is needed to draw the cells of a source; None for mean profiles, which are not drawn."""
    meta = read_meta(source)
    if meta is not None and meta.rows == "mean":
        return None
    perturbation = options.pert_col or edition.file.perturbation_column
    labels = source.labels(perturbation)
    columns = {perturbation: labels.values()}
    codes = labels.codes.astype(np.int64)
    column = options.context_col or edition.file.context_column or "context"
    if column in source.obs_columns:
        contexts = source.labels(column)
        columns[column] = contexts.values()
        context = contexts.codes.astype(np.int64)
        codes = np.where((codes >= 0) & (context >= 0), context * max(1, len(labels.categories)) + codes, -1)
    return _Labelled(source, columns, codes)
