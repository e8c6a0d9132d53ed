"""What a row is: cells or mean profiles, and whether the record of the file can be used."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ...data_specs.issues import Issue
from .case import Case


def row_issues(case: Case) -> Iterator[Issue]:
    """Rows of a kind that the edition does not take; no rows; a broken list of refusals."""
    allowed = case.edition.file.rows
    if case.rows not in allowed:
        yield case.issue(
            "E013",
            "/uns/vcbench/rows",
            found=f"{case.rows} rows",
            expected=" or ".join(f"{r} rows" for r in allowed),
        )
    if not case.source.n_obs:
        yield case.issue("E213", "/obs", found="0 rows", expected="at least one cell or profile")
    if refused_keys(case) is None:
        found = repr(str(case.source.vcbench.get("refused"))[:40])
        yield case.issue(
            "E015",
            "/uns/vcbench/refused",
            found=found,
            expected="JSON text: a list of objects with context, perturbation, reason",
        )


def refused_keys(case: Case) -> set[tuple[str, str]] | None:
    """(context, perturbation) of the rows a model refused; empty without a record, None when it cannot be read."""
    text = case.source.vcbench.get("refused")
    if text is None:
        return set()
    try:
        listed = json.loads(text) if isinstance(text, str) else None
        return (
            {(str(entry["context"]), str(entry["perturbation"])) for entry in listed or ()}
            if (isinstance(listed, list))
            else None
        )
    except (ValueError, KeyError, TypeError):
        return None
