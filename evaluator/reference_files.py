"""The lists an entry is checked against: gene list, perturbation list, and the manifest that ships beside them."""

from __future__ import annotations

import csv
import json
import math
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data_specs.errors import InvalidFile
from ..data_specs.issues import Issue, first_of, make_issue
from ..data_specs.remote import input_path, is_path_like

GENE_HEADERS = ("gene_name", "gene", "gene_symbol", "gene_names", "genes")
MISSING_NAMES = ("", "nan", "none", "null", "na")
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 256 * 1024


@dataclass(frozen=True)
class GeneList:
    """Gene symbols in official order. `header` is the header line that was skipped, or None; `name` is for messages."""

    name: str
    genes: tuple[str, ...]
    header: str | None = None


@dataclass(frozen=True)
class ListedPerturbation:
    """One row of a perturbation list. `context` is None when the list has no such column, `n_cells` when no count."""

    context: str | None
    perturbation: str
    n_cells: int | None


@dataclass(frozen=True)
class PerturbationList:
    """The perturbations an entry must hold, without the control."""

    name: str
    rows: tuple[ListedPerturbation, ...]

    @cached_property
    def has_contexts(self) -> bool:
        """Whether the list says which context each row belongs to."""
        return any(row.context is not None for row in self.rows)

    @cached_property
    def has_counts(self) -> bool:
        """Whether the list says how many cells to expect."""
        return any(row.n_cells is not None for row in self.rows)

    @cached_property
    def names(self) -> frozenset[str]:
        """All listed perturbations."""
        return frozenset(row.perturbation for row in self.rows)

    def expected(self, context: str | None) -> dict[str, int | None]:
        """Perturbation to expected cells (None: no expectation) in one context, in list order.

        A list without contexts holds for every context; `context=None` asks for the whole list.
        """
        wanted = self.has_contexts and context is not None
        return {row.perturbation: row.n_cells for row in self.rows if not wanted or row.context == context}


@dataclass(frozen=True)
class Manifest:
    """The fields of `manifest.json` that validation uses."""

    name: str
    contexts: tuple[str, ...]
    partition: str | None = None
    panel_id: str | None = None


def read_gene_list(source: str | Path | Sequence[str]) -> GeneList:
    """The gene list of a CSV (first column, with or without a header line), or of a sequence of symbols.

    Raises
    ------
    InvalidFile
        Unreadable (E101), without a gene (E107), or with repeated symbols (E102).
    """
    if is_path_like(source):
        path = input_path(source)
        rows = _csv_rows(path, "E101")
        name, quoted = path.name, shlex.quote(str(path))
        genes = [row[0].strip() for row in rows if row and row[0].strip()]
    else:
        name, quoted = "gene list", "GENES.csv"
        genes = [str(gene) for gene in source]
    header = None
    if genes and genes[0].lower() in GENE_HEADERS:
        header, genes = genes[0], genes[1:]
    issues = []
    if not genes:
        found = "only a header" if header else "nothing"
        issues.append(
            make_issue("E107", where=name, found=found, expected="one symbol per line", file=quoted)
        )
    repeated = _repeated(genes)
    if repeated:
        issues.append(
            make_issue("E102", where=name, found=first_of(repeated), expected="each symbol once", file=quoted)
        )
    if issues:
        raise InvalidFile(issues)
    return GeneList(name, tuple(genes), header)


