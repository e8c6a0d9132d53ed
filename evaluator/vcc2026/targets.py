"""Which gene a perturbation targets: by its own name, by a map, or declared to have none."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...data_specs.errors import MetricError, UsageError
from ...data_specs.remote import input_path

_NO_GENE = {"", "none", "null", "na", "nan"}


@dataclass(frozen=True)
class TargetRule:
    """How labels find their own gene.

    `genes` maps labels to a gene, or to None when the label is declared to have no target gene; `none_for_rest`
    declares that for every label not in `genes`. A label that is not mapped is looked up under its own name.
    """

    genes: Mapping[str, str | None] = field(default_factory=dict)
    none_for_rest: bool = False

    def gene_of(self, label: str) -> str | None:
        """The gene that a label targets, or None when it is declared to have none."""
        if label in self.genes:
            return self.genes[label]
        return None if self.none_for_rest else label

    def own_genes(
        self, labels: Sequence[str], index: Mapping[str, int], *, trust_map: bool = False
    ) -> tuple[np.ndarray, int]:
        """(column of each label's own gene or -1, how many labels count as resolved).

        Declared labels count as resolved and get -1. With `trust_map` a mapped label counts as resolved even
        when its gene is not in `index`.
        """
        columns = np.full(len(labels), -1, dtype=np.int64)
        resolved = 0
        for position, label in enumerate(labels):
            gene = self.gene_of(label)
            if gene is None:
                resolved += 1
                continue
            columns[position] = index.get(gene, -1)
            resolved += columns[position] >= 0 or (label in self.genes and trust_map)
        return columns, int(resolved)

    def own_genes_checked(
        self, labels: Sequence[str], index: Mapping[str, int], *, where: str, trust_map: bool = False
    ) -> np.ndarray:
        """The columns of `own_genes`.

        Raises
        ------
        MetricError
            No label resolves: excluding the target gene would silently exclude nothing.
        """
        columns, resolved = self.own_genes(labels, index, trust_map=trust_map)
        if len(labels) and not resolved:
            raise MetricError(
                f"none of the {len(labels):,} perturbation labels (first: {labels[0]!r}) names a gene of {where}, so "
                "no target gene can be left out. Give --target-map CSV (label,gene), or --no-target-genes when the "
                "perturbations have no target gene."
            )
        return columns

    def describe(self) -> dict[str, object]:
        """The rule as plain values, for the record of a run."""
        return {"mapped": len(self.genes), "none_for_rest": self.none_for_rest}


def read_target_map(path: str | os.PathLike[str]) -> dict[str, str | None]:
    """The two-column CSV `label,gene`; an empty gene (or `none`, `null`, `NA`) declares "no target gene".

    A first row `label,gene`, `target,gene` or `perturbation,gene` is a header. Raises `UsageError` when the file
    cannot be read, has other columns, or names a label twice.
    """
    try:
        with input_path(path).open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a readable CSV ({error}).") from error
    if rows and [cell.strip().lower() for cell in rows[0]] in (
        ["label", "gene"],
        ["target", "gene"],
        ["perturbation", "gene"],
    ):
        rows = rows[1:]
    out: dict[str, str | None] = {}
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UsageError(f"{path}: row {number} has {len(row)} columns; expected label,gene.")
        label, gene = row[0].strip(), row[1].strip()
        if label in out:
            raise UsageError(f"{path}: label {label!r} is listed twice.")
        out[label] = None if gene.lower() in _NO_GENE else gene
    if not out:
        raise UsageError(f"{path}: no row with a label and a gene.")
    return out


def gene_index(genes: Sequence[str]) -> dict[str, int]:
    """Gene name to column. Names are unique (checked when the panel is read)."""
    return {str(gene): column for column, gene in enumerate(genes)}
