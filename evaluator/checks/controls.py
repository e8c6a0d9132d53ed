"""Predicted cells against the real control cells of their context: copies, swapped contexts, depth, detected genes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ...data_specs.issues import Issue, first_of
from ...data_specs.labels import CONTROL
from ...data_specs.sources import Source
from ...data_specs.standard import CONTEXT, PERTURBATION
from .case import Case
from .value_scan import ValueScan, row_projection

# Medians beyond this factor of the control cells' are reported.
FAR = 2.0
# Another context must fit better by this correlation before contexts look swapped.
SWAP_MARGIN = 0.002


@dataclass
class ControlFacts:
    """Control cells of one context in the entry's gene order: bulk sums, cell totals and detected genes, row prints."""

    bulk: np.ndarray
    totals: list[np.ndarray] = field(default_factory=list)
    detected: list[np.ndarray] = field(default_factory=list)
    prints: list[np.ndarray] = field(default_factory=list)


@dataclass
class ContextBulks:
    """Sums of the entry's counts per context and gene, filled while its values are scanned."""

    codes: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, case: Case) -> ContextBulks:
        """Empty sums for the contexts of a case; one for all rows when it has no context column."""
        labels = case.contexts
        n = 1 if labels is None else len(labels.categories)
        codes = np.zeros(case.source.n_obs, np.int64) if labels is None else labels.codes.astype(np.int64)
        return cls(codes, np.zeros((n, case.source.n_vars)))

    def add(self, rows: sp.csr_array, start: int) -> None:
        """Add the rows of a block."""
        codes = self.codes[start : start + len(rows.indptr) - 1]
        for context in np.unique(codes[codes >= 0]):
            data = rows.data * np.repeat(codes == context, np.diff(rows.indptr))
            self.sums[context] += np.bincount(rows.indices, weights=data, minlength=self.sums.shape[1])


