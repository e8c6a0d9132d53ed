"""Truth bundles: everything scoring needs of the real data, computed once, as memory-mapped arrays with a manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import UsageError
from ...data_specs.remote import input_path
from ...data_specs.spec_models import Edition
from ..bundles import Bundle, named_contexts, new_bundle, read_manifest
from .baselines import collect_rows, held_cells
from .bulks import Bulks
from .columns import Ends
from .de import DETable
from .references import read_anchor, read_baseline
from .sides import RealSide
from .targets import TargetRule

BASELINE_FILE, ANCHOR_FILE, SPLITS_FILE = "baseline_agg.csv", "anchor_agg.csv", "anchor_splits.csv"
_BULK_NAMES = tuple(field.name for field in fields(Bulks))
_DE_NAMES = tuple(field.name for field in fields(DETable))
_CONTROL_NAMES = ("data", "indices", "indptr")


@dataclass(frozen=True)
class TruthBundle(Bundle):
    """An opened bundle of edition vcc2026."""

    @property
    def rule(self) -> TargetRule:
        """How labels found their own gene when the ends were measured."""
        stored = self.manifest["options"]
        return TargetRule(dict(stored["target_map"] or {}), bool(stored["no_target_genes"]))

    def sides(self) -> list[RealSide]:
        """The truth's side of every context, arrays memory-mapped."""
        return [self._side(entry) for entry in self.manifest["contexts"]]

    @property
    def ends(self) -> dict[str, Ends]:
        """Baseline and replicate values of every context; contexts without them have empty ends."""
        return {entry["context"]: self._ends(entry) for entry in self.manifest["contexts"]}

    def _ends(self, entry: Mapping[str, Any]) -> Ends:
        baseline, anchor = (f"{entry['folder']}/{name}" for name in (BASELINE_FILE, ANCHOR_FILE))
        return Ends(
            read_baseline(self.path / baseline) if self.has(baseline) else {},
            read_anchor(self.path / anchor) if self.has(anchor) else {},
            f"bundle {self.name} (local)",
        )

    def _side(self, entry: Mapping[str, Any]) -> RealSide:
        def load(name: str) -> np.ndarray:
            return self.array(f"{entry['folder']}/{name}.npy")

        genes = tuple(self.manifest["genes"])
        parts = tuple(load(f"control_{name}") for name in _CONTROL_NAMES)
        rows = sp.csr_array(parts, shape=(len(parts[2]) - 1, len(genes)), copy=False)
        return RealSide(
            entry["context"],
            tuple(entry["perturbations"]),
            genes,
            Bulks(**{name: load(f"bulk_{name}") for name in _BULK_NAMES}),
            held_cells(rows, name=f"{self.name} control"),
            DETable(**{name: load(f"de_{name}") for name in _DE_NAMES}),
        )


@dataclass(frozen=True)
class JoinedBundles:
    """Bundles of several contexts, used as one."""

    parts: tuple[tuple[str, TruthBundle], ...]

    @property
    def name(self) -> str:
        """The names of all parts."""
        return " + ".join(bundle.name for _, bundle in self.parts)

    @property
    def rule(self) -> TargetRule:
        """The rule that all parts share."""
        return self.parts[0][1].rule

    def sides(self) -> list[RealSide]:
        """The truth's side of every context."""
        return [replace(bundle.sides()[0], context=context) for context, bundle in self.parts]

    @property
    def ends(self) -> dict[str, Ends]:
        """Baseline and replicate values of every context."""
        return {context: next(iter(bundle.ends.values())) for context, bundle in self.parts}


def join_bundles(parts: Sequence[tuple[str | None, TruthBundle]]) -> TruthBundle | JoinedBundles:
    """One bundle as it is, or several as one; a given context names the only context of its bundle.

    Raises
    ------
    UsageError
        Several bundles, and one has more than one context or none of its name, two share a context, or their genes
        or target genes differ.
    """
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    first = parts[0][1]
    named = cast(dict[str, TruthBundle], named_contexts(parts))
    for bundle in named.values():
        if bundle.rule != first.rule:
            raise UsageError(f"bundles {first.name} and {bundle.name} have other target genes.")
    return JoinedBundles(tuple(named.items()))


@dataclass(frozen=True)
class ContextBundle:
    """What is written for one context: the truth's side, and the tables of its ends as CSV text by file name."""

    side: RealSide
    tables: Mapping[str, str]
    record: Mapping[str, Any]


def write_bundle(
    path: str | os.PathLike[str],
    contexts: Sequence[ContextBundle],
    *,
    edition: Edition,
    record: Mapping[str, Any],
    force: bool = False,
) -> TruthBundle:
    """Write a bundle as one folder, whole or not at all, and open it.

    `record` joins the manifest (options, fingerprints, seeds). Raises `OutputError`.
    """
    with new_bundle(path, edition=edition, force=force) as part:
        listed = []
        for number, context in enumerate(contexts):
            folder = part.path / f"context_{number}"
            folder.mkdir()
            _write_side(folder, context.side)
            for name, text in context.tables.items():
                (folder / name).write_text(text, encoding="utf-8")
            listed.append(
                {
                    "context": context.side.context,
                    "folder": folder.name,
                    "perturbations": list(context.side.perturbations),
                    **context.record,
                }
            )
        part.record.update({"genes": list(contexts[0].side.genes), "contexts": listed, **record})
    return read_bundle(path)


def read_bundle(
    path: str | os.PathLike[str], *, edition: str | None = None, check_hashes: bool = True
) -> TruthBundle:
    """Open a bundle. Raises `InvalidFile` (E593) as `bundles.read_manifest`."""
    return TruthBundle(input_path(path), read_manifest(path, edition=edition, check_hashes=check_hashes))


def _write_side(folder: Path, side: RealSide) -> None:
    rows = collect_rows(side.control)
    arrays = {f"bulk_{name}": getattr(side.bulks, name) for name in _BULK_NAMES}
    arrays |= {f"control_{name}": getattr(rows, name) for name in _CONTROL_NAMES}
    if side.de is not None:
        arrays |= {f"de_{name}": getattr(side.de, name) for name in _DE_NAMES}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
