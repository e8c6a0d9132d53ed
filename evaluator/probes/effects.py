"""Probes of effect size and sign: every predicted change from control is multiplied by one number."""

from __future__ import annotations

import numpy as np

from .emit import rows_with_profile
from .registry import Change, Stage, probe

AMPLIFIED = ("amplified-effects", "significant-genes-out-of-range")
SCALING = (
    "2025 challenge: L1 discrimination rewards large effects (spec of cell-eval's discrimination score, 1 - r/N on "
    "unnormalised distances); participants' write-ups, November 2025"
)


def _scaled(stage: Stage, factor: float, name: str) -> Change:
    wanted = stage.reference + factor * stage.effects
    perturbed = ~stage.grouped.is_control
    silent = (stage.entry.mean == 0) & (wanted > 0)
    note = ""
    if stage.grouped.rows == "cell" and silent[perturbed].any():
        share = silent[perturbed].mean()
        note = f"{share:.1%} of the group means stay at 0: no cell of the group expresses the gene"
    return Change(rows=rows_with_profile(stage, wanted, perturbed, name), note=note)


@probe("scale-0.25", kind="control", documented=SCALING)
def scale_quarter(stage: Stage) -> Change:
    """Every predicted effect shrinks to a quarter."""
    return _scaled(stage, 0.25, "scale-0.25")


@probe("scale-4", kind="exploit", documented=SCALING, caught_by=AMPLIFIED)
def scale_four(stage: Stage) -> Change:
    """Every predicted effect grows fourfold."""
    return _scaled(stage, 4.0, "scale-4")


@probe("scale-10", kind="exploit", documented=SCALING, caught_by=AMPLIFIED)
def scale_ten(stage: Stage) -> Change:
    """Every predicted effect grows tenfold."""
    return _scaled(stage, 10.0, "scale-10")


@probe("scale-64", kind="exploit", documented=SCALING, caught_by=AMPLIFIED)
def scale_sixty_four(stage: Stage) -> Change:
    """Every predicted effect grows 64-fold."""
    return _scaled(stage, 64.0, "scale-64")


@probe(
    "sign-flip",
    kind="control",
    documented="negative control: a score of direction must fall when all directions are wrong",
)
def sign_flip(stage: Stage) -> Change:
    """Every predicted effect changes its sign; profiles are cut at zero."""
    return _scaled(stage, -1.0, "sign-flip")


def mean_effect(stage: Stage) -> np.ndarray:
    """Mean predicted effect of each key's context over its perturbations, (n_keys, n_genes)."""
    out = np.zeros_like(stage.reference)
    effects, perturbed = stage.effects, ~stage.grouped.is_control
    contexts = np.array([context for context, _ in stage.grouped.keys], dtype=object)
    for context in set(contexts):
        rows = perturbed & (contexts == context)
        if rows.any():
            out[contexts == context] = effects[rows].mean(axis=0)
    return out
