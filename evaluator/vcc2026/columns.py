"""The score columns of each context, and where their two ends come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...data_specs.errors import UsageError
from ...data_specs.spec_models import Edition
from .catalog import SCORED
from .measure import PanelValues
from .scores import Column, column, named_scales, scale_column

if TYPE_CHECKING:
    import pandas as pd

BASELINE, REPLICATE = "from_baseline", "from_replicate"
PLATFORM_NAMES = {
    "pds_cosine": "pds",
    "expr_mse_unbiased_capped_norm": "mse",
    "de_wilcoxon_lfc_nmae": "nmae",
    "de_wilcoxon_direction_fidelity_yield_raw": "fid",
    "de_wilcoxon_direction_reach_raw": "reach",
    "de_wilcoxon_sig_jaccard": "jac",
}


@dataclass(frozen=True)
class Ends:
    """The two ends of one context by metric: `zeros` of the baseline, `ones` of replicates. `origin` says whose."""

    zeros: Mapping[str, float] = field(default_factory=dict)
    ones: Mapping[str, float] = field(default_factory=dict)
    origin: str = "none"

    @classmethod
    def from_references(cls, references: Mapping[str, Any], contexts: Sequence[str]) -> dict[str, Ends]:
        """The ends in the caller's references `baseline` and `anchor`, each a path or {context: path}.

        Raises
        ------
        UsageError
            One file for several contexts: the ends of one context do not hold for another.
        InvalidFile
            A file cannot be read as such a reference (E594).
        """
        from .references import read_anchor, read_baseline

        ends = {}
        for context in contexts:
            baseline = _reference(references, "baseline", context, contexts)
            anchor = _reference(references, "anchor", context, contexts)
            origin = ", ".join(str(path) for path in (baseline, anchor) if path is not None)
            ends[context] = cls(
                {} if baseline is None else read_baseline(baseline),
                {} if anchor is None else read_anchor(anchor),
                origin or "none",
            )
        return ends


@dataclass(frozen=True)
class ContextScores:
    """The columns of one context."""

    context: str
    values: PanelValues
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column | None:
        """The column of this name, or None when its ends were not given."""
        return next((column for column in self.columns if column.name == name), None)


def score_contexts(
    edition: Edition, values: Sequence[tuple[str, PanelValues]], ends: Mapping[str, Ends]
) -> list[ContextScores]:
    """Every column that the ends of each context allow, and the edition's named scales.

    Named scales need the six scored members; without them they are left out.

    Raises
    ------
    MetricError
        Given ends define no scale for a metric that decides.
    """
    out = []
    for context, panel in values:
        end = ends.get(context, Ends())
        measured = panel.aggregate
        columns = []
        if end.zeros:
            columns.append(column(BASELINE, measured, end.zeros))
        if end.zeros and end.ones:
            scored = {metric: one for metric, one in end.ones.items() if metric in SCORED}
            columns.append(column(REPLICATE, measured, end.zeros, ones=scored))
        if all(metric in measured for metric in SCORED):
            columns += [scale_column(name, edition, measured) for name in named_scales(edition)]
        out.append(ContextScores(context, panel, tuple(columns)))
    return out


def competition_score(scored: Sequence[ContextScores]) -> tuple[float | None, str | None]:
    """(mean over contexts of the average `from_replicate`, None) or (None, why there is none)."""
    averages = []
    for context in scored:
        place = f"context {context.context}: " if context.context else ""
        found = context.column(REPLICATE)
        if found is None:
            return None, (
                f"{place}the overall score needs a baseline and replicate anchors: score against a truth bundle "
                "(`vcbench truth build`), or give --reference baseline=FILE and --reference anchor=FILE"
            )
        missing = [metric for metric in SCORED if metric not in found.scores]
        if missing:
            return None, f"{place}not all six members were scored ({', '.join(missing)} missing)"
        averages.append(found.average)
    return math.fsum(averages) / len(averages), None


def score_table(scored: Sequence[ContextScores]) -> pd.DataFrame:
    """One row per context, column and metric: value, n, ends, scores, contribution; then the average."""
    import pandas as pd

    rows = []
    for context in scored:
        for found in context.columns:
            shared = {"context": context.context, "column": found.name}
            n_total = len(context.values.perturbations)
            for metric, score in found.scores.items():
                rows.append(
                    {
                        **shared,
                        "metric": metric,
                        "value": score.value,
                        "n": context.values.n_used[metric],
                        "n_total": n_total,
                        "zero": score.zero,
                        "one": score.one,
                        "unclamped": score.unclamped,
                        "score": score.score,
                        "contribution": found.contribution(metric),
                    }
                )
            rows.append({**shared, "metric": "avg_score", "score": found.average})
    names = (
        "context",
        "column",
        "metric",
        "value",
        "n",
        "n_total",
        "zero",
        "one",
        "unclamped",
        "score",
        "contribution",
    )
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in names})


def leaderboard(scored: Sequence[ContextScores]) -> pd.DataFrame:
    """The platform's layout: one row per context and their mean; the overall score, the six scores, the six values.

    `coverage` says how many perturbations entered the values, of how many. NaN where references or metrics are missing.
    """
    import pandas as pd

    rows = []
    for context in scored:
        found = context.column(REPLICATE)
        row: dict[str, Any] = {"context": context.context or "all"}
        row["score_avg"] = found.average if found and all(m in found.scores for m in SCORED) else math.nan
        for metric in SCORED:
            short = PLATFORM_NAMES[metric]
            row[f"score_{short}"] = (
                found.scores[metric].score if found and metric in found.scores else math.nan
            )
        for metric in SCORED:
            row[PLATFORM_NAMES[metric]] = context.values.aggregate.get(metric, math.nan)
        row["coverage"] = _coverage(context.values)
        rows.append(row)
    table = pd.DataFrame(rows)
    if len(rows) > 1:
        numbers = [name for name in table.columns if name not in ("context", "coverage")]
        mean = {"context": "mean", **{name: float(table[name].mean(skipna=False)) for name in numbers}}
        mean["coverage"] = f"{len(rows)} contexts"
        table = pd.concat([table, pd.DataFrame([mean])], ignore_index=True)
    return table


def _coverage(values: PanelValues) -> str:
    """`n/n_total` over the scored members, `least-most/n_total` where they differ."""
    n = [values.n_used[metric] for metric in SCORED if metric in values.n_used]
    n_total = len(values.perturbations)
    if not n:
        return f"0/{n_total}"
    return f"{min(n)}/{n_total}" if min(n) == max(n) else f"{min(n)}-{max(n)}/{n_total}"


def _reference(references: Mapping[str, Any], kind: str, context: str, contexts: Sequence[str]) -> Any:
    given = references.get(kind)
    if isinstance(given, Mapping):
        if context not in given:
            raise UsageError(f"the references name no {kind} for context {context!r}.")
        return given[context]
    if given is not None and len(contexts) > 1:
        raise UsageError(f"one {kind} was given for {len(contexts)} contexts; each context has its own.")
    return given
