"""Rules on the expression of the target itself: how far it fell on average, and in which cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..issues import first_of
from ..split_file import Key
from .state import FilterState, Removal, Scale

# Control cells x targets of one pass of `target_percentile`, float32.
PASS_BYTES = 2**28


@dataclass(frozen=True)
class TargetValues:
    """Expression of targets: `own` of each cell's targets, shape (n_obs, most targets), NaN where it has none or the
    cell is gone; `control_mean` of every gene, shape (n_contexts, n_vars), NaN in a context without controls."""

    own: np.ndarray
    control_mean: np.ndarray


def target_values(state: FilterState, scale: Scale) -> TargetValues:
    """One pass over the cells left."""
    n_genes, n_contexts = state.file.n_vars, len(state.context.categories)
    columns = state.target_columns[state.perturbation.codes]
    own = np.where(state.cells[:, None] & (columns >= 0), 0.0, np.nan)
    sums, n = np.zeros((n_contexts, n_genes)), np.zeros(n_contexts)
    for rows, values in state.blocks(scale):
        entry_rows = rows[np.repeat(np.arange(len(rows)), np.diff(values.indptr))]
        for j in range(columns.shape[1]):
            hit = values.indices == columns[entry_rows, j]
            own[entry_rows[hit], j] = values.data[hit]
        is_control = state.controls[entry_rows]
        place = state.context.codes[entry_rows[is_control]].astype(np.int64) * n_genes
        cells = place + values.indices[is_control]
        sums += np.bincount(cells, values.data[is_control], minlength=sums.size).reshape(sums.shape)
        n += np.bincount(state.context.codes[rows[state.controls[rows]]], minlength=n_contexts)
    with np.errstate(invalid="ignore"):
        return TargetValues(own, sums / n[:, None])


def _unjudged(state: FilterState, control_mean: np.ndarray) -> tuple[np.ndarray, dict[Key, str]]:
    """Which `keys` have a target that is not measured or silent in the controls of their context, and why."""
    columns = state.target_columns
    measured = state.measured()
    sizes, controls = state.key_sizes(), state.is_control_key
    gone = np.zeros(len(state.keys), dtype=bool)
    why: dict[Key, str] = {}
    silent = []
    n_perturbations = len(columns)
    for i in np.flatnonzero((sizes > 0) & ~controls):
        context, perturbation = divmod(int(i), n_perturbations)
        own = columns[perturbation][columns[perturbation] >= 0]
        if not measured[perturbation]:
            gone[i], why[state.keys[i]] = True, "target not measured"
        elif not (control_mean[context, own] > 0).all():
            gone[i], why[state.keys[i]] = True, "target silent in controls"
            silent.append(state.keys[i][1])
    if silent and not any(issue.code == "W652" for issue in state.issues):
        state.issues.append(
            state.issue("W652", "obs/perturbation", first_of(silent), "targets that control cells express")
        )
    return gone, why


def _residuals(state: FilterState, values: TargetValues) -> np.ndarray:
    """The largest share of the control mean that any target of a cell keeps, shape (n_obs,); NaN for controls."""
    columns = state.target_columns[state.perturbation.codes]
    means = values.control_mean[state.context.codes[:, None], np.maximum(columns, 0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(columns >= 0, values.own / means, -np.inf)
    most = ratios.max(axis=1)
    return np.where(np.isneginf(most), np.nan, most)


def target_knockdown(
    state: FilterState, *, max_residual: float, inclusive: bool = False, scale: Scale = "log1p"
) -> Removal:
    """Perturbations whose cells keep, on average, more than `max_residual` of the controls' expression of a target.

    The ratio of means must be below `max_residual`, or equal with `inclusive`, for every target. Perturbations whose
    target is not measured or silent in the controls go too.
    """
    values = target_values(state, scale)
    gone, why = _unjudged(state, values.control_mean)
    sizes = state.key_sizes()
    n_perturbations = len(state.target_columns)
    codes = state.key_codes[state.cells]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack(
            [
                np.bincount(codes, own, minlength=len(state.keys)) / sizes
                for own in np.nan_to_num(values.own[state.cells]).T
            ],
            axis=1,
        )
    for i in np.flatnonzero((sizes > 0) & ~state.is_control_key & ~gone):
        context, perturbation = divmod(int(i), n_perturbations)
        columns = state.target_columns[perturbation]
        real = columns >= 0
        ratio = float((means[i, real] / values.control_mean[context, columns[real]]).max())
        if ratio > max_residual or (ratio == max_residual and not inclusive):
            gone[i], why[state.keys[i]] = True, f"residual expression {ratio:.3g}"
    return Removal(cells=state.cells_of(gone), why=why)


def cell_knockdown(state: FilterState, *, max_residual: float, scale: Scale = "log1p") -> Removal:
    """Perturbed cells that express `max_residual` of the control mean of a target, or more.

    Perturbations whose target is not measured or silent in the controls go too.
    """
    values = target_values(state, scale)
    gone, why = _unjudged(state, values.control_mean)
    residual = _residuals(state, values)
    with np.errstate(invalid="ignore"):
        cells = ~state.controls & (residual >= max_residual)
    return Removal(cells=cells | state.cells_of(gone), why=why)


def target_percentile(state: FilterState, *, percentile: float, scale: Scale = "log1p") -> Removal:
    """Perturbed cells that express a target above the `percentile` of the control cells of their context.

    Perturbations whose target is not measured go too. The controls are read in passes of a bounded size.
    """
    values = target_values(state, scale)
    gone, why = _unjudged(state, np.ones_like(values.control_mean))
    present = np.bincount(state.perturbation.codes[state.cells], minlength=len(state.target_columns)) > 0
    columns = state.target_columns[present]
    targets = np.unique(columns[columns >= 0])
    limits = np.full((len(state.context.categories), state.file.n_vars), np.nan)
    wanted = state.cells & state.controls
    control_rows = np.flatnonzero(wanted)
    step = max(1, PASS_BYTES // (4 * max(1, len(control_rows))))
    for start in range(0, len(targets), step):
        chosen = targets[start : start + step]
        position = np.full(state.file.n_vars, -1)
        position[chosen] = np.arange(len(chosen))
        table = np.zeros((len(control_rows), len(chosen)), dtype=np.float32)
        for rows, block in state.blocks(scale, wanted=wanted):
            at = position[block.indices]
            hit = at >= 0
            entry_rows = np.repeat(np.searchsorted(control_rows, rows), np.diff(block.indptr))
            table[entry_rows[hit], at[hit]] = block.data[hit]
        for context in range(len(state.context.categories)):
            own = table[state.context.codes[control_rows] == context]
            if len(own):
                limits[context, chosen] = np.percentile(own, percentile, axis=0)
    columns = state.target_columns[state.perturbation.codes]
    bounds = limits[state.context.codes[:, None], np.maximum(columns, 0)]
    with np.errstate(invalid="ignore"):
        # Limits come from float32 values, so cells are compared in float32 too.
        above = (columns >= 0) & (values.own.astype(np.float32) > bounds.astype(np.float32))
    cells = ~state.controls & above.any(axis=1)
    return Removal(cells=cells | state.cells_of(gone), why=why)
