"""What a ScoreCard records of its inputs: names, sizes and hashes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_specs.h5ad import H5ad
from ..data_specs.hashing import file_facts
from ..data_specs.remote import input_path
from ..data_specs.sources import Source
from ..data_specs.split_file import Split
from .truth_files import Part

if TYPE_CHECKING:
    from .bundles import Bundle
    from .openproblems.tables import EffectTable

PathLike = str | os.PathLike[str]


def truth_inputs(
    truths: list[tuple[str | None, Part | Bundle]], split: PathLike | Split | None
) -> dict[str, dict[str, Any]]:
    """What a ScoreCard says of every truth, by role, and of the split's file."""
    out: dict[str, dict[str, Any]] = {}
    for context, source in truths:
        key = "truth" if len(truths) == 1 else f"truth:{context or source.name}"
        out[key] = described(source) | ({"context": context} if context else {})
    if split is not None and not isinstance(split, Split):
        out["split"] = _file_record(input_path(split))
    return out


def described(source: Source | Bundle | EffectTable) -> dict[str, Any]:
    """Name, size, hash and shape of an input; without size and hash where it was given in memory."""
    from .bundles import Bundle
    from .openproblems.tables import EffectTable

    if isinstance(source, EffectTable):
        shape = {"n_obs": source.n_obs, "n_genes": source.n_vars, "storage": "layers"}
        if source.from_file:
            return _file_record(source.path) | shape
        return {"name": source.name, "bytes": None, "sha256": None, **shape}
    if isinstance(source, Bundle):
        return {"name": source.name, "sha256": source.sha256, "kind": "truth bundle"}
    shape = {"n_obs": source.n_obs, "n_genes": source.n_vars, "storage": source.matrix.storage}
    if isinstance(source, H5ad):
        return _file_record(source.path) | shape
    return {"name": source.name, "bytes": None, "sha256": None, **shape}


def _file_record(path: Path) -> dict[str, Any]:
    return {"name": path.name, **file_facts(path)}
