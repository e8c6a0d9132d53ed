"""What packing starts from: prediction, control cells and lists, read and checked before anything is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data_specs.errors import InvalidFile
from ..data_specs.h5ad_columns import Labels
from ..data_specs.issues import Issue, first_of, make_issue
from ..data_specs.labels import CONTROL, UNASSIGNED_LABELS
from ..data_specs.matrix_scan import MatrixScan, constant_scale, scale_tolerance, scan_matrix, value_issues
from ..data_specs.named_files import Files, NamedFile, named_files
from ..data_specs.remote import input_path
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from ..data_specs.standard import CONTEXT, PERTURBATION, MatrixKind, MatrixMeta, StandardMeta, read_meta
from ..evaluator.reference_files import PerturbationList

PREDICTION_NAME = "prediction.h5ad"
NO_CONTEXT = ""
SCAN_BLOCK_BYTES = 16 * 2**20
# A file whose rows spread less than this around one sum is normalised; logged values spread far more.
_EQUAL, _UNEQUAL, _FEWEST_ROWS = 1e-3, 0.05, 8


@dataclass(frozen=True)
class Part:
    """One opened file with its labels and scale.

    `perturbation` holds canonical labels (`control` for control), `context` is "" where the file has none. `keep`
    are the rows that are used, in file order. `scan` is None for counts that only the final validation looks at.
    """

    source: Source
    perturbation: np.ndarray
    context: np.ndarray
    keep: np.ndarray
    matrix: MatrixMeta
    rows: Literal["cell", "mean"]
    meta: StandardMeta | None
    scan: MatrixScan | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_control(self) -> np.ndarray:
        """Which rows of the file are control, bool."""
        return self.perturbation == CONTROL

    def control_rows(self, context: str | None = None) -> np.ndarray:
        """Positions of the used control rows, of one context when the file has contexts."""
        wanted = self.keep & self.is_control
        if context is not None and (self.context != NO_CONTEXT).any():
            wanted &= self.context == context
        return np.flatnonzero(wanted)


@dataclass(frozen=True)
class ReadOptions:
    """How to read a prediction or control file where it does not say so itself."""

    pert_col: str | None = None
    control: str | None = None
    matrix: MatrixKind | None = None
    target_sum: float | None = None
    contexts: tuple[str, ...] = ()


@dataclass
class Problems:
    """Issues collected while reading, all raised together."""

    edition: str
    issues: list[Issue] = field(default_factory=list)

    def add(self, code: str, source: Source | Path, place: str, found: object, expected: object) -> None:
        """One issue at `input_path` (for example `/obs/perturbation`) of a file."""
        path = source if isinstance(source, Path) else source.path
        self.issues.append(
            make_issue(
                code,
                where=f"{path.name}:{place}" if place else str(path),
                found=found,
                expected=expected,
                file=shlex.quote(str(path)),
                edition=self.edition,
                perts="PERTS.csv",
            )
        )

    def stop(self) -> None:
        """Raise `InvalidFile` when there is any issue."""
        if self.issues:
            raise InvalidFile(self.issues)


def prediction_path(pred: str | os.PathLike[str], problems: Problems) -> Path:
    """The file to pack: PRED itself, or `prediction.h5ad` of a run folder."""
    path = input_path(pred)
    if not path.is_dir():
        return path
    inside = path / PREDICTION_NAME
    if not inside.is_file():
        listed = first_of(sorted(p.name for p in path.iterdir()))
        problems.add("E532", path, "", listed, PREDICTION_NAME)
        problems.stop()
    return inside


def prediction_files(pred: Files, problems: Problems) -> list[NamedFile]:
    """The files of a prediction: as given, with `prediction.h5ad` for a run folder. Raises `InvalidFile` (E532)."""
    return [(context, prediction_path(path, problems)) for context, path in named_files(pred, "PRED")]


def in_memory(pred: Any) -> bool:
    """Whether the prediction is an AnnData (or looks like one), not a path."""
    return hasattr(pred, "obs") and hasattr(pred, "X")


def read_part(
    source: Source, edition: Edition, options: ReadOptions, problems: Problems, *, controls_only: bool = False
) -> Part | None:
    """One file's rows, labels and scale; None when its labels cannot be read. Problems are collected, not raised."""
    meta = read_meta(source)  # type: ignore[arg-type]
    standard = meta is not None and PERTURBATION in source.obs_columns
    column = options.pert_col or (PERTURBATION if standard else edition.file.perturbation_column)
    if column not in source.obs_columns and options.pert_col is None and PERTURBATION in source.obs_columns:
        column, standard = PERTURBATION, True
    if column not in source.obs_columns:
        problems.add("E527", source, "/obs", first_of(source.obs_columns), f"a column {column!r}")
        return None
    control = options.control or (
        CONTROL if column == PERTURBATION and standard else edition.file.control_label
    )
    perturbation = _labels(source, column, control)
    context = _contexts(source, edition, options.contexts)
    keep = np.ones(source.n_obs, dtype=bool)
    if options.contexts and (context != NO_CONTEXT).any():
        keep &= np.isin(context, options.contexts)
    if edition.file.context_required and not controls_only:
        _context_problems(source, context, options.contexts, problems)
    if controls_only:
        keep &= perturbation == CONTROL
    else:
        nameless = np.flatnonzero(keep & (perturbation == ""))
        if len(nameless):
            found = f"{len(nameless):,} rows (first: row {nameless[0]:,})"
            problems.add("E526", source, f"/obs/{column}", found, "a label in every row")
    if source.n_obs and not keep.any() and not controls_only and not edition.file.context_required:
        found = first_of(sorted(set(context)))
        problems.add("E531", source, f"/obs/{CONTEXT}", found, " or ".join(options.contexts))
    genes = list(source.genes)
    twice = sorted({g for g in genes if genes.count(g) > 1}) if len(set(genes)) < len(genes) else []
    if twice:
        problems.add("E525", source, "/var", first_of(twice), "each gene once")
    rows = meta.rows if meta is not None else "cell"
    declared = meta.matrix.kind if meta is not None else "counts"
    if rows == "cell" and not controls_only and edition.file.matrix == "counts" and options.matrix is None:
        # The entry is validated value by value before it appears, so counts need no pass of their own.
        note = f"X of {source.name} is {declared}: {'declared by the file' if meta else 'the rule of the edition'}."
        target_sum = meta.matrix.target_sum if meta is not None else None
        matrix = MatrixMeta(declared, target_sum)
        return Part(source, perturbation, context, keep, matrix, rows, meta, None, (note,))
    # Sums of expm1 judge the scale of log values; counts and means have no use for them.
    linear = rows == "cell" and (edition.file.matrix != "counts" or declared == "log1p")
    scan = scan_matrix(source, expm1=linear, keep=keep, block_bytes=SCAN_BLOCK_BYTES)  # type: ignore[arg-type]
    matrix, notes = _matrix(source, edition, options, meta, scan, rows, problems)
    if rows == "mean":
        finite_only = [i for i in value_issues(scan, source, "mean") if i.code == "E614"]  # type: ignore[arg-type]
        problems.issues += finite_only
    else:
        problems.issues += value_issues(scan, source, matrix.kind)  # type: ignore[arg-type]
    return Part(source, perturbation, context, keep, matrix, rows, meta, scan, tuple(notes))


