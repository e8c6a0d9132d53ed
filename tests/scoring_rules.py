"""The scoring rules of 2026 as pairs of files: one defect each in a valid pair, with what both tools say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from vcc2026_panels import CONTROL, random_panel

Edit = Callable[[Any], Any]


@dataclass(frozen=True)
class ScoringCase:
    """`edit` changes (or returns a changed copy of) the `arm`; `code` is ours, `says` a part of the official message.

    `rule` is "" where the official scorer has no rule of its own: it fails in another way (`says` None: not compared).
    """

    rule: str
    name: str
    code: str
    arm: str
    edit: Edit
    says: str | None


@cache
def arms() -> dict[str, Any]:
    """The valid pair, with its baseline arm."""
    return random_panel(1)


def changed(arm: str, edit: Edit) -> Any:
    """A copy of an arm of the valid pair with the edit applied."""
    adata = arms()[arm].copy()
    edited = edit(adata)
    return adata if edited is None else edited


def set_value(value: float) -> Edit:
    """The first value of the first cell."""

    def edit(adata: Any) -> None:
        x = adata.X.toarray().astype(np.float64)
        x[0, 0] = value
        adata.X = sp.csr_matrix(x)

    return edit


def rename(new: dict[str, str]) -> Edit:
    """Other labels."""

    def edit(adata: Any) -> None:
        adata.obs["target"] = [new.get(label, label) for label in adata.obs["target"]]

    return edit


def swap_genes(adata: Any) -> None:
    adata.var_names = [*adata.var_names[1:2], *adata.var_names[:1], *adata.var_names[2:]]


def repeat_gene(adata: Any) -> None:
    adata.var_names = [adata.var_names[1], *adata.var_names[1:]]


def drop_label(adata: Any) -> None:
    adata.obs["target"] = [None if i == 0 else label for i, label in enumerate(adata.obs["target"])]


def two_contexts(adata: Any) -> None:
    adata.obs["context"] = ["A" if i % 2 else "B" for i in range(adata.n_obs)]


def no_column(adata: Any) -> None:
    adata.obs.rename(columns={"target": "other"}, inplace=True)


CASES = (
    ScoringCase("S01", "a gene less", "E580", "pred", lambda a: a[:, :-1].copy(), "ene"),
    ScoringCase("S02", "another gene order", "E581", "pred", swap_genes, "ene"),
    ScoringCase("S03", "no label column", "E582", "pred", no_column, "target"),
    ScoringCase("S03", "no label column in the truth", "E582", "real", no_column, "target"),
    ScoringCase("S04", "other labels", "E583", "pred", rename({"G3": "G4"}), "erturbation"),
    ScoringCase("S04", "a label of the truth only", "E583", "real", rename({"G3": "G4"}), "erturbation"),
    ScoringCase("S05", "no control label", "E584", "real", rename({CONTROL: "control"}), "erturbation"),
    ScoringCase("S06", "a negative value", "E585", "pred", set_value(-1), "egative"),
    ScoringCase("S06", "a negative value of the truth", "E585", "real", set_value(-1), "egative"),
    ScoringCase("S07", "a fraction", "E586", "pred", set_value(1.5), "ractional"),
    ScoringCase("S07", "a fraction of the truth", "E586", "real", set_value(2.9999), "ractional"),
    ScoringCase("S07", "NaN", "E588", "pred", set_value(np.nan), "ractional"),
    ScoringCase("S09", "a cell of more than a million", "E587", "pred", set_value(1_000_001), "count"),
    ScoringCase("S09", "infinity", "E588", "pred", set_value(np.inf), ""),
    ScoringCase("", "a repeated gene", "E589", "real", repeat_gene, None),
    ScoringCase("", "a missing label", "E590", "pred", drop_label, None),
    ScoringCase("", "two contexts in one file", "E591", "real", two_contexts, None),
    ScoringCase("", "controls only", "E592", "real", lambda a: a[a.obs["target"] == CONTROL].copy(), None),
)


def with_contexts(arm, names=("A", "B")):
    parts = []
    for name in names:
        part = arms()[arm].copy() if name == "A" else random_panel(11)[arm].copy()
        part.obs["context"] = name
        parts.append(part)
    joined = ad.concat(parts, index_unique="-")
    joined.obs["target"] = joined.obs["target"].astype(str)
    return joined
