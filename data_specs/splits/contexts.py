"""Splits between contexts: leave one out whole or in part, or hold out perturbations in some contexts each."""

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


def few_shot_context(
    table: LabelTable,
    *,
    context: str | None = None,
    seed: int = 0,
    train_fraction: float = 0.3,
    validation_fraction: float = 0.0,
) -> Split | dict[str, Split]:
    """`train_fraction` of the perturbations of `context` train beside all other contexts, the rest of it is test.

    `validation_fraction` of the perturbations of `context` that are not trained select models. Without `context`,
    one split per context, by name.

    Raises
    ------
    UnknownName
        The file has no such context.
    UsageError
        The file has one context only, or the context too few perturbations.
    """
    if len(table.contexts) < 2:
        raise UsageError(
            f"a few-shot context needs a second one; the file has only {', '.join(table.contexts)}."
        )
    if context is None:
        return {
            name: _few_shot(table, name, seed, train_fraction, validation_fraction) for name in table.contexts
        }
    if context not in table.contexts:
        raise UnknownName("context", context, table.contexts, "vcbench inspect FILE.h5ad")
    return _few_shot(table, context, seed, train_fraction, validation_fraction)


def _few_shot(
    table: LabelTable, context: str, seed: int, train_fraction: float, validation_fraction: float
) -> Split:
    rng = np.random.default_rng(seed)
    own = [name for place, name in table.keys if place == context and name != CONTROL]
    rest, trained = held_out_part(own, train_fraction, rng, what="training in the context")
    _, chosen = held_out_part(rest, validation_fraction, rng, what="validation")
    part_of: dict[str, SplitName] = dict.fromkeys(rest, "test")
    part_of |= dict.fromkeys(trained, "train")
    part_of |= dict.fromkeys(chosen, "validation")
    parts: dict[Key, SplitName] = {
        (place, name): part_of[name] if place == context else "train"
        for place, name in table.keys
        if name != CONTROL
    }
    return assemble(
        table,
        parts,
        scheme="few-shot-context",
        seed=seed,
        parameters={
            "context": context,
            "train_fraction": train_fraction,
            "validation_fraction": validation_fraction,
        },
    )


def transfer(
    table: LabelTable,
    *,
    seed: int = 0,
    test_fraction: float = 0.3,
    max_contexts: int = 1,
    validation_share: float = 0.5,
) -> Split:
    """Perturbations held out in some contexts and trained in others.

    At most `test_fraction` of the perturbations of a context are held out, each of them in at most `max_contexts`
    contexts and never in all that have it; `validation_share` of the held-out ones of a context select models, the
    others are test.

    Raises
    ------
    UsageError
        A fraction outside 0 to 1, or no perturbation that two contexts share.
    """
    if not 0 < test_fraction < 1 or not 0 <= validation_share < 1 or max_contexts < 1:
        raise UsageError(
            "give --test-fraction in (0, 1), --validation-share in [0, 1), --max-contexts from 1."
        )
    places: dict[str, list[str]] = {}
    for place, name in table.keys:
        if name != CONTROL:
            places.setdefault(name, []).append(place)
    shared = sorted(name for name, found in places.items() if len(found) > 1)
    if not shared:
        raise UsageError("no perturbation occurs in two contexts; use --scheme folds.")
    rng = np.random.default_rng(seed)
    n_of = {context: sum(context in found for found in places.values()) for context in table.contexts}
    room = {context: int(test_fraction * n) for context, n in n_of.items()}
    held: dict[str, list[str]] = {context: [] for context in table.contexts}
    for i in rng.permutation(len(shared)):
        name = shared[int(i)]
        # The contexts with most room left come first, so that no context is emptied before another is begun.
        order = sorted(places[name], key=lambda c: (len(held[c]) - room[c], c))
        for context in order[: min(max_contexts, len(order) - 1)]:
            if len(held[context]) < room[context]:
                held[context].append(name)
    parts: dict[Key, SplitName] = {key: "train" for key in table.keys if key[1] != CONTROL}
    for context, names in held.items():
        test, chosen = names, []
        if len(names) > 1 and validation_share:
            test, chosen = held_out_part(names, validation_share, rng, what="validation")
        parts |= {(context, name): "test" for name in test}
        parts |= {(context, name): "validation" for name in chosen}
    return assemble(
        table,
        parts,
        scheme="transfer",
        seed=seed,
        parameters={
            "test_fraction": test_fraction,
            "max_contexts": max_contexts,
            "validation_share": validation_share,
        },
    )
