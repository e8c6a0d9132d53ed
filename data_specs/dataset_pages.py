"""The documentation page of a dataset, made from its spec."""

from __future__ import annotations

from .cards import layout_facts
from .spec_models import DatasetCard, DatasetSpec


def dataset_page(spec: DatasetCard) -> str:
    """A Markdown page: facts with their evidence, expected numbers, files with checksums, traps, commands.

    Everything comes from the spec; the text ends with a newline.
    """
    doi = f", doi [{spec.citation.doi}](https://doi.org/{spec.citation.doi})" if spec.citation.doi else ""
    facts = {
        "id": f"`{spec.id}`",
        "family": f"`{spec.family}`",
        "citation": f"{spec.citation.text} ({spec.citation.year}){doi}",
        "license": spec.license,
        "accessions": ", ".join(spec.accessions),
        "organism": spec.organism,
        "modality": spec.modality,
        "derived from": f"`{spec.derived_from}`" if spec.derived_from else "",
        **layout_facts(spec),
        "must not be read by models": ", ".join(spec.leaks),
    }
    rows = [
        (name, text, spec.evidence.get(name, spec.verified.level)) for name, text in facts.items() if text
    ]
    lines = [f"# {spec.title}", "", *_table(("fact", "value", "evidence"), rows)]
    counts = {
        "cells": spec.n_cells,
        "genes": spec.n_genes,
        "perturbations": spec.n_perturbations,
        "control cells": spec.n_control_cells,
    }
    known = [
        (what, ("about " if count.rel_tolerance else "") + f"{count.value:,}", count.verified)
        for what, count in counts.items()
        if count is not None
    ]
    if known:
        lines += ["", "## Expected", "", *_table(("what", "number", "evidence"), known)]
    if spec.files:
        files = [
            (
                file.role,
                f"`{file.name}`",
                f"{file.bytes:,}" if file.bytes is not None else "",
                "; ".join(
                    f"{kind} `{value}`"
                    for kind, value in (("md5", file.md5), ("sha256", file.sha256), ("crc32c", file.crc32c))
                    if value
                ),
                " ".join(f"<{url}>" for url in file.urls),
            )
            for file in spec.files
        ]
        lines += ["", "## Files", "", *_table(("role", "name", "bytes", "checksum", "address"), files)]
    if spec.traps:
        lines += [
            "",
            "## Traps",
            "",
            *(f"- **{trap.id}** ({trap.severity}): {trap.text}" for trap in spec.traps),
        ]
    if spec.notes or spec.verified.note:
        lines += ["", "## Notes", "", *filter(None, (spec.notes, spec.verified.note))]
    commands = []
    if any(file.urls for file in spec.files):
        commands.append(f"vcbench data fetch {spec.id} -o downloads")
    if isinstance(spec, DatasetSpec):
        commands += [
            f"vcbench data check FILE.h5ad --spec {spec.id}",
            f"vcbench data convert FILE.h5ad --spec {spec.id} -o OUT.h5ad",
            "vcbench data export OUT.h5ad --to gears -o GEARS.h5ad",
        ]
    if commands:
        lines += ["", "## Commands", "", "```", *commands, "```"]
    return "\n".join(lines) + "\n"


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    # A bar inside a cell would end it.
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers), *body]
