"""Perturbation and context labels of the rows, and the names of the rows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ...data_specs.h5ad import H5ad
from ...data_specs.issues import Issue
from ...data_specs.labels import (
    CONTROL_ALIASES,
    UNASSIGNED_LABELS,
    guide_suffixed,
    is_canonical,
    join_targets,
    split_label,
    targets_of,
)
from ...data_specs.memory_source import MemorySource
from .case import Case, first_with_count

_FILLERS = ("ctrl", "control")
# Names that published files use for these columns, most telling first: for the suggested command only.
_PERTURBATION_COLUMNS = ("target_gene", "perturbation", "condition", "target", "gene", "perturbation_name")
_CONTEXT_COLUMNS = ("context", "cell_line", "cell_type", "celltype", "donor")


def label_issues(case: Case) -> Iterator[Issue]:
    """Every problem of the label columns and of the obs names."""
    yield from _column_issues(case)
    if case.perturbations is not None and case.source.n_obs:
        yield from _missing_label_issues(case)
        yield from _control_issues(case)
        yield from _spelling_issues(case)
        yield from _group_issues(case)
    if case.contexts is not None and case.source.n_obs:
        yield from _context_issues(case)
    yield from _name_issues(case)


def _column_issues(case: Case) -> Iterator[Issue]:
    listed = ", ".join(case.source.obs_columns) or "no column"
    if case.pert_col not in case.source.obs_columns:
        likely = _likely(case, _PERTURBATION_COLUMNS)
        expected = f"a column {case.pert_col!r}"
        yield case.issue("E201", "/obs", found=listed[:120], expected=expected, column=likely)
    column = case.context_col
    if case.context_demanded and column and column not in case.source.obs_columns:
        likely = _likely(case, _CONTEXT_COLUMNS)
        yield case.issue("E202", "/obs", found=listed[:120], expected=f"a column {column!r}", column=likely)


def _likely(case: Case, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in case.source.obs_columns), "COLUMN")


def _missing_label_issues(case: Case) -> Iterator[Issue]:
    rows = np.flatnonzero(case.unlabelled)
    if len(rows):
        found = f"{len(rows):,} of {case.source.n_obs:,} rows without a label (first: {case.row_name(int(rows[0]))})"
        yield case.issue("E203", f"/obs/{case.pert_col}", found=found, expected="a label for every row")


def control_aliases(case: Case) -> list[str]:
    """Labels that other datasets use for control cells, apart from the declared one."""
    known = {_folded(alias) for alias in CONTROL_ALIASES}
    return [name for name in label_names(case) if name != case.control and _folded(name) in known]


def _folded(label: str) -> str:
    return re.sub(r"[-_ ]", "", label).casefold()


def label_names(case: Case) -> list[str]:
    """The distinct labels of the rows, without missing ones, sorted."""
    labels = case.perturbations
    names = () if labels is None else labels.categories
    return [str(name) for name in names if str(name).strip() not in UNASSIGNED_LABELS]


def n_controls(case: Case) -> int:
    """Rows with the control label."""
    return 0 if case.perturbations is None else case.perturbations.counts().get(case.control, 0)


def _control_issues(case: Case) -> Iterator[Issue]:
    place, rule, n_found = f"/obs/{case.pert_col}", case.edition.panel.control, n_controls(case)
    aliases = control_aliases(case)
    if rule == "forbidden":
        names = [*([case.control] if n_found else []), *aliases]
        if names and case.perturbations is not None:
            n_rows = sum(case.perturbations.counts()[name] for name in names)
            yield case.issue(
                "E210", place, found=f"{n_rows:,} rows labelled {names[0]!r}", expected="no control rows"
            )
    elif not n_found and aliases:
        yield case.issue(
            "E208",
            place,
            found=f"{aliases[0]!r}",
            expected=f"{case.control!r}, or --control",
            label=aliases[0],
        )
    elif rule == "required" and not n_found and case.rows == "cell":
        found = f"no row labelled {case.control!r} among {len(label_names(case)):,} labels"
        yield case.issue("E209", place, found=found, expected=f"cells labelled {case.control!r}")


def suffixed_labels(case: Case) -> dict[str, str]:
    """Labels that end in a guide number, with the name they would have without it."""
    known = set(map(str, case.source.genes))
    if case.perturbation_list is not None:
        known |= case.perturbation_list.names
    names = [name for name in label_names(case) if name != case.control]
    found = {}
    for name in names:
        parts = targets_of(name) if case.standard_labels else (name,)
        if name not in known and guide_suffixed(list(parts), known):
            found[name] = join_targets(p if p in known else re.sub(r"-\d+$", "", p) for p in parts)
    return found


def _spelling_issues(case: Case) -> Iterator[Issue]:
    place = f"/obs/{case.pert_col}"
    suffixed = suffixed_labels(case)
    if suffixed:
        first = next(iter(suffixed))
        found = first_with_count(list(suffixed), "labels end in a guide number", len(label_names(case)))
        yield case.issue("E207", place, found=found, expected=f"{suffixed[first]!r}")
    if not case.standard_labels:
        return
    wrong = {}
    for name in label_names(case):
        canonical = _canonical(name)
        if name not in (case.control, canonical):
            wrong[name] = canonical
    if wrong:
        first = next(iter(wrong))
        found = first_with_count(list(wrong), "labels", len(label_names(case)))
        yield case.issue("E211", place, found=found, expected=f"{wrong[first]!r}")


def _canonical(label: str) -> str:
    parts = split_label(label)
    kept = [part for part in parts if part not in _FILLERS]
    return label if is_canonical(label) and len(kept) == len(parts) else join_targets(kept)


def _group_issues(case: Case) -> Iterator[Issue]:
    place = f"/obs/{case.pert_col}"
    if case.rows == "mean":
        twice = [case.show(group) for group, n in zip(case.groups, case.group_sizes, strict=True) if n > 1]
        if twice:
            found = first_with_count(twice, "profiles given more than once", len(case.groups))
            yield case.issue("E212", place, found=found, expected="one row per (context, perturbation)")
    unused = _unused_categories(case)
    if unused:
        found = first_with_count(unused, "categories without a row")
        yield case.issue("W215", place, found=found, expected="only labels that occur")


def _unused_categories(case: Case) -> list[str]:
    if case.perturbations is None or not isinstance(case.source, (H5ad, MemorySource)):
        return []
    stored = case.source.stored_categories(case.pert_col) or ()
    used = set(case.perturbations.categories)
    return [name for name in stored if name not in used]


def _context_issues(case: Case) -> Iterator[Issue]:
    labels, place = case.contexts, f"/obs/{case.context_col}"
    if labels is None:
        return
    blank = np.append([str(name).strip() in UNASSIGNED_LABELS for name in labels.categories], True)
    rows = np.flatnonzero(blank.astype(bool)[labels.codes])
    if len(rows):
        found = f"{len(rows):,} of {case.source.n_obs:,} rows without a context (first: {case.row_name(int(rows[0]))})"
        yield case.issue("E204", place, found=found, expected="a context for every row")
    if case.required_contexts is None:
        return
    present = [str(name) for name, gone in zip(labels.categories, blank, strict=False) if not gone]
    expected = ", ".join(case.required_contexts)
    unknown = [name for name in present if name not in case.required_contexts]
    if unknown:
        found = first_with_count(unknown, "unknown contexts", len(present))
        yield case.issue("E205", place, found=found, expected=expected)
    absent = [name for name in case.required_contexts if name not in present]
    if absent:
        found = first_with_count(absent, "contexts without a row", len(case.required_contexts))
        yield case.issue("E206", place, found=found, expected=expected)


def _name_issues(case: Case) -> Iterator[Issue]:
    names, counts = np.unique(case.source.obs_names, return_counts=True)
    repeated = [str(name) for name in names[counts > 1]]
    if repeated:
        found = first_with_count(repeated, "names repeated", len(names))
        yield case.issue("W214", "/obs/_index", found=found, expected="each name once")
