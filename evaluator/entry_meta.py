"""`meta.json` of a 2026 container: what it says about a file, and whether it says so of this one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data_specs.containers import META
from ..data_specs.h5ad_columns import Labels
from ..data_specs.issues import Issue, make_issue
from ..data_specs.sources import Source
from .reference_files import Manifest
from .vcc2026.fingerprints import perturbations_fingerprint

_KINDS: dict[str, type] = {
    "nnz": int,
    "n_obs": int,
    "n_vars": int,
    "contexts": list,
    "perts_fingerprint": str,
}


def entry_meta(
    source: Source, perturbations: Labels, contexts: Sequence[str], manifest: Manifest | None
) -> dict[str, Any]:
    """The fields of `meta.json` for this content; `panel_id` only where the manifest is of exactly these contexts."""
    of_these = manifest is not None and set(manifest.contexts) == set(contexts)
    return {
        **_counted(source, perturbations),
        "cli_version": f"vcbench {version('vcbench')}",
        "contexts": list(contexts),
        "panel_id": manifest.panel_id if manifest is not None and of_these else None,
    }


def _counted(source: Source, perturbations: Labels) -> dict[str, Any]:
    return {
        "nnz": int(source.matrix.n_stored),
        "n_obs": int(source.n_obs),
        "n_vars": int(source.n_vars),
        "perts_fingerprint": perturbations_fingerprint(str(name) for name in perturbations.categories),
    }


def meta_issues(
    meta: Mapping[str, Any],
    path: Path,
    source: Source,
    perturbations: Labels | None,
    contexts: Labels | None,
    required: Sequence[str] | None,
) -> Iterator[Issue]:
    """Fields that the content contradicts (E541), and fields of the wrong type (W504). Absent fields say nothing."""
    known = {
        "nnz": int(source.matrix.n_stored),
        "n_obs": int(source.n_obs),
        "n_vars": int(source.n_vars),
    }
    if perturbations is not None:
        known["perts_fingerprint"] = _counted(source, perturbations)["perts_fingerprint"]
    for key, kind in _KINDS.items():
        value = meta.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            yield _issue("W504", path, f"{key} {value!r:.40}", f"{key} of type {kind.__name__}")
        elif key in known and value != known[key]:
            yield _issue("E541", path, f"{key} {value!r:.90}", f"{key} {known[key]!r}")
    recorded = meta.get("contexts")
    if not isinstance(recorded, list):
        return
    names = sorted(str(name) for name in recorded)
    present = [] if contexts is None else sorted(str(name) for name in contexts.categories)
    if contexts is not None and names != present:
        yield _issue("E541", path, f"contexts {', '.join(names)[:80]}", ", ".join(present)[:80])
    elif required is not None and names != sorted(required):
        yield _issue("E541", path, f"contexts {', '.join(names)[:80]}", ", ".join(sorted(required))[:80])


def _issue(code: str, path: Path, found: str, expected: str) -> Issue:
    where = f"{path.name}:{META}"
    return make_issue(code, where=where, found=found, expected=expected, file=shlex.quote(str(path)))
