"""Unscored single-cell diagnostics: do predicted cells vary together as real cells do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from .cells import Cells, n_rows, totals_of
from .panel import TruthCells
from .targets import TargetRule, gene_index

MAX_CELLS, MIN_CELLS = 500, 50
TARGET_SUM = 1e4
N_GENES, MIN_GENES = 100, 20
MIN_NONZERO_CELLS = 10
MIN_SD = 1e-6
MIN_TRIANGLE_SD = 1e-10
SIGNIFICANCE = 0.05
MIN_MATRIX_ENTRIES = 6
_GENE_BLOCK = 2048


@dataclass(frozen=True)
class CellPair:
    """Cells of one perturbation on both sides, float32 log1p of counts per 10,000, shape (n, n_genes), n equal."""

    real: np.ndarray
    pred: np.ndarray
    candidates: np.ndarray
    real_mean: np.ndarray
    control_mean: np.ndarray


def cell_diagnostics(truth: TruthCells, pred: Cells, rule: TargetRule) -> dict[str, np.ndarray]:
    """`cell_cov_corr`, `cell_cov_eig_ratio`, `cell_cov_ccc` per perturbation, NaN where a side has too few cells.

    Both sides are cut to the same number of cells, at most 500, drawn by a generator seeded with the label and side.
    """
    n = len(truth.perturbations)
    real_rows = _group_rows(truth.cells, n + 1)
    pred_rows = _group_rows(pred, n)
    own, _ = rule.own_genes(truth.perturbations, gene_index(truth.genes))
    control = real_rows[n]
    control_sums = np.asarray(control.sum(axis=0)).ravel()
    control_mean = _mean_cp10k(control)
    out = {name: np.full(n, np.nan) for name in ("cell_cov_corr", "cell_cov_eig_ratio", "cell_cov_ccc")}
    for i, label in enumerate(truth.perturbations):
        depth = min(n_rows(real_rows[i]), n_rows(pred_rows[i]), MAX_CELLS)
        if depth < MIN_CELLS:
            continue
        real = real_rows[i]
        candidates = (np.asarray(real.sum(axis=0)).ravel() > 0) | (control_sums > 0)
        if own[i] >= 0:
            candidates[own[i]] = False
        real = _subsample(real, depth, label, "real")
        pair = CellPair(
            _log_cp10k(real),
            _log_cp10k(_subsample(pred_rows[i], depth, label, "pred")),
            candidates,
            _mean_cp10k(real),
            control_mean,
        )
        out["cell_cov_corr"][i], out["cell_cov_eig_ratio"][i] = _top_gene_agreement(pair)
        out["cell_cov_ccc"][i] = _concordance(pair)
    return out


def _top_gene_agreement(pair: CellPair) -> tuple[float, float]:
    """(Pearson of the two correlation matrices, ratio of their largest eigenvalues) on the most changed genes."""
    eligible = np.flatnonzero(pair.candidates & ((pair.real > 0).sum(axis=0) >= MIN_NONZERO_CELLS))
    if len(eligible) < MIN_GENES:
        return np.nan, np.nan
    change = np.abs(np.log2((pair.real_mean[eligible] + 1) / (pair.control_mean[eligible] + 1)))
    genes = np.sort(eligible[np.argsort(-change, kind="stable")[:N_GENES]])
    real, pred = pair.real[:, genes].astype(np.float64), pair.pred[:, genes].astype(np.float64)
    varied = (real.std(axis=0) > MIN_SD) & (pred.std(axis=0) > MIN_SD)
    if int(varied.sum()) < MIN_GENES:
        return np.nan, np.nan
    real_corr, pred_corr = _correlations(real[:, varied]), _correlations(pred[:, varied])
    upper = np.triu_indices(len(real_corr), 1)
    x, y = real_corr[upper], pred_corr[upper]
    known = np.isfinite(x) & np.isfinite(y)
    agreement = np.nan
    if known.sum() >= 2 and x[known].std() > MIN_TRIANGLE_SD and y[known].std() > MIN_TRIANGLE_SD:
        agreement = float(np.corrcoef(x[known], y[known])[0, 1])
    ratio = float(np.linalg.eigvalsh(pred_corr)[-1] / np.linalg.eigvalsh(real_corr)[-1])
    return agreement, ratio


def _concordance(pair: CellPair) -> float:
    """Lin's concordance of gene-gene correlations that are significant on both sides, in blocks of genes."""
    from scipy.stats import t as student

    n = len(pair.real)
    quantile = float(student.ppf(1 - SIGNIFICANCE / 2, n - 2))
    threshold = quantile / np.sqrt(n - 2 + quantile**2)
    varied = [side.std(axis=0) > MIN_SD for side in (pair.real, pair.pred)]
    genes = np.flatnonzero(varied[0] & varied[1])
    real, pred = _standardised(pair.real[:, genes]), _standardised(pair.pred[:, genes])
    count, sums = 0, np.zeros(5)
    for start in range(0, len(genes), _GENE_BLOCK):
        block = slice(start, start + _GENE_BLOCK)
        x, y = real[:, block].T @ real / np.float32(n), pred[:, block].T @ pred / np.float32(n)
        keep = (np.abs(x) >= threshold) & (np.abs(y) >= threshold)
        rows = np.arange(keep.shape[0])
        keep[rows, start + rows] = False
        a, b = x[keep].astype(np.float64), y[keep].astype(np.float64)
        count += len(a)
        sums += [a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()]
    if count < MIN_MATRIX_ENTRIES:
        return np.nan
    mean_x, mean_y, xx, yy, xy = sums / count
    variances = (xx - mean_x**2) + (yy - mean_y**2)
    return float(2 * (xy - mean_x * mean_y) / (variances + (mean_x - mean_y) ** 2 + 1e-12))


def _correlations(values: np.ndarray) -> np.ndarray:
    return np.corrcoef(values, rowvar=False)


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred / values.std(axis=0, dtype=np.float64).astype(np.float32)


def _subsample(rows: sp.csr_array, depth: int, label: str, side: str) -> sp.csr_array:
    if n_rows(rows) <= depth:
        return rows
    seed = int.from_bytes(hashlib.sha256(f"0:{label}|{side}".encode()).digest()[:8], "big")
    chosen = np.random.default_rng(seed).choice(n_rows(rows), depth, replace=False)
    return sp.csr_array(rows[np.sort(chosen)])


def _log_cp10k(rows: sp.csr_array) -> np.ndarray:
    scaled = _cp10k(rows)
    scaled.data = np.log1p(scaled.data)
    return scaled.toarray().astype(np.float32)


def _mean_cp10k(rows: sp.csr_array) -> np.ndarray:
    return np.asarray(_cp10k(rows).mean(axis=0)).ravel()


def _cp10k(rows: sp.csr_array) -> sp.csr_array:
    totals = totals_of(rows)
    totals[totals == 0] = 1.0
    data = rows.data.astype(np.float64) * np.repeat(TARGET_SUM / totals, np.diff(rows.indptr))
    return sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def _group_rows(cells: Cells, n_groups: int) -> Sequence[sp.csr_array]:
    """The rows of each group, in file order."""
    parts: list[list[sp.csr_array]] = [[] for _ in range(n_groups)]
    for rows, codes in cells.blocks():
        for group in np.unique(codes[codes >= 0]):
            parts[group].append(sp.csr_array(rows[np.flatnonzero(codes == group)]))
    width = cells.source.n_vars
    return [sp.csr_array(sp.vstack(part)) if part else sp.csr_array((0, width)) for part in parts]
