"""Truth bundles of the cell-eval editions: the real side measured once, the baseline and the data ceiling."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from ...data_specs.errors import UsageError
from ..bundles import Bundle, broken, named_contexts
from ..metrics.spec import MetricSpec
from .de import DeTable
from .measure import Measured, measure
from .pairing import Progress, open_prediction
from .panel import Panel, PanelSide
from .pipeline import ContextColumns, needs_de, score_panel, side_verdict
from .rules import Rules
from .score_rule import read_aggregate

if TYPE_CHECKING:
    from ...data_specs.issues import Issue
    from ...data_specs.sources import Source
    from ...data_specs.spec_models import Edition
    from ..score_options import ScoreOptions

BASELINE_FILE, CEILING_FILE, CEILING_RESULTS = (
    "baseline_agg.csv",
    "agg_ceiling_results.csv",
    "ceiling_results.csv",
)
MEASURED = ("sizes", "bulk", "exact_bulk")
DE = ("p_value", "fdr", "log2_fold_change", "fold_change", "significant")
DISTANCES = "energy_distances.npy"


@dataclass(frozen=True)
class CellevalBundle(Bundle):
    """An opened bundle of one context."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The perturbations, in code-point order."""
        return tuple(self.manifest["contexts"][0]["perturbations"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the bundle was built for."""
        return tuple(self.manifest["metrics"])

    @property
    def references(self) -> str:
        """Whose ends these are, for tables."""
        kind = self.manifest["baseline"]["kind"]
        return f"bundle {self.name} (local; baseline: {kind})"

    @property
    def baseline(self) -> Mapping[str, float] | None:
        """The baseline's aggregate by metric; None when the bundle was built without one."""
        if not self.has(BASELINE_FILE):
            return None
        names = self.manifest["baseline"]["metrics"]
        return read_aggregate(self.path / BASELINE_FILE, names, edition_id=self.manifest["edition"])

    def ceiling(self, metrics: Sequence[str]) -> dict[str, float]:
        """The corrected ceiling of those of `metrics` that have one; empty when the bundle was built without."""
        if not self.has(CEILING_FILE):
            return {}
        with (self.path / CEILING_FILE).open(encoding="utf-8", newline="") as handle:
            row = next(csv.DictReader(handle))
        found = {name: float(row[name] or math.nan) for name in metrics if name in row}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def side(self) -> PanelSide:
        """The truth as the metrics read it; arrays are memory-mapped."""
        measured = Measured(**{name: np.asarray(self.array(f"{name}.npy")) for name in MEASURED})
        de = None
        if self.has("de_p_value.npy"):
            stored = {name: f"de_{name}.npy" for name in DE}
            de = DeTable(
                **{n: np.asarray(self.array(f)) if self.has(f) else None for n, f in stored.items()}  # type: ignore[arg-type]
            )
        distances = np.asarray(self.array(DISTANCES)) if self.has(DISTANCES) else None
        return PanelSide("truth", measured, de, None, distances)


@dataclass(frozen=True)
class CellevalTruth:
    """The bundles of all contexts, as one truth. `parts` is sorted by context; one bundle may be nameless ("")."""

    parts: Mapping[str, CellevalBundle]

    @property
    def first(self) -> CellevalBundle:
        """The bundle of the first context; all share its genes."""
        return next(iter(self.parts.values()))

    @property
    def name(self) -> str:
        """The names of all bundles."""
        return " + ".join(part.name for part in self.parts.values())

    @property
    def path(self) -> Path:
        """The folder of the first bundle."""
        return self.first.path

    @property
    def genes(self) -> np.ndarray:
        """The genes, object array of str."""
        return np.array(self.first.manifest["genes"], dtype=object)

    @property
    def n_vars(self) -> int:
        """The number of genes."""
        return len(self.genes)


def join_bundles(parts: Sequence[tuple[str | None, CellevalBundle]]) -> CellevalTruth:
    """Bundles as one truth. Raises `UsageError` as `bundles.named_contexts`."""
    return CellevalTruth(cast(dict[str, CellevalBundle], named_contexts(parts)))


def score_bundles(
    pred: Source,
    truth: CellevalTruth,
    specs: Mapping[str, MetricSpec],
    edition: Edition,
    options: ScoreOptions,
    progress: Progress,
) -> tuple[list[ContextColumns], list[Issue]]:
    """The columns of every context, and warnings; only the prediction is read.

    Raises
    ------
    InvalidFile
        A bundle does not fit the edition's parameters or the profile (E593), or the prediction does not fit the truth.
    UsageError
        A split, or a context column that the bundle was not built with.
    """
    if options.split is not None:
        raise UsageError(
            "a truth bundle holds every perturbation: for a --split give the real file, --truth REAL.h5ad."
        )
    rules = Rules.of(edition)
    for part in truth.parts.values():
        _check_fit(part, rules, specs, edition)
    sides, warnings = open_prediction(
        pred,
        truth,
        {context: part.targets for context, part in truth.parts.items()},
        context_column=_context_column(truth, edition, options),
        edition=edition,
        options=options,
        progress=progress,
    )
    scored = []
    for context, part in truth.parts.items():
        progress(0, 2, f"group means and rank sums {context}".strip())
        side = sides[context]
        measured = measure(side, rules, with_de=needs_de(specs))
        panel = Panel(part.targets, truth.genes, PanelSide.of(side, measured, rules), part.side(), rules)
        verdicts = [{**part.manifest["matrix"], "context": context}, side_verdict(context, side)]
        scored.append(score_panel(context, panel, specs, verdicts, progress))
    return scored, warnings


def _check_fit(
    bundle: CellevalBundle, rules: Rules, specs: Mapping[str, MetricSpec], edition: Edition
) -> None:
    stored = bundle.manifest["rules"]
    if stored != rules.to_dict():
        changed = sorted(
            key for key in {*stored, *rules.to_dict()} if stored.get(key) != rules.to_dict().get(key)
        )
        found = f"other scoring parameters ({', '.join(changed)})"
        raise broken(bundle.path, found, f"those of edition {edition.id}", edition=edition.id)
    missing = [name for name in specs if name not in bundle.metrics]
    if missing:
        found = f"built with profile {bundle.manifest['profile']!r}, without {', '.join(missing[:3])}"
        expected = "a bundle built with the profile that is scored (--profile)"
        raise broken(bundle.path, found, expected, edition=edition.id)


def _context_column(truth: CellevalTruth, edition: Edition, options: ScoreOptions) -> str | None:
    """The prediction's context column: needed for several contexts, otherwise only where it was asked for."""
    asked = options.context_col or edition.file.context_column
    if len(truth.parts) > 1:
        return asked or "context"
    if asked is not None and "" in truth.parts:
        raise UsageError(
            f"bundle {truth.name} was built without contexts; build it again with --context-col {asked}."
        )
    return asked