def _labels(source: Source, column: str, control: str) -> np.ndarray:
    labels: Labels = source.labels(column)
    names = [str(name).strip() for name in labels.categories]
    table = [CONTROL if n == control else "" if n in UNASSIGNED_LABELS else n for n in names]
    return np.array([*table, ""], dtype=object)[labels.codes]


def _contexts(source: Source, edition: Edition, asked: tuple[str, ...]) -> np.ndarray:
    """The context of each row, "" where it is missing; a file without the column is of the one context asked for."""
    if CONTEXT not in source.obs_columns:
        only = asked[0] if len(asked) == 1 and edition.file.context_required else NO_CONTEXT
        return np.full(source.n_obs, only, dtype=object)
    labels = source.labels(CONTEXT)
    return np.array([*(str(c) for c in labels.categories), NO_CONTEXT], dtype=object)[labels.codes]


def _context_problems(
    source: Source, context: np.ndarray, asked: tuple[str, ...], problems: Problems
) -> None:
    """Rows without a context (E538), and contexts asked for that no row has (E537)."""
    missing = np.flatnonzero(context == NO_CONTEXT)
    if len(missing):
        found = f"{len(missing):,} rows (first: row {missing[0]:,})"
        problems.add("E538", source, f"/obs/{CONTEXT}", found, "a context in every row")
        return
    present = set(context)
    absent = [name for name in asked if name not in present]
    if absent:
        found = f"{first_of(absent)} without a row; rows of {first_of(sorted(present))}"
        problems.add("E537", source, f"/obs/{CONTEXT}", found, ", ".join(asked))


