"""What must hold before two files can be compared: problems of the pair, then of the values, each all at once."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...data_specs.issues import Issue, first_of, make_issue
from ...data_specs.sources import Source
from ...data_specs.standard import MatrixKind
from .scale import LOG1P_LIMIT, Scale, ValueScan, detected_kind


class GeneAxis(Protocol):
    """What messages and gene checks need of a truth, be it a file or a bundle."""

    @property
    def name(self) -> Any: ...
    @property
    def path(self) -> Path: ...
    @property
    def genes(self) -> np.ndarray: ...
    @property
    def n_vars(self) -> int: ...


def gene_issues(pred: Source, truth: GeneAxis) -> list[Issue]:
    """Gene lists that differ, repeat a name, or come in another order."""
    issues = [issue for source in (truth, pred) for issue in repeated_gene_issues(source)]
    where = f"{pred.name}:/var/_index"
    if np.array_equal(pred.genes, truth.genes):
        return issues
    missing = sorted(set(truth.genes) - set(pred.genes))
    extra = sorted(set(pred.genes) - set(truth.genes))
    if missing or extra:
        issues.append(
            make_issue(
                "E565",
                where=where,
                found=f"{pred.n_vars:,} genes; missing {first_of(missing)}, extra {first_of(extra)}",
                expected=f"the {truth.n_vars:,} genes of {truth.name}",
                file=_quoted(pred),
            )
        )
    elif pred.n_vars == truth.n_vars:
        moved = np.flatnonzero(pred.genes != truth.genes)
        at = int(moved[0])
        issues.append(
            make_issue(
                "E566",
                where=where,
                found=f"{len(moved):,} genes out of place (first: position {at:,} holds {pred.genes[at]!r})",
                expected=f"the order of {truth.name} ({truth.genes[at]!r} at position {at:,})",
                file=_quoted(pred),
            )
        )
    return issues


def repeated_gene_issues(source: GeneAxis) -> list[Issue]:
    """Gene names that occur more than once."""
    names, counts = np.unique(source.genes.astype(str), return_counts=True)
    if (counts == 1).all():
        return []
    return [
        make_issue(
            "E577",
            where=f"{source.name}:/var/_index",
            found=f"repeated names: {first_of(names[counts > 1])}",
            expected="every gene once",
            file=_quoted(source),
        )
    ]


def column_issues(source: Source, columns: Sequence[str]) -> list[Issue]:
    """Columns of obs that are not there."""
    return [
        make_issue(
            "E567",
            where=f"{source.name}:/obs",
            found=f"columns {first_of(source.obs_columns, 6)}",
            expected=f"obs/{column}",
            file=_quoted(source),
            column=column,
        )
        for column in columns
        if column not in source.obs_columns
    ]


def row_kind_issues(source: Source, edition_id: str) -> list[Issue]:
    """Mean profiles where cells are needed."""
    if source.vcbench.get("rows") != "mean":
        return []
    return [
        make_issue(
            "E575",
            where=f"{source.name}:/uns/vcbench/rows",
            found="mean",
            expected="cell",
            file=_quoted(source),
            edition=edition_id,
        )
    ]


def unlabelled_issues(source: Source, column: str, labels: np.ndarray) -> list[Issue]:
    """Rows without a label in `column`."""
    missing = np.flatnonzero([label is None for label in labels])
    if not len(missing):
        return []
    return [
        make_issue(
            "E570",
            where=f"{source.name}:/obs/{column}",
            found=f"{len(missing):,} missing (first: cell {source.obs_names[missing[0]]!r})",
            expected="a label for every cell",
            file=_quoted(source),
        )
    ]


def label_issues(
    pred: Source, truth: GeneAxis, pred_labels: set[str], truth_labels: set[str], column: str, place: str
) -> list[Issue]:
    """Labels of one context (`place` is its text in messages) that only one of the files has."""
    missing, extra = sorted(truth_labels - pred_labels), sorted(pred_labels - truth_labels)
    if not missing and not extra:
        return []
    return [
        make_issue(
            "E568",
            where=f"{pred.name}:/obs/{column}{place}",
            found=f"missing {first_of(missing)}, extra {first_of(extra)}",
            expected=f"the {len(truth_labels):,} labels of {truth.name}",
            file=_quoted(pred),
        )
    ]


def control_issues(source: Source, labels: set[str], column: str, control: str, place: str) -> list[Issue]:
    """A control label that no cell has."""
    if control in labels:
        return []
    return [
        make_issue(
            "E569",
            where=f"{source.name}:/obs/{column}{place}",
            found=f"labels {first_of(sorted(labels))}",
            expected=f"cells labelled {control!r}",
            file=_quoted(source),
            control=control,
        )
    ]


def nothing_issue(truth: Source, place: str) -> Issue:
    """No perturbation to evaluate."""
    return make_issue(
        "E576",
        where=f"{truth.name}:/obs{place}",
        found="0 perturbations",
        expected="at least one",
        file=_quoted(truth),
    )


def value_issues(source: Source, scan: ValueScan, requested: MatrixKind | None) -> list[Issue]:
    """Values that the verdict on the matrix forbids."""
    issues = []
    where = f"{source.name}:/X"
    kind = requested or detected_kind(scan)
    if scan.n_nan:
        issues.append(
            make_issue(
                "E571", where=where, found=f"{scan.n_nan:,} values", expected="no NaN", file=_quoted(source)
            )
        )
    if scan.n_negative:
        found = f"{scan.n_negative:,} values (smallest {scan.minimum:g})"
        issues.append(
            make_issue(
                "E572", where=where, found=found, expected="values of at least 0", file=_quoted(source)
            )
        )
    too_large = scan.maximum >= LOG1P_LIMIT if kind == "log1p" else np.isinf(scan.maximum)
    if too_large:
        found = (
            f"a maximum of {scan.maximum:g} in a matrix {'declared' if requested else 'detected'} as {kind}"
        )
        expected = f"counts, or log1p values below {LOG1P_LIMIT:g}"
        issues.append(make_issue("E573", where=where, found=found, expected=expected, file=_quoted(source)))
    return issues


def scale_issues(source: Source, scale: Scale) -> list[Issue]:
    """Counts whose median total is 0."""
    if scale.median_total != 0:
        return []
    return [
        make_issue(
            "E574",
            where=f"{source.name}:/X",
            found="a median total of 0",
            expected="more than half of the cells with a count",
            file=_quoted(source),
        )
    ]


def declared_kind_warning(source: Source, scale: Scale) -> list[Issue]:
    """A record in uns/vcbench that the verdict contradicts."""
    record = source.vcbench.get("matrix")
    declared = record.get("kind") if isinstance(record, dict) else None
    if declared is None or declared == scale.kind:
        return []
    return [
        make_issue(
            "W565",
            where=f"{source.name}:/uns/vcbench/matrix/kind",
            found=f"{scale.decided_by} {scale.kind}",
            expected=f"{declared} as declared",
            file=_quoted(source),
        )
    ]


def _quoted(source: GeneAxis) -> str:
    return shlex.quote(str(source.path))
