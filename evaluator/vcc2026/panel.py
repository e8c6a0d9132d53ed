"""One context of a truth and the prediction of it: matching of labels, genes and contexts, and checks of values."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...data_specs.errors import InvalidFile
from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ...data_specs.issues import Issue, first_of, make_issue, sort_issues
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ..kernels.blocks import row_chunks
from ..kernels.threads import numba_threads
from ..score_options import ScoreOptions
from .cells import Cells, ValueCheck
from .kernels import check_rows

MAX_CELL_TOTAL = 1e6
WHOLE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Columns:
    """Which obs columns and label to read: the edition's, or what the caller chose."""

    perturbation: str
    control: str
    context: str | None

    @classmethod
    def of(cls, edition: Edition, options: ScoreOptions) -> Columns:
        """The caller's choices over the edition's."""
        return cls(
            options.pert_col or edition.file.perturbation_column,
            options.control or edition.file.control_label,
            options.context_col or edition.file.context_column,
        )


@dataclass(frozen=True)
class TruthCells:
    """One context of a truth.

    `cells.groups` holds the position in `perturbations` (sorted by label), `len(perturbations)` for control cells,
    -1 for rows of other contexts. `context` is "" when the file does not say.
    """

    context: str
    perturbations: tuple[str, ...]
    genes: tuple[str, ...]
    cells: Cells


def read_truth(
    truth: Source,
    columns: Columns,
    options: ScoreOptions,
    *,
    max_cell_total: float = MAX_CELL_TOTAL,
    put_off: bool = False,
) -> list[TruthCells]:
    """The contexts of a truth, sorted, with checked values; `put_off` leaves their check to the first pass over them.

    Raises
    ------
    InvalidFile
        All problems of the file: no label column, missing labels, no control cells, no perturbation, repeated genes,
        values that are not counts (codes E582 to E592).
    """
    issues = [*_label_issues(truth, columns), *_gene_name_issues(truth)]
    values = _Values(truth, options, max_cell_total)
    panels = []
    if columns.perturbation in truth.obs_columns:
        labels = truth.labels(columns.perturbation)
        names = labels.categories.astype(str)
        for context, rows in _contexts(truth, columns):
            present = np.unique(labels.codes[rows & (labels.codes >= 0)])
            perturbations = tuple(str(n) for n in names[present] if n != columns.control)
            if columns.control not in names[present]:
                issues.append(_no_control(truth, columns, context))
            if not perturbations:
                issues.append(_issue("E592", truth, columns, "0", "at least one"))
            groups = _group_codes(labels.codes, names, rows, perturbations, columns.control)
            cells = Cells(truth, groups, options.block_bytes, options.memory, device=options.device)
            cells = replace(cells, executor=options.executor)
            panels.append(TruthCells(context, perturbations, tuple(str(g) for g in truth.genes), cells))
    checked = values.settle(issues, [panel.cells for panel in panels], put_off=put_off)
    return [replace(panel, cells=cells) for panel, cells in zip(panels, checked, strict=True)]


def match_prediction(
    pred: Source,
    columns: Columns,
    options: ScoreOptions,
    *,
    panels: Sequence[tuple[str, tuple[str, ...]]],
    genes: Sequence[str],
    allow_fractional: bool = False,
    max_cell_total: float = MAX_CELL_TOTAL,
    put_off: bool = False,
) -> tuple[list[Cells], list[str]]:
    """The cells of a prediction for each (context, perturbations) of the truth, and notes on what was left out.

    The group codes of each result are positions in the panel's perturbations. Control cells of the prediction get
    -1: the truth's are used in their place. `put_off` leaves the check of values to the first pass over the cells.

    Raises
    ------
    InvalidFile
        All problems found: other genes, other perturbations, contexts that do not match, values that are not counts.
    """
    issues = [*_label_issues(pred, columns), *_same_genes(pred, genes)]
    values = _Values(pred, options, max_cell_total, allow_fractional)
    matched: list[Cells] = []
    notes: list[str] = []
    if columns.perturbation in pred.obs_columns:
        labels = pred.labels(columns.perturbation)
        names = labels.categories.astype(str)
        for (context, perturbations), rows in zip(
            panels, _match_contexts(pred, columns, [c for c, _ in panels], issues), strict=True
        ):
            present = {str(n) for n in names[np.unique(labels.codes[rows & (labels.codes >= 0)])]}
            n_control = int((rows & (labels.values() == columns.control)).sum())
            place = f"context {context}: " if context else ""
            if n_control:
                notes.append(
                    f"{place}{n_control:,} control cells of the prediction were left out, the truth's were used."
                )
            present.discard(columns.control)
            missing, extra = sorted(set(perturbations) - present), sorted(present - set(perturbations))
            if rows.any() and (missing or extra):
                found = f"{place}missing {first_of(missing)}, not in the truth {first_of(extra)}"
                issues.append(
                    _issue(
                        "E583", pred, columns, found, f"the {len(perturbations):,} perturbations of the truth"
                    )
                )
            groups = _group_codes(labels.codes, names, rows, perturbations, None)
            cells = Cells(pred, groups, options.block_bytes, options.memory, device=options.device)
            matched.append(replace(cells, executor=options.executor))
    return values.settle(issues, matched, put_off=put_off), notes


