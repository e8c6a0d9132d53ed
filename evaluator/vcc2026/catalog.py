"""The metric catalogue of cell-eval2 0.20: official names, what they mean, how they become scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ...data_specs.errors import UnknownName

SOURCE = "cell-eval2 0.20.0 (Arc Institute), Virtual Cell Challenge 2026"
DE_PREFIX = "de_wilcoxon_"
PolicyName = Literal["error", "error_linear", "bounded", "unfloored", "open", "signed", "mse_norm", "none"]
Kind = Literal["bulk", "bulk_ratio", "de", "de_panel", "cells"]

SCORED = (
    "pds_cosine",
    "expr_mse_unbiased_capped_norm",
    "de_wilcoxon_lfc_nmae",
    "de_wilcoxon_direction_fidelity_yield_raw",
    "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard",
)
NORM = "expr_mse_unbiased_capped_norm"
NORM_PARTS = ("expr_mse_unbiased_capped", "expr_distance_unbiased")


@dataclass(frozen=True)
class Entry:
    """One metric of the catalogue.

    `short` is the name without the DE prefix, `legacy` its name in cell-eval, `policy` the standard score policy,
    `perfect` the value of an exact copy of the truth where that is fixed, `nulls` when a perturbation has none;
    `own_gene_out` tells whether the perturbation's own gene is left out.
    """

    name: str
    legacy: str | None
    kind: Kind
    policy: PolicyName
    perfect: float | None
    formula: str
    nulls: str = "never"
    own_gene_out: bool = False

    @property
    def short(self) -> str:
        return self.name.removeprefix(DE_PREFIX)

    @property
    def better(self) -> Literal["higher", "lower", "none"]:
        if self.policy in ("error", "error_linear", "mse_norm"):
            return "lower"
        return "none" if self.policy == "none" else "higher"


_NO_SIG = "the truth has fewer than 10 significant genes"
_NO_BOTH = "the truth has fewer than 10 significant genes, or only significant ones"
_NO_CONF = "the truth has no significant gene besides the own"
_BULK = "b: log1p(5e4 * summed counts / their total)"


def _bulk(name, legacy, policy, perfect, formula, nulls="never", own=False, kind: Kind = "bulk") -> Entry:
    return Entry(name, legacy, kind, policy, perfect, f"{formula}; {_BULK}", nulls, own)


def _de(short, legacy, policy, perfect, formula, nulls="never", own=False, kind: Kind = "de") -> Entry:
    return Entry(DE_PREFIX + short, legacy, kind, policy, perfect, formula, nulls, own)


_BULK_ENTRIES = (
    _bulk("expr_mae", "mae", "error", 0.0, "mean_g |b^ - b|"),
    _bulk("expr_mse", "mse", "error", 0.0, "mean_g (b^ - b)^2"),
    _bulk("delta_mae", "mae_delta", "error", 0.0, "mean_g |d^ - d|, d = b - b_control"),
    _bulk("delta_mse", "mse_delta", "error", 0.0, "mean_g (d^ - d)^2, d = b - b_control"),
    _bulk(
        "delta_pearson",
        "pearson_delta",
        "bounded",
        1.0,
        "Pearson(d^, d) over genes; -1 when only d^ is constant",
        "the true change is constant or not finite",
    ),
    _bulk(
        "pds_l1", "discrimination_score_l1", "bounded", 1.0, "1 - rank/(n-1) by Manhattan distance", own=True
    ),
    _bulk(
        "pds_l2", "discrimination_score_l2", "bounded", 1.0, "1 - rank/(n-1) by Euclidean distance", own=True
    ),
    _bulk(
        "pds_cosine",
        "discrimination_score_cosine",
        "unfloored",
        1.0,
        "1 - rank/(n-1) by cosine distance of changes, mid-ranks, targeted genes left out",
        own=True,
    ),
    _bulk("expr_mse_unbiased", None, "none", None, "(|b^ - b|^2 - C^ - C) / genes, own gene out", own=True),
    _bulk(
        "expr_mse_unbiased_capped",
        None,
        "none",
        None,
        "N = (|b^ - b|^2 - rho*min(C^, C) - C) / genes, own gene out; C jackknife noise, rho visible share of claims",
        own=True,
    ),
    _bulk(
        "expr_distance_unbiased",
        None,
        "none",
        None,
        "D = (|b - b_control|^2 - C - C_control) / genes",
        own=True,
    ),
    _bulk("expr_real_mass_ratio", None, "none", None, "sum_g expm1(b) / 5e4: a check of units"),
    _bulk(
        NORM,
        None,
        "mse_norm",
        None,
        "sum of N over sum of D, one value per panel",
        own=True,
        kind="bulk_ratio",
    ),
)
_TOPS = ("", "_top50", "_top100", "_top200", "_top500")
_DE_ENTRIES = (
    *(
        _de(
            f"overlap{top}",
            f"overlap_at_{top[4:] or 'N'}",
            "bounded",
            1.0,
            "|A[:k] & B[:k]| / k, k = significant genes of the truth"
            + (f", at most {top[4:]}" if top else ""),
        )
        for top in _TOPS
    ),
    *(
        _de(
            f"precision{top}",
            f"precision_at_{top[4:] or 'N'}",
            "bounded",
            1.0,
            "|A[:k] & B[:k]| / k, k = significant genes of the prediction"
            + (f", at most {top[4:]}" if top else ""),
        )
        for top in _TOPS
    ),
    _de("nsig_counts_real", "de_nsig_counts_real", "none", None, "significant genes of the truth"),
    _de("nsig_counts_pred", "de_nsig_counts_pred", "none", None, "significant genes of the prediction"),
    _de(
        "nsig_spearman",
        "de_spearman_sig",
        "bounded",
        1.0,
        "Spearman over perturbations of the numbers of significant genes, where the truth has any",
        "fewer than 10 such perturbations, or equal counts in the truth",
        kind="de_panel",
    ),
    _de("sig_recall", "de_sig_genes_recall", "bounded", 1.0, "|A & B| / |A|", _NO_SIG),
    _de("direction_match", "de_direction_match", "bounded", 1.0, "share of A with equal sign", _NO_SIG),
    _de(
        "model_direction_match",
        "de_model_direction_match",
        "bounded",
        1.0,
        "share of B with equal sign",
        "fewer than 10 genes tested in the truth",
    ),
    _de("lfc_spearman", "de_spearman_lfc_sig", "bounded", 1.0, "Spearman of fold changes over A", _NO_SIG),
    _de("lfc_spearman_pos", "de_spearman_pos_lfc_sig", "bounded", 1.0, "the same over A going up", _NO_SIG),
    _de("lfc_spearman_neg", "de_spearman_neg_lfc_sig", "bounded", 1.0, "the same over A going down", _NO_SIG),
    _de(
        "lfc_nmae",
        None,
        "error_linear",
        0.0,
        "mean |l^ - l| / mean |l| over A with finite l, own gene out; missing l^ is 0",
        "fewer than 10 such genes",
        True,
    ),
    _de(
        "pr_auc",
        "pr_auc",
        "bounded",
        1.0,
        "average precision of -log10 p_adj for A",
        _NO_BOTH,
        kind="de_panel",
    ),
    _de("roc_auc", "roc_auc", "bounded", 1.0, "ROC AUC of -log10 p_adj for A", _NO_BOTH, kind="de_panel"),
    _de("overlap_adjusted", None, "bounded", 1.0, "Matthews correlation of A and B[:|A|]", _NO_BOTH),
    _de(
        "precision_adjusted", None, "bounded", 1.0, "markedness |A&B|/|B| - |A-B|/(N-|B|), -1 when undefined"
    ),
    _de("sig_recall_adjusted", None, "bounded", 1.0, "informedness |A&B|/|A| - |B-A|/(N-|A|)", _NO_BOTH),
    _de("sig_mcc", None, "bounded", 1.0, "Matthews correlation of A and B over the tested genes", _NO_BOTH),
    _de(
        "direction_precision",
        None,
        "bounded",
        1.0,
        "right signs / decidable genes of B",
        "fewer than 10 true genes with a sign",
    ),
    _de("direction_sensitivity", None, "bounded", 1.0, "reach over A at purity 0.975 / |A|", _NO_SIG),
    _de("direction_sensitivity_universe", None, "open", None, "reach over all genes at 0.975 / |A|", _NO_SIG),
    _de(
        "direction_fidelity",
        None,
        "bounded",
        None,
        "(k/n_pred - q) / max(1-q, 0.05), q majority-sign share of A",
        "no call, or A has no sign",
        True,
    ),
    _de("direction_fidelity_raw", None, "bounded", 1.0, "k / n_pred", "no call", True),
    _de("direction_coverage", None, "open", 1.0, "n_pred / n_conf", _NO_CONF, True),
    _de("direction_yield", None, "signed", None, "(k - q n_pred) / (n_conf max(1-q, 0.05))", _NO_CONF, True),
    _de("direction_yield_raw", None, "open", 1.0, "k / n_conf", _NO_CONF, True),
    _de(
        "direction_fidelity_yield",
        None,
        "bounded",
        None,
        "min(1, n_pred/n_conf) * direction_fidelity; 0 without calls",
        "A has no sign",
        True,
    ),
    _de(
        "direction_fidelity_yield_raw",
        None,
        "unfloored",
        1.0,
        "k / max(n_pred, n_conf): calls with the right sign over the larger of calls and confirmed genes",
        "neither side has a significant gene",
        True,
    ),
    _de(
        "direction_reach",
        None,
        "bounded",
        1.0,
        "reach over A at purity q + 0.95 (1-q) / n_conf",
        _NO_CONF,
        True,
    ),
    _de(
        "direction_reach_raw",
        None,
        "unfloored",
        1.0,
        "furthest place of the prediction's own order over A at which 90 % of signs are right, / n_conf",
        _NO_CONF,
        True,
    ),
    _de(
        "direction_reach_unbounded",
        None,
        "open",
        None,
        "the walk of direction_reach over all genes",
        _NO_CONF,
        True,
    ),
    _de(
        "direction_reach_unbounded_raw",
        None,
        "open",
        None,
        "the walk at 0.9 over all genes / n_conf",
        _NO_CONF,
        True,
    ),
    _de("sig_jaccard", None, "unfloored", 1.0, "|A & B| / |A | B|, 1 when both are empty", own=True),
)
_FEW_CELLS = "either side has fewer than 50 cells, or too few variable genes"
_CELL_ENTRIES = tuple(
    Entry(name, None, "cells", "none", None, formula, _FEW_CELLS, True)
    for name, formula in (
        ("cell_cov_corr", "Pearson of gene-gene correlations, 100 most changed genes"),
        ("cell_cov_eig_ratio", "largest eigenvalue of the predicted correlations / the real"),
        ("cell_cov_ccc", "Lin's concordance of the significant gene-gene correlations"),
    )
)

ENTRIES: dict[str, Entry] = {e.name: e for e in (*_BULK_ENTRIES, *_DE_ENTRIES, *_CELL_ENTRIES)}
_LEGACY = {entry.legacy: entry.name for entry in ENTRIES.values() if entry.legacy}


def resolve(names: Iterable[str]) -> tuple[str, ...]:
    """Official names of metrics given by official or cell-eval name, in catalogue order, parts of the ratio added.

    Raises `UnknownName`.
    """
    wanted = set()
    for name in names:
        official = _LEGACY.get(name, name)
        if official not in ENTRIES:
            raise UnknownName("metric", name, sorted(ENTRIES), "vcbench list metrics")
        wanted.add(official)
    if NORM in wanted:
        wanted.update(NORM_PARTS)
    return tuple(name for name in ENTRIES if name in wanted)
