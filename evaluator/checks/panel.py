"""Which perturbations and how many cells an entry holds, against the list and the limits of the edition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...data_specs.issues import Issue
from ..official_memory import GIB, packing_bytes, physical_bytes
from .case import Case, Group, first_with_count
from .labels import control_aliases, suffixed_labels
from .rows import refused_keys


def panel_issues(case: Case) -> Iterator[Issue]:
    """Missing and unexpected perturbations, cells per perturbation, size limits, a demanded list that was not given."""
    panel = case.edition.panel
    if panel.perturbation_list == "required" and case.perturbation_list is None:
        yield case.issue("E407", "/obs", found="no perturbation list", expected="--perts CSV")
    if case.edition.file.context_required and case.required_contexts is None:
        yield case.issue(
            "E411", "/obs", found="no list of contexts", expected="--contexts A,B,C or a manifest.json"
        )
    if case.rows == "cell" and panel.max_cells is not None and case.source.n_obs > panel.max_cells:
        yield case.issue(
            "E408", "/X", found=f"{case.source.n_obs:,} cells", expected=f"at most {panel.max_cells:,}"
        )
    info = case.source.matrix
    if panel.max_stored is not None and info.storage != "dense" and info.n_stored > panel.max_stored:
        yield stored_issue(case, info.n_stored)
    yield from _memory_issues(case)
    if case.perturbations is not None and case.source.n_obs:
        yield from _set_issues(case)
        yield from _cell_count_issues(case)


def _memory_issues(case: Case) -> Iterator[Issue]:
    physical = physical_bytes()
    info = case.source.matrix
    if "vcc2026" not in case.edition.file.containers or physical is None:
        return
    listed = None if case.gene_list is None else list(case.gene_list.genes)
    plain = info.storage != "dense" and info.dtype.newbyteorder("=") == np.float32
    reordered = listed is not None and listed != [str(gene) for gene in case.source.genes]
    needed = packing_bytes(info.n_stored, sparse_float32=plain, reordered=reordered)
    if needed > physical:
        found = f"about {needed / GIB:,.0f} GiB"
        yield case.issue("W411", "/X", found=found, expected=f"at most {physical / GIB:,.0f} GiB")


def stored_issue(case: Case, n_stored: int) -> Issue:
    """The issue of a matrix with more stored (dense: non-zero) entries than the edition takes."""
    found, limit = f"{n_stored:,} stored entries", case.edition.panel.max_stored or 0
    return case.issue("E409", "/X", found=found, expected=f"at most {limit:,}")


def _places(case: Case) -> tuple[str | None, ...]:
    """The contexts that are checked one by one; `(None,)` when the entry is checked as a whole."""
    listed = case.perturbation_list
    if case.contexts is None or listed is None or not (listed.has_contexts or case.context_demanded):
        return (None,)
    if case.required_contexts is not None:
        return case.required_contexts
    return tuple(dict.fromkeys(row.context for row in listed.rows)) if listed.has_contexts else _present(case)


def _present(case: Case) -> tuple[str | None, ...]:
    return tuple(dict.fromkeys(context for context, _ in case.groups))


def _set_issues(case: Case) -> Iterator[Issue]:
    listed = case.perturbation_list
    if listed is None:
        return
    place = f"/obs/{case.pert_col}"
    suffixed = suffixed_labels(case)
    explained = {case.control, *suffixed, *suffixed.values(), *control_aliases(case)}
    refused = (refused_keys(case) or set()) if case.edition.scoring.pipeline == "core" else set()
    missing, unexpected, n_expected = [], [], 0
    for context in _places(case):
        wanted = listed.expected(context)
        have = {name for where, name in case.groups if context is None or where == context}
        if context is not None and not have:
            continue
        n_expected += len(wanted)
        for name in wanted:
            gone = (context or "", name) in refused or (context is None and name in {p for _, p in refused})
            if name not in have and name not in explained and not gone:
                missing.append(case.show((context, name)))
        unexpected += [
            case.show((context, n)) for n in sorted(have) if n not in wanted and n not in explained
        ]
    if missing:
        found = first_with_count(missing, "listed perturbations have no row", n_expected)
        yield case.issue("E401", place, found=found, expected=f"every perturbation of {listed.name}")
    if unexpected:
        found = first_with_count(unexpected, "perturbations are not listed")
        yield case.issue("E402", place, found=found, expected=f"only perturbations of {listed.name}")


def _cell_count_issues(case: Case) -> Iterator[Issue]:
    if case.rows != "cell":
        return
    demanded, listed = case.edition.panel.cells_per_perturbation, case.perturbation_list
    sizes = _sizes_by_place(case)
    wrong, first_expected = [], ""
    for context in _places(case):
        expected = listed.expected(context) if listed is not None else {}
        for (where, name), n_cells in sizes.items():
            if name == case.control or (context is not None and where != context):
                continue
            if listed is not None and name not in expected:
                continue
            wanted = expected.get(name) if listed is not None and listed.has_counts else demanded
            if wanted is not None and n_cells != wanted:
                wrong.append(f"{case.show((where, name))}: {n_cells:,} cells")
                first_expected = first_expected or f"{wanted:,} cells"
    if wrong:
        severity = "error" if demanded is not None else "warning"
        found = first_with_count(wrong, "perturbations with another number of cells")
        yield case.issue(
            "E410", f"/obs/{case.pert_col}", found=found, expected=first_expected, severity=severity
        )


def _sizes_by_place(case: Case) -> dict[Group, int]:
    """Cells of each (context, perturbation); summed over contexts when the entry is checked as a whole."""
    by_context = _places(case) != (None,) or case.context_demanded
    sizes: dict[Group, int] = {}
    for (context, name), n in zip(case.groups, case.group_sizes, strict=True):
        key = (context if by_context else None, name)
        sizes[key] = sizes.get(key, 0) + int(n)
    return sizes
