"""How new a perturbation is to a model: by which of its targets were trained as singles."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ..labels import split_label
from ..split_file import Key


def subgroup_of(perturbation: str, train_keys: Iterable[Key]) -> str:
    """The subgroup of a perturbation relative to the training keys (context, perturbation).

    A target is seen when its single perturbation is trained in any context. Singles are `seen_single` or
    `unseen_single`, doubles `combo_seen0`, `combo_seen1` or `combo_seen2`, larger combinations
    `combo3_seen0` and so on by size; `control` has none ("").

    Examples
    --------
    >>> train = [("K562", "A"), ("K562", "A+B")]
    >>> [subgroup_of(x, train) for x in ("A", "C", "A+C", "B+C")]
    ['seen_single', 'unseen_single', 'combo_seen1', 'combo_seen0']
    """
    targets = split_label(perturbation)
    if not targets:
        return ""
    singles = _singles(frozenset(train_keys))
    n_seen = sum(target in singles for target in targets)
    if len(targets) == 1:
        return "seen_single" if n_seen else "unseen_single"
    size = "" if len(targets) == 2 else str(len(targets))
    return f"combo{size}_seen{n_seen}"


@lru_cache(maxsize=8)
def _singles(train_keys: frozenset[Key]) -> frozenset[str]:
    return frozenset(name for _, name in train_keys if len(split_label(name)) == 1)
