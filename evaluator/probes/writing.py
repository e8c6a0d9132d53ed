"""The changed entry as a temporary file, written block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...data_specs.h5ad_columns import Labels
from ...data_specs.h5ad_write import write_h5ad_dense, write_h5ad_stream
from .registry import Change
from .rows import GroupedRows


def write_changed(grouped: GroupedRows, change: Change, path: Path) -> None:
    """Write the entry of `grouped` to `path` with other labels or rows; everything else stays. Raises `OutputError`."""
    source = grouped.source
    obs = {column: _column(source.values(column)) for column in source.obs_columns}
    if change.labels is not None:
        obs[grouped.columns.perturbation] = Labels.from_values(change.labels)
    uns = {"vcbench": source.vcbench} if source.vcbench else {}
    head: dict[str, Any] = {
        "genes": [str(gene) for gene in source.genes],
        "obs": obs,
        "obs_names": [str(name) for name in source.obs_names],
        "uns": uns,
    }
    if grouped.rows == "mean":
        parts = [rows.toarray() for rows in _rows(grouped, change)]
        write_h5ad_dense(path, np.concatenate(parts), **head)
        return
    dtype = np.float64 if source.matrix.dtype == np.float64 else np.float32
    with write_h5ad_stream(path, dtype=dtype, **head) as writer:
        for rows in _rows(grouped, change):
            writer.append(rows)


def _rows(grouped: GroupedRows, change: Change):
    for start, rows, codes in grouped.blocks():
        yield rows if change.rows is None else change.rows(rows, codes, start)


def _column(values: np.ndarray) -> Any:
    return Labels.from_values(values) if values.dtype.kind in "OUS" else values
