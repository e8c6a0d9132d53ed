"""Whether X holds counts or log1p values: what is declared, what the edition demands, what the values say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...data_specs.issues import Issue
from ...data_specs.standard import MatrixKind
from .case import Case
from .value_scan import DETECTION_FRACTION, ValueScan

How = Literal["option", "file", "edition", "detected", "unknown"]


@dataclass(frozen=True)
class KindVerdict:
    """The kind that the values are checked as (None: unknown), and where it comes from."""

    kind: MatrixKind | None
    how: How
    detail: str


def claimed_kind(case: Case) -> KindVerdict:
    """What the edition, the option or the file says, in this order; unknown when nothing does."""
    rule = case.edition.file.matrix
    if rule in ("counts", "log1p"):
        return KindVerdict(
            "counts" if rule == "counts" else "log1p", "edition", f"{case.edition.id} takes {rule}"
        )
    if case.matrix_option is not None:
        return KindVerdict(case.matrix_option, "option", "--matrix")
    if case.meta is not None:
        return KindVerdict(case.meta.matrix.kind, "file", "uns/vcbench/matrix/kind")
    return KindVerdict(None, "unknown", "not declared")


def detected_kind(scan: ValueScan) -> KindVerdict:
    """The rule of the 2025 tools: counts unless a value has a fraction of more than 0.001."""
    n, total = scan.detection.count, scan.n_values
    kind: MatrixKind = "log1p" if n else "counts"
    return KindVerdict(
        kind, "detected", f"{n:,} of {total:,} values have a fraction above {DETECTION_FRACTION:g}"
    )


def kind_issues(case: Case) -> Iterator[Issue]:
    """A missing declaration, declarations that contradict each other, log values without a target sum."""
    claim, place = claimed_kind(case), "/uns/vcbench/matrix"
    declared = case.meta.matrix.kind if case.meta else None
    if claim.kind is None and case.edition.file.matrix == "declared":
        yield case.issue("E308", place, found="no declaration", expected="counts or log1p")
    if claim.kind is not None and declared is not None and declared != claim.kind:
        yield case.issue(
            "E319", place, found=f"{declared} in the file", expected=f"{claim.kind} ({claim.detail})"
        )
    if case.edition.file.matrix != "declared" or claim.kind != "log1p" or declared == "counts":
        return
    if case.meta is None or case.meta.matrix.target_sum is None:
        yield case.issue(
            "E310",
            f"{place}/target_sum",
            found="no target sum",
            expected="the total each cell was scaled to",
            severity="error" if claim.how == "file" else "warning",
        )
