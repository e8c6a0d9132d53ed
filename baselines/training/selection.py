"""Validation values of mean profiles, with the evaluator's own metric functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import ShapeError
from ..base import Key
from .config import TrainingConfig
from .data import CellData

TOP = 20


@dataclass(frozen=True)
class ValidationSet:
    """True mean profiles of the rows that validate.

    `means`, `controls` are float64, shape (n, G): the row's mean and its context's control mean. `top` holds per row
    the positions of its 20 top-ranked DE genes (Welch t against control; edition `core`), empty where a group has
    fewer than two cells.
    """

    keys: tuple[Key, ...]
    means: np.ndarray
    controls: np.ndarray
    top: tuple[np.ndarray, ...]

    def scores(self, profiles: np.ndarray) -> dict[str, float]:
        """Mean over rows of `mse`, `mae`, `pearson_delta`, and the same over the top 20 (`_top20_de`).

        `profiles` is shape (n, G), absolute. A value that is undefined for a row is left out of its mean; a metric
        without any value is NaN. Empty without rows.
        """
        from ...evaluator.metrics.expression import mae, mse, pearson

        if profiles.shape != self.means.shape:
            raise ShapeError(f"profiles are {profiles.shape}, the validation rows {self.means.shape}")
        values: dict[str, list[float]] = {}
        for y, p, c, top in zip(self.means, profiles, self.controls, self.top, strict=True):
            for suffix, genes in (("", slice(None)), ("_top20_de", top)):
                if suffix and not len(top):
                    continue
                yg, pg, cg = y[genes], p[genes], c[genes]
                row = {"mse": mse(yg, pg), "mae": mae(yg, pg), "pearson_delta": pearson(yg - cg, pg - cg)}
                for name, value in row.items():
                    found = values.setdefault(name + suffix, [])
                    if isinstance(value, float):
                        found.append(value)
        return {name: float(np.mean(found)) if found else float("nan") for name, found in values.items()}


def chosen_validation(config: TrainingConfig, validation_keys: Sequence[Key]) -> str:
    """`perturbations`, `cells` or `none`: what `validation` means for a split with these validation rows."""
    if config.validation == "auto":
        return "perturbations" if validation_keys else "cells"
    return config.validation


def validation_set(cells: CellData, *, keys: Sequence[Key] | None = None) -> ValidationSet:
    """The validation rows of a data set: the split's, or the held-out cells of training rows where it has none.

    `keys` keeps some of them (those that the model can predict). Log1p cells only.
    """
    from ...evaluator.core.de import de_table

    held_out = not cells.validation_keys
    listed = cells.train_keys if held_out else cells.validation_keys
    chosen, means, controls, tops = [], [], [], []
    for key in listed if keys is None else [key for key in listed if key in set(keys)]:
        rows = cells.rows_of(key, held_out=held_out)
        if not len(rows) or key[0] not in cells.control_moments:
            continue
        mean, variance = cells.moments(rows)
        table = de_table(mean, variance, len(rows), *cells.control_moments[key[0]], alpha=0.05)
        chosen.append(key)
        means.append(mean)
        controls.append(cells.control_means[key[0]])
        tops.append(np.empty(0, dtype=np.int64) if table is None else table.ranked()[:TOP])
    shape = (len(chosen), len(cells.genes))
    return ValidationSet(
        tuple(chosen), np.array(means).reshape(shape), np.array(controls).reshape(shape), tuple(tops)
    )
