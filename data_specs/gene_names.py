"""Gene names of a standard file: published symbols, made unique with gene ids where a spec names them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

from .h5ad import H5ad
from .issues import Issue, first_of, make_issue
from .spec_models import GeneRules


def unique_genes(file: H5ad, rules: GeneRules) -> tuple[list[str], dict[str, Any], list[Issue]]:
    """(gene names in file order, var columns to write, issues).

    With a column of gene ids, every row of a repeated symbol becomes `SYMBOL_ID` (version removed), and the
    columns `gene_id` and `gene_symbol` keep what was published. Names that still repeat are E611.
    """
    column = rules.symbol_column
    symbols = [str(name) for name in (file.genes if column is None else file.values(column, axis="var"))]
    names, columns = symbols, {}
    if rules.gene_id_column is not None or rules.index == "ensembl":
        id_column = rules.gene_id_column
        published = file.genes if id_column is None else file.values(id_column, axis="var")
        ids = [re.sub(r"\.\d+$", "", str(x)) for x in published]
        columns = {"gene_id": ids, "gene_symbol": symbols}
        repeated = repeated_names(symbols)
        names = [f"{s}_{i}" if s in repeated else s for s, i in zip(symbols, ids, strict=True)]
    still = sorted(repeated_names(names))
    if not still:
        return names, columns, []
    issue = make_issue(
        "E611",
        where=f"{file.name}:/var",
        found=first_of(still),
        expected="each gene name once",
        file=shlex.quote(str(file.path)),
    )
    return names, columns, [issue]


def repeated_names(names: Iterable[str]) -> set[str]:
    """The names that occur more than once."""
    seen: set[str] = set()
    repeated: set[str] = set()
    for name in names:
        (repeated if name in seen else seen).add(name)
    return repeated
