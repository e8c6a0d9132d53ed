"""Metric values of one panel: per perturbation and aggregated, from bulks and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import MetricError
from .catalog import DE_PREFIX, ENTRIES, NORM, NORM_PARTS
from .de_direction import DIRECTION_METRICS
from .de_lists import GATES, LIST_METRICS, PANEL_METRICS, nsig_spearman
from .de_pair import DEPanel, Pair
from .expression import EXPRESSION_METRICS, BulkPanel, expr_mse_unbiased_capped_norm


@dataclass(frozen=True)
class PanelValues:
    """`per_perturbation[name]` is float64, shape (n_perturbations,), NaN where there is no value.

    `aggregate[name]` is the mean over perturbations with a value (for the ratio metric: its value), NaN when there
    is none; `n_used[name]` says how many perturbations entered.
    """

    perturbations: tuple[str, ...]
    per_perturbation: dict[str, np.ndarray]
    aggregate: dict[str, float]
    n_used: dict[str, int]


def needs_de(names: Sequence[str]) -> bool:
    """Whether any of the metrics needs tests."""
    return any(ENTRIES[name].kind in ("de", "de_panel") for name in names)


def needs_bulk(names: Sequence[str]) -> bool:
    """Whether any of the metrics needs bulks."""
    return any(ENTRIES[name].kind in ("bulk", "bulk_ratio") for name in names)


def needs_cells(names: Sequence[str]) -> bool:
    """Whether any of the metrics needs single cells."""
    return any(ENTRIES[name].kind == "cells" for name in names)


def measure(
    names: Sequence[str],
    perturbations: tuple[str, ...],
    *,
    bulks: BulkPanel | None,
    tests: DEPanel | None,
    extra: dict[str, np.ndarray] | None = None,
) -> PanelValues:
    """Values of resolved metric names (`catalog.resolve`). `extra` brings values computed elsewhere.

    Raises
    ------
    MetricError
        A metric cannot be computed on this panel; the message names it and the reason.
    """
    per: dict[str, np.ndarray] = {}
    for name in names:
        with _named(name):
            if ENTRIES[name].kind == "cells":
                per[name] = (extra or {})[name]
            elif name in EXPRESSION_METRICS and bulks is not None:
                per[name] = _finite(name, EXPRESSION_METRICS[name](bulks))
            elif ENTRIES[name].kind in ("de", "de_panel") and tests is not None:
                per[name] = _de_values(name, tests)
    aggregate = {name: _mean(values) for name, values in per.items()}
    n_used = {name: int(np.isfinite(values).sum()) for name, values in per.items()}
    if NORM in names:
        parts = [per[part] for part in NORM_PARTS]
        aggregate[NORM] = expr_mse_unbiased_capped_norm(*parts)
        n_used[NORM] = int((np.isfinite(parts[0]) & np.isfinite(parts[1])).sum())
    return PanelValues(perturbations, per, aggregate, n_used)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """A metric that fails on its numbers fails the run, and says which one it is."""
    try:
        yield
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        raise MetricError(f"metric {name}: {error}") from error


def _de_values(name: str, tests: DEPanel) -> np.ndarray:
    entry = ENTRIES[name]
    short = name.removeprefix(DE_PREFIX)
    pairs = tests.without_own if entry.own_gene_out else tests.pairs
    if short == "nsig_spearman":
        return np.full(len(pairs), nsig_spearman(pairs))
    if short in PANEL_METRICS:
        raw = PANEL_METRICS[short](pairs)
    else:
        function = DIRECTION_METRICS.get(short) or LIST_METRICS[short]
        raw = np.array([function(pair) for pair in pairs])
    if short not in GATES:
        return raw
    return np.array([_gated(name, short, pair, value) for pair, value in zip(pairs, raw, strict=True)])


def _gated(name: str, short: str, pair: Pair, value: float) -> float:
    gate, worst = GATES[short]
    if not gate(pair):
        return float("nan")
    if np.isfinite(value):
        return float(value)
    if worst is None:
        raise MetricError(f"{name}: perturbation {pair.label!r} has no value although the truth admits it.")
    return worst


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if np.isinf(values).any():
        raise MetricError(f"{name}: infinite for {int(np.isinf(values).sum()):,} perturbations.")
    return values


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