def _matrix(
    source: Source,
    edition: Edition,
    options: ReadOptions,
    meta: StandardMeta | None,
    scan: MatrixScan,
    rows: str,
    problems: Problems,
) -> tuple[MatrixMeta, list[str]]:
    """The kind and target sum of X: asked for, declared, the edition's rule, or a refusal."""
    declared = meta.matrix if meta is not None else None
    target_sum = options.target_sum or (declared.target_sum if declared else None)
    whole = not scan.fractional.count
    if options.matrix or declared:
        kind: MatrixKind = options.matrix or declared.kind  # type: ignore[union-attr]
        how = "asked for" if options.matrix else "declared by the file"
    elif edition.file.matrix in ("counts", "log1p"):
        kind, how = edition.file.matrix, "the edition's rule"
    elif edition.file.matrix == "detect":
        kind, how = ("counts", "whole numbers") if whole else ("log1p", "fractions")
        how = f"detected by the edition's rule ({how})"
    else:
        problems.add("E528", source, "/uns/vcbench", "no declaration", "counts or log1p")
        kind, how = ("counts" if whole else "log1p"), "unknown"
    clean = not (scan.nonfinite.count or scan.negative.count)
    if kind == "log1p" and clean and rows == "cell" and not whole:
        _refuse_linear(source, scan, problems)
        if target_sum is None:
            target_sum = constant_scale(scan, scale_tolerance(source))  # type: ignore[arg-type]
            how += "" if target_sum is None else f"; every row of expm1(X) sums to {target_sum:.6g}"
    return MatrixMeta(kind, target_sum), [f"X of {source.name} is {kind}: {how}."]


def _refuse_linear(source: Source, scan: MatrixScan, problems: Problems) -> None:
    filled = scan.totals > 0
    if filled.sum() < _FEWEST_ROWS or scan.expm1_totals is None:
        return
    plain, grown = scan.totals[filled], scan.expm1_totals[filled]
    if plain.std() < _EQUAL * plain.mean() and grown.std() > _UNEQUAL * grown.mean():
        found = f"every row sums to {np.median(plain):.6g}; expm1 of the rows to {grown.min():.6g} to {grown.max():.6g}"
        problems.add("E529", source, "/X", found, "ln(1 + scaled counts), or counts")


def gene_order(source: Source, genes: Sequence[str] | None, problems: Problems) -> np.ndarray:
    """Output position of each gene of the file, int64; the file's own order without a list."""
    own = [str(g) for g in source.genes]
    if genes is None:
        return np.arange(len(own))
    position = {gene: i for i, gene in enumerate(genes)}
    missing = sorted(set(genes) - set(own))
    extra = sorted(set(own) - set(genes))
    if missing:
        problems.add(
            "E523",
            source,
            "/var",
            f"{len(own):,} genes without {first_of(missing)}",
            f"{len(genes):,} listed",
        )
    if extra:
        problems.add("E524", source, "/var", first_of(extra), f"only the {len(genes):,} listed genes")
    return np.array([position.get(gene, -1) for gene in own], dtype=np.int64)


def check_list(part: Part, listed: PerturbationList, edition: Edition, problems: Problems) -> None:
    """Listed perturbations that the prediction lacks (E521), and others that it has (E522), context by context."""
    missing: list[str] = []
    extra: list[str] = []
    by_context = edition.file.context_column is not None and (
        edition.file.context_required or listed.has_contexts
    )
    used = part.keep & ~part.is_control & (part.perturbation != "")
    for context in sorted(set(part.context[used])) if by_context else [None]:
        here = used if context is None else used & (part.context == context)
        wanted = listed.expected(context or None)
        found = set(part.perturbation[here])
        suffix = f" in {context}" if context else ""
        missing += [f"{name}{suffix}" for name in sorted(set(wanted) - found)]
        extra += [f"{name}{suffix}" for name in sorted(found - set(wanted))]
    n_listed = len(listed.rows)
    if missing:
        problems.add("E521", part.source, "/obs", f"without {first_of(missing)}", f"{n_listed:,} listed")
    if extra:
        problems.add("E522", part.source, "/obs", first_of(extra), f"only the {n_listed:,} listed")
