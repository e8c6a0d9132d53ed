"""What a report says, gathered from ScoreCards and files beside them, before it becomes HTML, PNG or CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import UnknownName, UsageError
from ..entries import Entry, row_keys
from ..leaderboard import Leaderboard, compare
from .sources import Curve

if TYPE_CHECKING:
    from ...data_specs.standard import MatrixKind
    from ..calibration.file import Calibration
    from .effects import Effect

# Perturbations of each end whose effects are plotted, and genes of the heat map.
N_ENDS, N_HEAT_GENES = 3, 30
ORIGINS = {
    "effects": "Give the files with `--pred NAME=FILE` and `--truth REAL.h5ad` for effects, volcanos and heat maps.",
    "curves": "Give run folders of deep models with `--run NAME=RUN` to see their training.",
    "probes": "Give reports of `vcbench probe ENTRY ... -o FILE` with `--probe FILE` to see how the entry reacts.",
    "calibration": "Give the file of `vcbench calibrate` with `--calibration FILE` for what metrics can tell apart.",
}


@dataclass(frozen=True)
class Report:
    """Everything on the page. `by` orders; `focus` is the entry whose worst and best rows are looked at."""

    title: str
    entries: tuple[Entry, ...]
    boards: tuple[Leaderboard, ...]
    by: str
    focus: str | None
    calibration: Calibration | None = None
    probes: tuple[dict[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()
    effects: tuple[Effect, ...] = ()
    missing: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def edition(self) -> str:
        return self.entries[0].card.edition


def gather(
    entries: Sequence[Entry],
    *,
    title: str,
    by: str | None = None,
    calibration: Calibration | None = None,
    probes: Sequence[dict[str, Any]] = (),
    curves: Sequence[Curve] = (),
    predictions: Mapping[str, Path] | None = None,
    truth: Sequence[tuple[str | None, str]] = (),
    pert_col: str | None = None,
    control: str | None = None,
    matrix: MatrixKind | None = None,
) -> Report:
    """The content of a report.

    Parameters
    ----------
    by
        Metric that orders everything; the edition's first when None.
    predictions, truth, pert_col, control, matrix
        Files of entries by name and the real cells, for the plots of effects; see `effects.effects_of`.

    Raises
    ------
    UnknownName
        A prediction's name that no ScoreCard has, or a metric that they do not have.
    UsageError
        Predictions without a truth or the reverse; see also `effects_of`.
    InvalidFile
        A file of the effects cannot be read.
    """
    predictions = dict(predictions or {})
    local = [entry for entry in entries if not entry.imported]
    names = [entry.name for entry in local]
    for name in predictions:
        if name not in names:
            raise UnknownName("entry", name, names, "vcbench compare CARDS...")
    if bool(predictions) != bool(truth):
        raise UsageError("plots of effects need both --pred NAME=FILE and --truth REAL.h5ad.")
    boards = compare(entries, by=by, intervals="all", calibration=calibration)
    ranked = boards[0]
    key = ranked.by
    focus = _focus(local, ranked, predictions)
    effects: tuple[Effect, ...] = ()
    if predictions and focus is not None:
        from .effects import effects_of

        effects = tuple(
            effects_of(
                predictions,
                truth,
                _ends(focus, key),
                edition=focus.card.edition,
                pert_col=pert_col,
                control=control,
                matrix=matrix,
            )
        )
    given = {"effects": effects, "curves": curves, "probes": probes, "calibration": calibration}
    report = Report(
        title,
        tuple(entries),
        tuple(boards),
        key,
        None if focus is None else focus.name,
        calibration,
        tuple(probes),
        tuple(curves),
        effects,
        tuple(text for name, text in ORIGINS.items() if not given[name]),
    )
    report.data.update(_data(report, local))
    return report


def _focus(local: Sequence[Entry], board: Leaderboard, predictions: Mapping[str, Path]) -> Entry | None:
    """The first given prediction, else the first ranked entry."""
    by_name = {entry.name: entry for entry in local}
    if predictions:
        return by_name[next(iter(predictions))]
    ranked = [row.name for row in board.rows if row.rank is not None and row.name in by_name]
    return by_name[ranked[0]] if ranked else (local[0] if local else None)


def _ends(entry: Entry, metric: str) -> list[tuple[tuple[str, str], str]]:
    """The worst and best rows of an entry in one metric."""
    keys = row_keys(entry)
    if metric not in entry.table:
        return [(key, "shown") for key in keys[: 2 * N_ENDS]]
    values = entry.table[metric].to_numpy(dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    sign = -1.0 if entry.card.metrics[metric].better == "higher" else 1.0
    order = known[np.argsort(sign * values[known], kind="stable")]
    best = order[:N_ENDS]
    worst = [i for i in order[::-1][:N_ENDS] if i not in set(best)]
    return [(keys[i], "worst") for i in worst] + [(keys[i], "best") for i in best]


def number(value: Any) -> float | None:
    """A value for the page: four significant digits, None for what is not finite."""
    if value is None:
        return None
    found = float(value)
    return float(f"{found:.4g}") if math.isfinite(found) else None


def _data(report: Report, local: Sequence[Entry]) -> dict[str, Any]:
    """The numbers that the page's plots draw."""
    first = local[0] if local else report.entries[0]
    metrics = first.card.metrics
    mark = report.calibration.mark if report.calibration is not None else lambda name: None
    rows = [] if not local else [list(key) for key in row_keys(first)]
    return {
        "by": report.by,
        "focus": report.focus,
        "metrics": {
            name: {"better": m.better, "perfect": number(m.perfect), "mark": mark(name)}
            for name, m in metrics.items()
        },
        "rows": rows,
        "entries": [_entry_data(entry, metrics) for entry in local],
        "effects": [_effect_data(effect) for effect in report.effects],
        "heat": heat_table(report),
        "curves": [_curve_data(curve) for curve in report.curves],
    }


