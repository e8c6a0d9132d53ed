"""DE metrics about which genes are called, in what order, and how strongly; own gene kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .de_pair import GATE_SIZE, Pair

TOP_SIZES = (50, 100, 200, 500)
AUC_FLOOR = 1e-10


def overlap(pair: Pair, top: int | None = None) -> float:
    """Share of the truth's k strongest significant genes among the prediction's k strongest; k from the truth.

    k is the truth's number of significant genes, at most `top`; 0 when either side has none.
    """
    k = pair.real.n_significant if top is None else min(top, pair.real.n_significant)
    return _shared(pair, k) / k if k and pair.pred.n_significant else 0.0


def precision(pair: Pair, top: int | None = None) -> float:
    """The same with k from the prediction's number of significant genes."""
    k = pair.pred.n_significant if top is None else min(top, pair.pred.n_significant)
    return _shared(pair, k) / k if k else 0.0


def nsig_counts_real(pair: Pair) -> float:
    """Significant genes of the truth."""
    return float(pair.real.n_significant)


def nsig_counts_pred(pair: Pair) -> float:
    """Significant genes of the prediction."""
    return float(pair.pred.n_significant)


def sig_recall(pair: Pair) -> float:
    """Share of the truth's significant genes that the prediction calls."""
    a = pair.real.n_significant
    return pair.n_shared / a if a else float("nan")


def lfc_spearman(pair: Pair, sign: int = 0) -> float:
    """Spearman correlation of the fold changes on the truth's significant genes (with `sign`, those of that sign).

    A gene missing from the prediction counts as fold change 0. NaN when either side is constant.
    """
    genes = pair.real.significant.copy()
    if sign:
        genes &= np.sign(pair.real.fold) == sign
    pred = np.where(pair.pred.present, pair.pred.fold, 0.0)[genes]
    return spearman(pair.real.fold[genes], pred)


def overlap_adjusted(pair: Pair) -> float:
    """Matthews correlation of the truth's significant genes with equally many of the prediction's strongest."""
    a = pair.real.n_significant
    chosen = pair.pred.ranked[:a]
    shared = int(pair.real.significant[chosen].sum())
    return _matthews(shared, a, len(chosen), pair.n_universe)


def precision_adjusted(pair: Pair) -> float:
    """Markedness: precision minus the miss rate among the genes not called; -1 when undefined."""
    a, b, n = pair.real.n_significant, pair.pred.n_significant, pair.n_universe
    if b == 0 or b >= n:
        return -1.0
    return pair.n_shared / b - (a - pair.n_shared) / (n - b)


def sig_recall_adjusted(pair: Pair) -> float:
    """Informedness: recall minus the false-positive rate; -1 when undefined."""
    a, b, n = pair.real.n_significant, pair.pred.n_significant, pair.n_universe
    if a == 0 or a >= n:
        return -1.0
    return pair.n_shared / a - (b - pair.n_shared) / (n - a)


def sig_mcc(pair: Pair) -> float:
    """Matthews correlation of the two significant sets over the tested genes; -1 when undefined."""
    return _matthews(pair.n_shared, pair.real.n_significant, pair.pred.n_significant, pair.n_universe)


def nsig_spearman(pairs: Sequence[Pair]) -> float:
    """Spearman correlation over perturbations of the numbers of significant genes, where the truth has any.

    NaN below ten such perturbations or when the truth's counts are all equal; -1 when only the prediction's are.
    """
    counted = [pair for pair in pairs if pair.real.n_significant]
    real = np.array([float(pair.real.n_significant) for pair in counted])
    pred = np.array([float(pair.pred.n_significant) for pair in counted])
    if len(real) < GATE_SIZE or len(np.unique(real)) < 2:
        return float("nan")
    return spearman(real, pred) if len(np.unique(pred)) > 1 else -1.0


def pr_auc(pairs: Sequence[Pair]) -> np.ndarray:
    """Average precision of the predicted p_adj for the truth's significant genes, per perturbation."""
    return _auc(pairs, average_precision)


def roc_auc(pairs: Sequence[Pair]) -> np.ndarray:
    """Area under the ROC curve of the predicted p_adj for the truth's significant genes, per perturbation."""
    return _auc(pairs, ranked_auc)


