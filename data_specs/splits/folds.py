"""Random splits over perturbations: k folds, or one draw by fractions; one part per perturbation in all contexts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import UsageError
from ..split_file import Key, Split, SplitName
from .labels_table import LabelTable, assemble, held_out_part


def folds(
    table: LabelTable, *, seed: int = 0, folds: int = 5, fold: int = 0, validation_fraction: float = 0.1
) -> Split:
    """Fold number `fold` (from 0) of a random partition of the perturbations into `folds` test sets.

    Over all folds with one seed every perturbation is tested once. `validation_fraction` of the perturbations
    outside the fold select models; their draw depends on the seed and the fold.

    Raises
    ------
    UsageError
        Fewer perturbations than folds, or a fold outside 0 to `folds` - 1.
    """
    names = table.perturbations
    if not 2 <= folds <= len(names):
        raise UsageError(f"{folds} folds of {len(names)} perturbations: give --folds from 2 to {len(names)}.")
    if not 0 <= fold < folds:
        raise UsageError(f"fold {fold} does not exist: give --fold from 0 to {folds - 1}.")
    order = np.random.default_rng(seed).permutation(len(names))
    test = {names[i] for i in order[fold::folds]}
    rest = [name for name in names if name not in test]
    train, validation = held_out_part(
        rest, validation_fraction, np.random.default_rng([seed, fold]), what="validation"
    )
    parameters = {"folds": folds, "fold": fold, "validation_fraction": validation_fraction}
    parts = by_perturbation(table, train=train, validation=validation, test=test)
    return assemble(table, parts, scheme="folds", seed=seed, parameters=parameters)


def random_fractions(
    table: LabelTable, *, seed: int = 0, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
) -> Split:
    """One random draw of the perturbations into train, validation and test by fractions that sum to 1.

    Raises
    ------
    UsageError
        Fractions that are negative or do not sum to 1, or too few perturbations to give each part one.
    """
    train_fraction, validation_fraction, test_fraction = fractions
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9 or not train_fraction:
        raise UsageError(f"fractions must be at least 0, train above 0, and sum to 1; got {fractions}.")
    rng = np.random.default_rng(seed)
    rest, test = held_out_part(table.perturbations, test_fraction, rng, what="test")
    of_rest = validation_fraction / (train_fraction + validation_fraction)
    train, validation = held_out_part(rest, of_rest, rng, what="validation")
    parts = by_perturbation(table, train=train, validation=validation, test=test)
    return assemble(table, parts, scheme="random", seed=seed, parameters={"fractions": list(fractions)})


def by_perturbation(
    table: LabelTable, *, train: Iterable[str], validation: Iterable[str], test: Iterable[str]
) -> dict[Key, SplitName]:
    """The part of every key whose perturbation is in one of the lists."""
    part_of: dict[str, SplitName] = dict.fromkeys(train, "train")
    part_of |= dict.fromkeys(validation, "validation")
    part_of |= dict.fromkeys(test, "test")
    return {key: part_of[key[1]] for key in table.keys if key[1] in part_of}
