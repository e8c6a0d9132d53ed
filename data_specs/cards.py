"""The card of a dataset as text: what it is, where it comes from, what to expect of the file and what to beware of."""

from __future__ import annotations

from .spec_models import DatasetCard, DatasetSpec


def dataset_card(spec: DatasetCard) -> str:
    """The card as lines of text, without a trailing newline."""
    lines = [spec.id, "=" * len(spec.id), spec.title, ""]
    doi = f", doi {spec.citation.doi}" if spec.citation.doi else ""
    facts = {
        "citation": f"{spec.citation.text} ({spec.citation.year}){doi}",
        "licence": spec.license,
        "accessions": ", ".join(spec.accessions),
        "organism": spec.organism,
        "modality": spec.modality,
        "derived from": spec.derived_from or "",
        **layout_facts(spec),
        "must not be read": ", ".join(spec.leaks),
    }
    lines += [f"{name + ':':18}{text}" for name, text in facts.items() if text]
    counts = {
        "cells": spec.n_cells,
        "genes": spec.n_genes,
        "perturbations": spec.n_perturbations,
        "control cells": spec.n_control_cells,
    }
    known = [
        f"  {count.value:>10,}  {what} (evidence: {count.verified})"
        for what, count in counts.items()
        if count
    ]
    lines += ["", "Expected", *known] if known else []
    if spec.files:
        lines += ["", "Files"]
        for file in spec.files:
            size = f", {file.bytes:,} bytes" if file.bytes else ""
            lines.append(f"  {file.name}{size}")
            lines += [f"    {url}" for url in file.urls]
            lines += [
                f"    {kind} {value}" for kind, value in (("md5", file.md5), ("sha256", file.sha256)) if value
            ]
    if spec.traps:
        lines += ["", "Traps", *(f"  {trap.severity}: {trap.text}" for trap in spec.traps)]
    if spec.notes:
        lines += ["", *spec.notes.splitlines()]
    if isinstance(spec, DatasetSpec):
        lines += ["", f"Convert: vcbench data convert SRC.h5ad --spec {spec.id} -o OUT.h5ad"]
    else:
        lines += ["", f"Download: vcbench data fetch {spec.id} -o FOLDER (no layout for conversion)"]
    return "\n".join(lines)


def layout_facts(spec: DatasetCard) -> dict[str, str]:
    """How the file of a layout reads, by name of the fact; nothing for a mere card."""
    if not isinstance(spec, DatasetSpec):
        return {}
    return {
        "matrix": _matrix(spec),
        "context": spec.contexts.value or f"obs column {spec.contexts.column}",
        "labels": _labels(spec),
        "gene names": _genes(spec),
        "kept columns": ", ".join(f"{a} as {b}" for a, b in spec.keep_obs.items()),
    }


def _genes(spec: DatasetSpec) -> str:
    symbols = f"var column {spec.genes.symbol_column}" if spec.genes.symbol_column else "var index"
    ids = spec.genes.gene_id_column
    where = f"var column {ids}" if ids else "var index" if spec.genes.index == "ensembl" else ""
    return f"symbols in the {symbols}" + (f", gene ids in the {where}" if where else "")


def _matrix(spec: DatasetSpec) -> str:
    scale = f", target sum {spec.matrix.target_sum:g}" if spec.matrix.target_sum else ""
    return f"{spec.matrix.location}, {spec.matrix.kind}{scale}"


def _labels(spec: DatasetSpec) -> str:
    control = " or ".join(repr(name) for name in spec.labels.control)
    joined = f", combinations joined by {spec.labels.separator!r}" if spec.labels.separator else ""
    patterns = "".join(f" or /{pattern}/" for pattern in spec.labels.control_patterns)
    dose = spec.labels.dose
    doses = f", dose in {dose.column} ({dose.unit or dose.unit_column})" if dose else ""
    return f"obs column {spec.labels.column}, control is {control}{patterns}{joined}{doses}"
