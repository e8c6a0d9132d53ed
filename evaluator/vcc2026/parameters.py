"""The constants of the edition, as its TOML spells them out: the code computes with these and no others."""

from __future__ import annotations

from ...data_specs.errors import SpecError
from ...data_specs.spec_models import Edition
from .anchors import BASE_SEED, N_SPLITS
from .bulks import BULK_TARGET_SUM
from .cells import CELL_TARGET_SUM
from .de import ALPHA, FOLD_CHANGE_EPSILON, MIN_CONTROL_CPM
from .de_direction import REACH_PURITY
from .expression import NOISE_CAP

PARAMETERS = {
    "bulk_target_sum": BULK_TARGET_SUM,
    "cell_target_sum": CELL_TARGET_SUM,
    "min_control_cpm": MIN_CONTROL_CPM,
    "alpha": ALPHA,
    "fold_change_epsilon": FOLD_CHANGE_EPSILON,
    "fdr_scope": "per_perturbation",
    "control_source": "real",
    "noise_cap": NOISE_CAP,
    "reach_purity": REACH_PURITY,
    "anchor_base_seed": BASE_SEED,
    "anchor_splits": N_SPLITS,
}


def check_parameters(edition: Edition) -> None:
    """Refuse an edition whose scoring parameters differ from what is computed. Raises `SpecError`."""
    given = edition.scoring.parameters
    for name in sorted(set(given) | set(PARAMETERS)):
        if given.get(name) != PARAMETERS.get(name):
            raise SpecError(
                f"edition {edition.id}: scoring.parameters.{name} is {given.get(name)!r}; "
                f"the pipeline vcc2026 computes with {PARAMETERS.get(name)!r}."
            )
