"""Build truth bundles by edition: one function behind `vcbench truth build`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data_specs.errors import OutputError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.specs import load_edition
from .profiles import resolve_profile
from .score_options import ScoreOptions

if TYPE_CHECKING:
    from .pipelines import Progress
    from .vcc2026.bundle import TruthBundle

PathLike = str | os.PathLike[str]


def build_truth(
    real: PathLike,
    out: PathLike,
    *,
    edition: str = "vcc2026",
    profile: str | None = None,
    baseline: str = "context-mean",
    emission: Literal["tile", "dispersed"] = "tile",
    min_cells: int = 30,
    max_residual: float = 0.3,
    exclude_target_gene: bool = True,
    anchor: bool = True,
    n_splits: int = 5,
    base_seed: int = 0,
    pert_col: str | None = None,
    control: str | None = None,
    context_col: str | None = None,
    no_target_genes: bool = False,
    target_map: PathLike | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> TruthBundle:
    """Measure real cells once and write everything scoring needs of them as a folder.

    `baseline` is `context-mean`, `generic`, `none`, or the path of a ready-made baseline prediction.

    Raises
    ------
    UsageError
        The edition has no bundles.
    OutputError
        The output exists (without `force`), or is an input.
    InvalidFile, MetricError
        The real data cannot be scored by this edition.
    """
    rules = load_edition(edition)
    if rules.scoring.pipeline != "vcc2026":
        raise UsageError(
            f"edition {rules.id} has no truth bundles: score against the real file with --truth REAL.h5ad."
        )
    folder = Path(out)
    if folder.exists() and not force:
        raise OutputError(f"{folder}: exists already. Choose another --out or add --force.")
    from .vcc2026.build import BuildOptions, build_bundle
    from .vcc2026.bundle import is_bundle
    from .vcc2026.targets import read_target_map

    if folder.exists() and not is_bundle(folder):
        raise OutputError(
            f"{folder}: holds no truth bundle, so --force does not replace it. Choose another --out."
        )
    options = ScoreOptions(
        pert_col=pert_col,
        control=control,
        context_col=context_col,
        threads=threads,
        no_target_genes=no_target_genes,
        target_map=None if target_map is None else read_target_map(target_map),
    )
    kind: Any = {"context-mean": "context-mean", "generic": "generic"}.get(baseline)
    chosen = BuildOptions(
        baseline=kind,
        emission=emission,
        baseline_seed=base_seed,
        min_cells=min_cells,
        max_residual=max_residual,
        exclude_target_gene=exclude_target_gene,
        anchor=anchor,
        base_seed=base_seed,
        n_splits=n_splits,
    )
    with ExitStack() as stack:
        truth = stack.enter_context(H5ad(real))
        ready = None
        if kind is None and baseline != "none":
            ready = stack.enter_context(H5ad(baseline))
        return build_bundle(
            truth,
            out,
            edition=rules,
            profile=resolve_profile(rules, profile),
            options=options,
            build=chosen,
            baseline_source=ready,
            progress=progress,
            force=force,
        )
