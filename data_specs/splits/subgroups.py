"""How new a perturbation is to a model: how many of its targets occur in the training perturbations."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..labels import split_label
from ..split_file import Key


def train_targets(train_keys: Iterable[Key]) -> frozenset[str]:
    """Every target of the training keys (context, perturbation), alone or in a combination, in any context."""
    return frozenset(target for _, name in train_keys for target in split_label(name))


def subgroup(perturbation: str, seen: Collection[str]) -> str:
    """The subgroup of a perturbation relative to the targets that were seen; `control` has none ("").

    Singles are `seen_single` or `unseen_single`, doubles `combo_seen0`, `combo_seen1` or `combo_seen2`, larger
    combinations `combo3_seen0` and so on by size. A single is seen in training when it is trained in another
    context or only inside a combination.

    Examples
    --------
    >>> [subgroup(x, {"A", "B"}) for x in ("A", "C", "A+C", "C+D")]
    ['seen_single', 'unseen_single', 'combo_seen1', 'combo_seen0']
    """
    targets = split_label(perturbation)
    if not targets:
        return ""
    n_seen = sum(target in seen for target in targets)
    if len(targets) == 1:
        return "seen_single" if n_seen else "unseen_single"
    size = "" if len(targets) == 2 else str(len(targets))
    return f"combo{size}_seen{n_seen}"
