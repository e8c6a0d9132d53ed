"""A table of differential expression from cells: pseudobulks, a linear model with replicates, moderated t tests.

The way of the Open Problems task, in its layout: sums of counts per context, perturbation and replicate; genes kept
that are expressed in every context; log2 counts per million; one model with a mean per (context, perturbation) and
the covariates; every perturbation against the control of its context. The task itself weights observations (voom) and
scales library sizes (TMM); neither is done here, so its published values are close but not equal.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp

from ...data_specs.atomic import check_output
from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES, H5ad
from ...data_specs.h5ad_columns import Labels
from ...data_specs.issues import Issue, first_of, make_issue, sort_issues
from ...data_specs.labels import CONTROL
from ...data_specs.matrix_scan import scan_matrix, value_issues
from ...data_specs.memory_source import MemorySource
from ...data_specs.remote import is_path_like
from ...data_specs.split_file import SPLIT_NAMES, Split, read_split
from ...data_specs.standard import CONTEXT, PERTURBATION, read_meta
from ..celleval.de import benjamini_hochberg
from .limma import filter_by_expression, fit_contrasts, log_cpm, moderated_test
from .tables import Key, repeats

P_FLOOR = 1e-4
ALPHA = 0.05
ROW_COLUMNS = ("cell_type", "sm_name")
OnCells = Callable[[int, int, str], None]
Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DeTable:
    """Rows are (context, perturbation), sorted; columns the genes that were tested, in the order of the cells' file.

    `layers` float64 (boolean `is_de`, `is_de_adj`), shape (n_rows, n_genes), without NaN: `logFC` (log2), `t`,
    `P.Value` (two-sided), `adj.P.Value` (Benjamini-Hochberg within a row), `is_de`, `is_de_adj` (below 0.05),
    `sign_log10_pval` = sign(logFC) * -log10(P.Value), `clipped_sign_log10_pval` with P.Value of at least 1e-4.
    `record` is what the file keeps in uns; `issues` holds warnings and notes.
    """

    keys: tuple[Key, ...]
    genes: tuple[str, ...]
    layers: Mapping[str, np.ndarray]
    obs: Mapping[str, Any]
    var: Mapping[str, np.ndarray]
    record: Mapping[str, Any]
    issues: tuple[Issue, ...]


@dataclass(frozen=True)
class _Bulks:
    """Sums of counts: `groups` (n_bulks, 2 + n_replicates) holds the codes of context, perturbation, replicates."""

    counts: np.ndarray
    library_sizes: np.ndarray
    n_cells: np.ndarray
    groups: np.ndarray


def write_de_table(
    cells: str | os.PathLike[str], out: str | os.PathLike[str], *, force: bool = False, **options: Any
) -> DeTable:
    """Write the table of `de_table` to `out`, an h5ad that edition `openproblems` reads; returns it.

    Raises
    ------
    OutputError
        `out` cannot be written, exists without `force`, or is `cells`.
    """
    from ...data_specs.h5ad_write import write_h5ad_layers

    target = check_output(out, inputs=[cells], force=force)
    table = de_table(cells, **options)
    write_h5ad_layers(
        target,
        table.layers,
        genes=table.genes,
        obs=table.obs,
        obs_names=[":".join(key) for key in table.keys],
        var=table.var,
        uns=table.record,
    )
    return table


def de_table(
    cells: Any,
    *,
    replicates: Sequence[str],
    covariates: Sequence[str] | None = None,
    pert_col: str | None = None,
    control: str | None = None,
    context_col: str | None = None,
    min_cells: int = 10,
    filter_genes: bool = True,
    prior_count: float = 0.5,
    split: Split | str | os.PathLike[str] | None = None,
    part: Part | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    progress: OnCells | None = None,
) -> DeTable:
    """The differential expression of every perturbation against the control of its context.

    X is read twice in row blocks (checked, then summed); what stays in memory are the sums and the table, both about
    (contexts x perturbations x replicates) rows of all genes. Results do not depend on the order of cells or blocks.

    Parameters
    ----------
    cells
        A path or an AnnData of counts. Not modified.
    replicates
        obs columns that, with context and perturbation, make one pseudobulk: `["donor"]`, or `["plate", "well"]`.
    covariates
        Those replicate columns whose levels shift expression and enter the model; default: the first one.
    pert_col, control, context_col
        Columns and control label; default: those of a standard file.
    min_cells
        Pseudobulks of fewer cells are left out (W708).
    filter_genes
        Keep the genes that pass edgeR's expression filter in every context, else all genes.
    split, part
        A split and the part whose rows are written. For `train` only training cells enter the model; for the other
        parts the cells of all parts do, as in the task.

    Raises
    ------
    UsageError
        A column is missing, or the options contradict each other.
    InvalidFile
        X holds no counts (E614 to E616), genes repeat (E705), labels are missing (E714), no residual degrees of
        freedom (E712), no perturbation can be compared (E713), no gene passes the filter (E715).
    MetricError
        More than half of the genes do not vary at all.
    """
    chosen = _covariates(replicates, covariates)
    if part is not None and (split is None or part not in SPLIT_NAMES):
        raise UsageError("a part is train, validation or test, and needs a split.")
    if split is not None and part is None:
        raise UsageError("give the part of the split whose rows to write: train, validation or test.")
    rows = None if split is None else split if isinstance(split, Split) else read_split(split)
    with ExitStack() as stack:
        is_path = is_path_like(cells)
        file: Any = stack.enter_context(H5ad(cells) if is_path else MemorySource(cells))
        meta = read_meta(file)
        control = control or (meta.control_label if meta else CONTROL)
        columns = [context_col or CONTEXT, pert_col or PERTURBATION, *replicates]
        labels = [file.labels(column) for column in columns]
        issues = _label_issues(file, columns, labels, control)
        if issues:
            raise InvalidFile(sort_issues(issues))
        keep = _kept_cells(labels, control, rows, part)
        if not keep.any():
            raise UsageError(f"no cell of {file.name} is in the part {part} of the split.")
        scan = scan_matrix(file, keep=keep, block_bytes=block_bytes, on_rows=_named(progress, "checking"))
        if issues := value_issues(scan, file, "counts"):
            raise InvalidFile(sort_issues(issues))
        every = _bulks(file, labels, keep, block_bytes, _named(progress, "summing"))
        few = every.n_cells < min_cells
        bulks = _Bulks(*(a[~few] for a in (every.counts, every.library_sizes, every.n_cells, every.groups)))
        notes: list[Issue] = []
        if few.any():
            found = f"{int(few.sum()):,} of {len(few):,} pseudobulks, {int(every.n_cells[few].sum()):,} cells"
            notes.append(_issue("W708", file, "/obs", found, f"at least {min_cells} cells each"))
        wanted = _wanted_keys(every, labels, control, rows, part)
        fitted = _fitted(file, bulks, labels, control, wanted, len(replicates), chosen, replicates)
        keys, design, contrasts, lost = fitted
        genes = _tested_genes(file, bulks, filter_genes)
    y = log_cpm(bulks.counts[:, genes], bulks.library_sizes, prior_count=prior_count)
    fit = fit_contrasts(y, design, contrasts)
    lost += [key for key, known in zip(keys, fit.estimable, strict=True) if not known]
    if not fit.estimable.any():
        raise InvalidFile([_no_comparison(file, lost)])
    if lost:
        expected = "control and enough cells in shared replicates"
        notes.append(_issue("W707", file, "/obs", first_of("/".join(key) for key in sorted(lost)), expected))
    test = moderated_test(fit)
    kept = fit.estimable
    names = [key for key, known in zip(keys, kept, strict=True) if known]
    groups = _group_rows(bulks, labels)
    record = {
        "dataset_id": meta.dataset_id if meta else Path(file.name).stem,
        "dataset_name": file.name,
        "de": {
            "method": "moderated t on log2 CPM of pseudobulks",
            "vcbench_version": version("vcbench"),
            "replicates": list(replicates),
            "covariates": list(chosen) or "none",
            "prior_count": float(prior_count),
            "min_cells": int(min_cells),
            "gene_filter": "filterByExpr in every context" if filter_genes else "none",
            "part": part or "all",
            "n_pseudobulks": len(bulks.n_cells),
            "df_residual": int(fit.df_residual),
            "df_prior": float(test.prior.df),
            "s2_prior": float(test.prior.s2),
            "df_total": float(test.df_total),
        },
    }
    return DeTable(
        keys=tuple(names),
        genes=tuple(str(gene) for gene in file.genes[genes]),
        layers=_layers(fit.coefficients[kept], test.t[kept], test.p[kept]),
        obs={
            **{column: [key[i] for key in names] for i, column in enumerate(ROW_COLUMNS)},
            "split": [rows.rows[key][0] if rows else "all" for key in names],
            "n_pseudobulks": np.array([len(groups[key]) for key in names]),
            "n_cells": np.array([int(bulks.n_cells[groups[key]].sum()) for key in names]),
        },
        var={"AveExpr": y.mean(axis=0), "sigma": np.sqrt(fit.sigma2), "s2_post": test.s2_post},
        record=record,
        issues=tuple(sort_issues(notes)),
    )


def _covariates(replicates: Sequence[str], covariates: Sequence[str] | None) -> tuple[str, ...]:
    if not replicates:
        raise UsageError("name at least one replicate column, for example donor or batch.")
    chosen = tuple(replicates[:1]) if covariates is None else tuple(covariates)
    foreign = [name for name in chosen if name not in replicates]
    if foreign:
        listed = ", ".join(replicates)
        raise UsageError(
            f"covariate {foreign[0]!r} is not among the replicate columns {listed}: add it there."
        )
    return chosen


def _label_issues(file: Any, columns: Sequence[str], labels: Sequence[Labels], control: str) -> list[Issue]:
    issues = []
    for column, values in zip(columns, labels, strict=True):
        missing = int((values.codes < 0).sum())
        if missing:
            found = f"{missing:,} of {file.n_obs:,} cells without a value"
            issues.append(_issue("E714", file, f"/obs/{column}", found, "a value for every cell", key=column))
    if control not in labels[1].categories:
        found = f"{first_of(labels[1].categories)} in {columns[1]}"
        issues.append(_issue("E713", file, f"/obs/{columns[1]}", found, f"control cells, {control!r}"))
    if repeated := repeats(file.genes):
        issues.append(_issue("E705", file, "/var", first_of(repeated), "each gene once"))
    return issues


def _kept_cells(labels: Sequence[Labels], control: str, rows: Split | None, part: Part | None) -> np.ndarray:
    """The cells that enter the model: all, those of the split, or those of its training part."""
    context, perturbation = labels[0], labels[1]
    if rows is None:
        return np.ones(len(context.codes), dtype=bool)
    allowed = np.array(
        [
            [_in_model(rows, (str(c), str(p)), control, part) for p in perturbation.categories]
            for c in context.categories
        ]
    )
    return allowed[context.codes, perturbation.codes]


def _in_model(rows: Split, key: Key, control: str, part: Part | None) -> bool:
    if key[1] == control:
        return True
    found = rows.rows.get(key)
    return found is not None and (part != "train" or found[0] == "train")


def _wanted_keys(
    bulks: _Bulks, labels: Sequence[Labels], control: str, rows: Split | None, part: Part | None
) -> list[Key]:
    keys = sorted(_group_rows(bulks, labels))
    return [
        key for key in keys if key[1] != control and (rows is None or rows.rows.get(key, ("", ""))[0] == part)
    ]


def _group_rows(bulks: _Bulks, labels: Sequence[Labels]) -> dict[Key, np.ndarray]:
    """The pseudobulks of every (context, perturbation)."""
    pairs, inverse = np.unique(bulks.groups[:, :2], axis=0, return_inverse=True)
    return {
        (str(labels[0].categories[c]), str(labels[1].categories[p])): np.flatnonzero(inverse.ravel() == i)
        for i, (c, p) in enumerate(pairs)
    }


def _bulks(
    file: Any,
    labels: Sequence[Labels],
    keep: np.ndarray,
    block_bytes: int,
    on_rows: Callable[[int, int], None] | None,
) -> _Bulks:
    codes = np.stack([values.codes for values in labels], axis=1)
    groups, inverse = np.unique(codes[keep], axis=0, return_inverse=True)
    group_of = np.full(file.n_obs, -1, dtype=np.int64)
    group_of[keep] = inverse.ravel()
    sums = np.zeros((len(groups), file.n_vars))
    for block in file.row_blocks(max_bytes=block_bytes, wanted=keep):
        own = group_of[block.start : block.stop]
        rows = np.flatnonzero(own >= 0)
        touched, place = np.unique(own[rows], return_inverse=True)
        member = sp.csr_array(
            (np.ones(len(rows)), (place.ravel(), rows)), shape=(len(touched), len(own)), dtype=np.float64
        )
        # Counts are whole numbers, so their sums are exact in any order.
        sums[touched] += (member @ block.matrix.astype(np.float64)).toarray()
        if on_rows is not None:
            on_rows(block.stop, file.n_obs)
    n_cells = np.bincount(group_of[keep], minlength=len(groups))
    return _Bulks(sums, sums.sum(axis=1), n_cells, groups)


def _fitted(
    file: Any,
    bulks: _Bulks,
    labels: Sequence[Labels],
    control: str,
    wanted: Sequence[Key],
    n_replicates: int,
    covariates: Sequence[str],
    replicates: Sequence[str],
) -> tuple[list[Key], np.ndarray, np.ndarray, list[Key]]:
    """(keys, design, contrasts, keys without pseudobulks or control): a mean per group and the covariates' levels."""
    groups = _group_rows(bulks, labels)
    present = sorted(groups)
    place = {key: i for i, key in enumerate(present)}
    keys = [key for key in wanted if key in place and (key[0], control) in place]
    lost = [key for key in wanted if key not in keys]
    if not keys:
        raise InvalidFile([_no_comparison(file, lost)])
    pieces = [np.zeros((len(bulks.n_cells), len(present)))]
    for key, rows in groups.items():
        pieces[0][rows, place[key]] = 1.0
    for name in covariates:
        levels, codes = np.unique(bulks.groups[:, 2 + list(replicates).index(name)], return_inverse=True)
        # The first level is the reference that the group means hold.
        pieces.append((codes.ravel()[:, None] == np.arange(1, len(levels))).astype(np.float64))
    design = np.concatenate(pieces, axis=1)
    rank = int(np.linalg.matrix_rank(design))
    if len(design) <= rank:
        found = f"{len(design):,} pseudobulks for {rank:,} coefficients"
        issue = _issue("E712", file, f"/obs/{replicates[0]}", found, "more pseudobulks than coefficients")
        raise InvalidFile([issue])
    contrasts = np.zeros((len(keys), design.shape[1]))
    contrasts[np.arange(len(keys)), [place[key] for key in keys]] = 1.0
    contrasts[np.arange(len(keys)), [place[key[0], control] for key in keys]] = -1.0
    return keys, design, contrasts, lost


