"""Truth bundles: everything scoring needs of the real data, computed once, as memory-mapped arrays with a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ...data_specs.atomic import atomic_folder
from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.issues import make_issue
from .baselines import collect_rows, memory_cells
from .bulks import Bulks
from .cells import n_rows
from .columns import Ends
from .de import DETable
from .references import read_anchor, read_baseline
from .sides import RealSide
from .targets import TargetRule

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
BASELINE_FILE, ANCHOR_FILE, SPLITS_FILE = "baseline_agg.csv", "anchor_agg.csv", "anchor_splits.csv"
_BULK_NAMES = tuple(field.name for field in fields(Bulks))
_DE_NAMES = tuple(field.name for field in fields(DETable))
_CONTROL_NAMES = ("data", "indices", "indptr")


@dataclass(frozen=True)
class TruthBundle:
    """An opened bundle. `manifest` is its checked record; arrays are read when a context is asked for."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, as ScoreCards show it."""
        return self.path.name

    @property
    def sha256(self) -> str:
        """The hash of the manifest, which holds the hashes of all members."""
        return file_hash(self.path / MANIFEST)

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
        folder = self.path / entry["folder"]
        baseline, anchor = folder / BASELINE_FILE, folder / ANCHOR_FILE
        return Ends(
            read_baseline(baseline) if baseline.exists() else {},
            read_anchor(anchor) if anchor.exists() else {},
            f"bundle {self.name} (local)",
        )

    def _side(self, entry: Mapping[str, Any]) -> RealSide:
        folder = self.path / entry["folder"]

        def load(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

        genes = tuple(self.manifest["genes"])
        parts = tuple(load(f"control_{name}") for name in _CONTROL_NAMES)
        rows = sp.csr_array(parts, shape=(len(parts[2]) - 1, len(genes)), copy=False)
        return RealSide(
            entry["context"],
            tuple(entry["perturbations"]),
            genes,
            Bulks(**{name: load(f"bulk_{name}") for name in _BULK_NAMES}),
            memory_cells(rows, genes, np.zeros(n_rows(rows), np.int64), name=f"{self.name} control"),
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
    named: dict[str, TruthBundle] = {}
    first = parts[0][1]
    for given, bundle in parts:
        stored = [entry["context"] for entry in bundle.manifest["contexts"]]
        if len(stored) > 1:
            raise UsageError(
                f"bundle {bundle.name} holds {len(stored)} contexts; it is used alone, without CONTEXT=."
            )
        context = given or stored[0]
        if not context or context in named:
            raise UsageError(f"bundle {bundle.name}: give each its own context, --truth CONTEXT=BUNDLE.")
        if bundle.manifest["genes"] != first.manifest["genes"] or bundle.rule != first.rule:
            raise UsageError(
                f"bundles {first.name} and {bundle.name} have other genes or other target genes."
            )
        named[context] = bundle
    return JoinedBundles(tuple(sorted(named.items())))


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
    edition: str,
    record: Mapping[str, Any],
    force: bool = False,
) -> TruthBundle:
    """Write a bundle as one folder, whole or not at all, and open it.

    `record` joins the manifest (options, fingerprints, seeds). Raises `OutputError`.
    """
    with atomic_folder(path, force=force) as part:
        listed = []
        for number, context in enumerate(contexts):
            folder = part / f"context_{number}"
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
        members = {
            str(file.relative_to(part)): file_hash(file) for file in sorted(part.rglob("*")) if file.is_file()
        }
        manifest = {
            "bundle_version": BUNDLE_VERSION,
            "edition": edition,
            "vcbench_version": version("vcbench"),
            "genes": list(contexts[0].side.genes),
            "contexts": listed,
            "members": members,
            **record,
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (part / MANIFEST).write_text(text, encoding="utf-8")
    return read_bundle(path)


def read_bundle(
    path: str | os.PathLike[str], *, edition: str | None = None, check_hashes: bool = True
) -> TruthBundle:
    """Open a bundle.

    Raises
    ------
    InvalidFile
        It is no bundle, of another version or edition, incomplete, or a member's hash is not the recorded one (E593).
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(
            folder, f"no readable {MANIFEST} ({error})", "a folder of `vcbench truth build`"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("bundle_version") != BUNDLE_VERSION:
        found = manifest.get("bundle_version") if isinstance(manifest, dict) else None
        raise _broken(folder, f"bundle version {found!r}", f"version {BUNDLE_VERSION}")
    if edition is not None and manifest.get("edition") != edition:
        raise _broken(folder, f"edition {manifest.get('edition')!r}", f"edition {edition!r}")
    for name, digest in manifest["members"].items():
        file = folder / name
        if not file.is_file():
            raise _broken(folder, f"no {name}", "every member of the manifest")
        if check_hashes and file_hash(file) != digest:
            raise _broken(folder, f"{name} was changed after it was written", f"sha256 {digest[:12]}…")
    return TruthBundle(folder, manifest)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a manifest."""
    return (Path(path) / MANIFEST).is_file()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(2**22):
            digest.update(piece)
    return digest.hexdigest()


def _write_side(folder: Path, side: RealSide) -> None:
    rows = collect_rows(side.control)
    arrays = {f"bulk_{name}": getattr(side.bulks, name) for name in _BULK_NAMES}
    arrays |= {f"control_{name}": getattr(rows, name) for name in _CONTROL_NAMES}
    if side.de is not None:
        arrays |= {f"de_{name}": getattr(side.de, name) for name in _DE_NAMES}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _broken(folder: Path, found: str, expected: str) -> InvalidFile:
    where = str(folder)
    return InvalidFile(
        [make_issue("E593", where=where, found=found, expected=expected, file=shlex.quote(where))]
    )