@dataclass(frozen=True)
class _Values:
    """When the values of a source are checked, and how."""

    source: Source
    options: ScoreOptions
    max_cell_total: float
    allow_fractional: bool = False

    def settle(self, issues: list[Issue], parts: Sequence[Cells], *, put_off: bool) -> list[Cells]:
        """The parts, checked or with their check put off. Raises `InvalidFile` with `issues` and those of values.

        Rows that no part reads are looked at here in any case.
        """
        unread = np.ones(self.source.n_obs, dtype=bool)
        for part in parts:
            unread &= part.groups < 0
        if issues or not put_off or (unread.any() and self.issues(unread)):
            issues = issues + self.issues()
        if issues:
            raise InvalidFile(sort_issues(issues))
        check = ValueCheck(self.max_cell_total, self.run) if put_off else None
        return [replace(part, check=check) for part in parts]

    def run(self) -> None:
        """Check all values. Raises `InvalidFile`."""
        issues = self.issues()
        if issues:
            raise InvalidFile(sort_issues(issues))

    def issues(self, wanted: np.ndarray | None = None) -> list[Issue]:
        return value_issues(
            self.source,
            allow_fractional=self.allow_fractional,
            block_bytes=self.options.block_bytes,
            max_cell_total=self.max_cell_total,
            threads=self.options.threads,
            wanted=wanted,
        )


def value_issues(
    source: Source,
    *,
    allow_fractional: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    max_cell_total: float = MAX_CELL_TOTAL,
    threads: int | None = None,
    wanted: np.ndarray | None = None,
) -> list[Issue]:
    """What X holds that counts do not: NaN or infinity, negative values, fractions, cells above the limit.

    `wanted`, boolean, shape (n_obs,), allows to leave out blocks of rows without a wanted one.
    """
    blocks = source.value_blocks(max_bytes=block_bytes, wanted=wanted)
    found = _value_counts(blocks, max_cell_total, threads)
    if found.nonfinite or found.negative or found.large or (found.fractional and not allow_fractional):
        # What counts are the values after duplicates are summed.
        summed = source.row_blocks(max_bytes=block_bytes, wanted=wanted)
        found = _value_counts(
            ((block.start, block.matrix.data, block.matrix.indptr) for block in summed),
            max_cell_total,
            threads,
        )
    issues = []
    where: dict[str, Any] = {"where": f"{source.name}:/X", "file": shlex.quote(str(source.path))}
    if found.nonfinite:
        issues.append(
            make_issue("E588", found=f"{found.nonfinite:,} values", expected="finite numbers", **where)
        )
    if found.negative:
        issues.append(
            make_issue("E585", found=f"{found.negative:,} values", expected="counts of 0 and more", **where)
        )
    if found.fractional and not allow_fractional:
        issues.append(
            make_issue("E586", found=f"{found.fractional:,} values", expected="whole numbers", **where)
        )
    if found.large and not found.nonfinite:
        worst, row = found.worst
        text = f"{found.large:,} cells (largest: {worst:,.0f} in cell {source.obs_names[row]!r})"
        limit = f"{max_cell_total:,.0f}"
        issues.append(
            make_issue("E587", found=text, expected=f"at most {limit} per cell", limit=limit, **where)
        )
    return issues


@dataclass(frozen=True)
class _ValueCounts:
    """How many values are not counts, how many cells exceed the limit, and (total, row) of the largest of them."""

    nonfinite: int
    negative: int
    fractional: int
    large: int
    worst: tuple[float, int]


