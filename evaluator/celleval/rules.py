"""The parameters in which the cell-eval generations differ, read from the edition."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ...data_specs.errors import SpecError
from ...data_specs.spec_models import Edition


@dataclass(frozen=True)
class Rules:
    """How one generation of cell-eval and pdex computes.

    Attributes
    ----------
    version
        The cell-eval generation, for records only.
    fdr_scope
        Benjamini-Hochberg within each target, or over all (target, gene) pairs of a file at once.
    alpha
        Significant means FDR below this, compared as float32, strictly.
    exact_small_samples
        Use the exact distribution where the smaller group has at most 8 cells and nothing is tied.
    p_dtype
        `data`: p in the precision of X (scipy on float32 input); `float64`: always double.
    fold_change_clip
        Value of x/0 (and its inverse for 0/x); None leaves them infinite.
    epsilon
        Pseudocount on both means of the fold change.
    mean_accumulation
        `row_order`: sums of x / n in the precision of X, cell after cell, as sparse means are taken;
        `float64`: exact sums, rounded once.
    auc_floor
        `clip`: FDR is clipped to [1e-10, 1] before -log10; `zero`: only an FDR of 0 becomes 1e-10.
    """

    version: str
    fdr_scope: Literal["target", "global"]
    alpha: float
    exact_small_samples: bool
    p_dtype: Literal["data", "float64"]
    fold_change_clip: float | None
    epsilon: float
    mean_accumulation: Literal["row_order", "float64"]
    auc_floor: Literal["clip", "zero"]

    @classmethod
    def of(cls, edition: Edition) -> Rules:
        """The rules in an edition's `scoring.parameters`; an absent `fold_change_clip` is None.

        Raises `SpecError` naming every missing or unknown key.
        """
        given = dict(edition.scoring.parameters)
        known = {f.name for f in fields(cls)}
        given.setdefault("fold_change_clip", None)
        problems = [f"unknown key {key!r}" for key in sorted(set(given) - known)]
        problems += [f"missing key {key!r}" for key in sorted(known - set(given))]
        if problems:
            raise SpecError(f"edition {edition.id}, scoring.parameters: {'; '.join(problems)}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The rules as a flat dict, for records."""
        return asdict(self)
