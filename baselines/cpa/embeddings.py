"""Rows of the perturbation table from a feature file: standardised, reduced, ordered by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...data_specs.labels import CONTROL
from ..features import FeatureTable, standardized
from .encoding import PerturbationTable, parts_of

# A row for targets without features, where the mean vector stands in for them.
MEAN = "<mean>"


@dataclass(frozen=True)
class FeatureRows:
    """A perturbation table and the fixed features of its rows, float64, shape (P, D), padding 0."""

    table: PerturbationTable
    values: np.ndarray


def feature_rows(
    source: FeatureTable, train: Sequence[str], labels: Iterable[str], *, n_components: int, with_mean: bool
) -> FeatureRows:
    """The table of all targets with features, and of the named perturbations of `labels` on them.

    Columns are z-scored on the targets of the `train` labels; wider tables are reduced to principal components of
    those scores over all rows, scaled to unit mean square on the training targets. The control row has the features
    called `control`, or 0. With `with_mean`, every target of `labels` without features gets 0, the training mean.

    Raises
    ------
    ModelError
        No training target has features.
    """
    scored = standardized(source, train)
    values = _reduced(scored, train, n_components)
    targets = {str(name): str(name) for name in source.names if str(name) != CONTROL}
    parts = [part for label in labels for part in parts_of(label)]
    targets |= {part.name: part.target for part in parts if with_mean or part.target in scored.position}
    if with_mean:
        targets[MEAN] = MEAN
    table = PerturbationTable.of(targets)
    out = np.zeros((len(table), values.shape[1]))
    for row, name in enumerate(table.names):
        at = scored.position.get(targets.get(name, name))
        if at is not None and row > 0:
            out[row] = values[at]
    return FeatureRows(table, out)


def _reduced(table: FeatureTable, train: Sequence[str], n_components: int) -> np.ndarray:
    values = table.values
    if not n_components or table.n_dims <= n_components:
        return values
    _, vectors = np.linalg.eigh(values.T @ values)
    kept = vectors[:, ::-1][:, :n_components]
    kept = kept * np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(n_components)])
    scores = values @ kept
    own = sorted({part.target for label in train for part in parts_of(label)} & set(table.position))
    size = np.sqrt(np.mean(scores[[table.position[name] for name in own]] ** 2))
    return scores / size if size > 0 else scores
