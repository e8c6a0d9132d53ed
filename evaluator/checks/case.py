"""What one validation looks at: the opened source, the edition, the lists, and the labels of its rows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...data_specs.h5ad_columns import Labels
from ...data_specs.issues import Issue, Severity, make_issue
from ...data_specs.labels import UNASSIGNED_LABELS
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.standard import MatrixKind, StandardMeta
from ..reference_files import GeneList, PerturbationList

Group = tuple[str | None, str]


@dataclass(frozen=True)
class Names:
    """How issues and their commands name things: the file as issues show it, and shell-quoted arguments."""

    shown: str
    file: str
    genes: str = "GENES.csv"
    perts: str = "PERTS.csv"


@dataclass(frozen=True)
class Case:
    """One source under one edition.

    `meta` is None when the file has no usable `uns/vcbench`. `perturbations` and `contexts` are the label
    columns, None when the column is absent or unreadable. `required_contexts` is None when nothing says which
    contexts the entry must hold.
    """

    source: Source
    edition: Edition
    names: Names
    pert_col: str
    control: str
    context_col: str | None
    context_demanded: bool
    meta: StandardMeta | None
    matrix_option: MatrixKind | None
    gene_list: GeneList | None
    perturbation_list: PerturbationList | None
    required_contexts: tuple[str, ...] | None
    perturbations: Labels | None
    contexts: Labels | None

    @property
    def rows(self) -> str:
        """`cell` or `mean`, as the file declares; `cell` without a declaration."""
        return self.meta.rows if self.meta else "cell"

    @property
    def standard_labels(self) -> bool:
        """Whether labels must be in the canonical form of the standard schema."""
        return self.edition.scoring.pipeline == "core"

    def issue(
        self,
        code: str,
        place: str,
        *,
        found: object,
        expected: object,
        severity: Severity | None = None,
        column: str = "",
        label: str = "",
    ) -> Issue:
        """An issue at `place` inside the file, with the commands' placeholders filled."""
        suffix = ".h5ad" if self.edition.file.containers[0] == "h5ad" else ".vcc"
        return make_issue(
            code,
            where=f"{self.names.shown}:{place}",
            found=found,
            expected=expected,
            severity=severity,
            file=self.names.file,
            edition=self.edition.id,
            out=f"ENTRY{suffix}",
            genes=self.names.genes,
            perts=self.names.perts,
            column=column,
            control=shlex.quote(label or self.control),
        )

    @cached_property
    def unlabelled(self) -> np.ndarray:
        """Rows without a perturbation label (missing, blank, `nan`), bool, shape (n_obs,)."""
        return _without_label(self.perturbations, self.source.n_obs)

    @cached_property
    def group_codes(self) -> np.ndarray:
        """Index into `groups` of each row, int64, shape (n_obs,); -1 without a label."""
        return self._grouping[0]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The (context, perturbation) pairs that have rows, sorted; the context is None without a context column."""
        return self._grouping[1]

    @cached_property
    def group_sizes(self) -> np.ndarray:
        """Rows of each group, int64, shape (n_groups,)."""
        codes = self.group_codes
        return np.bincount(codes[codes >= 0], minlength=len(self.groups))

    @cached_property
    def _grouping(self) -> tuple[np.ndarray, tuple[Group, ...]]:
        codes = np.full(self.source.n_obs, -1, dtype=np.int64)
        if self.perturbations is None:
            return codes, ()
        labels, places = self.perturbations, self.contexts
        known = ~self.unlabelled
        width = len(labels.categories)
        joint = labels.codes.astype(np.int64)
        if places is not None:
            known &= places.codes >= 0
            joint = joint + width * places.codes.astype(np.int64)
        used, inverse = np.unique(joint[known], return_inverse=True)
        codes[known] = inverse
        keys: list[Group] = []
        for value in used:
            place = None if places is None else str(places.categories[value // width])
            keys.append((place, str(labels.categories[value % width])))
        return codes, tuple(keys)

    def show(self, group: Group) -> str:
        """A group as issues show it."""
        context, perturbation = group
        return perturbation if context is None else f"{context}: {perturbation}"

    def row_name(self, row: int) -> str:
        """A row as issues show it: its number and obs name."""
        return f"row {row:,} {str(self.source.obs_names[row])!r}"


def _without_label(labels: Labels | None, n_rows: int) -> np.ndarray:
    if labels is None:
        return np.ones(n_rows, dtype=bool)
    blank = [str(name).strip() in UNASSIGNED_LABELS for name in labels.categories]
    return np.append(np.array(blank, dtype=bool), True)[labels.codes]


def first_with_count(items: Sequence[str], noun: str, total: int | None = None) -> str:
    """`3 of 150 listed perturbations (first: 'ADNP')` style text."""
    share = f"{len(items):,}" if total is None else f"{len(items):,} of {total:,}"
    return f"{share} {noun} (first: {items[0]!r})"
