"""`diff`: what separates two entries, from names to the mean profile of every perturbation. Each file is read once."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ..data_specs.named_files import open_files
from ..data_specs.remote import input_path
from ..data_specs.sources import Source
from ..evaluator.checks.value_scan import row_projection
from .inspection import CONTEXT_COLUMNS, LABEL_COLUMNS

Group = tuple[str, str]


@dataclass(frozen=True)
class GroupDifference:
    """One (context, perturbation) of both entries.

    `largest` and `rms` are of the difference of the mean rows over genes, in the units of X; `correlation` is that of
    the two mean rows (None when one is constant).
    """

    context: str
    perturbation: str
    n_left: int
    n_right: int
    largest: float
    rms: float
    correlation: float | None


@dataclass(frozen=True)
class Difference:
    """How two entries differ.

    Attributes
    ----------
    equal
        Same genes in the same order, same rows in the same order with the same labels, same values.
    same_values
        The values are equal row by row once genes are in one order; None when shapes or genes differ.
    genes_only_left, genes_only_right, same_gene_order
        The gene axes.
    groups_only_left, groups_only_right
        (context, perturbation) pairs of one entry only.
    sizes_differ
        Pairs with another number of rows.
    groups
        Pairs of both entries whose mean rows differ, the largest difference first. Empty when genes differ.
    """

    left: str
    right: str
    shape_left: tuple[int, int]
    shape_right: tuple[int, int]
    equal: bool
    same_values: bool | None
    same_labels: bool
    same_gene_order: bool
    genes_only_left: tuple[str, ...]
    genes_only_right: tuple[str, ...]
    groups_only_left: tuple[Group, ...]
    groups_only_right: tuple[Group, ...]
    sizes_differ: tuple[Group, ...]
    groups: tuple[GroupDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """The difference as nested dicts of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Side:
    keys: list[Group]
    sizes: dict[Group, int]
    sums: dict[Group, np.ndarray]
    prints: np.ndarray


def diff_entries(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    tmp: str | os.PathLike[str] | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Difference:
    """Compare two `.h5ad` or `.vcc` files. Memory: one row of float64 sums per group and gene of both, and row blocks.

    Raises
    ------
    InvalidFile
        A file does not exist or cannot be read.
    """
    with ExitStack() as stack:
        one = open_files(stack, [(None, input_path(left))], tmp)
        two = open_files(stack, [(None, input_path(right))], tmp)
        genes_one, genes_two = [str(g) for g in one.genes], [str(g) for g in two.genes]
        only_left, only_right = _only(genes_one, genes_two), _only(genes_two, genes_one)
        comparable = not only_left and not only_right and len(set(genes_one)) == len(genes_one)
        place = {gene: i for i, gene in enumerate(genes_one)}
        order = np.array([place[g] for g in genes_two], dtype=np.int64) if comparable else None
        a = _read(one, None, block_bytes)
        b = _read(two, order, block_bytes)
    same_labels = a.keys == b.keys
    same_values = None
    if comparable and a.prints.shape == b.prints.shape:
        same_values = bool((a.prints == b.prints).all())
    shared = [key for key in a.sizes if key in b.sizes]
    groups = [_compared(key, a, b) for key in shared] if comparable else []
    groups = sorted((g for g in groups if g.largest > 0), key=lambda g: -g.largest)
    same_order = genes_one == genes_two
    return Difference(
        left=str(left),
        right=str(right),
        shape_left=(one.n_obs, one.n_vars),
        shape_right=(two.n_obs, two.n_vars),
        equal=bool(same_order and same_labels and same_values),
        same_values=same_values,
        same_labels=same_labels,
        same_gene_order=same_order,
        genes_only_left=tuple(only_left),
        genes_only_right=tuple(only_right),
        groups_only_left=tuple(key for key in a.sizes if key not in b.sizes),
        groups_only_right=tuple(key for key in b.sizes if key not in a.sizes),
        sizes_differ=tuple(key for key in shared if a.sizes[key] != b.sizes[key]),
        groups=tuple(groups),
    )


def _only(own: list[str], other: list[str]) -> list[str]:
    known = set(other)
    return [gene for gene in own if gene not in known]


def _read(source: Source, order: np.ndarray | None, block_bytes: int) -> _Side:
    keys = list(zip(_column(source, CONTEXT_COLUMNS), _column(source, LABEL_COLUMNS), strict=True))
    projection = row_projection(source.n_vars)[:, 1:]
    sizes: dict[Group, int] = {}
    sums: dict[Group, np.ndarray] = {}
    prints = np.zeros((source.n_obs, 2))
    for block in source.row_blocks(max_bytes=block_bytes):
        rows: Any = block.matrix.astype(np.float64)
        if order is not None:
            rows = sp.csr_array((rows.data, order[rows.indices], rows.indptr), shape=rows.shape)
            rows.sort_indices()
        prints[block.start : block.stop] = rows @ projection
        here = keys[block.start : block.stop]
        for key in dict.fromkeys(here):
            chosen = np.flatnonzero([k == key for k in here])
            part = np.asarray(rows[chosen].sum(axis=0)).ravel()
            sizes[key] = sizes.get(key, 0) + len(chosen)
            sums[key] = sums[key] + part if key in sums else part
    return _Side(keys, sizes, sums, prints)


def _column(source: Source, names: tuple[str, ...]) -> list[str]:
    column = next((name for name in names if name in source.obs_columns), None)
    if column is None:
        return [""] * source.n_obs
    return ["" if value is None else str(value) for value in source.labels(column).values()]


def _compared(key: Group, a: _Side, b: _Side) -> GroupDifference:
    left, right = a.sums[key] / a.sizes[key], b.sums[key] / b.sizes[key]
    gap = left - right
    constant = left.std() == 0 or right.std() == 0
    return GroupDifference(
        context=key[0],
        perturbation=key[1],
        n_left=a.sizes[key],
        n_right=b.sizes[key],
        largest=float(np.abs(gap).max(initial=0.0)),
        rms=float(np.sqrt(np.mean(gap**2))) if len(gap) else 0.0,
        correlation=None if constant else float(np.corrcoef(left, right)[0, 1]),
    )
