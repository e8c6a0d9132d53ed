"""The metrics of cell-eval under their official names. `compute(panel)` returns a masked array over targets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..celleval import clustering, de_metrics, edistance, expression
from .spec import MetricSpec, register

if TYPE_CHECKING:
    from ..celleval.panel import Panel

Compute = Callable[["Panel"], np.ma.MaskedArray]
SOURCE = "cell-eval 0.8.2 (0.6.6 where the edition says so)"
_DE, _BULK, _CELLS = frozenset({"de", "pred_de"}), frozenset({"bulk"}), frozenset({"bulk", "cells"})
_NEVER = "never"


def _add(
    name: str,
    title: str,
    formula: str,
    compute: Compute,
    *,
    better: Literal["higher", "lower", "none"] = "higher",
    perfect: float | None = 1.0,
    needs: frozenset[str] = _DE,
    nulls: str = _NEVER,
    scope: Literal["perturbation", "panel"] = "perturbation",
) -> None:
    register(
        MetricSpec(
            name=name,
            version=1,
            family="celleval",
            title=title,
            formula=formula,
            source=SOURCE,
            better=better,
            perfect=perfect,
            needs=needs,
            nulls=nulls,
            scope=scope,
            compute=compute,
        )
    )


def _register_overlaps() -> None:
    limits: tuple[tuple[str, int | None], ...] = (
        ("N", None), ("50", 50), ("100", 100), ("200", 200), ("500", 500),
    )  # fmt: skip
    for text, k in limits:
        top = "|S_r|" if k is None else f"min({k}, |S_r|)"
        _add(
            f"overlap_at_{text}",
            f"share of the top {'N' if k is None else k} true DE genes found",
            f"|R[:k] ∩ Q[:k]| / k, k = {top}; R, Q: significant genes of truth and prediction by falling |log2 FC|; "
            "0 if k = 0 or if either file has no significant gene at all",
            partial(de_metrics.overlap, k=k, side="overlap"),
            perfect=None,
            nulls="never; a perturbation without true DE genes scores 0, whatever was predicted",
        )
    for text, k in limits:
        top = "|S_p|" if k is None else f"min({k}, |S_p|)"
        _add(
            f"precision_at_{text}",
            f"share of the top {'N' if k is None else k} predicted DE genes that are true",
            f"|R[:k] ∩ Q[:k]| / k, k = {top}; R, Q as in overlap_at_N",
            partial(de_metrics.overlap, k=k, side="precision"),
            perfect=None,
            nulls="never; a perturbation without predicted DE genes scores 0",
        )


def _register_de() -> None:
    _add(
        "de_spearman_sig",
        "rank agreement of the numbers of DE genes",
        "Spearman over perturbations with true DE genes between |S_r| and |S_p|; 1 if there is none",
        de_metrics.spearman_sig,
        nulls="NaN for one such perturbation or constant counts",
        scope="panel",
    )
    _add(
        "de_direction_match",
        "share of true DE genes predicted in the right direction",
        "mean over S_r of [sign(log2 FC_r) = sign(log2 FC_p)]",
        de_metrics.direction_match,
        nulls="null without true DE genes",
    )
    _add(
        "de_spearman_lfc_sig",
        "rank agreement of the fold changes of true DE genes",
        "Spearman over S_r between the log2 fold changes; infinite ones rank as extremes",
        de_metrics.spearman_lfc,
        nulls="null without true DE genes; NaN for one gene or a constant side",
    )
    _add(
        "de_sig_genes_recall",
        "share of true DE genes called significant",
        "|S_r ∩ S_p| / |S_r|",
        de_metrics.recall,
        nulls="null without true DE genes",
    )
    for side, text in (("real", "truth"), ("pred", "prediction")):
        _add(
            f"de_nsig_counts_{side}",
            f"number of DE genes in the {text}",
            f"|S_{side[0]}|: genes with FDR below 0.05",
            partial(de_metrics.n_significant, side=side),  # type: ignore[arg-type]
            better="none",
            perfect=None,
        )
    for curve, text in (("pr", "average precision"), ("roc", "area under the ROC curve")):
        _add(
            f"{curve}_auc",
            f"{text} of the predicted FDR for true DE genes",
            f"{text}; label: gene in S_r; score: -log10 of the predicted FDR, floored at 1e-10; all genes",
            partial(de_metrics.area, curve=curve),  # type: ignore[arg-type]
            nulls="NaN where no gene or every gene is significant",
        )


def _register_expression() -> None:
    _add(
        "pearson_delta",
        "correlation of predicted and true change",
        "Pearson over genes between mean - control mean of prediction and truth, each against its own control",
        expression.pearson_delta,
        needs=_BULK,
        nulls="NaN where one change is constant",
    )
    for name, compute, square in (
        ("mse", expression.squared_error, "squared"),
        ("mae", expression.absolute_error, "absolute"),
    ):
        _add(
            name,
            f"mean {square} error of the mean profile",
            f"mean over genes of the {square} difference of means in log1p space",
            partial(compute, space="mean"),
            better="lower",
            perfect=0.0,
            needs=_BULK,
        )
    for name, compute, square in (
        ("mse_delta", expression.squared_error, "squared"),
        ("mae_delta", expression.absolute_error, "absolute"),
    ):
        _add(
            name,
            f"mean {square} error of the change",
            f"mean over genes of the {square} difference of the changes, each against its own control",
            partial(compute, space="effect"),
            better="lower",
            perfect=0.0,
            needs=_BULK,
        )
    for distance in ("l1", "l2", "cosine"):
        _add(
            f"discrimination_score_{distance}",
            f"how close the own true change is among all ({distance})",
            "1 - r/N, r = rank (0 = closest) of the own true change by distance from the predicted change, "
            "without the gene the perturbation is named after; equal distances keep the order of names",
            partial(expression.discrimination, distance=distance),  # type: ignore[arg-type]
            needs=_BULK,
        )
    _add(
        "pearson_edistance",
        "correlation of energy distances from control",
        "Pearson over perturbations between E(truth) and E(prediction), E = 2 d(X,C) - d(X,X) - d(C,C)",
        edistance.pearson_edistance,
        needs=_CELLS,
        nulls="NaN for one perturbation or constant distances",
        scope="panel",
    )
    _add(
        "clustering_agreement",
        "agreement of clusterings of centroids (best effort)",
        "largest AMI over seven Leiden resolutions of the prediction with the truth at resolution 1, at least 0",
        clustering.clustering_agreement,
        needs=_BULK,
        nulls="null where scanpy or igraph is missing, or with fewer than three perturbations",
        scope="panel",
    )


_register_overlaps()
_register_de()
_register_expression()
