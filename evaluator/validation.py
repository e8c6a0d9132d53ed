"""`validate`: every problem of an entry at once, in one pass over its values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..data_specs.containers import Entry, container_issues, open_entry
from ..data_specs.errors import InvalidFile, UsageError
from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES, H5ad
from ..data_specs.h5ad_columns import Labels
from ..data_specs.issues import Issue, has_errors, make_issue, renamed, sort_issues
from ..data_specs.memory_source import MemorySource
from ..data_specs.named_files import Files, named_files, open_files
from ..data_specs.remote import input_path, is_path_like
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from ..data_specs.standard import MatrixKind, StandardMeta, read_meta
from .checks.case import Case, Names
from .checks.controls import ContextBulks, control_issues, read_controls
from .checks.extras import extra_issues
from .checks.facts import header_facts, value_facts
from .checks.genes import gene_issues
from .checks.labels import label_issues
from .checks.leaks import cell_prints, comparable, leak_issues
from .checks.matrix_kind import claimed_kind, detected_kind, kind_issues
from .checks.panel import panel_issues
from .checks.rows import row_issues
from .checks.scale import scale_issues
from .checks.value_scan import Progress, ValueScan, scan_values
from .checks.values import value_issues
from .entry_meta import meta_issues
from .reference_files import Manifest, find_manifest, read_gene_list, read_perturbation_list
from .validation_report import NotChecked, ValidationReport

ReadT = TypeVar("ReadT")
ListSource = str | Path | Sequence[str]


class AnnDataLike(Protocol):
    """What `MemorySource` reads: an AnnData in memory."""

    X: Any
    obs: Any
    var: Any
    uns: Any


@dataclass(frozen=True)
class OpenEntry:
    """An entry that the caller has opened and closes itself.

    `source` reads `entry.h5ad`, and its path is `path`, the one that the user gave.
    """

    path: Path
    entry: Entry
    source: H5ad


@contextmanager
def opened_entry(
    path: str | os.PathLike[str], *, tmp: str | os.PathLike[str] | None = None
) -> Iterator[OpenEntry]:
    """An `.h5ad` or `.vcc`, opened once for validating and scoring; a `.vcc` is unpacked while the context lasts.

    Raises `InvalidFile`, with issues that name `path`, where it cannot be opened.
    """
    file = input_path(path)
    with open_entry(file, tmp=tmp) as entry:
        try:
            source = H5ad(entry.h5ad)
        except InvalidFile as error:
            raise InvalidFile([renamed(issue, entry.h5ad, file) for issue in error.issues]) from error
        with source:
            source.path = file
            yield OpenEntry(file, entry, source)


def validate(
    source: str | os.PathLike[str] | OpenEntry | AnnDataLike,
    *,
    edition: str | Edition,
    genes: ListSource | None = None,
    perts: ListSource | None = None,
    contexts: Sequence[str] | None = None,
    pert_col: str | None = None,
    control: str | None = None,
    context_col: str | None = None,
    matrix: MatrixKind | None = None,
    controls: Files | None = None,
    truth: Files | None = None,
    train: Files | None = None,
    tmp: str | os.PathLike[str] | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    header_only: bool = False,
    progress: Progress | None = None,
    scanned: ValueScan | None = None,
) -> ValidationReport:
    """Every problem of an entry or dataset under the rules of an edition. The input is never changed.

    Parameters
    ----------
    source
        An `.h5ad`, a `.vcc`, an entry that is open already, or an AnnData in memory.
    genes
        The official gene list: a CSV (first column), or symbols in order.
    perts
        The official perturbation list: a CSV with the edition's perturbation column (optional `context`, `n_cells`),
        or names. For tables of differential expression: the id map.
    contexts
        The contexts the entry must hold. Default: those of the `manifest.json` beside the lists, else the edition's.
    pert_col, control, context_col
        Names to use instead of the edition's.
    matrix
        The scale of X where the file does not declare it.
    controls
        Files of real control cells (one, several, or one per context), to compare predicted counts with.
    truth, train
        Files of measured cells that predicted counts must not repeat: the held-out truth, the training data.
    tmp
        Folder of the temporary file a `.vcc` is unpacked to.
    block_bytes
        Size of the row blocks; memory stays within a small multiple of it, plus vectors per row and per group.
    header_only
        Make only the checks that need no value of X: genes, labels, panel, structure.
    progress
        Called with (rows done, rows in all).
    scanned
        The pass over X, where the caller wrote these very rows and looked at each; not to be given with files of cells.

    Returns
    -------
    ValidationReport
        Problems of the file and of the lists are its issues, never exceptions.

    Raises
    ------
    UsageError
        An unknown edition, or a `matrix` that the edition does not take.
    OutputError
        `tmp` is no folder.
    """
    chosen = load_edition(edition) if isinstance(edition, str) else edition
    if "de" in chosen.file.rows:
        given = {"contexts": contexts, "pert-col": pert_col, "control": control, "context-col": context_col}
        given |= {"matrix": matrix, "controls": controls, "truth": truth, "train": train}
        unused = [name for name, value in given.items() if value]
        if unused:
            raise UsageError(f"edition {chosen.id} has no use for --{', --'.join(unused)}.")
        return _validated_table(source, chosen, genes, perts, header_only=header_only)
    if chosen.file.matrix in ("counts", "log1p") and matrix not in (None, chosen.file.matrix):
        raise UsageError(f"edition {chosen.id} takes {chosen.file.matrix}; --matrix {matrix} contradicts it.")
    run = _Run(chosen, genes, perts, contexts, pert_col, control, context_col, matrix)
    run.read_lists()
    with ExitStack() as stack:
        run.controls = run.open_cells(stack, controls, "--controls", tmp)
        for code, kind, files in (("W328", "truth", truth), ("W329", "train", train)):
            cells = run.open_cells(stack, files, f"--{kind}", tmp)
            if cells is not None:
                run.known.append((code, kind, cells))
        opened = run.opened(stack, source, tmp)
        if opened is None:
            run.skip("genes, labels, panel and values", "the file could not be opened")
        else:
            run.check(opened, block_bytes, progress, header_only=header_only, scanned=scanned)
    issues = tuple(sort_issues(run.issues))
    return ValidationReport(not has_errors(issues), issues, run.facts, tuple(run.not_checked))


def _validated_table(
    source: Any, edition: Edition, genes: ListSource | None, perts: ListSource | None, *, header_only: bool
) -> ValidationReport:
    from .openproblems.checks import check_table

    found = check_table(source, edition, genes=genes, id_map=perts, header_only=header_only)
    not_checked = tuple(NotChecked(what, why) for what, why in found.not_checked)
    issues = tuple(sort_issues(found.issues))
    return ValidationReport(not has_errors(issues), issues, found.facts, not_checked)


@dataclass(frozen=True)
class CheckedNames:
    """The lists and column names that an entry is read with; fields as the arguments of `validate`."""

    genes: ListSource | None = None
    perts: ListSource | None = None
    contexts: Sequence[str] | None = None
    pert_col: str | None = None
    control: str | None = None
    context_col: str | None = None
    matrix: MatrixKind | None = None


def checked_case(source: Source, edition: Edition, names: CheckedNames) -> Case:
    """The case of an open source, for callers that change it. Raises `InvalidFile` when a list cannot be read."""
    run = _Run(
        edition,
        names.genes,
        names.perts,
        names.contexts,
        names.pert_col,
        names.control,
        names.context_col,
        names.matrix,
    )
    run.path = source.path
    run.read_lists()
    case = run.case(source)
    if has_errors(run.issues):
        raise InvalidFile(run.issues)
    return case


class _Run:
    """The issues, facts and gaps that one call gathers, step by step."""

    def __init__(
        self,
        edition: Edition,
        genes: ListSource | None,
        perts: ListSource | None,
        contexts: Sequence[str] | None,
        pert_col: str | None,
        control: str | None,
        context_col: str | None,
        matrix: MatrixKind | None,
    ):
        self.edition, self.genes, self.perts = edition, genes, perts
        self.matrix: MatrixKind | None = matrix
        self.pert_col = pert_col or edition.file.perturbation_column
        self.control = control or edition.file.control_label
        self.context_col = context_col or edition.file.context_column
        self.contexts = None if contexts is None else tuple(contexts)
        self.context_demanded = bool(self.context_col) and (
            edition.file.context_required or contexts is not None or context_col is not None
        )
        self.issues: list[Issue] = []
        self.facts: dict[str, Any] = {}
        self.not_checked: list[NotChecked] = []
        self.gene_list = self.perturbation_list = None
        self.path: Path | None = None
        self.meta: dict[str, Any] = {}
        self.controls: Source | None = None
        # Measured cells that the entry must not repeat: issue code, option, cells.
        self.known: list[tuple[str, str, Source]] = []
        self.bulks: ContextBulks | None = None

    def skip(self, what: str, why: str) -> None:
        self.not_checked.append(NotChecked(what, why))

    @contextmanager
    def gathering(self, read: Path | None = None) -> Iterator[None]:
        """Problems that would stop a reader of the file `read` become issues that name the user's file."""
        try:
            yield
        except InvalidFile as error:
            self.issues += [renamed(issue, read, self.path) for issue in error.issues]

    def read_lists(self) -> None:
        """Read the gene list, the perturbation list and, where contexts are required, the manifest."""
        if self.genes is not None:
            with self.gathering():
                self.gene_list = read_gene_list(self.genes)
        if self.gene_list is None:
            self.skip("genes against the official list", _why_no_list(self.genes, "--genes"))
        if self.perts is not None:
            columns = tuple(
                dict.fromkeys((self.edition.file.perturbation_column, "target_gene", "perturbation"))
            )
            with self.gathering():
                self.perturbation_list = read_perturbation_list(
                    self.perts, columns=columns, control=self.edition.file.control_label
                )
        if self.perturbation_list is None:
            self.skip(
                "perturbations and cells against the official list", _why_no_list(self.perts, "--perts")
            )
        if self.contexts is None and self.edition.file.context_required:
            manifest: Manifest | None = None
            with self.gathering():
                manifest = find_manifest((self.genes, self.perts))
            self.contexts = manifest.contexts if manifest else self.edition.panel.contexts

    def opened(
        self,
        stack: ExitStack,
        source: str | os.PathLike[str] | OpenEntry | AnnDataLike,
        tmp: str | os.PathLike[str] | None,
    ) -> Source | None:
        """The opened source, or None with the issues that explain why."""
        if isinstance(source, OpenEntry):
            self.path = source.path
            self.note_container(source.entry, source.path)
            return source.source
        if not is_path_like(source):
            return stack.enter_context(MemorySource(source))
        self.path = input_path(source)
        entry: Entry | None = None
        with self.gathering():
            entry = stack.enter_context(open_entry(self.path, tmp=tmp))
            self.note_container(entry, self.path)
        if entry is not None:
            with self.gathering(entry.h5ad):
                return stack.enter_context(H5ad(entry.h5ad))
        return None

    def note_container(self, entry: Entry, path: Path) -> None:
        """The container's issues and facts."""
        self.issues += container_issues(entry, self.edition.file.containers, path, self.edition.id)
        self.facts |= {"source": str(path), "container": entry.container}
        if entry.meta:
            self.facts["meta"] = self.meta = entry.meta

    def open_cells(
        self, stack: ExitStack, files: Files | None, option: str, tmp: str | os.PathLike[str] | None
    ) -> Source | None:
        """Files of real cells as one source; one that cannot be read is an issue that names it."""
        if files is None:
            return None
        try:
            return open_files(stack, named_files(files, option), tmp)
        except InvalidFile as error:
            self.issues += error.issues
            return None

    def check(
        self,
        source: Source,
        block_bytes: int,
        progress: Progress | None,
        *,
        header_only: bool = False,
        scanned: ValueScan | None = None,
    ) -> None:
        """All checks of an opened source: header first, then one pass over the values."""
        case: Case | None = None
        with self.gathering(source.path):
            case = self.checked_header(source)
        if case is None:
            self.skip("the remaining checks", "names or labels could not be read to their end")
            return
        if not source.n_obs or not source.n_vars:
            self.skip("values", "X is empty")
            return
        if header_only:
            self.skip("values", "only the header was asked for")
            return
        if scanned is not None:
            self.check_values(case, scanned, block_bytes)
            return
        scan: ValueScan | None = None
        with self.gathering(source.path):
            cap = self.edition.panel.max_log1p
            on_rows = None
            if self.controls is not None:
                self.bulks = ContextBulks.of(case)
                on_rows = self.bulks.add
            scan = scan_values(source, cap=cap, block_bytes=block_bytes, progress=progress, on_rows=on_rows)
        if scan is None:
            self.skip("values", "X could not be read to its end")
            return
        self.check_values(case, scan, block_bytes)

    def checked_header(self, source: Source) -> Case:
        """The case, after all checks that need no value of X."""
        case = self.case(source)
        self.facts |= header_facts(case)
        for family in (row_issues, gene_issues, label_issues, panel_issues, kind_issues, extra_issues):
            self.issues += family(case)
        if self.meta and self.path is not None:
            about = (case.perturbations, case.contexts, case.required_contexts)
            self.issues += meta_issues(self.meta, self.path, source, *about)
        self.note_gaps(case)
        return case

    def check_values(self, case: Case, scan: ValueScan, block_bytes: int) -> None:
        """All checks of what the pass over X found."""
        claim, detected = claimed_kind(case), detected_kind(scan)
        verdict = detected if claim.kind is None and self.edition.file.matrix == "detect" else claim
        self.issues += value_issues(case, scan, verdict.kind)
        self.issues += scale_issues(case, scan, verdict)
        if verdict.kind is None:
            self.skip("the scale of the values", "the matrix kind is not declared")
        if self.controls is not None and self.bulks is not None:
            if verdict.kind == "counts" and case.rows == "cell":
                with self.gathering():
                    known = read_controls(self.controls, case, block_bytes=block_bytes)
                    self.issues += control_issues(case, scan, self.bulks, known)
            else:
                self.skip("cells against control cells", "only counts of single cells are compared")
        for code, kind, cells in self.known:
            if case.rows != "cell" or not comparable(verdict.kind, cells):
                self.skip(f"cells against those of --{kind}", "only counts of single cells are compared")
                continue
            with self.gathering():
                known = cell_prints(cells, case, block_bytes=block_bytes)
                self.issues += leak_issues(case, scan, code, known, kind)
        self.facts |= value_facts(case, scan, verdict, detected)

    def case(self, source: Source) -> Case:
        """The source with everything the header checks need."""
        shown = source.name if self.path is None else self.path.name
        file = shown if self.path is None else str(self.path)
        return Case(
            source=source,
            edition=self.edition,
            names=Names(
                shown,
                shlex.quote(file),
                _argument(self.genes, "GENES.csv"),
                _argument(self.perts, "PERTS.csv"),
            ),
            pert_col=self.pert_col,
            control=self.control,
            context_col=self.context_col,
            context_demanded=self.context_demanded,
            meta=self.record(source, shown, file),
            matrix_option=self.matrix,
            gene_list=self.gene_list,
            perturbation_list=self.perturbation_list,
            required_contexts=self.contexts,
            perturbations=self.column(source, self.pert_col, "labels, control and perturbations"),
            contexts=None if self.context_col is None else self.column(source, self.context_col, "contexts"),
        )

    def record(self, source: Source, shown: str, file: str) -> StandardMeta | None:
        """The record `uns/vcbench`; a broken one is an issue."""
        try:
            return read_meta(source)
        except UsageError as error:
            found = str(error).split(": ", 1)[-1]
            where, quoted = f"{shown}:/uns/vcbench", shlex.quote(file)
            self.issues.append(
                make_issue(
                    "E014", where=where, found=found, expected="a record of schema version 1", file=quoted
                )
            )
            return None

    def column(self, source: Source, name: str, what: str) -> Labels | None:
        """A label column; None when it is absent, or unreadable (an issue)."""
        if name not in source.obs_columns:
            self.skip(what, f"obs has no column {name!r}")
            return None
        with self.gathering(source.path):
            return source.labels(name)
        self.skip(what, f"the column {name!r} cannot be read")
        return None

    def note_gaps(self, case: Case) -> None:
        """What this case leaves out by its nature."""
        if case.contexts is not None and case.required_contexts is None:
            self.skip("which contexts are required", "no --contexts given")
        if case.rows == "mean" and self.edition.panel.control == "required":
            self.skip("control cells", "mean profiles get them when they are packed")
        if case.meta is not None and self.edition.file.matrix == "declared":
            self.skip("target_sum and genes against the truth", "`vcbench score` compares the two files")
        if self.controls is None:
            self.skip("cells against real control cells", "no --controls given")
        given = {kind for _, kind, _ in self.known}
        for kind, what in (("truth", "held-out cells"), ("train", "training cells")):
            if kind not in given:
                self.skip(f"copies of {what}", f"no --{kind} given")


def _why_no_list(given: ListSource | None, option: str) -> str:
    return f"no {option} given" if given is None else "the list cannot be used"


def _argument(source: ListSource | None, fallback: str) -> str:
    return shlex.quote(str(source)) if is_path_like(source) else fallback
