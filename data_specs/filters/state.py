"""What a filter knows while its rules run: which cells and genes are left, and X in blocks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ..errors import InvalidFile
from ..h5ad import DEFAULT_BLOCK_BYTES, H5ad
from ..h5ad_columns import Labels
from ..issues import Issue, make_issue
from ..labels import CONTROL, split_label
from ..matrix_scan import OnRows
from ..normalize import to_log1p
from ..split_file import Key
from ..standard import StandardMeta

Scale = Literal["raw", "scaled", "log1p"]


@dataclass
class Removal:
    """What a rule takes away: masks over all cells and genes of the file, and why a (context, perturbation) went."""

    cells: np.ndarray | None = None
    genes: np.ndarray | None = None
    why: dict[Key, str] = field(default_factory=dict)


@dataclass
class FilterState:
    """The file and what is left of it. `cells` and `genes` are boolean masks over the file.

    `de_counts` holds the user's numbers of DE genes by (context, perturbation), or ("", perturbation) for all
    contexts; None without a table.
    """

    file: H5ad
    meta: StandardMeta
    recipe: str
    perturbation: Labels
    context: Labels
    cells: np.ndarray
    genes: np.ndarray
    rng: np.random.Generator
    de_counts: Mapping[Key, int] | None = None
    block_bytes: int = DEFAULT_BLOCK_BYTES
    on_rows: OnRows | None = None
    issues: list[Issue] = field(default_factory=list)

    @cached_property
    def controls(self) -> np.ndarray:
        """The control cells of the file, boolean, shape (n_obs,)."""
        at = np.flatnonzero(self.perturbation.categories == CONTROL)
        return np.isin(self.perturbation.codes, at)

    @cached_property
    def keys(self) -> list[Key]:
        """The (context, perturbation) pairs that `key_codes` counts through, controls included, sorted."""
        return [(str(c), str(p)) for c in self.context.categories for p in self.perturbation.categories]

    @cached_property
    def key_codes(self) -> np.ndarray:
        """The number of each cell's pair in `keys`, shape (n_obs,)."""
        return (
            self.context.codes.astype(np.int64) * len(self.perturbation.categories) + self.perturbation.codes
        )

    @property
    def is_control_key(self) -> np.ndarray:
        """Which `keys` are controls."""
        return np.array([name == CONTROL for _, name in self.keys])

    def key_sizes(self) -> np.ndarray:
        """Cells left of each pair of `keys`."""
        return np.bincount(self.key_codes[self.cells], minlength=len(self.keys))

    def cells_of(self, keys: np.ndarray) -> np.ndarray:
        """The cells of the pairs that the boolean array `keys` picks."""
        return keys[self.key_codes]

    @cached_property
    def target_columns(self) -> np.ndarray:
        """Columns of the targets of each perturbation category, shape (n_perturbations, most targets).

        -1 for a target that is not measured, -2 where a perturbation has fewer targets. Control has none.
        """
        position = {str(gene): i for i, gene in enumerate(self.file.genes)}
        targets = [split_label(str(name)) for name in self.perturbation.categories]
        table = np.full((len(targets), max(1, *(len(t) for t in targets), 1)), -2, dtype=np.int64)
        for row, names in enumerate(targets):
            for column, name in enumerate(names):
                table[row, column] = position.get(name, -1)
        return table

    def measured(self) -> np.ndarray:
        """Which perturbation categories have all targets among the genes left; control counts as measured."""
        columns = self.target_columns
        left = np.where(columns >= 0, self.genes[np.maximum(columns, 0)], columns == -2)
        return np.asarray(left.all(axis=1))

    def blocks(
        self, scale: Scale = "raw", *, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
        """(row numbers, their values over all genes of the file), for the cells left or those of `wanted`.

        `scaled` is counts scaled to the target sum, `log1p` ln(1 + scaled), whatever the file stores; float64.
        Totals are taken over all genes of the file. An empty cell stays 0.

        Raises
        ------
        InvalidFile
            Counts without a target sum (E628), or values that the matrix kind forbids (E614, E615).
        """
        mask = self.cells if wanted is None else wanted
        for block in self.file.row_blocks(max_bytes=self.block_bytes, wanted=mask):
            rows = np.flatnonzero(mask[block.start : block.stop])
            matrix = block.matrix if len(rows) == len(block.matrix.indptr) - 1 else block.matrix[rows]
            self._check_values(matrix.data)
            if scale != "raw":
                matrix = self._on_scale(matrix, scale)
            yield rows + block.start, matrix
            if self.on_rows is not None:
                self.on_rows(block.stop, self.file.n_obs)

    def _check_values(self, data: np.ndarray) -> None:
        if not np.isfinite(data).all():
            raise InvalidFile([self.issue("E614", "X", "values that are not finite", "finite values")])
        if len(data) and data.min() < 0:
            raise InvalidFile([self.issue("E615", "X", f"{data.min():g}", "values of at least 0")])

    def _on_scale(self, matrix: sp.csr_array, scale: Scale) -> sp.csr_array:
        if self.meta.matrix.kind == "counts" and self.meta.matrix.target_sum is None:
            expected = "uns/vcbench/matrix/target_sum"
            raise InvalidFile([self.issue("E628", "uns/vcbench", "no target sum", expected)])
        out = to_log1p(matrix, self.meta.matrix)
        if scale == "scaled":
            out.data = np.expm1(out.data)
        return out

    def issue(self, code: str, place: str, found: str, expected: str, **fill: Any) -> Issue:
        """An issue of this file."""
        return make_issue(
            code,
            where=f"{self.file.name}:/{place}",
            found=found,
            expected=expected,
            file=shlex.quote(str(self.file.path)),
            recipe=self.recipe,
            **fill,
        )
