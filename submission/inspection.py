"""`inspect`: what is in an h5ad or a submission file, in one streaming pass."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.containers import open_entry
from ..data_specs.errors import InvalidFile
from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES, H5ad
from ..data_specs.h5ad_columns import Labels
from ..data_specs.issues import Issue
from ..data_specs.labels import CONTROL_ALIASES
from ..data_specs.remote import input_path
from ..data_specs.standard import CONTEXT, PERTURBATION
from ..evaluator.official_memory import packing_bytes, scoring_bytes

LABEL_COLUMNS = (PERTURBATION, "target_gene", "gene", "condition")
CONTEXT_COLUMNS = (CONTEXT, "cell_type", "celltype", "cell_line")


@dataclass(frozen=True)
class Spread:
    """Smallest, median, mean and largest of a number per row."""

    minimum: float
    median: float
    mean: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread | None:
        """The spread of the finite values, None when there is none."""
        finite = values[np.isfinite(values)]
        if not len(finite):
            return None
        return cls(float(finite.min()), float(np.median(finite)), float(finite.mean()), float(finite.max()))


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes
    ----------
    stored, nonzero
        Stored entries of X, and those that are not zero; `density` is nonzero / (rows x genes).
    values
        `whole numbers`, `fractions`, or `empty`, with NaN, negative values and the largest value beside it.
    row_totals, detected
        Total and number of non-zero genes per row.
    labels, contexts
        Rows per category of the perturbation and context columns that were found; empty without one.
    controls
        Rows whose label is a known name of the control, by label.
    memory
        Bytes of X in memory as CSR float32 and as dense float32, and the estimates for the official 2026 tools:
        the client's packing and the server's scoring.
    """

    path: str
    container: str
    meta: dict[str, Any]
    n_obs: int
    n_vars: int
    storage: str
    dtype: str
    stored: int
    nonzero: int
    density: float
    values: str
    n_nan: int
    n_infinite: int
    n_negative: int
    maximum: float | None
    row_totals: Spread | None
    detected: Spread | None
    obs_columns: tuple[str, ...]
    var_columns: tuple[str, ...]
    label_column: str | None
    labels: dict[str, int]
    n_unlabelled: int
    context_column: str | None
    contexts: dict[str, int]
    controls: dict[str, int]
    declared: dict[str, Any]
    other_groups: tuple[str, ...]
    memory: dict[str, int]
    file_bytes: int
    notes: tuple[Issue, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The inspection as nested dicts of plain values."""
        return asdict(self) | {"notes": [issue.to_json() for issue in self.notes]}


def inspect_file(
    path: str | os.PathLike[str],
    *,
    tmp: str | os.PathLike[str] | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Inspection:
    """Everything `Inspection` lists, of an `.h5ad` or `.vcc`. NaN and infinite values are left out of totals.

    Raises
    ------
    InvalidFile
        The file does not exist or cannot be read (codes E001 to E015, E501 to E511).
    OutputError
        `tmp` is no folder.
    """
    file_path = input_path(path)
    with open_entry(file_path, tmp=tmp) as entry:
        try:
            with H5ad(entry.h5ad) as file:
                return _inspection(file, file_path, entry.container, entry.meta, entry.notes, block_bytes)
        except InvalidFile as error:
            raise InvalidFile([_renamed(issue, entry.h5ad, file_path) for issue in error.issues]) from error


def _renamed(issue: Issue, inner: Path, entry: Path) -> Issue:
    where = issue.where.replace(str(inner), str(entry)).replace(inner.name, entry.name)
    return replace(issue, where=where, fix=issue.fix.replace(str(inner), shlex.quote(str(entry))))


def _inspection(
    file: H5ad,
    path: Path,
    container: str,
    meta: dict[str, Any],
    notes: tuple[Issue, ...],
    block_bytes: int,
) -> Inspection:
    totals, detected = np.zeros(file.n_obs), np.zeros(file.n_obs)
    tally = {"nan": 0, "infinite": 0, "negative": 0, "fractional": 0, "nonzero": 0}
    maximum = -np.inf
    for block in file.row_blocks(max_bytes=block_bytes, canonical=False):
        data = block.matrix.data.astype(np.float64)
        n = block.stop - block.start
        rows = np.repeat(np.arange(n), np.diff(block.matrix.indptr))
        finite = np.isfinite(data)
        tally["nan"] += int(np.isnan(data).sum())
        tally["infinite"] += int(np.isinf(data).sum())
        tally["negative"] += int((data < 0).sum())
        tally["nonzero"] += int((data != 0).sum())
        tally["fractional"] += int((finite & (data != np.rint(np.where(finite, data, 0)))).sum())
        maximum = max(maximum, float(data[finite].max(initial=-np.inf)))
        part = slice(block.start, block.stop)
        totals[part] = np.bincount(rows, weights=np.where(finite, data, 0.0), minlength=n)
        detected[part] = np.bincount(rows, weights=(data != 0).astype(np.float64), minlength=n)
    if tally["nonzero"] < file.n_obs * file.n_vars:
        maximum = max(maximum, 0.0)
    label_column, labels, n_unlabelled = _counted(file, LABEL_COLUMNS)
    context_column, contexts, _ = _counted(file, CONTEXT_COLUMNS)
    n_cells = file.n_obs * file.n_vars
    values = "empty" if not tally["nonzero"] else "fractions" if tally["fractional"] else "whole numbers"
    return Inspection(
        path=str(path),
        container=container,
        meta=meta,
        n_obs=file.n_obs,
        n_vars=file.n_vars,
        storage=file.matrix.storage,
        dtype=str(file.matrix.dtype),
        stored=file.matrix.n_stored,
        nonzero=tally["nonzero"],
        density=tally["nonzero"] / n_cells if n_cells else 0.0,
        values=values,
        n_nan=tally["nan"],
        n_infinite=tally["infinite"],
        n_negative=tally["negative"],
        maximum=maximum if np.isfinite(maximum) else None,
        row_totals=Spread.of(totals),
        detected=Spread.of(detected),
        obs_columns=file.obs_columns,
        var_columns=file.var_columns,
        label_column=label_column,
        labels=labels,
        n_unlabelled=n_unlabelled,
        context_column=context_column,
        contexts=contexts,
        controls={name: n for name, n in labels.items() if name in CONTROL_ALIASES},
        declared=_plain(file.vcbench),
        other_groups=file.groups,
        memory={
            "csr_float32": tally["nonzero"] * 8 + (file.n_obs + 1) * 8,
            "dense_float32": n_cells * 4,
            "official_packing": packing_bytes(
                file.matrix.n_stored if file.matrix.storage != "dense" else tally["nonzero"],
                sparse_float32=file.matrix.storage != "dense" and file.matrix.dtype == np.float32,
                reordered=False,
            ),
            "official_scoring": scoring_bytes(tally["nonzero"]),
        },
        file_bytes=path.stat().st_size,
        notes=notes,
    )


def _counted(file: H5ad, columns: tuple[str, ...]) -> tuple[str | None, dict[str, int], int]:
    column = next((c for c in columns if c in file.obs_columns), None)
    if column is None:
        return None, {}, 0
    labels: Labels = file.labels(column)
    return column, labels.counts(), int((labels.codes < 0).sum())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    return value
