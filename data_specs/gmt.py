"""Gene sets in GMT files, plain or gzip: which terms annotate a gene, and which targets have any."""

from __future__ import annotations

import gzip
import os
import shlex
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from .errors import InvalidFile
from .issues import make_issue
from .remote import input_path

DEFAULT_MAX_TERM_SIZE = 2000


def read_gmt(
    path: str | os.PathLike[str], *, max_term_size: int | None = DEFAULT_MAX_TERM_SIZE
) -> dict[str, frozenset[str]]:
    """Gene to its terms, genes in code-point order. Terms with more than `max_term_size` genes are left out.

    Large terms (the root annotates every gene) say nothing about similarity; None keeps them.

    Raises
    ------
    InvalidFile
        The file cannot be read (E632), or lines are malformed or repeat a term (E633, all at once).
    """
    file = input_path(path)
    lines = _lines(file)
    by_gene: dict[str, set[str]] = {}
    issues, seen = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        term, *rest = line.split("\t")
        genes = {gene.strip() for gene in rest[1:] if gene.strip()}
        problem = ""
        if not term.strip() or not genes:
            problem = f"{len(genes)} genes for term {term.strip()!r}"
        elif term in seen:
            problem = f"term {term!r} of line {seen[term]} again"
        if problem:
            issues.append(
                make_issue(
                    "E633",
                    where=f"{file.name}:{number}",
                    found=problem,
                    expected="a new term, a description and at least one gene, tab-separated",
                    file=shlex.quote(str(file)),
                )
            )
            continue
        seen[term] = number
        if max_term_size is None or len(genes) <= max_term_size:
            for gene in genes:
                by_gene.setdefault(gene, set()).add(term)
    if issues:
        raise InvalidFile(issues)
    return {gene: frozenset(by_gene[gene]) for gene in sorted(by_gene)}


def covered(targets: Iterable[str], annotation: Mapping[str, Collection[str]]) -> list[str]:
    """The targets that have at least one term, in the order given."""
    return [target for target in targets if annotation.get(target)]


def _lines(file: Path) -> list[str]:
    try:
        raw = file.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        issue = make_issue(
            "E632",
            where=str(file),
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            expected="a GMT file, plain or gzip",
            file=shlex.quote(str(file)),
        )
        raise InvalidFile([issue]) from error
