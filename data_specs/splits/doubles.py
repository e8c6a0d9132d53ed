"""Splits of combinations: leave one double out, or hold out a share of the combinations; all singles train."""

from __future__ import annotations

import numpy as np

from ..errors import UnknownName, UsageError
from ..labels import CONTROL, split_label
from ..split_file import Key, Split, SplitName
from .labels_table import LabelTable, assemble, held_out_part


def additive_doubles(table: LabelTable) -> list[str]:
    """The doubles whose both singles are measured in every context that has the double, sorted."""
    keys = set(table.keys)
    found = []
    for name in table.perturbations:
        parts = split_label(name)
        places = [context for context in table.contexts if (context, name) in keys]
        if len(parts) == 2 and all((context, part) in keys for context in places for part in parts):
            found.append(name)
    return found


def leave_one_double_out(
    table: LabelTable, *, double: str | None = None, seed: int = 0, validation_fraction: float = 0.0
) -> Split | dict[str, Split]:
    """`double` is test in every context, all other perturbations train. Without `double`, one split per double.

    `validation_fraction` of the other combinations select models, never a single.

    Raises
    ------
    UnknownName
        `double` is not a double of the file with both singles measured.
    UsageError
        There is no such double at all.
    """
    doubles = additive_doubles(table)
    if not doubles:
        raise UsageError("no double has both of its singles measured; use --scheme folds.")
    if double is None:
        return {
            name: _one(table, name, seed=seed, validation_fraction=validation_fraction) for name in doubles
        }
    if double not in doubles:
        raise UnknownName("double with both singles measured", double, doubles, "vcbench inspect FILE.h5ad")
    return _one(table, double, seed=seed, validation_fraction=validation_fraction)


def _one(table: LabelTable, double: str, *, seed: int, validation_fraction: float) -> Split:
    others = [name for name in table.perturbations if len(split_label(name)) > 1 and name != double]
    rng = np.random.default_rng(seed)
    validation = (
        set(held_out_part(others, validation_fraction, rng, what="validation")[1]) if others else set()
    )
    parts: dict[Key, SplitName] = {}
    for key in table.keys:
        if key[1] != CONTROL:
            parts[key] = "test" if key[1] == double else "validation" if key[1] in validation else "train"
    return assemble(
        table,
        parts,
        scheme="leave-one-double-out",
        seed=seed,
        parameters={"double": double, "validation_fraction": validation_fraction},
    )


def held_out_combinations(
    table: LabelTable, *, seed: int = 0, test_fraction: float = 0.5, validation_share: float = 0.5
) -> Split:
    """All singles train; `test_fraction` of the combinations are held out, in every context alike.

    `validation_share` of the held-out combinations select models, the others are test.

    Raises
    ------
    UsageError
        There are too few combinations, or a fraction is outside [0, 1).
    """
    combos = [name for name in table.perturbations if len(split_label(name)) > 1]
    if len(combos) < 3:
        raise UsageError(f"the file has {len(combos)} combinations; holding some out needs three.")
    rng = np.random.default_rng(seed)
    _, held = held_out_part(combos, test_fraction, rng, what="test")
    test, validation = held_out_part(held, validation_share, rng, what="validation") if held else ([], [])
    part_of: dict[str, SplitName] = dict.fromkeys(test, "test")
    part_of |= dict.fromkeys(validation, "validation")
    parts: dict[Key, SplitName] = {
        key: part_of.get(key[1], "train") for key in table.keys if key[1] != CONTROL
    }
    return assemble(
        table,
        parts,
        scheme="held-out-combinations",
        seed=seed,
        parameters={"test_fraction": test_fraction, "validation_share": validation_share},
    )
