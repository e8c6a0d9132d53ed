"""Probe of labels: the predictions change places among the perturbations of a context."""

from __future__ import annotations

import numpy as np

from .registry import Change, NotApplicable, Stage, probe


@probe(
    "label-shuffle",
    kind="control",
    documented="negative control: permuted labels keep every marginal property of an entry, and lose its information",
)
def label_shuffle(stage: Stage) -> Change | NotApplicable:
    """The perturbations of each context are permuted so that none keeps its place; controls stay."""
    grouped = stage.grouped
    rng = stage.generator("label-shuffle")
    new = {key: key for key in grouped.keys}
    for context in sorted({context for context, _ in grouped.keys}):
        members = [
            key
            for key, control in zip(grouped.keys, grouped.is_control, strict=True)
            if key[0] == context and not control
        ]
        order = rng.permutation(len(members))
        # Along one random circle every member moves.
        for place, following in zip(order, np.roll(order, -1), strict=True):
            new[members[place]] = members[following]
    if all(old == key for old, key in new.items()):
        return NotApplicable("each context has a single perturbation")
    labels = grouped.source.labels(grouped.columns.perturbation).values()
    control = grouped.is_control
    for i, key in enumerate(grouped.keys):
        if not control[i]:
            labels[grouped.codes == i] = new[key][1]
    return Change(labels=labels)
