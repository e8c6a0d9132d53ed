"""Probe an entry: score it, change it in every documented way, score it again, and say what its cells look like."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.errors import InvalidFile, UsageError, VCBenchError
from ...data_specs.h5ad import H5ad
from ...data_specs.joined_source import JoinedSource
from ...data_specs.labels import CONTROL, targets_of
from ...data_specs.memory_source import MemorySource
from ...data_specs.remote import input_path, is_path_like
from ...data_specs.specs import load_edition
from ...data_specs.temporary import remove_leftovers, temporary_folder, temporary_path
from ..bundles import Bundle, is_bundle, join_bundles, open_bundle
from ..score_options import ScoreOptions
from ..scorecard import ScoreCard
from ..scoring import score
from ..truth_files import holds_tables, listed_truths
from ..validation import opened_entry
from .diagnostics import Diagnostics, diagnose
from .expectations import expectation, quantities, verdict
from .facts import Facts, gather_facts
from .judge import Finding, flags, marks
from .registry import NotApplicable, Probe, Stage, choose_probes
from .rows import GroupedRows, grouped_rows
from .target_genes import MIN_TARGETS
from .truth import TruthFacts, facts_of_2026_bundle, facts_of_celleval_bundle, facts_of_cells
from .writing import write_changed

if TYPE_CHECKING:
    from ...data_specs.spec_models import Edition

PROBES_VERSION = 1
# The overall score among the metrics of the rows.
SCORE = "score"
# Room below an edition's limit of log1p values, for float32.
CAP_MARGIN = 0.01
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ProbeRow:
    """How one metric moved under one probe. `reason` says why a value is missing or no sign is expected."""

    probe: str
    metric: str
    before: float | None
    after: float | None
    change: float | None
    expected: str | None
    as_expected: bool | None
    reason: str = ""


@dataclass(frozen=True)
class ProbeOutcome:
    """What became of one probe: applied or not, and what the changed entry was marked and flagged for.

    `diagnostics` are the changed entry's; the JSON of a report leaves them out.
    """

    name: str
    kind: str
    applied: bool
    text: str
    documented: str
    reason: str = ""
    marks: tuple[Finding, ...] = ()
    flags: tuple[Finding, ...] = ()
    caught: bool | None = None
    diagnostics: Diagnostics = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The outcome as plain values."""
        left = {name: value for name, value in vars(self).items() if name != "diagnostics"}
        found = {name: [f.to_json() for f in getattr(self, name)] for name in ("marks", "flags")}
        return left | found


