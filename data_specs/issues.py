"""Coded problems in users' files: one catalogue, one class, one rendering.

The catalogue is data: `issue_codes/*.toml`, one table per code. Every code has a severity, a title, a
longer explanation and a `fix` command. A test triggers each code from one valid file with one defect.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from .errors import UnknownName

Severity = Literal["error", "warning", "info"]
_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class IssueKind:
    """One entry of the catalogue.

    `fix` is a command template. Its `{placeholders}` are filled from the call that makes the issue;
    `rules` names the official rules that the code covers (for example `2026:U19`).
    """

    code: str
    severity: Severity
    title: str
    explanation: str
    fix: str
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Issue:
    """One problem: what (`code`, `message`), where in the file, what was found and expected, what to run next."""

    code: str
    severity: Severity
    message: str
    where: str
    found: str
    expected: str
    fix: str

    def render(self) -> str:
        """The issue as three lines of text."""
        head = f"{self.code} {self.severity}: {self.message}   {self.where}"
        return f"{head}\n     found {self.found}; expected {self.expected}\n     fix: {self.fix}"

    def to_json(self) -> dict[str, str]:
        """The issue as a flat dict of strings."""
        return asdict(self)


@cache
def catalogue() -> dict[str, IssueKind]:
    """All issue kinds by code, sorted."""
    kinds: dict[str, IssueKind] = {}
    folder = resources.files("vcbench.data_specs").joinpath("issue_codes")
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".toml"):
            continue
        for code, table in tomllib.loads(entry.read_text(encoding="utf-8")).items():
            if code in kinds:
                raise ValueError(f"issue code {code} is defined twice ({entry.name})")
            kinds[code] = _kind(code, table)
    return dict(sorted(kinds.items()))


def _kind(code: str, table: dict[str, Any]) -> IssueKind:
    return IssueKind(
        code=code,
        severity=table["severity"],
        title=table["title"],
        explanation=table["explanation"],
        fix=table["fix"],
        rules=tuple(table.get("rules", ())),
    )


def issue_kind(code: str) -> IssueKind:
    """The catalogue entry of `code`. Raises `UnknownName`."""
    kinds = catalogue()
    if code not in kinds:
        raise UnknownName("issue code", code, list(kinds), "vcbench list issues")
    return kinds[code]


def make_issue(
    code: str,
    *,
    where: str,
    found: object,
    expected: object,
    severity: Severity | None = None,
    message: str | None = None,
    **fill: object,
) -> Issue:
    """An `Issue` of the catalogue.

    Parameters
    ----------
    where
        File and place inside it, for example `pred.h5ad:/obs/target_gene`.
    found, expected
        Short text: a count and the first example, never a whole list.
    severity
        Overrides the catalogue, for rules whose severity an edition or evidence level decides.
    fill
        Values of the placeholders in the catalogue's `title` and `fix`.

    Raises
    ------
    UnknownName
        `code` is not in the catalogue.
    KeyError
        A placeholder of the catalogue entry was not given.
    """
    kind = issue_kind(code)
    return Issue(
        code=code,
        severity=severity or kind.severity,
        message=message or kind.title.format(**fill),
        where=where,
        found=str(found),
        expected=str(expected),
        fix=kind.fix.format(**fill),
    )


def has_errors(issues: Iterable[Issue]) -> bool:
    """True when at least one issue is an error."""
    return any(issue.severity == "error" for issue in issues)


def sort_issues(issues: Iterable[Issue]) -> list[Issue]:
    """Errors first, then warnings, then notes; by code within each."""
    return sorted(issues, key=lambda issue: (_ORDER[issue.severity], issue.code, issue.where))


def first_of(items: Iterable[object], limit: int = 3) -> str:
    """`3 of: a, b, c` style text: the count, then the first few items."""
    listed = list(items)
    shown = ", ".join(repr(str(item)) for item in listed[:limit])
    more = ", …" if len(listed) > limit else ""
    return f"{len(listed):,} ({shown}{more})" if listed else "0"


def renamed(issue: Issue, temporary: Path | None, path: Path | None) -> Issue:
    """An issue that names the user's file where a reader named the temporary one."""
    if path is None or temporary is None or temporary == path:
        return issue
    where = issue.where.replace(str(temporary), str(path)).replace(temporary.name, path.name)
    fix = issue.fix.replace(shlex.quote(str(temporary)), shlex.quote(str(path)))
    return replace(issue, where=where, fix=fix)
