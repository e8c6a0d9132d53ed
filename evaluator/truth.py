"""Build truth bundles by edition: one function behind `vcbench truth build`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data_specs.errors import OutputError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.specs import load_edition
from ..data_specs.standard import MatrixKind
from .kernels.devices import checked_device
from .memory import block_bytes
from .profiles import resolve_profile
from .score_options import ScoreOptions

if TYPE_CHECKING:
    from .bundles import Bundle
    from .executors import Executor
    from .pipelines import Progress

PathLike = str | os.PathLike[str]
Emission = Literal["tile", "dispersed"]
# What belongs to one challenge year only, with the value that leaves it alone.
ONLY_2026 = {
    "emission": "tile",
    "min_cells": 30,
    "max_residual": 0.3,
    "exclude_target_gene": True,
    "anchor": True,
    "n_splits": 5,
    "no_target_genes": False,
    "target_map": None,
}
OPTION_NAMES = {"n_splits": "splits", "anchor": "no-anchor", "ceiling": "no-ceiling"}
ONLY_2025 = {"train": None, "perts": None, "ceiling": True, "matrix": None}


def build_truth(
    real: PathLike,
    out: PathLike,
    *,
    edition: str = "vcc2026",
    profile: str | None = None,
    baseline: str | None = None,
    train: PathLike | None = None,
    perts: PathLike | None = None,
    ceiling: bool = True,
    emission: Emission = "tile",
    min_cells: int = 30,
    max_residual: float = 0.3,
    exclude_target_gene: bool = True,
    anchor: bool = True,
    n_splits: int = 5,
    base_seed: int = 0,
    pert_col: str | None = None,
    control: str | None = None,
    context_col: str | None = None,
    matrix: MatrixKind | None = None,
    no_target_genes: bool = False,
    target_map: PathLike | None = None,
    threads: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    executor: Executor | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Measure real cells once and write everything scoring needs of them as a folder.

    Parameters
    ----------
    baseline
        vcc2026: `context-mean` (default), `generic`, `none`, or the path of a ready-made baseline prediction. 2025 and
        cell-eval: the path of a baseline's `agg_results.csv`, `published`, or `none` (default).
    train, perts
        2025 and cell-eval: training cells whose mean response is the baseline, and its cells per perturbation
        (default: as many as are real).
    ceiling
        2025 and cell-eval: score one half of the real cells against the other.
    base_seed
        Seed of splits, halves and drawn baselines.
    threads, memory, device, executor
        Threads, memory budget in bytes, and where rank sums are taken; the bundle depends on none of them.

    Raises
    ------
    UsageError
        The edition has no bundles, or an option is not one of its.
    OutputError
        The output exists (without `force`), or is an input.
    InvalidFile, MetricError
        The real data cannot be scored by this edition.
    """
    rules = load_edition(edition)
    pipeline = rules.scoring.pipeline
    if pipeline not in ("vcc2026", "celleval"):
        raise UsageError(
            f"edition {rules.id} has no truth bundles: score against the real file with --truth REAL.h5ad."
        )
    given = dict(locals())
    foreign = ONLY_2025 if pipeline == "vcc2026" else ONLY_2026
    unused = [name for name, default in foreign.items() if given[name] != default]
    if unused:
        shown = ", ".join(f"--{OPTION_NAMES.get(name, name).replace('_', '-')}" for name in unused)
        raise UsageError(f"{shown}: not an option of edition {rules.id}.")
    check_folder(Path(out), force=force)
    options = ScoreOptions(
        pert_col=pert_col,
        control=control,
        context_col=context_col,
        matrix=matrix,
        threads=threads,
        block_bytes=block_bytes(memory),
        memory=memory,
        device=checked_device(device),
        executor=executor,
        no_target_genes=no_target_genes,
        target_map=None if target_map is None else _read_map(target_map),
    )
    chosen: dict[str, Any] = {
        "edition": rules,
        "profile": resolve_profile(rules, profile),
        "options": options,
        "progress": progress,
        "force": force,
    }
    with ExitStack() as stack:
        truth = stack.enter_context(H5ad(real))
        if pipeline == "celleval":
            from .celleval.build import CellevalBuildOptions, build_celleval_bundle

            build = CellevalBuildOptions(
                train=None if train is None else stack.enter_context(H5ad(train)),
                perts=perts,
                baseline=None if baseline in (None, "none") else baseline,
                ceiling=ceiling,
                ceiling_seed=base_seed,
                profile_name=profile or rules.scoring.default_profile,
            )
            return build_celleval_bundle(truth, out, build=build, **chosen)
        from .vcc2026.build import BuildOptions, build_bundle

        arm = baseline or "context-mean"
        kind: Any = arm if arm in ("context-mean", "generic") else None
        ready = None if kind or arm == "none" else stack.enter_context(H5ad(arm))
        ends = BuildOptions(
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
        return build_bundle(truth, out, build=ends, baseline_source=ready, **chosen)


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse an output before any work: taken, or (with `force`) no bundle. Raises `OutputError`."""
    from .bundles import is_bundle

    if folder.exists() and not force:
        raise OutputError(f"{folder}: exists already. Choose another --out or add --force.")
    if folder.exists() and not is_bundle(folder):
        raise OutputError(
            f"{folder}: holds no truth bundle, so --force does not replace it. Choose another --out."
        )


def _read_map(path: PathLike) -> dict[str, str | None]:
    from .vcc2026.targets import read_target_map

    return dict(read_target_map(path))
