"""What a split is drawn from: the distinct (context, perturbation, published label) triples of a standard file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from ..errors import InvalidFile, UsageError
from ..h5ad import H5ad
from ..issues import make_issue
from ..labels import CONTROL, is_canonical
from ..split_file import SPLIT_NAMES, Key, Split, SplitName, labels_sha256
from ..standard import CONTEXT, LABEL_SOURCE, PERTURBATION, read_meta
from .subgroups import subgroup, train_targets

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class LabelTable:
    """Distinct (context, perturbation, published label) triples in order of first appearance.

    Every scheme but GEARS' own depends on the set of keys only, never on their order.
    """

    rows: tuple[Triple, ...]
    dataset_id: str = "unknown"

    @classmethod
    def from_keys(cls, keys: Iterable[Key], *, dataset_id: str = "unknown") -> LabelTable:
        """A table whose published labels are the canonical ones."""
        return cls(tuple((context, name, name) for context, name in keys), dataset_id)

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """The distinct (context, perturbation), controls included, sorted."""
        return tuple(sorted({(context, name) for context, name, _ in self.rows}))

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """The contexts, sorted."""
        return tuple(sorted({context for context, _ in self.keys}))

    @cached_property
    def perturbations(self) -> tuple[str, ...]:
        """The perturbations of any context without control, sorted."""
        return tuple(sorted({name for _, name in self.keys} - {CONTROL}))

    @cached_property
    def sha256(self) -> str:
        """The hash that the record of a split carries: of the canonical labels, control included."""
        return labels_sha256(name for _, name in self.keys)


def read_labels(path: str | os.PathLike[str]) -> LabelTable:
    """The label table of a standard file; X is not read.

    Raises
    ------
    InvalidFile
        A needed column is missing, or labels are not canonical (codes E001 to E009, E621, E626).
    """
    with H5ad(path) as file:
        quoted = shlex.quote(str(file.path))
        issues = [
            make_issue(
                "E626",
                where=f"{file.name}:/obs",
                found=", ".join(file.obs_columns) or "no column",
                expected=column,
                column=column,
                file=quoted,
            )
            for column in (PERTURBATION, CONTEXT)
            if column not in file.obs_columns
        ]
        if issues:
            raise InvalidFile(issues)
        labels, context = file.labels(PERTURBATION), file.labels(CONTEXT)
        odd = [str(name) for name in labels.categories if not is_canonical(str(name))]
        if odd:
            issue = make_issue(
                "E621",
                where=f"{file.name}:/obs/{PERTURBATION}",
                found=f"{len(odd):,} ({odd[0]!r})",
                expected="control, A, or A+B with parts in order and once",
                file=quoted,
            )
            raise InvalidFile([issue])
        source = file.labels(LABEL_SOURCE) if LABEL_SOURCE in file.obs_columns else labels
        stacked = np.stack([context.codes, labels.codes, source.codes])
        stacked = stacked[:, (stacked >= 0).all(axis=0)]
        unique, first = np.unique(stacked, axis=1, return_index=True)
        rows = tuple(
            (str(context.categories[c]), str(labels.categories[p]), str(source.categories[s]))
            for c, p, s in unique[:, np.argsort(first)].T
        )
        meta = read_meta(file)
        return LabelTable(rows, meta.dataset_id if meta else file.name)


def assemble(
    table: LabelTable,
    parts: Mapping[Key, SplitName],
    *,
    scheme: str,
    seed: int | None,
    parameters: Mapping[str, Any],
    subgroups: Mapping[Key, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Split:
    """The split of `parts` with control added to train, subgroups and the record.

    Keys of `table` that are not in `parts` are excluded and listed in the record. `subgroups` replaces the
    subgroups of `subgroup` where a scheme defines its own. Counts of the record leave control out.
    """
    rows: dict[Key, tuple[SplitName, str]] = {}
    seen = train_targets(key for key, part in parts.items() if part == "train")
    for key in table.keys:
        if key[1] == CONTROL:
            rows[key] = ("train", "")
        elif key in parts:
            part = parts[key]
            own = "" if part == "train" else subgroup(key[1], seen)
            rows[key] = (part, own if subgroups is None else subgroups.get(key, ""))
    counts = dict.fromkeys(SPLIT_NAMES, 0)
    held_out: dict[str, dict[str, int]] = {"validation": {}, "test": {}}
    for (_, name), (part, group) in rows.items():
        counts[part] += name != CONTROL
        if part != "train":
            held_out[part][group] = held_out[part].get(group, 0) + 1
    record = {
        "scheme": scheme,
        "seed": seed,
        "parameters": dict(parameters),
        "dataset_id": table.dataset_id,
        "labels_sha256": table.sha256,
        "numpy": np.__version__,
        "vcbench": version("vcbench"),
        "n": counts,
        "subgroups": held_out,
        "excluded": [list(key) for key in table.keys if key not in rows],
        **(notes or {}),
    }
    return Split(rows, record)


def held_out_part(
    names: Iterable[str], fraction: float, rng: np.random.Generator, *, what: str
) -> tuple[list[str], list[str]]:
    """(kept, drawn): a `fraction` of the sorted names, at least one when the fraction is positive.

    Raises
    ------
    UsageError
        The fraction is outside 0 to 1, or nothing would be kept.
    """
    ordered = sorted(names)
    if not 0 <= fraction < 1:
        raise UsageError(f"the fraction for {what} must lie in [0, 1), not {fraction}.")
    n_drawn = max(1, round(fraction * len(ordered))) if fraction else 0
    if n_drawn >= len(ordered) and fraction:
        raise UsageError(
            f"{len(ordered)} perturbations are too few to hold {fraction:g} of them out for {what}."
        )
    order = rng.permutation(len(ordered))
    drawn = {ordered[i] for i in order[:n_drawn]}
    return [name for name in ordered if name not in drawn], sorted(drawn)
