"""What the GEARS metrics need for each row: gene sets, rankings, and the true cells on the top genes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...data_specs.labels import CONTROL
from ..metrics import gears
from ..metrics.base import Null
from ..score_options import ScoreOptions
from .de import DeTable
from .pairing import Key, Pair
from .row import is_same
from .space import cells_of_genes, sorted_moments

if TYPE_CHECKING:
    from .pipeline import Bulks

N_TOP, N_VARIABLE = 20, 200
_NO_DE = Null("fewer than 2 cells or controls: GEARS fails")
_FEW_GENES = Null(f"fewer than {N_TOP} genes: GEARS fails")


@dataclass(frozen=True)
class GearsRow:
    """One evaluated condition, genes in sorted order.

    `p`, `t`, `c` are means of prediction, truth and control; `ranking` orders genes by DE (None: no DE);
    `tops` holds the gene positions of the sets `de`, `non_dropout`, `non_zero`, `cells` the true cells on each;
    `hvg` the positions of the most variable genes.
    """

    p: np.ndarray
    t: np.ndarray
    c: np.ndarray
    ranking: np.ndarray | None
    tops: Mapping[str, np.ndarray]
    cells: Mapping[str, np.ndarray]
    hvg: np.ndarray

    def analysis(self, name: str) -> gears.Values | Null:
        """The values of `core`, `deeper`, `non_dropout`, `non_zero` or `directions`."""
        return self._analyses if isinstance(self._analyses, Null) else self._analyses[name]

    @cached_property
    def _analyses(self) -> dict[str, gears.Values] | Null:
        if self.ranking is None:
            return _NO_DE
        if len(self.p) < N_TOP:
            return _FEW_GENES
        p, t, c = self.p, self.t, self.c
        tops = {
            name: gears.top_set_values(p, t, c, self.tops[name], self.cells[name], name)
            for name in ("non_dropout", "non_zero")
        }
        return {
            "core": gears.core_values(p, t, self.ranking),
            "deeper": gears.deeper_values(p, t, c, self.ranking, self.hvg, self.cells["de"]),
            "directions": gears.gene_set_directions(p, t, c, gears.gene_sets(t, c)),
            **tops,
        }


def gears_rows(
    pair: Pair,
    bulks: Bulks,
    predicted: list[Key],
    de: Mapping[Key, DeTable | None],
    options: ScoreOptions,
) -> Iterator[GearsRow]:
    """The rows of `predicted`, in order.

    For a mean prediction P is the profile; a value that repeats the control mean in float32 counts as no change.
    """
    hvg = {context: _most_variable(pair, context, options) for context in {c for c, _ in predicted}}
    tops = [_top_sets(bulks, key, de[key]) for key in predicted]
    joined = [np.concatenate(list(sets.values())) for sets in tops]
    cells = cells_of_genes(pair.truth, predicted, joined, block_bytes=options.block_bytes)
    for key, sets, held in zip(predicted, tops, cells, strict=True):
        control = bulks.truth.mean[bulks.truth_keys[key[0], CONTROL]]
        profile = bulks.pred.mean[bulks.pred_keys[key]]
        ends = np.cumsum([len(genes) for genes in sets.values()])
        table = de[key]
        yield GearsRow(
            p=np.where(is_same(profile, control), control, profile),
            t=bulks.truth.mean[bulks.truth_keys[key]],
            c=control,
            ranking=None if table is None else table.order,
            tops=sets,
            cells=dict(zip(sets, np.split(held, ends[:-1], axis=1), strict=True)),
            hvg=hvg[key[0]],
        )


def _top_sets(bulks: Bulks, key: Key, table: DeTable | None) -> dict[str, np.ndarray]:
    if table is None:
        return dict.fromkeys(("de", "non_dropout", "non_zero"), np.array([], dtype=np.int64))
    truth = bulks.truth.mean[bulks.truth_keys[key]]
    masks = gears.gene_sets(truth, bulks.truth.mean[bulks.truth_keys[key[0], CONTROL]])
    sets = {name: table.order[masks[name][table.order]][:N_TOP] for name in ("non_dropout", "non_zero")}
    return {"de": table.order[:N_TOP], **sets}


def _most_variable(pair: Pair, context: str, options: ScoreOptions) -> np.ndarray:
    """Positions of the genes whose means vary most over all conditions of the context, control included."""
    keys = [key for key in pair.truth.keys if key[0] == context]
    means = sorted_moments(pair.truth, keys, block_bytes=options.block_bytes).mean
    return np.argsort(means.std(axis=0), kind="stable")[-N_VARIABLE:]
