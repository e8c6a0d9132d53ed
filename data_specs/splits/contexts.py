"""Leave one context out: everything measured in it is test, but for its controls."""

from __future__ import annotations

import numpy as np

from ..errors import UnknownName, UsageError
from ..labels import CONTROL
from ..split_file import Key, Split, SplitName
from .labels_table import LabelTable, assemble, held_out_part


def leave_one_context_out(
    table: LabelTable, *, context: str | None = None, seed: int = 0, validation_fraction: float = 0.0
) -> Split | dict[str, Split]:
    """All perturbations of `context` are test, those of the other contexts train.

    `validation_fraction` of the perturbations of the other contexts select models (in each of them alike).
    Without `context`, one split per context, by name.

    Raises
    ------
    UnknownName
        The file has no such context.
    UsageError
        The file has one context only.
    """
    if len(table.contexts) < 2:
        raise UsageError(f"leaving a context out needs two; the file has only {', '.join(table.contexts)}.")
    if context is None:
        return {
            name: _one(table, name, seed=seed, validation_fraction=validation_fraction)
            for name in table.contexts
        }
    if context not in table.contexts:
        raise UnknownName("context", context, table.contexts, "vcbench inspect FILE.h5ad")
    return _one(table, context, seed=seed, validation_fraction=validation_fraction)


def _one(table: LabelTable, context: str, *, seed: int, validation_fraction: float) -> Split:
    others = {name for place, name in table.keys if place != context and name != CONTROL}
    _, validation = held_out_part(others, validation_fraction, np.random.default_rng(seed), what="validation")
    chosen = set(validation)
    parts: dict[Key, SplitName] = {}
    for place, name in table.keys:
        if name != CONTROL:
            parts[place, name] = "test" if place == context else "validation" if name in chosen else "train"
    return assemble(
        table,
        parts,
        scheme="leave-one-context-out",
        seed=seed,
        parameters={"context": context, "validation_fraction": validation_fraction},
    )
