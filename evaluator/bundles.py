"""Truth bundles of every edition: folders of arrays and tables with a manifest that holds their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data_specs.atomic import atomic_folder
from ..data_specs.errors import InvalidFile, UsageError
from ..data_specs.hashing import file_sha256
from ..data_specs.issues import Issue, make_issue
from ..data_specs.remote import input_path, is_remote

if TYPE_CHECKING:
    from ..data_specs.spec_models import Edition

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
_OWN_HASH = "manifest_sha256"


@dataclass(frozen=True)
class Bundle:
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
        return file_sha256(self.path / MANIFEST)

    @property
    def contexts(self) -> list[str]:
        """The contexts in the bundle; "" when the real file does not name its only one."""
        return [entry["context"] for entry in self.manifest["contexts"]]

    def has(self, member: str) -> bool:
        """Whether the manifest lists this file."""
        return member in self.manifest["members"]

    def array(self, member: str) -> np.ndarray:
        """An array of the bundle, memory-mapped."""
        file = self.path / member
        if is_remote(file):
            with file.open("rb") as handle:
                return np.load(handle, allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class BundleFolder:
    """A bundle being written: `path` takes its members, `record` becomes the manifest."""

    path: Path
    record: dict[str, Any]


@contextmanager
def new_bundle(
    path: str | os.PathLike[str], *, edition: Edition, force: bool = False
) -> Iterator[BundleFolder]:
    """Fill a folder and its record; hashes and manifest are added at the end. The folder appears whole or not at all.

    Raises `OutputError`.
    """
    with atomic_folder(path, force=force) as part:
        folder = BundleFolder(part, {})
        yield folder
        files = sorted(file for file in part.rglob("*") if file.is_file())
        manifest = {
            "bundle_version": BUNDLE_VERSION,
            "edition": edition.id,
            "pipeline": edition.scoring.pipeline,
            "vcbench_version": version("vcbench"),
            "members": {file.relative_to(part).as_posix(): file_sha256(file) for file in files},
            **folder.record,
        }
        manifest[_OWN_HASH] = _manifest_hash(manifest)
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (part / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(
    path: str | os.PathLike[str], *, edition: str | None = None, check_hashes: bool = True
) -> Mapping[str, Any]:
    """The manifest of a bundle.

    Raises
    ------
    InvalidFile
        It is no bundle, of another version or edition, incomplete, or a file was changed after it was written (E593).
    """
    folder = input_path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"no readable {MANIFEST} ({error})"
        raise broken(folder, found, "a folder of `vcbench truth build`", edition=edition) from error
    if not isinstance(manifest, dict) or manifest.get("bundle_version") != BUNDLE_VERSION:
        found = manifest.get("bundle_version") if isinstance(manifest, dict) else None
        raise broken(folder, f"bundle version {found!r}", f"version {BUNDLE_VERSION}", edition=edition)
    if check_hashes and manifest.get(_OWN_HASH) != _manifest_hash(manifest):
        raise broken(
            folder, f"{MANIFEST} was changed after it was written", "its own sha256", edition=edition
        )
    if edition is not None and manifest.get("edition") != edition:
        raise broken(folder, f"edition {manifest.get('edition')!r}", f"edition {edition!r}", edition=edition)
    for name, digest in manifest["members"].items():
        file = folder / name
        if not file.is_file():
            raise broken(folder, f"no {name}", "every member of the manifest", edition=edition)
        if check_hashes and file_sha256(file) != digest:
            raise broken(
                folder, f"{name} was changed after it was written", f"sha256 {digest[:12]}…", edition=edition
            )
    return manifest


def open_bundle(path: str | os.PathLike[str], *, edition: Edition, check_hashes: bool = True) -> Bundle:
    """A bundle for scoring in this edition. Raises `InvalidFile` (E593) as `read_manifest`."""
    manifest = read_manifest(path, edition=edition.id, check_hashes=check_hashes)
    if edition.scoring.pipeline == "vcc2026":
        from .vcc2026.bundle import TruthBundle

        return TruthBundle(input_path(path), manifest)
    from .celleval.bundle import CellevalBundle

    return CellevalBundle(input_path(path), manifest)


def join_bundles(parts: Sequence[tuple[str | None, Bundle]], *, edition: Edition) -> Any:
    """One truth of one or several bundles, each for one context. Raises `UsageError` when they do not fit together."""
    if edition.scoring.pipeline == "vcc2026":
        from .vcc2026.bundle import join_bundles as join
    else:
        from .celleval.bundle import join_bundles as join
    return join(parts)  # pyright: ignore[reportArgumentType]


def named_contexts(parts: Sequence[tuple[str | None, Bundle]]) -> dict[str, Bundle]:
    """Bundles by context, sorted; a given context names the only context of its bundle.

    Raises
    ------
    UsageError
        A bundle has several contexts, or none of its name although it is not alone; two share a context; or their
        genes differ.
    """
    named: dict[str, Bundle] = {}
    first = parts[0][1]
    for given, bundle in parts:
        if len(bundle.contexts) > 1:
            raise UsageError(
                f"bundle {bundle.name} holds {len(bundle.contexts)} contexts; it is used alone, without CONTEXT=."
            )
        context = given or bundle.contexts[0]
        if len(parts) > 1 and (not context or context in named):
            raise UsageError(f"bundle {bundle.name}: give each its own context, --truth CONTEXT=BUNDLE.")
        if bundle.manifest["genes"] != first.manifest["genes"]:
            raise UsageError(f"bundles {first.name} and {bundle.name} have other genes.")
        named[context] = bundle
    return dict(sorted(named.items()))


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with a manifest."""
    return (input_path(path) / MANIFEST).is_file()


def broken(folder: Path, found: str, expected: str, *, edition: str | None) -> InvalidFile:
    """The refusal of a bundle (E593)."""
    return InvalidFile([broken_issue(folder, found, expected, edition=edition)])


def broken_issue(folder: Path, found: str, expected: str, *, edition: str | None) -> Issue:
    """Why a bundle cannot be used (E593)."""
    where = str(folder)
    return make_issue(
        "E593",
        where=where,
        found=found,
        expected=expected,
        file=shlex.quote(where),
        edition=edition or "EDITION",
    )


def _manifest_hash(manifest: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in manifest.items() if key != _OWN_HASH}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