def _tested_genes(file: Any, bulks: _Bulks, filter_genes: bool) -> np.ndarray:
    if not filter_genes:
        return np.arange(file.n_vars)
    passed = np.ones(file.n_vars, dtype=bool)
    for context in np.unique(bulks.groups[:, 0]):
        rows = np.flatnonzero(bulks.groups[:, 0] == context)
        passed &= filter_by_expression(bulks.counts[rows], bulks.library_sizes[rows], bulks.groups[rows, 1])
    if not passed.any():
        found = f"0 of {file.n_vars:,} genes with about 10 counts in a pseudobulk of every context"
        raise InvalidFile([_issue("E715", file, "/var", found, "at least one gene")])
    return np.flatnonzero(passed)


def _layers(log_fc: np.ndarray, t: np.ndarray, p: np.ndarray) -> dict[str, np.ndarray]:
    adjusted = np.stack([benjamini_hochberg(row) for row in p])
    sign = np.sign(log_fc)
    positive = np.where(p == 0, np.finfo(np.float64).eps, p)
    return {
        "logFC": log_fc,
        "t": t,
        "P.Value": p,
        "adj.P.Value": adjusted,
        "is_de": p < ALPHA,
        "is_de_adj": adjusted < ALPHA,
        "sign_log10_pval": sign * -np.log10(positive),
        "clipped_sign_log10_pval": sign * -np.log10(np.maximum(P_FLOOR, p)),
    }


def _no_comparison(file: Any, lost: Sequence[Key]) -> Issue:
    found = f"none of {first_of('/'.join(key) for key in lost)}"
    return _issue("E713", file, "/obs", found, "control and perturbed pseudobulks in shared replicates")


def _named(progress: OnCells | None, text: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(done, total, text)


def _issue(code: str, file: Any, place: str, found: str, expected: str, **fill: Any) -> Issue:
    quoted = shlex.quote(str(file.path))
    return make_issue(
        code, where=f"{file.name}:{place}", found=found, expected=expected, file=quoted, **{"key": "", **fill}
    )