def _entry_data(entry: Entry, metrics: Mapping[str, Any]) -> dict[str, Any]:
    def five(value: Any) -> list[Any]:
        return [number(value.value), number(value.low), number(value.high), value.n, value.n_total]

    strata: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for name, values in entry.card.strata.items():
        axis, _, level = name.partition("=")
        strata.setdefault(axis, {})[level] = {m: five(v) for m, v in values.items() if v.value is not None}
    return {
        "name": entry.name,
        "values": {name: five(value) for name, value in entry.card.metrics.items()},
        "strata": strata,
        "rows": {
            name: [number(value) for value in entry.table[name].to_numpy(dtype=float)]
            for name in metrics
            if name in entry.table
        },
    }


def _effect_data(effect: Effect) -> dict[str, Any]:
    at = effect.shown
    return {
        "context": effect.key[0],
        "perturbation": effect.key[1],
        "which": effect.which,
        "genes": [str(gene) for gene in effect.genes[at]],
        "observed": [number(value) for value in effect.observed[at]],
        "p": [number(value) for value in effect.p[at]],
        "predicted": {name: [number(v) for v in values[at]] for name, values in effect.predicted.items()},
    }


def heat_table(report: Report) -> dict[str, Any]:
    """Observed and predicted changes (of the focus entry) of the genes that change most: rows, genes, values."""
    if not report.effects:
        return {}
    strongest = np.max([np.abs(effect.observed) for effect in report.effects], axis=0)
    at = np.argsort(-strongest, kind="stable")[:N_HEAT_GENES]
    labels, values = [], []
    for effect in report.effects:
        name = "/".join(part for part in effect.key if part)
        labels.append(f"{name} observed")
        values.append([number(value) for value in effect.observed[at]])
        if report.focus in effect.predicted:
            labels.append(f"{name} {report.focus}")
            values.append([number(value) for value in effect.predicted[report.focus][at]])
    return {"rows": labels, "genes": [str(gene) for gene in report.effects[0].genes[at]], "values": values}


def _curve_data(curve: Curve) -> dict[str, Any]:
    table = curve.table
    return {
        "name": curve.name,
        "columns": {
            column: [number(value) for value in table[column].to_numpy(dtype=float)]
            for column in table.columns
            if bool(table[column].notna().to_numpy().any())
        },
    }
