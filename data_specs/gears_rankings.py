"""GEARS' rankings of genes and gene sets, from sums over cells collected while a file streams."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from .errors import UsageError
from .h5ad_columns import Labels


class GearsRankings:
    """Sums of X and its squares per group of cells, float64, shape (groups, genes), and what GEARS derives from them.

    A group is a `condition_name`; `conditions` holds the condition of each cell, `control` its control label, and
    `contexts` its context, whose control cells are the reference. Definitions: Welch's t on X (ddof 1), ranked by
    absolute value, an undefined t counts as 0 (GEARS 0.1.2).
    """

    def __init__(self, groups: Labels, conditions: Labels, contexts: Labels, control: str, genes: list[str]):
        self._groups, self._genes = groups, np.array(genes, dtype=object)
        n = len(groups.categories)
        self._sum = np.zeros((n, len(genes)))
        self._square = np.zeros((n, len(genes)))
        self._cells = np.bincount(groups.codes, minlength=n)
        first = np.unique(groups.codes, return_index=True)[1]
        self._context = contexts.codes[first]
        self._is_control = conditions.values()[first] == control
        self._condition = conditions.codes[first]

    def add(self, start: int, rows: Any) -> None:
        """Add CSR rows, from number `start` on. `rows` is not modified."""
        codes = self._groups.codes[start : start + rows.shape[0]]
        n_rows = len(codes)
        member = sp.csr_array((np.ones(n_rows), (codes, np.arange(n_rows))), shape=(len(self._cells), n_rows))
        values: Any = rows.astype(np.float64)
        for total, part in ((self._sum, member @ values), (self._square, member @ values.power(2))):
            found = sp.coo_array(part)
            np.add.at(total, (found.row, found.col), found.data)

    def to_uns(self) -> dict[str, dict[str, np.ndarray]]:
        """The entries of `uns`, keyed by group. The control groups have no ranking and no top genes."""
        out: dict[str, dict[str, np.ndarray]] = {
            "rank_genes_groups_cov_all": {},
            "top_non_dropout_de_20": {},
            "top_non_zero_de_20": {},
            "non_dropout_gene_idx": {},
            "non_zeros_gene_idx": {},
        }
        control = self._pooled(self._is_control)
        for at, name in enumerate(self._groups.categories):
            if self._is_control[at]:
                continue
            nonzero = self._pooled(self._condition == self._condition[at]) != 0
            kept = nonzero | (control == 0)
            order = np.argsort(-np.abs(self._welch(at)), kind="stable")
            key = str(name)
            out["rank_genes_groups_cov_all"][key] = self._genes[order]
            out["top_non_dropout_de_20"][key] = self._genes[order[kept[order]][:20]]
            out["top_non_zero_de_20"][key] = self._genes[order[nonzero[order]][:20]]
            out["non_dropout_gene_idx"][key] = np.flatnonzero(kept)
            out["non_zeros_gene_idx"][key] = np.flatnonzero(nonzero)
        return out

    def _pooled(self, groups: np.ndarray) -> np.ndarray:
        return self._sum[groups].sum(axis=0)

    def _welch(self, at: int) -> np.ndarray:
        references = np.flatnonzero(self._is_control & (self._context == self._context[at]))
        if not len(references):
            raise UsageError(
                f"{self._groups.categories[at]}: its context has no control cells to rank against."
            )
        reference = int(references[0])
        (mean, var), (ref_mean, ref_var) = self._moments(at), self._moments(reference)
        with np.errstate(invalid="ignore", divide="ignore"):
            t = (mean - ref_mean) / np.sqrt(var / self._cells[at] + ref_var / self._cells[reference])
        return np.where(np.isfinite(t), t, 0.0)

    def _moments(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        n = int(self._cells[at])
        mean = self._sum[at] / n
        spread = np.maximum(self._square[at] - n * mean**2, 0.0)
        return mean, spread / (n - 1) if n > 1 else np.full_like(mean, np.nan)
