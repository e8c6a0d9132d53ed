"""Plain numbers about an entry: effect size, collapse, depth, spread, significant genes, target genes, controls."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...data_specs.labels import CONTROL
from .facts import Facts, rounded_prints
from .target_genes import MIN_TARGETS, other_targets
from .truth import TruthFacts, matched, significant

Diagnostics = dict[str, dict[str, Any]]
# Measured effects whose squares are noise beyond this share are no yardstick for the size of predicted ones.
MAX_NOISE = 0.95


def diagnose(
    entry: Facts, truth: TruthFacts, *, reference: np.ndarray, targets: tuple[np.ndarray, ...]
) -> Diagnostics:
    """The diagnostics of an entry beside the truth; a number that cannot be had is None.

    `reference` and `targets` are those of `registry.Stage`. Only perturbations that both sides hold are looked at.
    """
    known = set(truth.keys)
    rows = [i for i, key in enumerate(entry.keys) if key in known and key[1] != CONTROL]
    keys = tuple(entry.keys[i] for i in rows)
    theirs = matched(truth, keys)
    effects = entry.mean[rows] - reference[rows]
    noise = entry.noise()
    own = noise[rows] + (_reference_noise(entry, keys, theirs))
    contexts = np.array([context for context, _ in keys], dtype=object)
    return {
        "effect_size": _effect_size(effects, own, theirs, contexts),
        "mode_collapse": _collapse(effects, own, theirs, contexts),
        "library_size": _depth(entry, truth, rows),
        "variance": {"ratio": _variance_ratio(entry, truth, rows)},
        "significant_genes": _significant(entry, theirs, rows),
        "cells": _cells(entry, truth, rows),
        "target_genes": _target_genes(entry, effects, theirs, [targets[i] for i in rows], keys),
        "controls": _controls(entry, truth, theirs),
    }


def _reference_noise(entry: Facts, keys: tuple[Any, ...], truth: TruthFacts) -> np.ndarray:
    """Sampling variance of the control mean that each effect is measured from, summed over genes."""
    out = np.zeros(len(keys))
    for i, (context, _) in enumerate(keys):
        control = truth.controls.get(context)
        if control is not None and control.variance is not None and control.n > 1:
            out[i] = float(control.variance.sum() / control.n)
    return out


def _effect_size(
    effects: np.ndarray, noise: np.ndarray, truth: TruthFacts, contexts: np.ndarray
) -> dict[str, Any]:
    norms, real = np.linalg.norm(effects, axis=1), np.linalg.norm(truth.effects, axis=1)
    matched_pairs, others = [], []
    for context in sorted(set(contexts)):
        table = _correlations(effects[contexts == context], truth.effects[contexts == context])
        matched_pairs += list(np.diag(table))
        others += list(table[~np.eye(len(table), dtype=bool)])
    mine, other = _mean(matched_pairs), _mean(others)
    squares = float((norms**2).sum())
    return {
        "ratio": _size_ratio(norms, noise, real, truth.noise),
        "median_norm": _median(norms),
        "truth_median_norm": _median(real),
        "slope": float((effects * truth.effects).sum() / squares) if squares > 0 else None,
        "mean_correlation_with_truth": mine,
        "specificity": None if mine is None or other is None else mine - other,
    }


def _size_ratio(
    norms: np.ndarray, noise: np.ndarray, real: np.ndarray, real_noise: np.ndarray
) -> float | None:
    """Root of the squared sizes' ratio, sampling noise taken off; None where the truth is hardly more than noise."""
    if real_noise.sum() > MAX_NOISE * (real**2).sum():
        return None
    return _root_ratio((norms**2 - noise).sum(), (real**2 - real_noise).sum())


def _collapse(
    effects: np.ndarray, noise: np.ndarray, truth: TruthFacts, contexts: np.ndarray
) -> dict[str, Any]:
    spread, real_spread = 0.0, 0.0
    ours, theirs = [], []
    for context in sorted(set(contexts)):
        rows = contexts == context
        n = int(rows.sum())
        if n < 2:
            continue
        ours += _pairwise(effects[rows])
        theirs += _pairwise(truth.effects[rows])
        for values, variance, side in (
            (effects[rows], noise[rows], 0),
            (truth.effects[rows], truth.noise[rows], 1),
        ):
            found = float(((values - values.mean(axis=0)) ** 2).sum() - variance.sum() * (n - 1) / n)
            spread, real_spread = (
                (spread + found, real_spread) if side == 0 else (spread, real_spread + found)
            )
    return {
        "mean_correlation": _mean(ours),
        "truth_mean_correlation": _mean(theirs),
        "spread_ratio": _root_ratio(spread, real_spread) if ours or theirs or len(contexts) > 1 else None,
    }


def _depth(entry: Facts, truth: TruthFacts, rows: list[int]) -> dict[str, Any]:
    totals, ratios, implied = [], [], []
    for i in rows:
        control = truth.controls.get(entry.keys[i][0])
        if control is None:
            continue
        if entry.grouped.kind == "counts":
            totals.append(entry.totals[i])
            if control.median_total:
                ratios.append(entry.totals[i] / control.median_total)
        total = np.expm1(control.mean).sum()
        if total > 0:
            implied.append(np.expm1(np.minimum(entry.mean[i], 50.0)).sum() / total)
    known = [c.median_total for c in truth.controls.values() if c.median_total]
    return {
        "median_total": _median(totals),
        "truth_control_median_total": _median(known),
        "ratio": _median(ratios),
        "profile_ratio": _median(implied),
    }


