"""Probes of scale: values logged once too often, and cells of another depth."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from .registry import Change, Stage, probe

# A power of two: the composition of counts stays equal to the last bit.
DEPTH_FACTOR = 4.0


@probe(
    "log-twice",
    kind="exploit",
    documented="2025 challenge: log1p of the submitted values raised scores (participants' write-ups, November 2025)",
    caught_by=("implausible-depth", "amplified-effects", "significant-genes-out-of-range"),
)
def log_twice(stage: Stage) -> Change:
    """Every value x of the file becomes ln(1 + x), controls included; the declared scale stays as it was."""

    def logged(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        data = np.log1p(rows.data.astype(np.float64))
        return sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)

    return Change(rows=logged)


@probe(
    "depth-x4",
    kind="exploit",
    documented="cell-eval normalises truth and prediction each to its own median total, so depth moves errors",
    caught_by=("implausible-depth",),
)
def depth_fourfold(stage: Stage) -> Change:
    """All cells get four times their depth, controls included, without any new information."""

    def deeper(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        if stage.grouped.kind == "counts":
            data = rows.data * DEPTH_FACTOR
        else:
            data = np.log1p(DEPTH_FACTOR * np.expm1(rows.data.astype(np.float64)))
            data = data if stage.cap is None else np.minimum(data, stage.cap)
        return sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)

    return Change(rows=deeper)
