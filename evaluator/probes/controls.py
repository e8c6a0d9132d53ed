"""Probe of the submitted control cells."""

from __future__ import annotations

import numpy as np

from .effects import mean_effect
from .emit import rows_with_profile
from .registry import Change, NotApplicable, Stage, probe

# How far the control moves, in typical predicted effects.
TWIST = 2.0


@probe(
    "control-twist",
    kind="exploit",
    documented="github.com/ArcInstitute/cell-eval issues 183 and 196 (August and October 2025): changes and tests of "
    "the prediction are measured from its own control cells",
    caught_by=("twisted-controls",),
)
def control_twist(stage: Stage) -> Change | NotApplicable:
    """Only the submitted control cells change: they move against the mean predicted effect, by twice the size of a
    typical predicted effect, so that all effects seem larger and more genes significant.
    """
    grouped = stage.grouped
    if not grouped.is_control.any():
        return NotApplicable("the entry has no control rows")
    common = mean_effect(stage)
    perturbed = ~grouped.is_control
    size = float(np.sqrt((stage.effects[perturbed] ** 2).sum(axis=1).mean()))
    length = float(np.linalg.norm(common[grouped.is_control], axis=1).mean())
    if length == 0:
        return NotApplicable("the entry predicts no common effect")
    wanted = stage.entry.mean - TWIST * size / length * common
    return Change(rows=rows_with_profile(stage, wanted, grouped.is_control, "control-twist"))
