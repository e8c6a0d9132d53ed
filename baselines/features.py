"""Features of targets: one table reader for the user's files, GO term incidence from a GMT, and z-scoring."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.errors import InvalidFile, ModelError, UsageError
from ..data_specs.gmt import read_gmt
from ..data_specs.hashing import file_sha256
from ..data_specs.issues import first_of, make_issue
from ..data_specs.labels import targets_of
from ..data_specs.remote import input_path
from .go_graph import fix_signs, incidence, spectral_embedding

GO_PREFIX = "go:"
GO_COMPONENTS = 50
MAX_TERM_SIZE = 2000
# Spread below this share of a dimension's largest value is rounding.
CONSTANT_SHARE = 1e-9


@dataclass(frozen=True)
class FeatureTable:
    """Numbers per target: `values` float64, shape (len(names), n_dims); names are unique."""

    names: np.ndarray
    values: np.ndarray

    @cached_property
    def position(self) -> dict[str, int]:
        """Row of each name."""
        return {str(name): i for i, name in enumerate(self.names)}

    @property
    def n_dims(self) -> int:
        return self.values.shape[1]

    def row(self, name: str) -> np.ndarray | None:
        """The features of one target, None when it has none."""
        at = self.position.get(name)
        return None if at is None else self.values[at]

    def label(self, perturbation: str) -> tuple[np.ndarray, list[str]]:
        """The summed features of a label's targets, shape (n_dims,), and the targets without features."""
        total, missing = np.zeros(self.n_dims), []
        for target in targets_of(perturbation):
            row = self.row(target)
            if row is None:
                missing.append(target)
            else:
                total += row
        return total, missing


@dataclass(frozen=True)
class FeatureSource:
    """Where features come from: a table file, or `go:` and a GMT file. Read once, on first use."""

    text: str
    path: Path
    is_go: bool
    sha256: str = field(repr=False)

    @cached_property
    def table(self) -> FeatureTable:
        """The features: the file's numbers, or 50 principal components of the GO term incidence.

        Raises
        ------
        InvalidFile
            The file cannot be read or is no table of numbers (codes E661 to E665).
        """
        return go_components(self.terms) if self.is_go else read_feature_table(self.path)

    @cached_property
    def terms(self) -> dict[str, frozenset[str]]:
        """GO terms of each gene. Raises `ModelError` when the features are not a GMT."""
        if not self.is_go:
            raise ModelError(f"{self.text}: GO term sets are needed here; give --features go:FILE.gmt.")
        return gene_terms(self.path)

    @cached_property
    def spectral(self) -> FeatureTable:
        """Two spectral coordinates of each gene over the GO graph. Raises `ModelError` when this is no GMT."""
        return FeatureTable(*spectral_embedding(self.terms))

    def record(self) -> dict[str, str]:
        """What a run folder keeps about the source."""
        return {"kind": "go" if self.is_go else "table", "file": self.path.name, "sha256": self.sha256}


def feature_source(text: str | os.PathLike[str]) -> FeatureSource:
    """The source that `--features TEXT` names: a table path, or `go:` and a GMT path.

    Raises
    ------
    InvalidFile
        No such file (code E661).
    """
    given = os.fspath(text)
    is_go = given.startswith(GO_PREFIX)
    path = input_path(given[len(GO_PREFIX) :] if is_go else given)
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise InvalidFile(
            [
                make_issue(
                    "E661",
                    where=str(path),
                    found=error.strerror or error,
                    expected="a feature table or a GMT file",
                    file=shlex.quote(str(path)),
                )
            ]
        ) from error
    return FeatureSource(given, path, is_go, digest)


def gene_terms(path: Path) -> dict[str, frozenset[str]]:
    """Terms of each gene of a GMT, terms of more than 2,000 genes left out."""
    return read_gmt(path, max_term_size=MAX_TERM_SIZE)


