"""Direction metrics of the DE family: are the called genes right about up and down, and how far does that reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .de import ALPHA
from .de_pair import Pair

REACH_PURITY = 0.9
MIN_NULL_GAP = 0.05
MIN_NMAE_GENES = 10


@dataclass(frozen=True)
class Direction:
    """Counts without the own gene that the direction metrics share.

    `n_confirmed` genes are significant in the truth; `n_called` decidable joint genes are significant in the
    prediction, `n_right` of them with the true sign. `majority` is the larger share of one sign among the
    confirmed genes (None when none has a sign): what always predicting that sign would reach.
    """

    n_confirmed: int
    n_called: int
    n_right: int
    majority: float | None

    @property
    def gap(self) -> float:
        """1 - majority, at least 0.05: the room above always predicting the majority sign."""
        return max(1.0 - float(self.majority or 0.0), MIN_NULL_GAP)


def direction_counts(pair: Pair) -> Direction:
    """The shared counts of one perturbation."""
    confirmed = pair.real.significant & pair.others
    called = pair.pred.significant & pair.decidable & pair.others
    signed = confirmed & pair.real.signed
    n_signed = int(signed.sum())
    up = int((signed & (pair.real.fold > 0)).sum())
    return Direction(
        int(confirmed.sum()),
        int(called.sum()),
        int((called & pair.match).sum()),
        max(up, n_signed - up) / n_signed if n_signed else None,
    )


def direction_fidelity_yield_raw(pair: Pair) -> float:
    """Right calls over the larger of calls made and genes confirmed; NaN when both are none."""
    c = direction_counts(pair)
    return _ratio(c.n_right, max(c.n_called, c.n_confirmed))


def direction_reach_raw(pair: Pair) -> float:
    """Confirmed genes that the prediction's own order covers while 90 % of signs are right, as a share."""
    return _reach(pair, REACH_PURITY, joint=False)


def sig_jaccard(pair: Pair) -> float:
    """Shared significant genes over all significant genes, own gene left out; 1 when neither side has any."""
    real, pred = pair.real.significant & pair.others, pair.pred.significant & pair.others
    union = int((real | pred).sum())
    return int((real & pred).sum()) / union if union else 1.0


def lfc_nmae(pair: Pair) -> float:
    """Mean |predicted - true fold change| over mean |true| on the truth's significant genes; NaN below ten genes.

    A missing or non-finite predicted fold change counts as 0.
    """
    gate = nmae_gate(pair)
    if gate is None:
        return float("nan")
    real, pred = pair.real.fold[gate], pair.pred.fold[gate]
    pred = np.where(np.isfinite(pred), pred, 0.0)
    scale = float(np.mean(np.abs(real)))
    return float(np.mean(np.abs(pred - real)) / scale) if np.isfinite(scale) and scale > 0 else float("nan")


def nmae_gate(pair: Pair) -> np.ndarray | None:
    """Mask of the significant true genes with a finite fold change, own gene left out; None below ten."""
    gate = pair.real.significant & pair.others & np.isfinite(pair.real.fold)
    return gate if int(gate.sum()) >= MIN_NMAE_GENES else None


def direction_match(pair: Pair) -> float:
    """Share of the truth's significant joint genes with equal sign of both fold changes."""
    return _sign_share(pair, pair.real.significant)


def model_direction_match(pair: Pair) -> float:
    """Share of the prediction's significant joint genes with equal sign of both fold changes."""
    return _sign_share(pair, pair.pred.significant)


def direction_precision(pair: Pair) -> float:
    """Share of right signs among the decidable genes the prediction calls significant."""
    called = pair.pred.significant & pair.decidable
    return _ratio(int((called & pair.match).sum()), int(called.sum()))


def direction_sensitivity(pair: Pair) -> float:
    """Reach over the truth's significant genes at purity 0.975, own gene kept."""
    return _ratio(pair.walk(pair.real.significant & pair.joint, 1 - ALPHA / 2), pair.real.n_significant)


def direction_sensitivity_universe(pair: Pair) -> float:
    """Reach over all joint genes at purity 0.975, per significant true gene."""
    return _ratio(pair.walk(pair.joint, 1 - ALPHA / 2), pair.real.n_significant)


