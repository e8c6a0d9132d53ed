"""The standard h5ad, schema version 1: names of columns and the record in `uns["vcbench"]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from .errors import UsageError

if TYPE_CHECKING:
    from .sources import Source

SCHEMA_VERSION = 1
UNS_KEY = "vcbench"
PERTURBATION, CONTEXT, IS_CONTROL, N_TARGETS, LABEL_SOURCE = (
    "perturbation",
    "context",
    "is_control",
    "n_targets",
    "label_source",
)
DOSE, DOSE_UNIT, TIME_H = "dose", "dose_unit", "time_h"
MatrixKind = Literal["counts", "log1p"]
RowKind = Literal["cell", "mean"]


@dataclass(frozen=True)
class MatrixMeta:
    """The declared scale of X. `target_sum` is the total each cell is scaled to before ln(1 + x).

    For counts it is the sum that every later step uses; for log1p the sum that was used. None when unknown.
    """

    kind: MatrixKind
    target_sum: float | None = None


@dataclass(frozen=True)
class StandardMeta:
    """The record `uns["vcbench"]` of a standard file."""

    dataset_id: str
    matrix: MatrixMeta
    rows: RowKind = "cell"
    modality: str = "unknown"
    organism: str = "unknown"
    control_label: str = "control"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_uns(self) -> dict[str, Any]:
        """The nested dict to store under `uns`."""
        matrix = {
            "kind": self.matrix.kind,
            "target_sum": self.matrix.target_sum,
            "log_base": "e",
            "pseudocount": 1.0,
        }
        record = {
            "schema_version": SCHEMA_VERSION,
            "vcbench_version": version("vcbench"),
            "dataset_id": self.dataset_id,
            "rows": self.rows,
            "modality": self.modality,
            "organism": self.organism,
            "control_label": self.control_label,
            "matrix": matrix,
            **self.extra,
        }
        return {UNS_KEY: record}


_CORE_KEYS = {
    "schema_version",
    "vcbench_version",
    "dataset_id",
    "rows",
    "modality",
    "organism",
    "control_label",
    "matrix",
}


def read_meta(file: Source) -> StandardMeta | None:
    """The record of a file, or None when it has none. Raises `UsageError` when it is of a newer schema or broken."""
    record = file.vcbench
    if not record:
        return None
    schema = record.get("schema_version")
    if schema != SCHEMA_VERSION:
        raise UsageError(
            f"{file.path}: uns/vcbench has schema version {schema!r}; this vcbench reads {SCHEMA_VERSION}."
        )
    matrix = record.get("matrix")
    matrix = matrix if isinstance(matrix, Mapping) else {}
    kind, rows = matrix.get("kind"), record.get("rows", "cell")
    if kind not in ("counts", "log1p") or rows not in ("cell", "mean"):
        raise UsageError(f"{file.path}: uns/vcbench declares matrix kind {kind!r} and rows {rows!r}.")
    target_sum = matrix.get("target_sum")
    is_number = isinstance(target_sum, (int, float)) and not isinstance(target_sum, bool)
    if target_sum is not None and not (is_number and 0 < target_sum < float("inf")):
        raise UsageError(
            f"{file.path}: uns/vcbench declares target_sum {target_sum!r}; it is a positive number."
        )
    return StandardMeta(
        dataset_id=str(record.get("dataset_id", "unknown")),
        matrix=MatrixMeta(kind, None if target_sum is None else float(target_sum)),
        rows=rows,
        modality=str(record.get("modality", "unknown")),
        organism=str(record.get("organism", "unknown")),
        control_label=str(record.get("control_label", "control")),
        extra={key: value for key, value in record.items() if key not in _CORE_KEYS},
    )
