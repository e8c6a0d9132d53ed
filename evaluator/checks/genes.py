"""Genes of the file against themselves, the gene list and the edition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...data_specs.issues import Issue
from ..reference_files import MISSING_NAMES, GeneList
from .case import Case, first_with_count

PLACE = "/var/_index"


def gene_issues(case: Case) -> Iterator[Issue]:
    """Duplicate and nameless genes; missing, extra and misplaced genes against the list; the edition's count."""
    genes = [str(gene) for gene in case.source.genes]
    if not genes:
        yield case.issue("E108", PLACE, found="0 genes", expected="at least one gene")
        return
    yield from _own_issues(case, genes)
    yield from _count_issues(case, len(genes))
    if case.gene_list is not None:
        yield from _list_issues(case, genes, case.gene_list)


def _own_issues(case: Case, genes: list[str]) -> Iterator[Issue]:
    names, counts = np.unique(np.array(genes, dtype=object), return_counts=True)
    repeated = [str(name) for name in names[counts > 1]]
    if repeated:
        yield case.issue(
            "E103", PLACE, found=first_with_count(repeated, "symbols repeated"), expected="each gene once"
        )
    nameless = [i for i, gene in enumerate(genes) if gene.strip().lower() in MISSING_NAMES]
    if nameless:
        found = f"{len(nameless):,} (first: position {nameless[0]:,} holds {genes[nameless[0]]!r})"
        yield case.issue("E109", PLACE, found=found, expected="a symbol for every gene")


def _count_issues(case: Case, n_genes: int) -> Iterator[Issue]:
    expected = case.edition.panel.gene_count
    if expected is None:
        return
    if case.gene_list is not None and len(case.gene_list.genes) != expected:
        found = f"{len(case.gene_list.genes):,} genes in {case.gene_list.name}"
    elif case.gene_list is None and n_genes != expected:
        found = f"{n_genes:,} genes"
    else:
        return
    yield case.issue("W107", PLACE, found=found, expected=f"{expected:,} genes")


def _list_issues(case: Case, genes: list[str], listed: GeneList) -> Iterator[Issue]:
    have, want = set(genes), set(listed.genes)
    if listed.header is not None and "vcc2025" in case.edition.file.containers:
        yield case.issue(
            "W104",
            PLACE,
            found=f"the header {listed.header!r} in {listed.name}",
            expected="one symbol per line, no header",
        )
    missing = [gene for gene in listed.genes if gene not in have]
    if missing:
        found = first_with_count(missing, "listed genes are missing", len(listed.genes))
        yield case.issue("E105", PLACE, found=found, expected=f"every gene of {listed.name}")
    extra = [gene for gene in dict.fromkeys(genes) if gene not in want]
    if extra:
        found = first_with_count(extra, "genes are not listed", len(genes))
        yield case.issue("E106", PLACE, found=found, expected=f"only genes of {listed.name}")
    if missing or extra or len(genes) != len(have):
        return
    places = [i for i, (gene, wanted) in enumerate(zip(genes, listed.genes, strict=True)) if gene != wanted]
    if places:
        at = places[0]
        found = f"{len(places):,} of {len(genes):,} genes out of place (first: position {at:,} holds {genes[at]!r})"
        binding = case.edition.panel.gene_order == "binding"
        yield case.issue(
            "E104",
            PLACE,
            found=found,
            expected=f"{listed.genes[at]!r} there",
            severity="error" if binding else "info",
        )