def read_controls(
    source: Source, case: Case, *, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> dict[str, ControlFacts]:
    """The control cells of a file by context ("" without a context column), on the genes of the entry."""
    names, contexts = _labels(source, case)
    place = {str(gene): i for i, gene in enumerate(case.source.genes)}
    order = np.array([place.get(str(gene), -1) for gene in source.genes], dtype=np.int64)
    projection = row_projection(case.source.n_vars)
    found: dict[str, ControlFacts] = {}
    for block in source.row_blocks(max_bytes=block_bytes):
        part = slice(block.start, block.start + len(block.matrix.indptr) - 1)
        for context in dict.fromkeys(contexts[part][names[part]]):
            chosen = np.flatnonzero(names[part] & (contexts[part] == context))
            rows = placed_rows(sp.csr_array(block.matrix[chosen]), order, case.source.n_vars)
            facts = found.setdefault(str(context), ControlFacts(np.zeros(case.source.n_vars)))
            sums = rows @ projection
            facts.bulk += np.bincount(rows.indices, weights=rows.data, minlength=case.source.n_vars)
            facts.totals.append(sums[:, 0])
            facts.prints.append(sums[:, 1:])
            facts.detected.append(np.diff(rows.indptr))
    return found


def control_mask(source: Source, case: Case, *, without_column: bool) -> np.ndarray:
    """Which rows of another file are control cells, bool; `without_column` for all where it names no perturbation."""
    columns: Sequence[str] = (case.pert_col, PERTURBATION)
    column = next((name for name in columns if name in source.obs_columns), None)
    if column is None:
        return np.full(source.n_obs, without_column)
    return np.isin(source.labels(column).values().astype(str), [case.control, CONTROL])


def _labels(source: Source, case: Case) -> tuple[np.ndarray, np.ndarray]:
    is_control = control_mask(source, case, without_column=True)
    context_column = next((c for c in (case.context_col, CONTEXT) if c in source.obs_columns), None)
    if context_column is None:
        return is_control, np.full(source.n_obs, "", dtype=object)
    return is_control, source.labels(context_column).values().astype(str).astype(object)


def placed_rows(rows: sp.csr_array, order: np.ndarray, n_vars: int) -> sp.csr_array:
    """Rows with their genes at the positions `order` of another axis; -1 leaves a gene out. Sorted, float64."""
    kept = order[rows.indices] >= 0
    lengths = np.add.reduceat(np.append(kept, False).astype(np.int64), rows.indptr[:-1]) * (
        np.diff(rows.indptr) > 0
    )
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    parts = (rows.data[kept].astype(np.float64), order[rows.indices[kept]], indptr)
    placed = sp.csr_array(parts, shape=(len(indptr) - 1, n_vars))
    placed.sort_indices()
    return placed


def control_issues(
    case: Case, scan: ValueScan, bulks: ContextBulks, controls: dict[str, ControlFacts]
) -> Iterator[Issue]:
    """Every way in which the cells look wrong beside the control cells of their contexts."""
    yield from _copies(case, scan, controls)
    yield from _swaps(case, bulks, controls)
    yield from _medians(case, scan, bulks, controls)


def _copies(case: Case, scan: ValueScan, controls: dict[str, ControlFacts]) -> Iterator[Issue]:
    known = np.concatenate([p for facts in controls.values() for p in facts.prints] or [np.empty((0, 2))])
    filled = np.flatnonzero(scan.n_detected > 0)
    same = np.isin(print_keys(scan.prints[filled]), print_keys(known))
    if same.any():
        first = case.row_name(int(filled[np.argmax(same)]))
        found = f"{int(same.sum()):,} of {scan.n_rows:,} cells (first: {first})"
        yield case.issue("W324", "/X", found=found, expected="cells that no control cell equals")


def print_keys(prints: np.ndarray) -> np.ndarray:
    """Row prints, shape (n, 2), as values that can be compared as a whole, shape (n,)."""
    return np.ascontiguousarray(prints).view([("a", np.float64), ("b", np.float64)]).ravel()


def _names(case: Case) -> list[str]:
    return [""] if case.contexts is None else [str(name) for name in case.contexts.categories]


def _swaps(case: Case, bulks: ContextBulks, controls: dict[str, ControlFacts]) -> Iterator[Issue]:
    names = _names(case)
    known = [name for name in names if name in controls]
    if len(known) < 2:
        return
    swapped = []
    for name in known:
        own = _log_bulk(bulks.sums[names.index(name)])
        fits = {other: _correlation(own, _log_bulk(controls[other].bulk)) for other in known}
        best = max(fits, key=lambda other: fits[other])
        if fits[best] > fits[name] + SWAP_MARGIN:
            swapped.append(f"{name} fits the controls of {best} ({fits[best]:.3f} against {fits[name]:.3f})")
    if swapped:
        yield case.issue(
            "W323",
            f"/obs/{case.context_col}",
            found=swapped[0],
            expected="the best fit with its own controls",
        )


def _log_bulk(sums: np.ndarray) -> np.ndarray:
    total = sums.sum()
    return np.log1p(sums / total * 1e6) if total > 0 else sums


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if left.std() == 0 or right.std() == 0:
        return -1.0
    return float(np.corrcoef(left, right)[0, 1])


def _medians(
    case: Case, scan: ValueScan, bulks: ContextBulks, controls: dict[str, ControlFacts]
) -> Iterator[Issue]:
    kinds: Any = (("W325", scan.totals, "totals", "counts"), ("W326", scan.n_detected, "detected", "genes"))
    for code, values, name, unit in kinds:
        far = []
        for i, context in enumerate(_names(case)):
            facts = controls.get(context)
            own = values[bulks.codes == i]
            if facts is None or not len(own):
                continue
            middle, real = float(np.median(own)), float(np.median(np.concatenate(getattr(facts, name))))
            if real > 0 and not real / FAR <= middle <= real * FAR:
                where = f" in {context}" if context else ""
                far.append(f"a median of {middle:,.0f} {unit}{where}; control cells have {real:,.0f}")
        if far:
            more = f" ({first_of(far[1:], 1)} more)" if far[1:] else ""
            expected = f"within a factor of {FAR:g}"
            yield case.issue(code, "/X", found=far[0] + more, expected=expected)
