"""The metrics of GEARS 0.1.2 under its own names and rules: pure functions over one condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from .base import Null, Value
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..core.gears_rows import GearsRow

TOP_SIZES = (20, 50, 100, 200)
QUANTILES = {"_45_55": (0.45, 0.55), "_40_60": (0.40, 0.60), "_25_75": (0.25, 0.75)}
FOLD_FLOOR = 0.5
Values = dict[str, float]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation, with 0 where it is undefined (GEARS' rule)."""
    a, b = x - x.mean(), y - y.mean()
    norms = np.sqrt(np.sum(a * a) * np.sum(b * b))
    if np.ptp(x) == 0 or np.ptp(y) == 0 or norms == 0:
        return 0.0
    return min(1.0, max(-1.0, float(np.sum(a * b) / norms)))


def mse(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared difference."""
    return float(np.mean((x - y) ** 2))


def direction_gap(p: np.ndarray, t: np.ndarray, c: np.ndarray) -> np.ndarray:
    """|sgn(p - c) - sgn(t - c)| per gene: 0 correct, 2 opposite, 1 when one side is unchanged."""
    return np.abs(np.sign(p - c) - np.sign(t - c))


def core_values(p: np.ndarray, t: np.ndarray, de: np.ndarray) -> Values:
    """`mse`, `pearson` over all genes and `mse_de`, `pearson_de` over the top 20 (`de`: gene positions, ranked)."""
    top = de[:20]
    return {
        "mse": mse(p, t),
        "pearson": pearson(p, t),
        "mse_de": mse(p[top], t[top]),
        "pearson_de": pearson(p[top], t[top]),
    }


def deeper_values(
    p: np.ndarray, t: np.ndarray, c: np.ndarray, de: np.ndarray, hvg: np.ndarray, top_cells: np.ndarray
) -> Values:
    """The deeper analysis of one condition. A name without an entry in GEARS is absent.

    Parameters
    ----------
    p, t, c
        Mean prediction, mean truth, mean of all controls, float64, shape (G,).
    de
        Gene positions by absolute DE score, strongest first, shape (G,).
    hvg
        Positions of the 200 genes that vary most between condition means.
    top_cells
        True cells on the top 20 of `de`, float64, shape (n_cells, 20), columns in rank order.
    """
    out = {"frac_correct_direction_all": _share(direction_gap(p, t, c) == 0, len(p))}
    for k in TOP_SIZES:
        top = de[:k]
        out[f"frac_correct_direction_{k}"] = _share(direction_gap(p[top], t[top], c[top]) == 0, k)
    out.update(_nonzero_directions(p, t, c, de[:20], top_cells))
    out.update(spread_values(p[de[:20]], top_cells))
    out["pearson_delta"] = pearson(p - c, t - c)
    out["pearson_delta_de"] = pearson((p - c)[de[:20]], (t - c)[de[:20]])
    out.update(_fold_change_gaps(p, t, c))
    for name, genes in {"200_hvg": hvg, **{f"{k}_de": de[:k] for k in TOP_SIZES}}.items():
        out[f"pearson_delta_top{name}"] = pearson((p - c)[genes], (t - c)[genes])
        out[f"pearson_top{name}"] = pearson(p[genes], t[genes])
        out[f"mse_top{name}"] = mse(p[genes], t[genes])
    return out


def _nonzero_directions(
    p: np.ndarray, t: np.ndarray, c: np.ndarray, top: np.ndarray, cells: np.ndarray
) -> Values:
    alive = _alive(cells)
    n = int(alive.sum())
    if not n:
        return {}
    name = "frac_correct_direction_20_nonzero"
    # Upstream keeps predictions and truth in gene order but takes the controls in rank order.
    by_position = np.sort(top)
    alive_sorted = alive[np.argsort(top, kind="stable")]
    mixed = direction_gap(p[by_position], t[by_position], c[top])[alive_sorted]
    return {
        name: _share(direction_gap(p[top], t[top], c[top])[alive] == 0, n),
        f"{name}_upstream": _share(mixed == 0, n),
    }


def spread_values(p: np.ndarray, cells: np.ndarray) -> Values:
    """`frac_in_range*` and `*sigma*`: the prediction within the true cells' spread, gene by gene.

    Genes that are 0 in all true cells are left out of the ranges, genes without spread out of the sigmas; a group of
    names is absent when no gene is left.
    """
    out: Values = {}
    alive = _alive(cells)
    n = int(alive.sum())
    if not n:
        return out
    inside, levels = p[alive], cells[:, alive]
    out["frac_in_range"] = _share((inside >= levels.min(axis=0)) & (inside <= levels.max(axis=0)), n)
    for suffix, (low, high) in QUANTILES.items():
        bounds = np.quantile(levels, [low, high], axis=0)
        out["frac_in_range" + suffix] = _share((inside >= bounds[0]) & (inside <= bounds[1]), n)
    sd = cells.std(axis=0)
    varying = sd > 0
    if varying.any():
        z = np.abs(p[varying] - cells[:, varying].mean(axis=0)) / sd[varying]
        out["mean_sigma"] = float(z.mean())
        out["std_sigma"] = float(z.std())
        out["frac_sigma_below_1"] = 1.0 - _share(z > 1, len(z))
        out["frac_sigma_below_2"] = 1.0 - _share(z > 2, len(z))
    return out


def _fold_change_gaps(p: np.ndarray, t: np.ndarray, c: np.ndarray) -> Values:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(c != 0, t / c, 0.0)
        gap = np.abs(p / c - t / c)
    ratio[t < FOLD_FLOOR] = 0.0
    sets = {
        "all": ratio > 0,
        "downreg_0.33": (ratio > 0) & (ratio < 0.333),
        "downreg_0.1": (ratio > 0) & (ratio < 0.1),
        "upreg_3": ratio > 3,
        "upreg_10": ratio > 10,
    }
    return {
        f"fold_change_gap_{name}": float(gap[genes].mean()) for name, genes in sets.items() if genes.any()
    }


def top_set_values(
    p: np.ndarray, t: np.ndarray, c: np.ndarray, genes: np.ndarray, cells: np.ndarray, suffix: str
) -> Values:
    """The analysis of one top-20 set (`suffix` `non_dropout` or `non_zero`); empty when the set is.

    `genes` are positions in rank order, `cells` the true cells on them, float64, shape (n_cells, len(genes)).
    """
    if not len(genes):
        return {}
    gap = direction_gap(p[genes], t[genes], c[genes])
    n = len(genes)
    out = {
        f"frac_correct_direction_top20_{suffix}": _share(gap == 0, n),
        f"frac_opposite_direction_top20_{suffix}": _share(gap == 2, n),
        f"frac_0/1_direction_top20_{suffix}": _share(gap == 1, n),
    }
    out.update({f"{name}_{suffix}": value for name, value in spread_values(p[genes], cells).items()})
    out[f"pearson_delta_top20_de_{suffix}"] = pearson((p - c)[genes], (t - c)[genes])
    out[f"pearson_top20_de_{suffix}"] = pearson(p[genes], t[genes])
    out[f"mse_top20_de_{suffix}"] = mse(p[genes], t[genes])
    return out


def gene_set_directions(
    p: np.ndarray, t: np.ndarray, c: np.ndarray, sets: Mapping[str, np.ndarray]
) -> Values:
    """The three direction shares over whole gene sets, boolean masks by suffix (`non_zero`, `non_dropout`)."""
    out: Values = {}
    gap = direction_gap(p, t, c)
    for suffix, mask in sets.items():
        n = int(mask.sum())
        if n:
            out[f"frac_correct_direction_{suffix}"] = _share(gap[mask] == 0, n)
            out[f"frac_opposite_direction_{suffix}"] = _share(gap[mask] == 2, n)
            out[f"frac_0/1_direction_{suffix}"] = _share(gap[mask] == 1, n)
    return out


def gene_sets(t: np.ndarray, c: np.ndarray) -> dict[str, np.ndarray]:
    """Masks `non_zero` (mean of the condition is not 0) and `non_dropout` (that, or 0 in condition and control)."""
    return {"non_zero": t != 0, "non_dropout": (t != 0) | ((t == 0) & (c == 0))}


def _alive(cells: np.ndarray) -> np.ndarray:
    return ~((cells.min(axis=0) == 0) & (cells.max(axis=0) == 0))


def _share(hits: np.ndarray, n: int) -> float:
    return float(np.count_nonzero(hits)) / n


def _names() -> dict[str, str]:
    """Every metric name with the analysis of `GearsRow` that yields it, in GEARS' order."""
    ranges = ["frac_in_range", *("frac_in_range" + s for s in QUANTILES)]
    sigmas = ["mean_sigma", "std_sigma", "frac_sigma_below_1", "frac_sigma_below_2"]
    triple = ["frac_correct_direction", "frac_opposite_direction", "frac_0/1_direction"]
    core = ["mse", "pearson", "mse_de", "pearson_de"]
    deeper = ["frac_correct_direction_all", *(f"frac_correct_direction_{k}" for k in TOP_SIZES)]
    deeper += [
        "frac_correct_direction_20_nonzero",
        "frac_correct_direction_20_nonzero_upstream",
        *ranges,
        *sigmas,
    ]
    deeper += ["pearson_delta", "pearson_delta_de"]
    deeper += [f"fold_change_gap_{s}" for s in ("all", "downreg_0.33", "downreg_0.1", "upreg_3", "upreg_10")]
    for name in ("200_hvg", *(f"{k}_de" for k in TOP_SIZES)):
        deeper += [f"pearson_delta_top{name}", f"pearson_top{name}", f"mse_top{name}"]
    out = dict.fromkeys(core, "core") | dict.fromkeys(deeper, "deeper")
    for suffix in ("non_dropout", "non_zero"):
        names = [f"{t}_top20_{suffix}" for t in triple] + [f"{n}_{suffix}" for n in (*ranges, *sigmas)]
        names += [f"{n}_top20_de_{suffix}" for n in ("pearson_delta", "pearson", "mse")]
        out |= dict.fromkeys(names, suffix)
    for suffix in ("non_zero", "non_dropout"):
        out |= dict.fromkeys((f"{t}_{suffix}" for t in triple), "directions")
    return out


def _reading(name: str) -> tuple[Literal["higher", "lower"], float | None, str]:
    """(better, perfect, formula) of a name. P, T: mean prediction and truth; c: mean control."""
    if any(suffix in name for suffix in QUANTILES):
        return "higher", None, "share of genes with P inside the named quantiles of the true cells"
    rules: tuple[tuple[str, Literal["higher", "lower"], float | None, str], ...] = (
        ("mse", "lower", 0.0, "mean (P - T)^2"),
        ("pearson_delta", "higher", 1.0, "corr(P - c, T - c), undefined = 0"),
        ("pearson", "higher", 1.0, "corr(P, T), undefined = 0"),
        ("frac_correct", "higher", 1.0, "share of genes with sgn(P - c) = sgn(T - c), three-valued sign"),
        ("frac_opposite", "lower", 0.0, "share of genes with |sgn(P - c) - sgn(T - c)| = 2"),
        ("frac_0/1", "lower", 0.0, "share of genes with |sgn(P - c) - sgn(T - c)| = 1"),
        (
            "frac_in_range_",
            "higher",
            None,
            "share of genes with P inside the named quantiles of the true cells",
        ),
        ("frac_in_range", "higher", 1.0, "share of genes with P inside [min, max] of the true cells"),
        ("mean_sigma", "lower", 0.0, "mean over genes of |P - mean| / sd of the true cells"),
        ("std_sigma", "lower", 0.0, "sd over genes of |P - mean| / sd of the true cells"),
        (
            "frac_sigma_below",
            "higher",
            1.0,
            "share of genes with |P - mean| / sd of the true cells not above 1 or 2",
        ),
        (
            "fold_change_gap",
            "lower",
            0.0,
            "mean |P/c - T/c| over genes with T/c in the named range and T >= 0.5",
        ),
    )
    for prefix, better, perfect, formula in rules:
        if name.startswith(prefix):
            return better, perfect, formula
    raise ValueError(f"no reading for {name!r}")


def _over(name: str) -> str:
    if name.endswith("_upstream"):
        return "; with upstream's defect: controls in rank order against profiles in gene order"
    top_set = "_top20_" in name and name.endswith(("non_dropout", "non_zero"))
    if top_set or "sigma" in name or "range" in name:
        which = next((s for s in ("non_dropout", "non_zero") if name.endswith(s)), "")
        return f"; top 20 DE genes{' of the ' + which + ' set' if which else ''}"
    if name.endswith(("non_dropout", "non_zero")):
        return "; all genes of the set"
    if name.endswith("hvg"):
        return "; the 200 genes with the largest sd (ddof 0) of condition means"
    if "top" in name or name.endswith(("_de", "_20", "_50", "_100", "_200", "nonzero")):
        return "; the k top DE genes by |Welch t| (20 for `_de`; divisor k, also in a smaller panel)"
    return "; all genes"


def _compute(name: str, analysis: str) -> Callable[[GearsRow], Value]:
    def value(row: GearsRow) -> Value:
        found = row.analysis(analysis)
        return found if isinstance(found, Null) else found.get(name, Null("GEARS gives no entry"))

    return value


for _name, _analysis in _names().items():
    _better, _perfect, _formula = _reading(_name)
    register(
        MetricSpec(
            name=_name,
            version=1,
            family="gears",
            title=f"GEARS {_name}",
            formula=_formula + _over(_name),
            source="Roohani, Huang, Leskovec, GEARS, Nature Biotechnology 42:927 (2024); cell-gears 0.1.2",
            better=_better,
            perfect=_perfect,
            needs=frozenset({"bulk", "de", "cells"}),
            nulls="Where GEARS gives no entry; with fewer than 2 true or control cells (GEARS fails there).",
            scope="perturbation",
            compute=_compute(_name, _analysis),
        )
    )
