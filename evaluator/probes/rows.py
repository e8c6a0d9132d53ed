"""A file whose rows are grouped by (context, perturbation), as probes and diagnostics read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import UsageError
from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ...data_specs.labels import CONTROL
from ...data_specs.normalize import row_totals
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.standard import MatrixKind, RowKind, read_meta
from ..celleval.scale import detected_kind, scan_values
from ..score_options import ScoreOptions

Key = tuple[str, str]


@dataclass(frozen=True)
class Columns:
    """The obs columns and the control label that a run reads: the edition's, or the caller's."""

    perturbation: str
    control: str
    context: str | None

    @classmethod
    def of(cls, edition: Edition, options: ScoreOptions) -> Columns:
        """The caller's choices over the edition's."""
        return cls(
            options.pert_col or edition.file.perturbation_column,
            options.control or edition.file.control_label,
            options.context_col or edition.file.context_column,
        )


@dataclass(frozen=True)
class GroupedRows:
    """Rows of a source with their groups.

    Attributes
    ----------
    kind, rows
        Scale of X, and whether a row is a cell or a mean profile.
    keys
        (context, perturbation) in sorted order, controls as (context, "control"); a file without contexts has "".
    codes
        Position in `keys` of each row, int64, shape (n_obs,), -1 for rows without a label.
    """

    source: Source
    columns: Columns
    kind: MatrixKind
    rows: RowKind
    keys: tuple[Key, ...]
    codes: np.ndarray
    block_bytes: int = DEFAULT_BLOCK_BYTES

    @property
    def is_control(self) -> np.ndarray:
        """Which keys are controls, bool, shape (n_keys,)."""
        return np.array([name == CONTROL for _, name in self.keys], dtype=bool)

    @property
    def sizes(self) -> np.ndarray:
        """Rows per key, int64, shape (n_keys,)."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.keys)).astype(np.int64)

    def blocks(self) -> Iterator[tuple[int, sp.csr_array, np.ndarray]]:
        """(first row, canonical CSR rows, their codes) in file order."""
        for block in self.source.row_blocks(max_bytes=self.block_bytes):
            yield block.start, block.matrix, self.codes[block.start : block.stop]

    def median_total(self) -> float | None:
        """Median total of the labelled cells with a count; None for log1p values."""
        if self.kind != "counts":
            return None
        parts = [row_totals(rows)[codes >= 0] for _, rows, codes in self.blocks()]
        totals = np.concatenate(parts) if parts else np.zeros(0)
        return float(np.median(totals[totals > 0])) if (totals > 0).any() else None


def grouped_rows(source: Source, edition: Edition, options: ScoreOptions) -> GroupedRows:
    """The rows of an opened file under the edition's names and its rule for the scale of X.

    Raises
    ------
    UsageError
        A column is missing, or the scale is neither declared nor given.
    """
    columns = Columns.of(edition, options)
    labels = source.labels(columns.perturbation)
    names = [CONTROL if name == columns.control else str(name) for name in labels.categories]
    places, contexts = np.zeros(source.n_obs, np.int64), [""]
    if columns.context is not None and columns.context in source.obs_columns:
        context = source.labels(columns.context)
        places, contexts = context.codes.astype(np.int64), [str(name) for name in context.categories]
    joint = np.where(
        (labels.codes >= 0) & (places >= 0), places * max(1, len(names)) + labels.codes.astype(np.int64), -1
    )
    used, inverse = np.unique(joint, return_inverse=True)
    found = [("", "") if j < 0 else (contexts[j // len(names)], names[j % len(names)]) for j in used]
    keys = tuple(sorted({key for key, j in zip(found, used, strict=True) if j >= 0}))
    position = {key: i for i, key in enumerate(keys)}
    table = np.array([-1 if j < 0 else position[key] for key, j in zip(found, used, strict=True)])
    meta = read_meta(source)
    return GroupedRows(
        source,
        columns,
        matrix_kind(source, edition, options),
        "cell" if meta is None else meta.rows,
        keys,
        table[inverse.ravel()].astype(np.int64),
        options.block_bytes,
    )


def matrix_kind(source: Source, edition: Edition, options: ScoreOptions) -> MatrixKind:
    """The scale of X as the edition decides it: by rule, by declaration, or by looking at the values."""
    rule = edition.file.matrix
    if rule == "counts" or rule == "log1p":
        return rule
    if rule == "detect":
        keep = np.ones(source.n_obs, dtype=bool)
        return options.matrix or detected_kind(scan_values(source, keep, block_bytes=options.block_bytes))
    meta = read_meta(source)
    kind = meta.matrix.kind if meta else options.matrix
    if kind is None:
        raise UsageError(f"{source.name}: does not declare the scale of X; --matrix counts or log1p says it.")
    return kind


def declared_target_sum(source: Source) -> float | None:
    """The total that cells are scaled to before the logarithm, as the file declares it."""
    meta = read_meta(source)
    return None if meta is None else meta.matrix.target_sum