def _value_counts(
    blocks: Iterable[tuple[int, np.ndarray, np.ndarray]], max_cell_total: float, threads: int | None
) -> _ValueCounts:
    found = np.zeros(3, dtype=np.int64)
    large, worst = 0, (0.0, -1)
    for start, data, indptr in blocks:
        totals = np.empty(len(indptr) - 1)
        with numba_threads(threads) as n_threads:
            chunks = row_chunks(indptr, n_threads)
            tally = np.zeros((len(chunks) - 1, 3), dtype=np.int64)
            # The tolerance is compared in the precision of the data.
            tolerance: Any = WHOLE_TOLERANCE if data.dtype.kind != "f" else data.dtype.type(WHOLE_TOLERANCE)
            check_rows(data, indptr, chunks, tolerance, totals, tally)
        found += tally.sum(axis=0)
        with np.errstate(invalid="ignore"):
            over = np.flatnonzero(totals > max_cell_total)
        large += len(over)
        for row in over:
            worst = max(worst, (float(totals[row]), start + int(row)))
    nonfinite, negative, fractional = (int(n) for n in found)
    return _ValueCounts(nonfinite, negative, fractional, large, worst)


def _label_issues(source: Source, columns: Columns) -> list[Issue]:
    if columns.perturbation not in source.obs_columns:
        listed = ", ".join(source.obs_columns) or "no column"
        return [_issue("E582", source, columns, listed, columns.perturbation)]
    missing = int((source.labels(columns.perturbation).codes < 0).sum())
    return (
        [_issue("E590", source, columns, f"{missing:,} cells", "a label for every cell")] if missing else []
    )


def _gene_name_issues(source: Source) -> list[Issue]:
    names, counts = np.unique(source.genes.astype(str), return_counts=True)
    repeated = names[counts > 1]
    if not len(repeated):
        return []
    return [_issue("E589", source, None, first_of(repeated), "every name once", part="var")]


def _same_genes(pred: Source, genes: Sequence[str]) -> list[Issue]:
    if pred.n_vars != len(genes):
        return [
            _issue(
                "E580", pred, None, f"{pred.n_vars:,} genes", f"{len(genes):,} as in the truth", part="var"
            )
        ]
    wanted = np.asarray(genes, dtype=object)
    different = np.flatnonzero(pred.genes != wanted)
    if not len(different):
        return []
    at = int(different[0])
    order = "all genes are present" if set(pred.genes) == set(wanted) else "some genes are missing"
    found = f"{len(different):,} places differ (first: place {at:,} holds {pred.genes[at]!r}); {order}"
    return [_issue("E581", pred, None, found, f"{wanted[at]!r} at place {at:,}", part="var")]


def _no_control(truth: Source, columns: Columns, context: str) -> Issue:
    found = f"none in context {context!r}" if context else "none"
    return _issue("E584", truth, columns, found, "control cells")


def _issue(
    code: str, source: Source, columns: Columns | None, found: str, expected: str, *, part: str = "obs"
) -> Issue:
    return make_issue(
        code,
        where=f"{source.name}:/{part}",
        found=found,
        expected=expected,
        file=shlex.quote(str(source.path)),
        column=columns.perturbation if columns else "",
        control=columns.control if columns else "",
    )


def _contexts(source: Source, columns: Columns) -> list[tuple[str, np.ndarray]]:
    """(name, row mask) of each context, sorted; one nameless context without the column."""
    if columns.context is None or columns.context not in source.obs_columns:
        return [("", np.ones(source.n_obs, dtype=bool))]
    labels = source.labels(columns.context)
    return [(str(name), labels.codes == i) for i, name in enumerate(labels.categories)]


def _match_contexts(
    pred: Source, columns: Columns, wanted: Sequence[str], issues: list[Issue]
) -> list[np.ndarray]:
    """Row mask of the prediction for each context of the truth."""
    found = dict(_contexts(pred, columns))
    everything = np.ones(pred.n_obs, dtype=bool)
    if len(wanted) == 1 and len(found) == 1:
        return [everything]
    missing = [context for context in wanted if context not in found]
    extra = [context for context in found if context not in wanted]
    if missing or (extra and len(wanted) > 1):
        names = first_of(name or "(not named)" for name in found)
        expected = first_of(name or "(not named)" for name in wanted)
        issues.append(_issue("E591", pred, columns, names, expected))
        return [found.get(context, np.zeros(pred.n_obs, dtype=bool)) for context in wanted]
    return [found[context] for context in wanted]


def _group_codes(
    codes: np.ndarray, names: np.ndarray, rows: np.ndarray, perturbations: Sequence[str], control: str | None
) -> np.ndarray:
    position = {label: i for i, label in enumerate(perturbations)}
    if control is not None:
        position[control] = len(perturbations)
    table = np.array([position.get(str(name), -1) for name in names] + [-1], dtype=np.int64)
    return np.ascontiguousarray(np.where(rows, table[codes], -1), dtype=np.int64)
