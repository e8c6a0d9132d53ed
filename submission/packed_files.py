"""The files of one pack, and what its manifest says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data_specs.hashing import file_facts
from ..data_specs.named_files import NamedFile
from ..data_specs.remote import public
from ..data_specs.spec_models import Edition


@dataclass(frozen=True)
class Inputs:
    """The files of one pack. `prediction` is empty for an AnnData in memory."""

    prediction: tuple[NamedFile, ...]
    controls: tuple[NamedFile, ...]
    genes: Path | None
    perts: Path | None

    def paths(self) -> list[Path]:
        """All of them."""
        lists = [path for path in (self.genes, self.perts) if path is not None]
        return [*(path for _, path in (*self.prediction, *self.controls)), *lists]

    def words(self, edition: Edition) -> list[str]:
        """The command that packs these files, without options, output and what URLs keep secret."""
        named = [_named(item) for item in self.prediction] or ["PRED.h5ad"]
        words = ["vcbench", "pack", *named, "--edition", edition.id]
        for option, path in (("--genes", self.genes), ("--perts", self.perts)):
            words += [] if path is None else [option, _recorded(path)]
        for item in self.controls:
            words += ["--controls", _named(item)]
        return words

    def facts(self) -> dict[str, Any]:
        """Role to path, size and hash; a list where a role has several files."""
        roles: dict[str, Any] = {}
        for role, named in (("prediction", self.prediction), ("controls", self.controls)):
            listed = [
                {"path": _recorded(path), **file_facts(path), **({"context": c} if c else {})}
                for c, path in named
            ]
            if listed:
                roles[role] = listed[0] if len(listed) == 1 else listed
        for role, path in (("genes", self.genes), ("perturbations", self.perts)):
            if path is not None:
                roles[role] = {"path": _recorded(path), **file_facts(path)}
        return roles


def _named(item: NamedFile) -> str:
    context, path = item
    return _recorded(path) if context is None else f"{context}={_recorded(path)}"


def _recorded(path: Path) -> str:
    """The path as it was given, or a URL without its secrets."""
    return public(str(path))