@dataclass(frozen=True)
class ProbeReport:
    """The outcome of `probe`; `to_json` has the form of the command."""

    entry: str
    edition: str
    profile: str
    truth: Mapping[str, Any]
    rows: tuple[ProbeRow, ...]
    outcomes: tuple[ProbeOutcome, ...]
    marks: tuple[Finding, ...]
    flags: tuple[Finding, ...]
    diagnostics: Diagnostics = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values: rows, marks, flags and diagnostics, and what became of each probe."""
        return {
            "probes_version": PROBES_VERSION,
            "entry": self.entry,
            "edition": self.edition,
            "profile": self.profile,
            "truth": dict(self.truth),
            "rows": [vars(row) for row in self.rows],
            "marks": [finding.to_json() for finding in self.marks],
            "flags": [finding.to_json() for finding in self.flags],
            "diagnostics": {name: dict(values) for name, values in self.diagnostics.items()},
            "probes": [outcome.to_json() for outcome in self.outcomes],
        }


def probe_entry(
    entry: Any,
    truth: Any,
    *,
    edition: str | Edition,
    profile: str | None = None,
    probes: Sequence[str] | None = None,
    options: ScoreOptions | None = None,
    split: Any = None,
    name: str | None = None,
    tmp: PathLike | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> ProbeReport:
    """How every metric moves under the probes, and the marks, flags and diagnostics of the entry itself.

    Parameters
    ----------
    entry, truth, edition, profile, split
        As `scoring.score` takes them.
    probes
        Names of the probes to apply; None: all, (): none, for marks, flags and diagnostics alone.
    options
        Columns, seed, threads and memory as `ScoreOptions`; its split is taken from `split`.
    tmp
        Folder of the temporary files; default beside the entry, or the system's for an AnnData.

    Raises
    ------
    InvalidFile
        The entry or the truth cannot be scored.
    UsageError
        The edition scores tables, not cells or profiles.
    UnknownName
        No such probe, edition or profile.
    """
    rules = load_edition(edition) if isinstance(edition, str) else edition
    if holds_tables(rules):
        raise UsageError(f"edition {rules.id} scores tables of differential expression; probes change cells.")
    chosen = choose_probes(None if probes is None else tuple(probes))
    options = options or ScoreOptions()
    run = _Run(rules, profile, options, split)
    tell = progress or (lambda done, total, text: None)
    with ExitStack() as stack:
        opened = _open(entry, stack, tmp)
        tell(0, len(chosen) + 1, "the entry as it is")
        before = run.score(entry, truth, name)
        grouped = grouped_rows(opened, rules, options)
        truth_facts = _truth_facts(truth, grouped, rules, options, stack)
        examined = _examine(grouped, truth_facts, run)
        values = _values(before)
        outcomes: list[ProbeOutcome] = []
        rows: list[ProbeRow] = []
        folder = temporary_folder(input_path(opened.path), tmp) if chosen else Path()
        if chosen:
            remove_leftovers(folder)
        for done, item in enumerate(chosen):
            tell(done + 1, len(chosen) + 1, item.name)
            outcome, after, note = _apply(item, examined, truth, truth_facts, run, folder)
            outcomes.append(outcome)
            if outcome.applied:
                kind = "mean" if grouped.rows == "mean" else grouped.kind
                rows += _rows(item, rules, kind, before, after, note, quantities(examined.diagnostics))
    return ProbeReport(
        entry=before.name,
        edition=rules.id,
        profile=before.profile,
        truth=_truth_record(before),
        rows=tuple(rows),
        outcomes=tuple(outcomes),
        marks=tuple(marks(examined.diagnostics)),
        flags=tuple(flags(examined.diagnostics, values)),
        diagnostics=examined.diagnostics,
    )


@dataclass(frozen=True)
class _Run:
    """What every scoring of a run shares."""

    edition: Edition
    profile: str | None
    options: ScoreOptions
    split: Any

    def score(self, entry: Any, truth: Any, name: str | None) -> ScoreCard:
        o = self.options
        return score(
            entry,
            truth,
            edition=self.edition,
            profile=self.profile,
            split=self.split,
            subset=o.subset,
            pert_col=o.pert_col,
            control=o.control,
            context_col=o.context_col,
            matrix=o.matrix,
            name=name,
            seed=o.seed,
            threads=o.threads,
            block_bytes=o.block_bytes,
            memory=o.memory,
            device=o.device,
            references=o.references,
            no_target_genes=o.no_target_genes,
            target_map=o.target_map,
        ).card


@dataclass(frozen=True)
class _Examined:
    stage: Stage
    diagnostics: Diagnostics


def _examine(grouped: GroupedRows, truth: TruthFacts, run: _Run) -> _Examined:
    facts = gather_facts(grouped, target_sum=truth.target_sum)
    reference = _reference(facts, truth, own=run.edition.scoring.pipeline == "celleval")
    place = {str(gene): i for i, gene in enumerate(grouped.source.genes)}
    targets = tuple(
        np.array(
            [place[t] for t in (() if name == CONTROL else targets_of(name)) if t in place], dtype=np.int64
        )
        for _, name in grouped.keys
    )
    limit = run.edition.panel.max_log1p
    cap = (
        np.log1p(truth.target_sum)
        if grouped.kind == "counts"
        else None
        if limit is None
        else limit - CAP_MARGIN
    )
    stage = Stage(
        facts,
        run.edition,
        reference,
        cap,
        targets,
        truth.target_direction(grouped.source.genes, MIN_TARGETS),
        run.options.seed,
    )
    return _Examined(stage, diagnose(facts, truth, reference=reference, targets=targets))


def _reference(facts: Facts, truth: TruthFacts, *, own: bool) -> np.ndarray:
    """The control profile of each key: the entry's own where the edition measures from it, else the truth's."""
    out = np.zeros_like(facts.mean)
    controls = facts.controls() if own else {}
    for i, (context, name) in enumerate(facts.keys):
        if context in controls:
            out[i] = facts.mean[controls[context]]
        elif context in truth.controls:
            out[i] = truth.controls[context].mean
        elif name != CONTROL:
            raise UsageError(f"the truth has no control cells in context {context!r}.")
    return out


def _apply(
    item: Probe,
    examined: _Examined,
    truth: Any,
    truth_facts: TruthFacts,
    run: _Run,
    folder: Path,
) -> tuple[ProbeOutcome, ScoreCard | None, str]:
    change = item.apply(examined.stage)
    outcome = ProbeOutcome(item.name, item.kind, False, item.text, item.documented)
    if isinstance(change, NotApplicable):
        return replace(outcome, reason=change.reason), None, ""
    with temporary_path(folder, ".h5ad") as path, ExitStack() as stack:
        write_changed(examined.stage.grouped, change, path)
        try:
            card = run.score(path, truth, item.name)
        except InvalidFile as error:
            codes = sorted({issue.code for issue in error.issues if issue.severity == "error"})
            text = f"refused: {', '.join(codes)}"
            return replace(outcome, applied=True, reason=text, caught=True), None, text
        except VCBenchError as error:
            return replace(outcome, applied=True, reason=str(error)), None, str(error)
        grouped = grouped_rows(stack.enter_context(H5ad(path)), run.edition, run.options)
        found = _examine(grouped, truth_facts, run).diagnostics
    seen_marks, seen_flags = tuple(marks(found)), tuple(flags(found, _values(card)))
    names = {finding.name for finding in (*seen_marks, *seen_flags)}
    caught = bool(names & set(item.caught_by)) if item.caught_by else None
    outcome = replace(
        outcome,
        applied=True,
        reason=change.note,
        marks=seen_marks,
        flags=seen_flags,
        caught=caught,
        diagnostics=found,
    )
    return outcome, card, ""


def _rows(
    item: Probe,
    edition: Edition,
    kind: str,
    before: ScoreCard,
    after: ScoreCard | None,
    note: str,
    met: Mapping[str, float | None],
) -> list[ProbeRow]:
    out = []
    then = {} if after is None else _values(after)
    for metric, old in _values(before).items():
        new = then.get(metric)
        known = before.metrics.get(metric)
        expected = expectation(edition.id, item.name, metric, rows=kind)
        sign, as_expected = verdict(
            expected,
            met,
            old,
            new,
            perfect=None if known is None else known.perfect,
            better="higher" if known is None else known.better,
        )
        why = note or (expected.reason if sign is None else "")
        change = None if old is None or new is None else new - old
        out.append(ProbeRow(item.name, metric, old, new, change, sign, as_expected, why))
    return out


def _values(card: ScoreCard) -> dict[str, float | None]:
    """Metric values, and the overall score where there is one."""
    values = {name: metric.value for name, metric in card.metrics.items()}
    return values if card.score is None else {**values, SCORE: card.score}


def _truth_record(card: ScoreCard) -> dict[str, Any]:
    parts = {key: value for key, value in card.inputs.items() if key.split(":")[0] == "truth"}
    if len(parts) == 1:
        return {"sha256": next(iter(parts.values()))["sha256"]}
    return {"sha256": None, "parts": {key: value["sha256"] for key, value in parts.items()}}


def _open(entry: Any, stack: ExitStack, tmp: PathLike | None) -> Any:
    if is_path_like(entry):
        return stack.enter_context(opened_entry(entry, tmp=tmp)).source
    return MemorySource(entry, name="entry")


def _truth_facts(
    truth: Any, entry: GroupedRows, edition: Edition, options: ScoreOptions, stack: ExitStack
) -> TruthFacts:
    listed = [
        (context, item.path if isinstance(item, Bundle) else item) for context, item in listed_truths(truth)
    ]
    bundles = [
        (context, open_bundle(item, edition=edition))
        for context, item in listed
        if is_path_like(item) and is_bundle(item)
    ]
    if bundles:
        joined = join_bundles(bundles, edition=edition)
        if edition.scoring.pipeline == "vcc2026":
            return facts_of_2026_bundle(joined, entry)
        return facts_of_celleval_bundle(joined, entry)
    sources = [
        (
            context,
            stack.enter_context(H5ad(item)) if is_path_like(item) else MemorySource(item),
        )
        for context, item in listed
    ]
    if len(sources) == 1 and sources[0][0] is None:
        return facts_of_cells(sources[0][1], entry, edition, options)
    column = options.context_col or edition.file.context_column or "context"
    source = JoinedSource(sources, context_column=column)
    return facts_of_cells(source, entry, edition, replace(options, context_col=column))
