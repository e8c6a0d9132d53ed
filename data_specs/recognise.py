"""Which dataset and variant a file is: every known layout is scored on what the file shows, and says why."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .h5ad import H5ad
from .h5ad_columns import Labels
from .labels import CONTROL, UNASSIGNED, targets_of
from .source_cells import recipe_of
from .spec_models import Count, DatasetSpec
from .specs import dataset_ids, load_dataset

RECOGNISED, MARGIN = 0.7, 0.02
LAYOUT_FAMILY = "layout"
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}(\.\d+)?")


@dataclass(frozen=True)
class Evidence:
    """One thing compared: `agreement` from 0 to 1, and its weight in the score."""

    what: str
    weight: float
    agreement: float
    text: str


@dataclass(frozen=True)
class Candidate:
    """A layout that the file may have; `score` is the weighted mean agreement, drawn to 1/2 by scant evidence."""

    spec: DatasetSpec
    score: float
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Recognition:
    """Candidates, best first. `best` is None when none reaches the threshold; `rivals` score as well as it does."""

    candidates: tuple[Candidate, ...]
    best: Candidate | None
    rivals: tuple[Candidate, ...]

    def why(self) -> str:
        """The evidence of the best candidate in one line."""
        if not self.candidates:
            return "no known layout has its label column in this file"
        best = self.candidates[0]
        return f"{best.spec.id} scores {best.score:.2f}: " + "; ".join(e.text for e in best.evidence)


class _Facts:
    """What recognition reads of a file, once."""

    def __init__(self, file: H5ad):
        self.file = file
        self.obs = set(file.obs_columns)
        self.var = set(file.var_columns)
        self.entries = set(file.entries)
        self._labels: dict[str, Labels] = {}

    def labels(self, column: str) -> Labels:
        if column not in self._labels:
            self._labels[column] = self.file.labels(column)
        return self._labels[column]

    @cached_property
    def index(self) -> str:
        sample = self.file.genes[:500]
        share = np.mean([ENSEMBL.fullmatch(str(name)) is not None for name in sample]) if len(sample) else 0
        return "ensembl" if share > 0.5 else "symbol"

    @cached_property
    def whole(self) -> dict[str, bool]:
        """Location to: do its values look like counts."""
        places = ["X", *(name for name in self.entries if name.startswith("layers/"))]
        return {
            place: bool(np.all(sample == np.rint(sample)))
            for place in places
            if (sample := self.file.value_sample(place)) is not None
        }


def recognise_file(
    path: str | os.PathLike[str], specs: Sequence[DatasetSpec] | None = None, *, location: str = "X"
) -> Recognition:
    """Compare a file with `specs` (default: all shipped layouts). X is not read beyond a sample.

    The general layouts (`layout_gears` and so on) count only where no dataset is recognised. Raises `InvalidFile`
    for files that cannot be opened.
    """
    known = [load_dataset(name) for name in dataset_ids()] if specs is None else list(specs)
    with H5ad(path, location=location) as file:
        facts = _Facts(file)
        scored = [candidate for spec in known if (candidate := _candidate(facts, spec)) is not None]
    datasets = _ranked(c for c in scored if c.spec.family != LAYOUT_FAMILY)
    layouts = _ranked(c for c in scored if c.spec.family == LAYOUT_FAMILY)
    ranked = datasets if datasets and datasets[0].score >= RECOGNISED else [*layouts, *datasets]
    best = ranked[0] if ranked and ranked[0].score >= RECOGNISED else None
    rivals = [c for c in ranked[1:] if best and c.score >= best.score - MARGIN]
    # A mirror of the best candidate is the same layout under another address.
    rivals = [c for c in rivals if best and c.spec.derived_from != best.spec.id]
    return Recognition(tuple(ranked), best, tuple(rivals))


def _ranked(candidates: Any) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (-c.score, c.spec.derived_from is not None, c.spec.id))


def _candidate(facts: _Facts, spec: DatasetSpec) -> Candidate | None:
    if spec.labels.column not in facts.obs or spec.matrix.location not in facts.whole:
        return None
    evidence = [*_column_evidence(facts, spec), *_label_evidence(facts, spec), *_other_evidence(facts, spec)]
    total = sum(e.weight for e in evidence)
    score = (sum(e.weight * e.agreement for e in evidence) + 0.5) / (total + 1.0)
    return Candidate(spec, score, tuple(evidence))


def _column_evidence(facts: _Facts, spec: DatasetSpec) -> list[Evidence]:
    wanted = set(spec.obs_columns) or {spec.labels.column}
    shared = len(wanted & facts.obs)
    found = [
        Evidence(
            "obs columns", 3.0, shared / len(wanted), f"{shared} of {len(wanted)} published obs columns"
        ),
        Evidence(
            "other columns",
            1.0,
            shared / max(1, len(facts.obs)),
            f"{len(facts.obs) - shared} obs columns beside them",
        ),
    ]
    if spec.var_columns:
        shared = len(set(spec.var_columns) & facts.var)
        text = f"{shared} of {len(spec.var_columns)} published var columns"
        found.append(Evidence("var columns", 1.0, shared / len(spec.var_columns), text))
    for column, values in spec.fingerprint.values.items():
        names = facts.labels(column).categories if column in facts.obs else np.array([], object)
        share = float(np.mean(np.isin(names.astype(str), values))) if len(names) else 0.0
        shown = ", ".join(map(str, names[:3])) or "nothing"
        found.append(Evidence(f"values of {column}", 2.0, share, f"{column} holds {shown}"))
    return found


def _label_evidence(facts: _Facts, spec: DatasetSpec) -> list[Evidence]:
    recipe, mark = recipe_of(spec), spec.fingerprint
    canonical = {
        str(name): recipe.canonical(str(name)) for name in facts.labels(spec.labels.column).categories
    }
    controls = [source for source, name in canonical.items() if name == CONTROL]
    text = f"control label {controls[0]!r}" if controls else "no control label"
    found = [Evidence("control", 2.0, float(bool(controls)), text)]
    perturbed = [source for source, name in canonical.items() if name not in (CONTROL, UNASSIGNED)]
    if mark.label_regex and perturbed:
        n_like = sum(re.fullmatch(mark.label_regex, source.strip()) is not None for source in perturbed)
        text = f"{n_like:,} of {len(perturbed):,} labels have the published form"
        found.append(Evidence("label form", 2.0, n_like / len(perturbed), text))
    if mark.targets:
        targets = {t for source in perturbed for t in targets_of(canonical[source])}
        shared = len(targets & set(mark.targets))
        share = shared / max(1, min(len(targets), len(mark.targets)))
        found.append(Evidence("targets", 2.0, share, f"{shared} known targets"))
    return found


def _other_evidence(facts: _Facts, spec: DatasetSpec) -> list[Evidence]:
    found = []
    if spec.fingerprint.groups:
        shared = len(set(spec.fingerprint.groups) & facts.entries)
        text = f"{shared} of {len(spec.fingerprint.groups)} side entries"
        found.append(Evidence("side entries", 1.0, shared / len(spec.fingerprint.groups), text))
    same = facts.index == spec.genes.index
    found.append(Evidence("gene names", 1.0, float(same), f"var index holds {facts.index} names"))
    whole = facts.whole[spec.matrix.location]
    kind = "whole numbers" if whole else "fractions"
    agrees = whole == (spec.matrix.kind == "counts")
    found.append(Evidence("matrix", 1.5, float(agrees), f"{spec.matrix.location} holds {kind}"))
    sizes = [(spec.n_cells, facts.file.n_obs), (spec.n_genes, facts.file.n_vars)]
    checked = [(count, n) for count, n in sizes if count is not None]
    if checked:
        share = sum(_is_size(count, n) for count, n in checked) / len(checked)
        text = f"{facts.file.n_obs:,} x {facts.file.n_vars:,}"
        found.append(Evidence("shape", 2.0, share, f"shape {text}"))
    return found


def _is_size(count: Count, found: int) -> bool:
    return abs(found - count.value) <= count.rel_tolerance * count.value
