"""Probe of the other perturbations' target genes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ...data_specs.normalize import row_totals
from .registry import Change, NotApplicable, Stage, probe
from .target_genes import MIN_TARGETS, other_targets

# Size of a spike in log1p space.
SPIKE = 2.0


@probe(
    "target-spike",
    kind="exploit",
    documented="definition of cell-eval's discrimination score: only a row's own target gene is left out, so wrong "
    "candidates can be pushed away at their targets; the 2026 score leaves out all targets",
    caught_by=("target-spikes",),
)
def target_spike(stage: Stage) -> Change | NotApplicable:
    """In every perturbation the target genes of all others move against the direction that targeting gives them."""
    grouped = stage.grouped
    if stage.target_direction == 0:
        return NotApplicable(f"fewer than {MIN_TARGETS} target genes are among the genes")
    others = other_targets(stage.targets, grouped.keys)
    wanted = np.clip(stage.entry.mean - SPIKE * stage.target_direction, 0.0, stage.cap)
    spiked = np.zeros((len(grouped.keys) + 1, grouped.source.n_vars), dtype=bool)
    for i, genes in enumerate(others):
        spiked[i, genes] = not grouped.is_control[i]
    columns = np.flatnonzero(spiked.any(axis=0))

    def raised(rows: sp.csr_array, codes: np.ndarray, start: int) -> sp.csr_array:
        repeated = np.repeat(codes, np.diff(rows.indptr))
        data = np.where(spiked[repeated, rows.indices], 0.0, rows.data)
        kept = sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
        values = np.where(spiked[codes][:, columns], wanted[codes][:, columns], 0.0)
        if grouped.kind == "counts":
            values = np.rint(np.expm1(values) * row_totals(rows)[:, None] / stage.entry.target_sum)
        new = sp.csr_array(values)
        new = sp.csr_array((new.data, columns[new.indices], new.indptr), shape=rows.shape)
        return sp.csr_array(kept + new)

    return Change(rows=raised)
