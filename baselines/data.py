"""Training data of one standard file and split: pseudobulk of the training rows, streamed; nothing else is summed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data_specs.errors import InvalidFile
from ..data_specs.h5ad import H5ad
from ..data_specs.issues import Issue, first_of, make_issue
from ..data_specs.labels import CONTROL, UNASSIGNED
from ..data_specs.matrix_scan import scan_matrix, value_issues
from ..data_specs.normalize import to_log1p
from ..data_specs.remote import input_path
from ..data_specs.split_file import Split
from ..data_specs.standard import CONTEXT, PERTURBATION, MatrixMeta, read_meta
from ..evaluator.bulk import GroupMoments, group_moments
from .base import Key, TrainingData

EXCLUDED = -1


@dataclass(frozen=True)
class StandardRows:
    """Which (context, perturbation) each cell of a standard file belongs to.

    `codes` is the index into `keys` of each cell, -1 for unassigned cells; keys are sorted and include control.
    """

    keys: tuple[Key, ...]
    codes: np.ndarray
    matrix: MatrixMeta
    dataset_id: str


def standard_rows(file: H5ad) -> StandardRows:
    """The rows of an open standard file by key.

    Raises
    ------
    InvalidFile
        No record in `uns/vcbench`, no target sum, mean rows instead of cells, or no perturbation and context
        columns (code E671).
    """
    meta = read_meta(file)
    missing = [column for column in (PERTURBATION, CONTEXT) if column not in file.obs_columns]
    problem = ""
    if meta is None:
        problem = "no uns/vcbench record"
    elif missing:
        problem = f"no obs column {', '.join(missing)}"
    elif meta.rows != "cell":
        problem = "mean profiles, not cells"
    elif meta.matrix.target_sum is None:
        problem = "no target_sum"
    if meta is None or problem:
        raise InvalidFile(
            [
                make_issue(
                    "E671",
                    where=f"{file.name}:/uns/vcbench",
                    found=problem,
                    expected="a standard file with cells and a target sum",
                    file=shlex.quote(str(file.path)),
                )
            ]
        )
    contexts, perturbations = file.labels(CONTEXT), file.labels(PERTURBATION)
    n_names = max(1, len(perturbations.categories))
    known = (contexts.codes >= 0) & (perturbations.codes >= 0)
    unassigned = np.flatnonzero(perturbations.categories == UNASSIGNED)
    known &= ~np.isin(perturbations.codes, unassigned)
    joint = contexts.codes.astype(np.int64) * n_names + perturbations.codes
    present = np.unique(joint[known])
    codes = np.full(file.n_obs, EXCLUDED, dtype=np.int64)
    codes[known] = np.searchsorted(present, joint[known])
    keys = tuple(
        (str(contexts.categories[j // n_names]), str(perturbations.categories[j % n_names])) for j in present
    )
    return StandardRows(keys, codes, meta.matrix, meta.dataset_id)


def check_values(file: H5ad, matrix: MatrixMeta, used: np.ndarray) -> None:
    """Refuse a file whose means would be wrong: repeated genes, or values that its matrix kind forbids.

    `used` marks the cells that are read, bool, shape (n_obs,); the others may hold anything.

    Raises
    ------
    InvalidFile
        All problems at once (codes E611, E614 to E617, E629).
    """
    place, quoted = f"{file.name}:/var", shlex.quote(str(file.path))
    if not file.n_vars:
        raise InvalidFile(
            [make_issue("E629", where=place, found="0 genes", expected="at least one gene", file=quoted)]
        )
    issues: list[Issue] = []
    unique, counts = np.unique(file.genes.astype(str), return_counts=True)
    if len(unique) < file.n_vars:
        repeated = first_of(unique[counts > 1])
        issues.append(make_issue("E611", where=place, found=repeated, expected="each name once", file=quoted))
    issues += value_issues(scan_matrix(file, keep=used), file, matrix.kind)
    if issues:
        raise InvalidFile(issues)


@dataclass(frozen=True)
class TrainingCells:
    """Streaming access to the training cells of a file, controls included."""

    path: Path
    used: np.ndarray
    matrix: MatrixMeta

    def gene_correlations(self, columns: np.ndarray) -> np.ndarray:
        """Pearson correlation over the training cells of the genes in `columns` with all genes.

        float64, shape (len(columns), G), log1p space; a pair with a constant gene is 0. Equal for any block size.
        """
        from .cell_products import add_products

        with H5ad(self.path) as file:
            slot = np.full(file.n_vars, -1, dtype=np.int64)
            slot[columns] = np.arange(len(columns))
            products = np.zeros((len(columns), file.n_vars))
            sums, squares = np.zeros(file.n_vars), np.zeros(file.n_vars)
            for block in file.row_blocks():
                keep = self.used[block.start : block.stop]
                if keep.any():
                    rows = to_log1p(block.matrix[keep], self.matrix)
                    add_products(rows.data, rows.indices, rows.indptr, slot, products, sums, squares)
        n = int(self.used.sum())
        return _correlations(products, sums, squares, n, columns)


def _correlations(
    products: np.ndarray, sums: np.ndarray, squares: np.ndarray, n: int, columns: np.ndarray
) -> np.ndarray:
    spread = squares - sums * sums / n
    spread[spread <= 1e-12 * squares] = 0.0
    covariance = products - np.outer(sums[columns], sums) / n
    scale = np.sqrt(np.outer(spread[columns], spread))
    out = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    return np.clip(out, -1.0, 1.0)


def load_training_data(path: str | os.PathLike[str], split: Split | None) -> TrainingData:
    """Pseudobulk of the training rows of a standard file.

    Control is always train, in every context that has control cells. Without a split every perturbation trains.
    Cells of validation and test rows enter no sum.

    Raises
    ------
    InvalidFile
        Not a standard file (E671), training contexts without control (E672), training rows that the file lacks
        (E673), nothing to train on (E676), values or genes that cannot be used (see `check_values`).
    """
    with H5ad(path) as file:
        rows = standard_rows(file)
        train, notes = train_keys(rows, split, file.path)
        controls = tuple(key for key in rows.keys if key[1] == CONTROL)
        groups = {key: i for i, key in enumerate((*controls, *train))}
        table = np.array([groups.get(key, EXCLUDED) for key in rows.keys] + [EXCLUDED], dtype=np.int64)
        codes = table[rows.codes]
        check_values(file, rows.matrix, codes != EXCLUDED)
        moments = group_moments(file, codes, len(groups), rows.matrix)
        genes = file.genes
    n_controls = len(controls)
    control_at = {context: i for i, (context, _) in enumerate(controls)}
    return TrainingData(
        genes=genes,
        control_means={context: moments.mean[i] for context, i in control_at.items()},
        keys=train,
        means=moments.mean[n_controls:],
        n_cells=moments.n[n_controls:],
        target_sum=float(rows.matrix.target_sum or 0.0),
        extras={"dataset_id": rows.dataset_id},
        sampling_variance=_sampling_variance(moments, train, control_at),
        cells=TrainingCells(input_path(path), codes >= 0, rows.matrix),
        notes=tuple(notes),
    )


def _sampling_variance(
    moments: GroupMoments, train: Sequence[Key], control_at: Mapping[str, int]
) -> np.ndarray:
    of_mean = moments.variance / moments.n[:, None]
    at = np.array([control_at[context] for context, _ in train])
    return of_mean[len(control_at) :] + of_mean[at]


def train_keys(rows: StandardRows, split: Split | None, path: Path) -> tuple[tuple[Key, ...], list[str]]:
    """The training rows of a file, sorted, without control, and notes. Raises `InvalidFile` (E672, E673, E676)."""
    present = [key for key in rows.keys if key[1] != CONTROL]
    notes: list[str] = []
    issues: list[Issue] = []
    if split is None:
        train = present
        notes.append("No split: every perturbation of the file is a training row.")
    else:
        known = set(present)
        listed = [key for key in split.keys("train") if key[1] != CONTROL]
        train = [key for key in listed if key in known]
        absent = [f"{context}/{label}" for context, label in listed if (context, label) not in known]
        if absent:
            issues.append(
                make_issue(
                    "E673",
                    where=f"{path.name}:/obs",
                    found=f"no cells of {first_of(absent)}",
                    expected=f"cells of all {len(listed)} training rows",
                    file=shlex.quote(str(path)),
                )
            )
        unlisted = len(known - set(split.rows))
        if unlisted:
            notes.append(f"{unlisted} row(s) of the file are not in the split and were left out.")
    with_control = {context for context, label in rows.keys if label == CONTROL}
    bare = sorted({context for context, _ in train} - with_control)
    if bare:
        issues.append(
            make_issue(
                "E672",
                where=f"{path.name}:/obs/{PERTURBATION}",
                found=f"no control in {first_of(bare)}",
                expected="control cells in every training context",
                file=shlex.quote(str(path)),
            )
        )
    if not train and not issues:
        issues.append(
            make_issue(
                "E676",
                where=f"{path.name}:/obs/{PERTURBATION}",
                found="0 training perturbations",
                expected="at least one",
                file=shlex.quote(str(path)),
            )
        )
    if issues:
        raise InvalidFile(issues)
    return tuple(sorted(train)), notes


@dataclass(frozen=True)
class MeanRows:
    """Mean log1p profiles of chosen rows, float64, shape (n, G), with their cells."""

    genes: np.ndarray
    keys: tuple[Key, ...]
    means: np.ndarray
    n_cells: np.ndarray
    target_sum: float
    dataset_id: str


def load_means(
    path: str | os.PathLike[str], wanted: Sequence[Key], *, target_sum: float | None = None
) -> MeanRows:
    """Mean log1p profiles of some rows of a standard file; rows that the file lacks are left out.

    `target_sum` replaces the file's own for counts; a log1p file must declare the same one.

    Raises
    ------
    InvalidFile
        Not a standard file (E671), log1p of another target sum (E675), values or genes that cannot be used (see
        `check_values`).
    """
    with H5ad(path) as file:
        rows = standard_rows(file)
        matrix = rows.matrix
        if target_sum is not None and target_sum != matrix.target_sum:
            if matrix.kind == "log1p":
                raise InvalidFile(
                    [
                        make_issue(
                            "E675",
                            where=f"{file.name}:/uns/vcbench/matrix",
                            found=f"log1p with target_sum {matrix.target_sum:g}",
                            expected=f"target_sum {target_sum:g}",
                            file=shlex.quote(str(path)),
                        )
                    ]
                )
            matrix = MatrixMeta("counts", target_sum)
        asked = set(wanted)
        chosen = [key for key in rows.keys if key in asked]
        groups = {key: i for i, key in enumerate(chosen)}
        table = np.array([groups.get(key, EXCLUDED) for key in rows.keys] + [EXCLUDED], dtype=np.int64)
        codes = table[rows.codes]
        check_values(file, rows.matrix, codes != EXCLUDED)
        moments = group_moments(file, codes, len(groups), matrix)
        total = float(matrix.target_sum or 0.0)
        return MeanRows(file.genes, tuple(chosen), moments.mean, moments.n, total, rows.dataset_id)


def load_control_means(
    path: str | os.PathLike[str], *, target_sum: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Genes and the mean control profile of each context of a standard file. Raises `InvalidFile` (E671, E675)."""
    with H5ad(path) as file:
        controls = [key for key in standard_rows(file).keys if key[1] == CONTROL]
    if not controls:
        raise InvalidFile(
            [
                make_issue(
                    "E675",
                    where=f"{input_path(path).name}:/obs/{PERTURBATION}",
                    found="no cells labelled control",
                    expected="control cells",
                    file=shlex.quote(str(path)),
                )
            ]
        )
    found = load_means(path, controls, target_sum=target_sum)
    return found.genes, {context: found.means[i] for i, (context, _) in enumerate(found.keys)}