def direction_fidelity(pair: Pair) -> float:
    """Share of right calls above always predicting the majority sign, in units of the room above it."""
    c = direction_counts(pair)
    if not c.n_confirmed:
        return 1.0 if not c.n_called else 0.0
    if c.majority is None or not c.n_called:
        return float("nan")
    return (c.n_right / c.n_called - c.majority) / c.gap


def direction_fidelity_raw(pair: Pair) -> float:
    """Share of right calls."""
    c = direction_counts(pair)
    return _ratio(c.n_right, c.n_called)


def direction_coverage(pair: Pair) -> float:
    """Calls made per confirmed gene."""
    c = direction_counts(pair)
    return _ratio(c.n_called, c.n_confirmed)


def direction_yield(pair: Pair) -> float:
    """Right calls beyond the majority sign's share, per confirmed gene and room."""
    c = direction_counts(pair)
    if not c.n_confirmed or c.majority is None:
        return float("nan")
    return (c.n_right - c.majority * c.n_called) / (c.n_confirmed * c.gap)


def direction_yield_raw(pair: Pair) -> float:
    """Right calls per confirmed gene."""
    c = direction_counts(pair)
    return _ratio(c.n_right, c.n_confirmed)


def direction_fidelity_yield(pair: Pair) -> float:
    """`direction_fidelity` shrunk by the share of confirmed genes for which a call was made."""
    c = direction_counts(pair)
    if not c.n_confirmed:
        return 1.0 if not c.n_called else 0.0
    if c.majority is None:
        return float("nan")
    if not c.n_called:
        return 0.0
    return min(1.0, c.n_called / c.n_confirmed) * (c.n_right / c.n_called - c.majority) / c.gap


def direction_reach(pair: Pair) -> float:
    """Reach at a purity 95 % of the way from the majority sign's share to 1."""
    return _reach(pair, _majority_purity(pair), joint=False)


def direction_reach_unbounded(pair: Pair) -> float:
    """The same walk over all joint genes."""
    return _reach(pair, _majority_purity(pair), joint=True)


def direction_reach_unbounded_raw(pair: Pair) -> float:
    """Reach at 90 % purity over all joint genes."""
    return _reach(pair, REACH_PURITY, joint=True)


def _majority_purity(pair: Pair) -> float | None:
    majority = direction_counts(pair).majority
    return None if majority is None else majority + (1 - ALPHA) * (1 - majority)


def _reach(pair: Pair, purity: float | None, *, joint: bool) -> float:
    confirmed = pair.real.significant & pair.others
    if purity is None or not confirmed.any():
        return float("nan")
    pool = pair.joint & pair.others if joint else confirmed & pair.joint
    return pair.walk(pool, purity) / int(confirmed.sum())


def _sign_share(pair: Pair, genes: np.ndarray) -> float:
    genes = genes & pair.joint
    same = np.sign(pair.real.fold) == np.sign(pair.pred.fold)
    return _ratio(int((genes & same).sum()), int(genes.sum()))


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else float("nan")


DIRECTION_METRICS: dict[str, Callable[[Pair], float]] = {
    "direction_match": direction_match,
    "model_direction_match": model_direction_match,
    "lfc_nmae": lfc_nmae,
    "direction_precision": direction_precision,
    "direction_sensitivity": direction_sensitivity,
    "direction_sensitivity_universe": direction_sensitivity_universe,
    "direction_fidelity": direction_fidelity,
    "direction_fidelity_raw": direction_fidelity_raw,
    "direction_coverage": direction_coverage,
    "direction_yield": direction_yield,
    "direction_yield_raw": direction_yield_raw,
    "direction_fidelity_yield": direction_fidelity_yield,
    "direction_fidelity_yield_raw": direction_fidelity_yield_raw,
    "direction_reach": direction_reach,
    "direction_reach_raw": direction_reach_raw,
    "direction_reach_unbounded": direction_reach_unbounded,
    "direction_reach_unbounded_raw": direction_reach_unbounded_raw,
    "sig_jaccard": sig_jaccard,
}