def _variance_ratio(entry: Facts, truth: TruthFacts, rows: list[int]) -> float | None:
    """Variance of the predicted cells around their group means over that of the control cells, summed over genes."""
    found = []
    for i in rows:
        control = truth.controls.get(entry.keys[i][0])
        if control is None or control.variance is None or entry.n[i] < 2 or entry.grouped.rows == "mean":
            continue
        real = float(control.variance.sum())
        if real > 0:
            found.append(float(entry.variance[i].sum()) / real)
    return _median(found)


def _significant(entry: Facts, truth: TruthFacts, rows: list[int]) -> dict[str, Any]:
    controls = truth.controls
    ours = [
        significant(entry, i, controls[entry.keys[i][0]]) if entry.keys[i][0] in controls else np.nan
        for i in rows
    ]
    n_genes = entry.mean.shape[1]
    return {
        "median": _median(ours),
        "truth_median": _median(truth.n_significant),
        "mean_share": None if (m := _mean(ours)) is None else m / n_genes,
        "truth_mean_share": None if (m := _mean(truth.n_significant)) is None else m / n_genes,
    }


def _cells(entry: Facts, truth: TruthFacts, rows: list[int]) -> dict[str, Any]:
    if entry.grouped.rows == "mean":
        return {"rows": "mean", "flat_share": None, "distinct_share": None, "copied_control_share": None}
    many = [i for i in rows if entry.n[i] > 1]
    flat = [bool(entry.distinct[i] == 1) for i in many]
    distinct = [entry.distinct[i] / entry.n[i] for i in many]
    return {
        "rows": "cell",
        "flat_share": _mean(flat),
        "distinct_share": _median(distinct),
        "copied_control_share": _copied(entry, truth, rows),
    }


def _copied(entry: Facts, truth: TruthFacts, rows: list[int]) -> float | None:
    """Share of perturbed cells that equal a real control cell; None where scales differ or the truth has no cells."""
    known = [c.prints for c in truth.controls.values() if c.prints is not None]
    if not known or entry.grouped.kind != truth.kind:
        return None
    real = _keys(np.concatenate(known))
    chosen = np.isin(entry.grouped.codes, rows) & entry.prints.any(axis=1)
    return float(np.isin(_keys(entry.prints[chosen]), real).mean()) if chosen.any() else None


def _keys(prints: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rounded_prints(prints)).view([("a", np.float64), ("b", np.float64)]).ravel()


def _target_genes(
    entry: Facts,
    effects: np.ndarray,
    truth: TruthFacts,
    targets: list[np.ndarray],
    keys: tuple[Any, ...],
) -> dict[str, Any]:
    """How much the common part of the effects stands out at other perturbations' targets, beside the truth's."""
    others = other_targets(tuple(targets), keys)
    listed = np.unique(np.concatenate([*others, np.zeros(0, np.int64)]))
    if len(listed) < MIN_TARGETS:
        return {"n": len(listed), "index": None, "truth_index": None}
    away = np.zeros(effects.shape, dtype=bool)
    for i, genes in enumerate(others):
        away[i, genes] = True
    return {
        "n": len(listed),
        "index": _stand_out(effects, away, listed),
        "truth_index": _stand_out(truth.effects, away, listed),
    }


def _stand_out(effects: np.ndarray, away: np.ndarray, listed: np.ndarray) -> float | None:
    n = np.maximum(away[:, listed].sum(axis=0), 1)
    common = np.abs(np.where(away, effects, 0.0)[:, listed].sum(axis=0) / n)
    rest = np.ones(effects.shape[1], dtype=bool)
    rest[listed] = False
    elsewhere = np.abs(effects[:, rest].mean(axis=0))
    elsewhere = elsewhere[elsewhere > 0]
    if not len(elsewhere):
        return None
    return float(common.mean() / elsewhere.mean())


def _controls(entry: Facts, truth: TruthFacts, theirs: TruthFacts) -> dict[str, Any]:
    """How far submitted control rows lie from the real ones, in units of a typical real effect."""
    shifts, n_rows = [], 0
    size = (np.linalg.norm(theirs.effects, axis=1) ** 2 - theirs.noise).mean() if len(theirs.keys) else 0.0
    noise = entry.noise()
    for context, i in entry.controls().items():
        n_rows += int(entry.n[i])
        control = truth.controls.get(context)
        if control is None:
            continue
        variance = noise[i]
        if control.variance is not None:
            variance += float(control.variance.sum() / control.n)
        shifts.append(float(((entry.mean[i] - control.mean) ** 2).sum() - variance))
    return {
        "n_rows": n_rows,
        "shift_ratio": _root_ratio(max(shifts), size) if shifts else None,
    }


def _pairwise(effects: np.ndarray) -> list[float]:
    """Correlations of all pairs of rows that vary."""
    centred = effects - effects.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    unit = centred[norms > 0] / norms[norms > 0][:, None]
    if len(unit) < 2:
        return []
    return list((unit @ unit.T)[np.triu_indices(len(unit), 1)])


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation of every row of x with every row of y; NaN where a row does not vary."""
    units = []
    for values in (x, y):
        centred = values - values.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(centred, axis=1, keepdims=True)
        units.append(np.divide(centred, norms, out=np.full_like(centred, np.nan), where=norms > 0))
    return units[0] @ units[1].T


def _root_ratio(ours: float, theirs: float) -> float | None:
    return float(np.sqrt(max(ours, 0.0) / theirs)) if theirs > 0 else None


def _median(values: Any) -> float | None:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else None


def _mean(values: Any) -> float | None:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None
