"""Baseline arms, the "0" end of scores: one response for all perturbations, as cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import MetricError
from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES, RowBlock
from .bulks import Bulks
from .cells import Cells, HeldRows, n_rows
from .panel import TruthCells
from .sides import PredSide, RealSide, measure_pred
from .targets import TargetRule, gene_index

BaselineKind = Literal["context-mean", "generic"]
Emission = Literal["tile", "dispersed"]
MIN_CELLS = 30
MAX_RESIDUAL = 0.30


@dataclass(frozen=True)
class Response:
    """A mean count vector, float64, shape (n_genes,), and the facts behind it, for the record."""

    profile: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def generic_response(real: RealSide, rule: TargetRule, *, exclude_target_gene: bool = True) -> Response:
    """Equal-weight mean over perturbations of their mean counts; a perturbation leaves its own gene to the others.

    Raises
    ------
    MetricError
        Fewer than two perturbations, no label names a gene, or a gene that every perturbation targets.
    """
    n = len(real.perturbations)
    if n < 2:
        raise MetricError("a generic response needs at least two perturbations.")
    means = _mean_counts(real.bulks)[:-1]
    weights = np.ones_like(means)
    n_excluded = 0
    if exclude_target_gene:
        own = rule.own_genes_checked(real.perturbations, gene_index(real.genes), where="the gene axis")
        rows = np.flatnonzero(own >= 0)
        weights[rows, own[rows]] = 0.0
        n_excluded = len(rows)
    count = weights.sum(axis=0)
    if not count.all():
        gene = real.genes[int(np.argmin(count))]
        raise MetricError(
            f"every perturbation targets gene {gene!r}, so the generic response has no value for it."
        )
    return Response((means * weights).sum(axis=0) / count, {"n_perturbations": n, "n_excluded": n_excluded})


def context_mean(
    real: RealSide, rule: TargetRule, *, min_cells: int = MIN_CELLS, max_residual: float = MAX_RESIDUAL
) -> Response:
    """Equal-weight mean of the mean counts of perturbations with enough cells and a visible knock-down.

    The residual is the own gene's mean CPM over its mean CPM in control; perturbations whose residual cannot be
    computed (no own gene, or none of it in control) pass. The official thresholds are not published.

    Raises `MetricError` when no perturbation passes.
    """
    own, _ = rule.own_genes(real.perturbations, gene_index(real.genes))
    n = len(real.perturbations)
    rows = np.arange(n)
    level = np.where(own >= 0, real.bulks.mean_cpm[rows, own], np.nan)
    control = np.where(own >= 0, real.bulks.mean_cpm[-1, own], np.nan)
    residual = np.divide(level, control, out=np.full(n, np.nan), where=control > 0)
    passed = (real.bulks.n_cells[:-1] >= min_cells) & ~(residual > max_residual)
    if not passed.any():
        raise MetricError(
            f"no perturbation has {min_cells} cells and at most {max_residual:g} of its target's expression left."
        )
    facts = {
        "min_cells": min_cells,
        "max_residual": max_residual,
        "n_perturbations": n,
        "n_passed": int(passed.sum()),
        "n_without_residual": int(np.isnan(residual).sum()),
    }
    return Response(_mean_counts(real.bulks)[:-1][passed].mean(axis=0), facts)


def _mean_counts(bulks: Bulks) -> np.ndarray:
    return bulks.sums / bulks.n_cells[:, None]


def tiled_side(response: Response, real: RealSide, *, need_de: bool, threads: int | None = None) -> PredSide:
    """The prediction's side when every predicted cell is the profile (float32), each perturbation as large as in truth.

    Perturbations with equally many cells have equal results, so each size is measured once.
    """
    profile = response.profile.astype(np.float32)
    sizes, size_of = np.unique(real.bulks.n_cells[:-1], return_inverse=True)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    source = TiledRows(profile, len(groups))
    stand_in = RealSide(
        real.context, tuple(str(s) for s in sizes), real.genes, real.bulks, real.control, real.de
    )
    side = measure_pred(
        Cells(source, groups.astype(np.int64), memory=real.control.memory, device=real.control.device),
        stand_in,
        need_de=need_de,
        threads=threads,
    )
    return _pick(side, size_of)


def dispersed_side(
    response: Response,
    truth: TruthCells,
    real: RealSide,
    *,
    seed: int = 0,
    need_de: bool,
    threads: int | None = None,
) -> tuple[PredSide, dict[str, Any]]:
    """The prediction's side when cells are drawn control cells, each gene scaled to the profile; and what was lost.

    Labels draw in sorted order from one generator; the rows of a label keep their places in the file.
    """
    cells, facts = dispersed_cells(response, truth, real, seed=seed)
    return measure_pred(cells, real, need_de=need_de, threads=threads), facts


def dispersed_cells(
    response: Response, truth: TruthCells, real: RealSide, *, seed: int = 0
) -> tuple[Cells, dict[str, Any]]:
    """The cells of `dispersed_side`."""
    control = collect_rows(real.control)
    control_mean = np.asarray(control.astype(np.float64).mean(axis=0)).ravel()
    known = control_mean > 0
    scale = np.divide(response.profile, control_mean, out=np.zeros_like(control_mean), where=known)
    rng = np.random.default_rng(seed)
    draws = np.full(len(truth.cells.groups), -1, dtype=np.int64)
    for code in range(len(truth.perturbations)):
        rows = np.flatnonzero(truth.cells.groups == code)
        draws[rows] = rng.integers(0, n_rows(control), size=len(rows))
    wanted = np.flatnonzero(draws >= 0)
    source = ScaledRows(control, draws[wanted], scale)
    unreachable = response.profile[~known]
    facts = {
        "seed": seed,
        "n_genes_silent_in_control": int((~known).sum()),
        "unreachable_mass_share": float(unreachable.sum() / max(response.profile.sum(), 1e-300)),
        "max_scale": float(scale.max(initial=0.0)),
        "median_scale": float(np.median(scale[scale > 0])) if (scale > 0).any() else 0.0,
    }
    return replace(truth.cells, source=source, groups=truth.cells.groups[wanted], on_rows=None), facts


def collect_rows(cells: Cells) -> sp.csr_array:
    """All wanted rows in memory, in file order and dtype."""
    parts = [sp.csr_array(rows[np.flatnonzero(codes >= 0)]) for rows, codes in cells.blocks()]
    if not parts:
        return sp.csr_array((0, cells.source.n_vars), dtype=np.float32)
    return sp.csr_array(sp.vstack(parts, format="csr"))


def held_cells(rows: sp.csr_array, *, name: str) -> Cells:
    """Canonical rows in memory, or mapped, as `Cells` of group 0."""
    return Cells(HeldRows(rows, name=name), np.zeros(n_rows(rows), np.int64))


class TiledRows:
    """A source of equal rows."""

    def __init__(self, profile: np.ndarray, n_obs: int):
        self.name, self.path = "tiled baseline", Path("tiled baseline")
        self.n_obs, self.n_vars = n_obs, len(profile)
        self._profile = profile

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """The rows as CSR blocks."""
        genes = np.flatnonzero(self._profile)
        step = max(1, max_bytes // max(1, 8 * len(genes)))
        for start in range(0, self.n_obs, step):
            n = min(step, self.n_obs - start)
            parts = (np.tile(self._profile[genes], n), np.tile(genes, n), np.arange(n + 1) * len(genes))
            yield RowBlock(start, sp.csr_array(parts, shape=(n, self.n_vars)))


class ScaledRows:
    """A source of drawn rows of a matrix, each column scaled, in float32."""

    def __init__(self, rows: sp.csr_array, draws: np.ndarray, scale: np.ndarray):
        self.name, self.path = "dispersed baseline", Path("dispersed baseline")
        self.n_obs, self.n_vars = len(draws), len(scale)
        self._rows, self._draws, self._scale = rows, draws, scale

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """The rows as CSR blocks without zeros."""
        per_row = 12 * max(1, self._rows.nnz // max(1, n_rows(self._rows)))
        step = max(1, max_bytes // per_row)
        for start in range(0, self.n_obs, step):
            picked = sp.csr_array(self._rows[self._draws[start : start + step]])
            data = (picked.data * self._scale[picked.indices]).astype(np.float32)
            block = sp.csr_array((data, picked.indices, picked.indptr), shape=picked.shape)
            block.eliminate_zeros()
            yield RowBlock(start, block)


def _pick(side: PredSide, rows: np.ndarray) -> PredSide:
    bulks = Bulks(
        *(getattr(side.bulks, name)[rows] for name in ("n_cells", "sums", "bulk", "noise", "mean_cpm"))
    )
    table = side.de
    if table is not None:
        table = replace(
            table,
            log2_fold_change=table.log2_fold_change[rows],
            p_value=table.p_value[rows],
            p_adj=table.p_adj[rows],
        )
    return PredSide(bulks, table)