def read_feature_table(path: Path) -> FeatureTable:
    """A `.tsv`, `.csv` or `.parquet` table: first column names, the others numbers.

    Raises
    ------
    InvalidFile
        Unreadable (E661), no number columns (E662), a cell that is not a finite number (E663), repeated names
        (E664), no rows (E665). All of them at once.
    UsageError
        Another file ending, or a parquet file without pyarrow installed.
    """
    if path.suffix == ".parquet":
        header, rows = _parquet_rows(path)
    elif path.suffix in (".tsv", ".csv"):
        header, rows = _text_rows(path)
    else:
        raise UsageError(f"{path}: features are read from .tsv, .csv or .parquet files, or go:FILE.gmt.")
    issues = []
    if len(header) < 2:
        issues.append(
            _issue("E662", path, "1", f"{len(header)} column(s)", "a name column and number columns")
        )
    if not rows:
        issues.append(_issue("E665", path, "2", "no rows", "one row per target"))
    values = np.full((len(rows), max(0, len(header) - 1)), np.nan)
    bad = []
    for i, row in enumerate(rows):
        try:
            values[i] = np.array(row[1:], dtype=np.float64)
        except ValueError:
            bad.append(row[0])
    bad += [
        rows[i][0] for i in np.flatnonzero(~np.isfinite(values).all(axis=1)) if rows[i][0] not in set(bad)
    ]
    if bad and len(header) > 1:
        issues.append(
            _issue("E663", path, "values", first_of(bad), f"{len(header) - 1} finite numbers in every row")
        )
    names = [str(row[0]) for row in rows]
    repeated = (
        sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    )
    if repeated:
        issues.append(_issue("E664", path, header[0], first_of(repeated), "each name once"))
    if issues:
        raise InvalidFile(issues)
    return FeatureTable(np.array(names), values)


def _issue(code: str, path: Path, place: str, found: str, expected: str):
    return make_issue(
        code, where=f"{path.name}:{place}", found=found, expected=expected, file=shlex.quote(str(path))
    )


def _text_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = [row for row in csv.reader(handle, delimiter=delimiter) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidFile([_issue("E661", path, "", str(error), "a feature table")]) from error
    return (lines[0], lines[1:]) if lines else ([], [])


def _parquet_rows(path: Path) -> tuple[list[str], list[list[object]]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise UsageError(f"{path}: parquet needs pyarrow: pip install 'vcbench[fast]'.") from error
    except (OSError, ValueError) as error:
        raise InvalidFile(
            [_issue("E661", path, "", str(error).splitlines()[0], "a parquet table")]
        ) from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    return [str(c) for c in frame.columns], frame.astype(object).to_numpy().tolist()


def go_components(terms: Mapping[str, Iterable[str]], n_components: int = GO_COMPONENTS) -> FeatureTable:
    """Principal component scores of the term incidence, genes as samples, terms centred, not scaled.

    At most `n_components`; fewer when there are fewer genes or terms. Deterministic; the largest entry of each
    component is positive.
    """
    genes, matrix = incidence(terms)
    rank = min(n_components, min(matrix.shape) - 1)
    if rank < 1:
        raise ModelError("the GMT has too few genes or terms for principal components.")
    center = np.asarray(matrix.mean(axis=0)).ravel()
    if min(matrix.shape) <= 1000:
        left, singular, _ = np.linalg.svd(matrix.toarray() - center, full_matrices=False)
        scores = left[:, :rank] * singular[:rank]
    else:
        scores = _truncated_scores(matrix, center, rank)
    return FeatureTable(genes, fix_signs(scores))


def _truncated_scores(matrix: Any, center: np.ndarray, rank: int) -> np.ndarray:
    import scipy.sparse.linalg as sparse_linalg

    linear_operator: Any = sparse_linalg.LinearOperator
    transposed = matrix.T.tocsr()
    operator = linear_operator(
        matrix.shape,
        dtype=np.float64,
        matvec=lambda v: matrix @ v - center @ v,
        rmatvec=lambda u: transposed @ u - center * u.sum(),
    )
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    found: Any = sparse_linalg.svds(operator, k=rank, v0=start, solver="arpack")
    order = np.argsort(-found[1], kind="stable")
    return found[0][:, order] * found[1][order]


def standardized(table: FeatureTable, labels: Sequence[str]) -> FeatureTable:
    """The table z-scored on the distinct targets of `labels` that have features (population variance).

    A dimension that is constant over them, up to rounding beside what other rows of the table hold, is centred and left
    unscaled: dividing by rounding noise would throw an unseen target out of all bounds.

    Raises
    ------
    ModelError
        No target of any label has features.
    """
    targets = sorted({t for label in labels for t in targets_of(label)})
    rows = [table.position[t] for t in targets if t in table.position]
    if not rows:
        raise ModelError(
            f"none of the {len(targets)} training targets has features; names must match (first target: "
            f"{targets[0] if targets else 'none'!r}, first feature row: {str(table.names[0])!r})."
        )
    chosen = table.values[rows]
    spread = chosen.std(axis=0)
    constant = spread <= CONSTANT_SHARE * np.abs(table.values).max(axis=0)
    return FeatureTable(table.names, (table.values - chosen.mean(axis=0)) / np.where(constant, 1.0, spread))
