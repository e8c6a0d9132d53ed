"""GO terms of genes from GMT, GAF 2.2 or NCBI gene2go files."""

from __future__ import annotations

import gzip
import shlex
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...data_specs.errors import InvalidFile
from ...data_specs.issues import make_issue
from ..features import FeatureSource

Terms = dict[str, frozenset[str]]
_HUMAN = "9606"
_NO_DATA = "ND"


def read_terms(source: FeatureSource) -> Mapping[str, frozenset[str]]:
    """GO terms of each gene from `--features go:FILE`: `.gaf`, a name with `gene2go`, or else a GMT.

    GAF and gene2go give direct annotations, as upstream uses them; a GMT is read as everywhere in vcbench, without
    terms of more than 2,000 genes. NCBI's gene2go names genes by number: `gene_info` must lie beside it.

    Raises
    ------
    InvalidFile
        The file cannot be read or used (codes E632, E633).
    """
    if not source.is_go:
        return source.terms
    name = source.path.name.lower()
    if ".gaf" in name:
        return read_gaf(source.path)
    if "gene2go" in name:
        return read_gene2go(source.path, _gene_info(source.path))
    return source.terms


def read_gaf(path: Path) -> Terms:
    """Direct annotations of a GAF 2.2 file: human, neither `NOT` nor without data; all three aspects."""
    found: dict[str, set[str]] = {}
    for number, fields in _fields(path):
        if len(fields) < 13:
            raise _malformed(path, number, f"{len(fields)} columns", "at least 13, tab-separated")
        symbol, relation, term, evidence, taxon = (fields[i] for i in (2, 3, 4, 6, 12))
        human = f"taxon:{_HUMAN}" in taxon.split("|")
        if human and evidence != _NO_DATA and "NOT" not in relation.split("|"):
            found.setdefault(symbol, set()).add(term)
    return _frozen(found)


def read_gene2go(path: Path, gene_info: Path) -> Terms:
    """Direct annotations of NCBI's gene2go, symbols from gene_info; rows as in `read_gaf`."""
    symbols = {}
    for number, fields in _fields(gene_info):
        if len(fields) < 3:
            raise _malformed(gene_info, number, f"{len(fields)} columns", "at least 3, tab-separated")
        if fields[0] == _HUMAN:
            symbols[fields[1]] = fields[2]
    found: dict[str, set[str]] = {}
    for number, fields in _fields(path):
        if len(fields) < 5:
            raise _malformed(path, number, f"{len(fields)} columns", "at least 5, tab-separated")
        taxon, gene, term, evidence, qualifier = fields[:5]
        if taxon == _HUMAN and evidence != _NO_DATA and not qualifier.startswith("NOT") and gene in symbols:
            found.setdefault(symbols[gene], set()).add(term)
    return _frozen(found)


def _gene_info(path: Path) -> Path:
    near = sorted(path.parent.glob("*gene_info*"))
    if not near:
        raise InvalidFile(
            [_issue("E632", path, str(path.parent), "no gene_info file", "NCBI's gene_info beside gene2go")]
        )
    return near[0]


def _frozen(found: Mapping[str, set[str]]) -> Terms:
    return {gene: frozenset(found[gene]) for gene in sorted(found)}


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of every line that is no comment."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as handle:
            for number, line in enumerate(handle, start=1):
                if line.strip() and line[0] not in "!#":
                    yield number, line.rstrip("\r\n").split("\t")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidFile([_issue("E632", path, str(path), str(error), "an annotation file")]) from error


def _malformed(path: Path, number: int, found: str, expected: str) -> InvalidFile:
    return InvalidFile([_issue("E633", path, f"{path.name}:{number}", found, expected)])


def _issue(code: str, path: Path, where: str, found: str, expected: str):
    return make_issue(code, where=where, found=found, expected=expected, file=shlex.quote(str(path)))
