"""Do the right genes change, and in the right direction?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

from .base import Null, Value
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..core.row import CoreRow

_NO_DE = Null("fewer than 2 cells or controls: no DE")
_NO_PRED_DE = Null("fewer than 2 predicted cells: no predicted DE")
_NO_TRUE_DE = Null("the truth has no DE gene")
_NOTHING_PREDICTED = Null("the prediction names no gene")


def shared(truth: np.ndarray, pred: np.ndarray) -> int:
    """Number of gene positions in both sets."""
    return len(np.intersect1d(truth, pred))


def direction_shares(d: np.ndarray, e: np.ndarray) -> tuple[float, float] | Null:
    """(share with sign(e) = sign(d), share with sign(e) = -sign(d)) over genes with d != 0; null without such genes."""
    moved = d != 0
    n = int(moved.sum())
    if not n:
        return Null("no true change on these genes")
    product = np.sign(d[moved]) * np.sign(e[moved])
    return float((product > 0).sum()) / n, float((product < 0).sum()) / n


def _top20_overlap(row: CoreRow) -> Value:
    if row.de is None:
        return _NO_DE
    truth, pred = row.de.ranked(changed=True)[: row.n_top], row.predicted_ranking
    if isinstance(pred, Null):
        return pred
    if not len(truth):
        return Null("no gene differs from control in the truth")
    return shared(truth, pred[: len(truth)]) / len(truth)


def _topk_overlap(row: CoreRow) -> Value:
    if row.de is None:
        return _NO_DE
    k, pred = row.de.n_significant, row.predicted_ranking
    if isinstance(pred, Null):
        return pred
    if k == 0:
        return _NO_TRUE_DE
    return shared(row.de.ranked()[:k], pred[:k]) / k


def _topk_precision(row: CoreRow) -> Value:
    if row.de is None:
        return _NO_DE
    if row.has_cells:
        if row.pred_de is None:
            return _NO_PRED_DE
        named = np.flatnonzero(row.pred_de.significant)
    else:
        ranking = row.predicted_ranking
        if isinstance(ranking, Null):
            return ranking
        if not row.de.n_significant:
            return _NO_TRUE_DE
        named = ranking[: row.de.n_significant]
    if not len(named):
        return _NOTHING_PREDICTED
    return shared(np.flatnonzero(row.de.significant), named) / len(named)


def _direction(row: CoreRow, which: int) -> Value:
    if row.de is None:
        return _NO_DE
    if not row.de.n_significant:
        return _NO_TRUE_DE
    shares = direction_shares(row.d[row.de.significant], row.e[row.de.significant])
    return shares if isinstance(shares, Null) else shares[which]


def _direction_top20(row: CoreRow) -> Value:
    if row.de is None:
        return _NO_DE
    top = row.de.ranked()[: row.n_top]
    shares = direction_shares(row.d[top], row.e[top])
    return shares if isinstance(shares, Null) else shares[0]


_RANKING = (
    "The predicted ranking is by |Welch t| of the predicted cells against the truth's controls, or by |e| when the "
    "prediction is a mean profile; genes predicted without change are not in it."
)
_SPECS: tuple[
    tuple[str, str, str, Literal["higher", "lower"], float, str, bool, Callable[[CoreRow], Value]], ...
] = (
    (
        "top20_overlap",
        "Overlap of the top 20 DE genes",
        f"|T & P| / |T|, T = the 20 true genes of largest |Welch t| (t != 0), P = the first |T| predicted. {_RANKING}",
        "higher",
        1.0,
        "With fewer than 2 true, control or predicted cells (mean profiles need none).",
        True,
        _top20_overlap,
    ),
    (
        "topk_overlap",
        "Overlap of the DE genes at the true number",
        "|T & P| / k, k = number of true DE genes (BH < 0.05), T = the k true genes of largest |Welch t|, P = the "
        f"first k predicted genes. {_RANKING}",
        "higher",
        1.0,
        "When the truth has no DE gene; with fewer than 2 true, control or predicted cells.",
        True,
        _topk_overlap,
    ),
    (
        "topk_precision",
        "Precision of the predicted DE genes",
        "|S & P| / |P|, S = true DE genes (BH < 0.05), P = DE genes (BH < 0.05) of the predicted cells against "
        "the truth's controls; for mean profiles, which have no significance, P = the first |S| genes by |e| > 0.",
        "higher",
        1.0,
        "When P is empty; with fewer than 2 true, control or predicted cells.",
        True,
        _topk_precision,
    ),
    (
        "direction_accuracy",
        "Direction accuracy over true DE genes",
        "share of true DE genes (BH < 0.05) with sign(e) = sign(d); e = 0 is not correct",
        "higher",
        1.0,
        "When the truth has no DE gene; with fewer than 2 true or control cells.",
        False,
        lambda row: _direction(row, 0),
    ),
    (
        "opposite_direction",
        "Opposite direction over true DE genes",
        "share of true DE genes (BH < 0.05) with sign(e) = -sign(d); e = 0 is not opposite",
        "lower",
        0.0,
        "When the truth has no DE gene; with fewer than 2 true or control cells.",
        False,
        lambda row: _direction(row, 1),
    ),
    (
        "direction_accuracy_top20",
        "Direction accuracy over the top 20 DE genes",
        "share of the 20 genes of largest |Welch t| (those with d != 0) with sign(e) = sign(d)",
        "higher",
        1.0,
        "When none of them changes; with fewer than 2 true or control cells.",
        False,
        _direction_top20,
    ),
)

for _name, _title, _formula, _better, _perfect, _nulls, _ranked, _function in _SPECS:
    register(
        MetricSpec(
            name=_name,
            version=1,
            family="core",
            title=_title,
            formula=_formula,
            source="field standard; Welch t test with Benjamini-Hochberg",
            better=_better,
            perfect=_perfect,
            needs=frozenset({"bulk", "de", "pred_de"} if _ranked else {"bulk", "de"}),
            nulls=_nulls,
            scope="perturbation",
            compute=_function,
        )
    )