def _auc(pairs: Sequence[Pair], measure: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    merged = [np.where(np.isnan(pair.pred.p_adj), 1.0, pair.pred.p_adj)[pair.real.present] for pair in pairs]
    positive = np.concatenate([values[values > 0] for values in merged]) if merged else np.empty(0)
    floor = float(positive.min()) if len(positive) else AUC_FLOOR
    out = np.full(len(pairs), np.nan)
    for row, (pair, values) in enumerate(zip(pairs, merged, strict=True)):
        truth = pair.real.significant[pair.real.present]
        if truth.any() and not truth.all():
            out[row] = measure(truth, -np.log10(np.where(values > 0, values, floor)))
    return out


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """Sum over falling thresholds of (gain in recall) * precision; equal scores are one threshold. In [0, 1]."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    recall = hits[last] / hits[-1]
    gain = np.diff(np.concatenate([[0.0], recall]))
    return float(np.clip((gain * hits[last] / (last + 1)).sum(), 0.0, 1.0))


def ranked_auc(truth: np.ndarray, score: np.ndarray) -> float:
    """Probability that a true gene scores above another, ties counting half."""
    from scipy.stats import rankdata

    n_true = int(truth.sum())
    u = float(rankdata(score)[truth].sum()) - n_true * (n_true + 1) / 2
    return u / (n_true * (len(truth) - n_true))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of average ranks; NaN when either side is constant or has fewer than two values."""
    from scipy.stats import rankdata

    if len(x) < 2:
        return float("nan")
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    bottom = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / bottom) if bottom > 0 else float("nan")


def _shared(pair: Pair, k: int) -> int:
    return len(np.intersect1d(pair.real.ranked[:k], pair.pred.ranked[:k], assume_unique=True))


def _matthews(shared: int, a: int, b: int, n: int) -> float:
    if a == 0 or b == 0 or a >= n or b >= n:
        return -1.0
    return (shared * n - a * b) / float(np.sqrt(float(a) * b * (n - a) * (n - b)))


# Gates read only the truth, so that every prediction is judged on the same perturbations.


def gate_significant(pair: Pair) -> bool:
    """At least ten significant true genes."""
    return pair.real.n_significant >= GATE_SIZE


def gate_two_classes(pair: Pair) -> bool:
    """Ten significant true genes and at least one that is not."""
    return gate_significant(pair) and pair.real.n_significant < int(pair.real.present.sum())


def gate_decidable(pair: Pair) -> bool:
    """At least ten true genes whose fold change has a sign."""
    return int(pair.real.signed.sum()) >= GATE_SIZE


def gate_tested(pair: Pair) -> bool:
    """At least ten genes tested in the truth."""
    return int(pair.real.present.sum()) >= GATE_SIZE


def gate_rank(pair: Pair, sign: int = 0) -> bool:
    """At least ten significant true genes (of one sign) with two different fold changes."""
    genes = pair.real.significant.copy()
    if sign:
        genes &= np.sign(pair.real.fold) == sign
    return int(genes.sum()) >= GATE_SIZE and len(np.unique(pair.real.fold[genes])) > 1


LIST_METRICS: dict[str, Callable[[Pair], float]] = {
    "overlap": overlap,
    **{f"overlap_top{k}": partial(overlap, top=k) for k in TOP_SIZES},
    "precision": precision,
    **{f"precision_top{k}": partial(precision, top=k) for k in TOP_SIZES},
    "nsig_counts_real": nsig_counts_real,
    "nsig_counts_pred": nsig_counts_pred,
    "sig_recall": sig_recall,
    "lfc_spearman": lfc_spearman,
    "lfc_spearman_pos": partial(lfc_spearman, sign=1),
    "lfc_spearman_neg": partial(lfc_spearman, sign=-1),
    "overlap_adjusted": overlap_adjusted,
    "precision_adjusted": precision_adjusted,
    "sig_recall_adjusted": sig_recall_adjusted,
    "sig_mcc": sig_mcc,
}
PANEL_METRICS: dict[str, Callable[[Sequence[Pair]], np.ndarray]] = {"pr_auc": pr_auc, "roc_auc": roc_auc}

# Gate and the value of a perturbation inside the gate whose metric is undefined (None: it cannot be undefined).
GATES: dict[str, tuple[Callable[[Pair], bool], float | None]] = {
    "sig_recall": (gate_significant, None),
    "direction_match": (gate_significant, 0.0),
    "model_direction_match": (gate_tested, 0.0),
    "lfc_spearman": (gate_rank, -1.0),
    "lfc_spearman_pos": (partial(gate_rank, sign=1), -1.0),
    "lfc_spearman_neg": (partial(gate_rank, sign=-1), -1.0),
    "pr_auc": (gate_two_classes, None),
    "roc_auc": (gate_two_classes, None),
    "overlap_adjusted": (gate_two_classes, None),
    "sig_recall_adjusted": (gate_two_classes, None),
    "sig_mcc": (gate_two_classes, None),
    "direction_precision": (gate_decidable, 0.0),
    "direction_sensitivity": (gate_significant, None),
    "direction_sensitivity_universe": (gate_significant, None),
}