def read_perturbation_list(
    source: str | Path | Sequence[str], *, columns: Sequence[str], control: str
) -> PerturbationList:
    """The perturbation list of a CSV with a header, or of a sequence of names.

    Parameters
    ----------
    columns
        Names of the perturbation column, in order of preference. Optional columns are `context` and `n_cells`
        (read as a whole number; blank, unreadable, infinite or non-positive means no expectation).
    control
        The control label; its rows are skipped, as are blank names.

    Raises
    ------
    InvalidFile
        Unreadable (E403), without the column (E404), without a usable row (E405), a repeated row (E406).
    """
    if not is_path_like(source):
        rows = [{columns[0]: str(name)} for name in source]
        name, quoted = "perturbation list", "PERTS.csv"
    else:
        path = input_path(source)
        name, quoted = path.name, shlex.quote(str(path))
        table = _csv_rows(path, "E403")
        header = [cell.strip() for cell in table[0]] if table else []
        rows = [dict(zip(header, row, strict=False)) for row in table[1:]]
        if not any(column in header for column in columns):
            found = ", ".join(header)[:80] or "nothing"
            expected = " or ".join(columns)
            raise InvalidFile(
                [make_issue("E404", where=f"{name}:1", found=found, expected=expected, file=quoted)]
            )
    listed = list(_listed(rows, columns, control))
    if not listed:
        raise InvalidFile(
            [
                make_issue(
                    "E405",
                    where=name,
                    found="no usable row",
                    expected="one row per perturbation",
                    file=quoted,
                )
            ]
        )
    repeated = _repeated((row.context, row.perturbation) for row in listed)
    if repeated:
        shown = [
            perturbation if context is None else f"{context}: {perturbation}"
            for context, perturbation in repeated
        ]
        raise InvalidFile(
            [
                make_issue(
                    "E406", where=name, found=first_of(shown), expected="each perturbation once", file=quoted
                )
            ]
        )
    return PerturbationList(name, tuple(listed))


def _listed(
    rows: Iterable[Mapping[str, str]], columns: Sequence[str], control: str
) -> Iterable[ListedPerturbation]:
    for row in rows:
        name = next((row[column].strip() for column in columns if column in row), "")
        if name.lower() in MISSING_NAMES or name == control:
            continue
        context = row["context"].strip() if "context" in row else None
        yield ListedPerturbation(context, name, _expected_cells(row.get("n_cells", "")))


def _expected_cells(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value >= 1 else None


def find_manifest(lists: Iterable[str | Path | Sequence[str] | None]) -> Manifest | None:
    """The `manifest.json` in the folder of the first list file that has one beside it, or None.

    Raises
    ------
    InvalidFile
        It is too large, no JSON object, or names no contexts (W410).
    """
    for source in lists:
        if is_path_like(source):
            path = input_path(source).parent / MANIFEST_NAME
            if path.is_file():
                return _read_manifest(path)
    return None


def _read_manifest(path: Path) -> Manifest:
    problem, table = "", {}
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            problem = f"{path.stat().st_size:,} bytes"
        else:
            table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    contexts: Any = table.get("contexts") if isinstance(table, dict) else None
    if not problem and not (
        isinstance(contexts, list) and contexts and all(isinstance(c, str) for c in contexts)
    ):
        problem = "no list of contexts"
    if problem:
        expected = f"a JSON object with contexts, at most {MAX_MANIFEST_BYTES:,} bytes"
        raise InvalidFile([make_issue("W410", where=str(path), found=problem, expected=expected)])
    return Manifest(str(path), tuple(contexts), _text(table.get("partition")), _text(table.get("panel_id")))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _csv_rows(path: Path, code: str) -> list[list[str]]:
    """All rows of a UTF-8 CSV that are not blank. Raises `InvalidFile` with `code`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidFile([_unreadable(code, path, "not a regular file")])
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return [row for row in csv.reader(handle) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidFile([_unreadable(code, path, reason)]) from error


def _unreadable(code: str, path: Path, found: str) -> Issue:
    return make_issue(code, where=str(path), found=found, expected="a UTF-8 CSV", file=shlex.quote(str(path)))


def _repeated(items: Iterable[Any]) -> list[Any]:
    seen: set[Any] = set()
    repeated: dict[Any, None] = {}
    for item in items:
        if item in seen:
            repeated[item] = None
        seen.add(item)
    return list(repeated)
