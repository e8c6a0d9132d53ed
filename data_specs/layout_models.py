"""Schema of the layouts that `vcbench data export` writes: one TOML each under `layouts/`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .spec_models import Strict

Derived = Literal["dose_val", "one_part", "condition_name", "n_targets"]


class LayoutLabels(Strict):
    """How a layout writes perturbations.

    Targets are joined by `separator`; `filler` completes singles (`A+ctrl`). A published label that matches `form` in
    full and reads as the same perturbation is written as it was published.
    """

    column: str
    control: str
    separator: str | None = None
    filler: str | None = None
    form: str


class Layout(Strict):
    """A published file layout. `columns` maps a standard obs column to its name there; absent ones are left out.

    `derived` are obs columns computed from the labels; `counts_layer` also holds the counts where the file has them;
    `de_rankings` adds GEARS' rankings of genes and gene sets to `uns`.
    """

    spec_version: Literal[1]
    id: str
    title: str
    summary: str
    matrix: Literal["counts", "log1p", "declared"]
    counts_layer: str | None = None
    context_column: str | None = None
    symbol_column: str | None = None
    gene_id_column: str | None = None
    labels: LayoutLabels
    columns: dict[str, str] = Field(default_factory=dict)
    derived: dict[str, Derived] = Field(default_factory=dict)
    controls: Literal["keep", "drop"] = "keep"
    max_targets: int | None = None
    de_rankings: bool = False
