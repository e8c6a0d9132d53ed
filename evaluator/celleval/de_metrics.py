"""The metrics of cell-eval on DE tables.

Every function returns a masked float64 array over targets: masked means that cell-eval has no entry (null),
NaN that its value is NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .panel import Panel


def overlap(panel: Panel, k: int | None, side: Literal["overlap", "precision"]) -> np.ma.MaskedArray:
    """Shared genes of the k top-ranked significant genes of truth and prediction, over k.

    k is cut to the significant genes of the truth (`overlap`) or of the prediction (`precision`), or is that
    number when None. 0 where k is 0, and everywhere when either file has no significant gene at all.
    """
    truth, pred = panel.ranked
    values = np.zeros(panel.n_targets)
    if any(map(len, truth)) and any(map(len, pred)):
        for i in range(panel.n_targets):
            available = len(truth[i] if side == "overlap" else pred[i])
            top = available if k is None else min(k, available)
            if top:
                values[i] = len(np.intersect1d(truth[i][:top], pred[i][:top])) / top
    return np.ma.masked_array(values, mask=False)


def spearman_sig(panel: Panel) -> np.ma.MaskedArray:
    """Spearman over targets between the numbers of significant genes; targets without any in the truth are left out.

    1 when no target is left, NaN for one target or constant counts.
    """
    n_truth, n_pred = (side.table.significant.sum(axis=1) for side in (panel.truth, panel.pred))
    kept = n_truth > 0
    if not kept.any():
        return panel.everywhere(1.0)
    return panel.everywhere(spearman(n_truth[kept], n_pred[kept]))


def direction_match(panel: Panel) -> np.ma.MaskedArray:
    """Share of the truth's significant genes that change in the same direction in the prediction; null without any."""
    truth, pred = panel.truth.table, panel.pred.table
    same = np.sign(truth.lfc32) == np.sign(pred.lfc32)
    return _over_significant(panel, lambda i, genes: float(same[i, genes].mean()))


def spearman_lfc(panel: Panel) -> np.ma.MaskedArray:
    """Spearman over the truth's significant genes between fold changes; null without any, NaN where constant."""
    truth, pred = panel.truth.table, panel.pred.table
    x, y = (
        (table.lfc32 if table.fold_change is None else table.fold_change.astype(np.float32))
        for table in (truth, pred)
    )
    return _over_significant(panel, lambda i, genes: spearman(x[i, genes], y[i, genes]))


def recall(panel: Panel) -> np.ma.MaskedArray:
    """Share of the truth's significant genes that are significant in the prediction; null without any."""
    found = panel.pred.table.significant
    return _over_significant(panel, lambda i, genes: float(found[i, genes].mean()))


def n_significant(panel: Panel, side: Literal["real", "pred"]) -> np.ma.MaskedArray:
    """Number of significant genes of each target."""
    table = (panel.truth if side == "real" else panel.pred).table
    return np.ma.masked_array(table.significant.sum(axis=1).astype(np.float64), mask=False)


def area(panel: Panel, curve: Literal["pr", "roc"]) -> np.ma.MaskedArray:
    """Average precision, or area under the ROC curve, of the predicted -log10 FDR for the true significant genes.

    NaN where none or all genes are significant.
    """
    labels = panel.truth.table.significant
    fdr = panel.pred.table.fdr32
    if panel.rules.auc_floor == "clip":
        scores = -np.log10(np.clip(fdr, np.float32(1e-10), np.float32(1.0)))
    else:
        scores = -np.log10(np.where(fdr == 0, np.float32(1e-10), fdr))
    measure = average_precision if curve == "pr" else roc_area
    values = [measure(labels[i], scores[i]) for i in range(panel.n_targets)]
    return np.ma.masked_array(np.array(values), mask=False)


def _over_significant(panel: Panel, value) -> np.ma.MaskedArray:  # type: ignore[no-untyped-def]
    out = np.ma.masked_all(panel.n_targets, dtype=np.float64)
    for i, row in enumerate(panel.truth.table.significant):
        genes = np.flatnonzero(row)
        if len(genes):
            out[i] = value(i, genes)
    return out


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of mid-ranks; NaN for fewer than two values or a constant side; infinities are extremes."""
    from scipy.stats import rankdata

    if len(x) < 2:
        return float("nan")
    a, b = (rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    scale = np.sqrt((a @ a) * (b @ b))
    return float((a @ b) / scale) if scale > 0 else float("nan")


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative true and false positives at each distinct score, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    true = np.cumsum(labels[order])[last].astype(np.float64)
    return true, last + 1.0 - true


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum of precision times the rise of recall over falling scores (no interpolation); NaN with one class only."""
    n_positive = int(labels.sum())
    if not 0 < n_positive < len(labels):
        return float("nan")
    true, false = _curve(labels, scores)
    return float(np.sum(np.diff(true, prepend=0.0) / n_positive * true / (true + false)))


def roc_area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by trapezoids; NaN with one class only."""
    n_positive = int(labels.sum())
    if not 0 < n_positive < len(labels):
        return float("nan")
    true, false = _curve(labels, scores)
    heights = (true + np.append(0.0, true[:-1])) / 2
    return float(np.sum(np.diff(false, prepend=0.0) * heights) / n_positive / (len(labels) - n_positive))
