"""Several truth files read as one: rows one after the other, genes in the order of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from .errors import InvalidFile, UsageError
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad, MatrixInfo, RowBlock
from .h5ad_columns import Labels
from .issues import Issue, first_of, make_issue
from .memory_source import MemorySource

Part = H5ad | MemorySource


class JoinedSource:
    """Reads (context, source) parts as one source.

    Parameters
    ----------
    parts
        At least one. A context (not None) names all rows of its part; the part itself may then hold one context only.
    context_column
        The obs column that carries the contexts.

    Raises
    ------
    InvalidFile
        The parts have different genes or matrix records (E562).
    UsageError
        A context is given for a part that holds several, or none for a part without the column.
    """

    def __init__(self, parts: Sequence[tuple[str | None, Part]], *, context_column: str):
        self._parts, self._context_column = tuple(parts), context_column
        self._sources = [source for _, source in self._parts]
        for context, source in self._parts:
            _check_context(context, source, context_column, several=len(self._parts) > 1)
        issues = [issue for source in self._sources[1:] for issue in _mismatches(self._sources[0], source)]
        if issues:
            raise InvalidFile(issues)
        first = self._sources[0]
        self.name = " + ".join(source.name for source in self._sources)
        self.path: Path = first.path
        n_obs = sum(source.n_obs for source in self._sources)
        n_stored = sum(source.matrix.n_stored for source in self._sources)
        self.matrix = MatrixInfo(first.matrix.storage, first.matrix.dtype, (n_obs, first.n_vars), n_stored)

    @property
    def parts(self) -> tuple[tuple[str | None, Part], ...]:
        """(context, source) of every part."""
        return self._parts

    @property
    def context_column(self) -> str:
        """The obs column that carries the contexts."""
        return self._context_column

    @property
    def location(self) -> str:
        """Where the parts' matrices are in their files: that of the first part."""
        return self._sources[0].location

    @property
    def n_obs(self) -> int:
        return self.matrix.shape[0]

    @property
    def n_vars(self) -> int:
        return self.matrix.shape[1]

    @property
    def genes(self) -> np.ndarray:
        """The genes of the first part."""
        return self._sources[0].genes

    @cached_property
    def obs_names(self) -> np.ndarray:
        """The obs indices of all parts."""
        return np.concatenate([source.obs_names for source in self._sources])

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns that every part has, and the context column."""
        shared = set(self._sources[0].obs_columns).intersection(*(s.obs_columns for s in self._sources))
        if any(context is not None for context, _ in self._parts):
            shared.add(self._context_column)
        return tuple(sorted(shared))

    @property
    def uns(self) -> dict[str, Any]:
        """`uns` of the first part."""
        return self._sources[0].uns

    @property
    def vcbench(self) -> dict[str, Any]:
        """`uns["vcbench"]` of the first part."""
        return self._sources[0].vcbench

    def labels(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> Labels:
        """A column of all parts as text labels; a given context replaces its part's own."""
        if axis == "var":
            return self._sources[0].labels(column, axis=axis)
        texts = []
        for context, source in self._parts:
            if column == self._context_column and context is not None:
                texts.append(np.full(source.n_obs, context, dtype=object))
            else:
                texts.append(source.labels(column).values())
        return Labels.from_values(np.concatenate(texts))

    def stored_categories(
        self, column: str, *, axis: Literal["obs", "var"] = "obs"
    ) -> tuple[str, ...] | None:
        """The stored categories of all parts, each once, in order of the parts; None when a part stores none."""
        sources = self._sources[:1] if axis == "var" else self._sources
        return _merged([source.stored_categories(column, axis=axis) for source in sources])

    def context_categories(self, context: str, column: str) -> tuple[str, ...] | None:
        """The stored categories of an obs column in the parts that hold rows of `context`; None when one stores none.

        Each file keeps its own order, whatever the order in the files of other contexts.
        """
        holding = [source for given, source in self._parts if context in self._contexts(given, source)]
        return _merged([source.stored_categories(column) for source in holding])

    def _contexts(self, given: str | None, source: Part) -> tuple[str, ...]:
        if given is not None or self._context_column not in source.obs_columns:
            return (given or "",)
        return tuple(str(name) for name in source.labels(self._context_column).categories)

    def values(self, column: str, *, axis: Literal["obs", "var"] = "obs") -> np.ndarray:
        """A column of all parts as an array."""
        if axis == "var":
            return self._sources[0].values(column, axis=axis)
        if column == self._context_column:
            return self.labels(column).values()
        return np.concatenate([source.values(column) for source in self._sources])

    def row_blocks(
        self,
        *,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        canonical: bool = True,
        wanted: np.ndarray | None = None,
    ) -> Iterator[RowBlock]:
        """The rows of all parts in order, columns in the first part's gene order; see `H5ad.row_blocks`."""
        start = 0
        place = {gene: i for i, gene in enumerate(self.genes)}
        for source in self._sources:
            new = np.array([place[gene] for gene in source.genes], dtype=np.int32)
            same = bool((new == np.arange(len(new))).all())
            part = None if wanted is None else wanted[start : start + source.n_obs]
            for block in source.row_blocks(max_bytes=max_bytes, canonical=canonical, wanted=part):
                matrix = block.matrix
                if not same:
                    matrix = sp.csr_array(
                        (matrix.data, new[matrix.indices], matrix.indptr), shape=matrix.shape
                    )
                    matrix.sort_indices()
                yield RowBlock(start + block.start, matrix)
            start += source.n_obs

    def value_blocks(
        self, *, max_bytes: int = DEFAULT_BLOCK_BYTES, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(first row, values, row bounds) of blocks of rows, the values as stored; see `H5ad.value_blocks`."""
        start = 0
        for source in self._sources:
            part = None if wanted is None else wanted[start : start + source.n_obs]
            for own_start, values, indptr in source.value_blocks(max_bytes=max_bytes, wanted=part):
                yield start + own_start, values, indptr
            start += source.n_obs


def _merged(orders: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    if any(order is None for order in orders):
        return None
    return tuple(dict.fromkeys(name for order in orders if order is not None for name in order))


def _check_context(context: str | None, source: Part, column: str, *, several: bool) -> None:
    has = column in source.obs_columns
    if context is None and several and not has:
        raise UsageError(
            f"{source.name}: has no column {column!r}; name its context as CONTEXT={source.path}."
        )
    own = source.labels(column).categories if has else ()
    if context is not None and len(own) > 1:
        raise UsageError(
            f"{source.name}: holds {len(own)} contexts, so all its rows cannot be {context!r}; drop `{context}=`."
        )


def _mismatches(first: Part, other: Part) -> list[Issue]:
    issues = []
    missing, extra = sorted(set(first.genes) - set(other.genes)), sorted(set(other.genes) - set(first.genes))
    if missing or extra:
        found = f"missing {first_of(missing)}; extra {first_of(extra)}"
        issues.append(_mismatch(other, "/var", found, f"the {first.n_vars:,} genes of {first.name}"))
    ours, theirs = first.vcbench.get("matrix"), other.vcbench.get("matrix")
    if ours != theirs:
        issues.append(_mismatch(other, "/uns/vcbench/matrix", theirs, f"{ours}, as in {first.name}"))
    if first.vcbench.get("rows", "cell") != other.vcbench.get("rows", "cell"):
        issues.append(_mismatch(other, "/uns/vcbench/rows", "another kind", f"as in {first.name}"))
    return issues


def _mismatch(source: Part, place: str, found: object, expected: str) -> Issue:
    return make_issue(
        "E562", where=f"{source.name}:{place}", found=found, expected=expected, file=source.path
    )
