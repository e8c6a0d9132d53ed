"""What the CellOT metrics need for each row: cells of both sides, drawn again and again, on all and on marker genes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..metrics import cellot
from ..metrics.base import Null, Value
from ..score_options import ScoreOptions
from .de import DeTable
from .pairing import Key, Pair, Side
from .row import NO_CELLS
from .space import log1p_rows

if TYPE_CHECKING:
    from .pipeline import Bulks

N_MARKERS = 50
_NO_DE = Null("fewer than 2 cells or controls: no markers")


@dataclass(frozen=True)
class CellotRow:
    """All values of one evaluated perturbation by metric name."""

    values: Mapping[str, Value]


def cellot_rows(
    pair: Pair,
    bulks: Bulks,
    predicted: list[Key],
    de: Mapping[Key, DeTable | None],
    parameters: Mapping[str, Any],
    options: ScoreOptions,
    names: Collection[str],
) -> Iterator[CellotRow]:
    """The rows of `predicted`, in order. A mean prediction has the metrics of means alone, from both whole bulks.

    Transport costs, which are slow, are computed only where `names` asks for them, and on the first draw alone.
    """
    if pair.pred.rows != "cell":
        for key in predicted:
            p, t = bulks.pred.mean[bulks.pred_keys[key]], bulks.truth.mean[bulks.truth_keys[key]]
            yield CellotRow(_both_sets(de[key], lambda genes, _, p=p, t=t: _means_only(p[genes], t[genes])))
        return
    draws = [_draws(bulks, key, parameters, options.seed) for key in predicted]
    sides = [
        drawn_cells(side, predicted, [own[i] for own in draws], block_bytes=options.block_bytes)
        for i, side in enumerate((pair.pred, pair.truth))
    ]
    for key, own, pred, truth in zip(predicted, draws, *sides, strict=True):
        places = [np.searchsorted(np.unique(side), side) for side in own]

        def measured(genes: Any, suffix: str, pred=pred, truth=truth, places=places) -> cellot.Values:
            p, t = pred[:, genes].toarray(), truth[:, genes].toarray()
            drawn = [(p[rows_p], t[rows_t]) for rows_p, rows_t in zip(*places, strict=True)]
            found = cellot.averaged(
                [cellot.moment_values(*cells) | cellot.distance_values(*cells) for cells in drawn]
            )
            wanted = [name for name in cellot.TRANSPORT if name + suffix in names]
            return found | cellot.transport_values(*drawn[0], wanted)

        yield CellotRow(_both_sets(de[key], measured))


def _both_sets(table: DeTable | None, measured: Any) -> dict[str, Value]:
    """Values over all genes, and over the markers under names that end in `_top50`."""
    every = measured(slice(None), "")
    if table is None:
        return every | {f"{name}_top50": _NO_DE for name in cellot.NAMES}
    top = measured(np.sort(table.ranked()[:N_MARKERS]), "_top50")
    return every | {f"{name}_top50": value for name, value in top.items()}


def _means_only(p: np.ndarray, t: np.ndarray) -> cellot.Values:
    return dict.fromkeys(cellot.NAMES, NO_CELLS) | cellot.mean_values(p, t)


def _draws(bulks: Bulks, key: Key, parameters: Mapping[str, Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of drawn cells among those of the row, for prediction and truth: int64, (repetitions, n) each.

    They depend on the seed, the row and the numbers of cells alone; a single repetition where all cells are drawn.
    """
    n_pred, n_truth = int(bulks.pred.n[bulks.pred_keys[key]]), int(bulks.truth.n[bulks.truth_keys[key]])
    smaller = min(n_pred, n_truth)
    n = max([size for size in parameters["cellot_cells"] if size <= smaller], default=smaller)
    repetitions = 1 if n == n_pred == n_truth else int(parameters["cellot_repetitions"])
    digest = hashlib.sha256("\x1f".join((str(seed), "cellot", *key)).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    drawn = [(rng.permutation(n_pred)[:n], rng.permutation(n_truth)[:n]) for _ in range(repetitions)]
    return np.stack([p for p, _ in drawn]), np.stack([t for _, t in drawn])


def drawn_cells(
    side: Side, keys: list[Key], places: list[np.ndarray], *, block_bytes: int
) -> list[sp.csr_array]:
    """Log1p cells of each key at some places among its cells: distinct places in order, CSR (n, G), genes sorted."""
    codes = side.select(keys)
    wanted = [np.unique(own) for own in places]
    seen = np.zeros(len(keys), dtype=np.int64)
    parts: list[list[Any]] = [[] for _ in keys]
    for start, rows in log1p_rows(side, block_bytes):
        part = codes[start : start + rows.shape[0]]
        for key in np.unique(part[part >= 0]):
            here = np.flatnonzero(part == key)
            chosen = np.isin(int(seen[key]) + np.arange(len(here)), wanted[key])
            seen[key] += len(here)
            if chosen.any():
                parts[key].append(rows[here[chosen]])
    return [sp.csr_array(sp.vstack(own)) for own in parts]
