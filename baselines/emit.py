"""Cells for predicted profiles: emission of the submission part, from the controls that the prediction used."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ..data_specs.atomic import check_output
from ..data_specs.errors import ModelError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.h5ad_write import write_h5ad_stream
from ..data_specs.hashing import file_sha256
from ..data_specs.labels import CONTROL
from ..data_specs.remote import input_path
from ..data_specs.standard import MatrixMeta, StandardMeta
from ..submission.control_pool import ControlPool
from ..submission.emission import EmissionReport, GroupEmission, choose_mode
from .data import standard_rows
from .predict import PredictResult
from .run_folder import Run

EMISSION_RULE = "scale"


def training_file(run: Run) -> Path:
    """The file a run was trained on.

    Raises
    ------
    UsageError
        It is no longer at its recorded path, or its content changed.
    """
    recorded = run.inputs["data"]
    path = input_path(recorded["file"])
    if not path.is_file():
        raise UsageError(f"the training file {path} is gone; give control cells with --controls FILE.h5ad.")
    if file_sha256(path) != recorded["sha256"]:
        raise UsageError(f"{path} changed since training; give control cells with --controls FILE.h5ad.")
    return path


def control_pools(
    path: str | os.PathLike[str], contexts: Sequence[str], target_sum: float
) -> dict[str, ControlPool]:
    """Control cells of some contexts of a standard file, as emission takes them."""
    with H5ad(path) as file:
        rows = standard_rows(file)
        code = {c: i for i, (c, label) in enumerate(rows.keys) if label == CONTROL and c in set(contexts)}
        parts: dict[str, list[sp.csr_array]] = {context: [] for context in code}
        for block in file.row_blocks():
            for context, wanted in code.items():
                chosen = rows.codes[block.start : block.stop] == wanted
                if chosen.any():
                    parts[context].append(sp.csr_array(block.matrix[chosen]))
        kind = rows.matrix.kind
    return {c: ControlPool(sp.csr_array(sp.vstack(blocks)), target_sum, kind) for c, blocks in parts.items()}


def write_cells(
    out: str | os.PathLike[str],
    result: PredictResult,
    run: Run,
    *,
    controls: str | os.PathLike[str],
    n_cells: int,
    seed: int = 0,
    force: bool = False,
) -> list[EmissionReport]:
    """Write `n_cells` cells per predicted or fallback row, and return how well each group meets its profile.

    Cells are counts when the controls are counts, log1p values otherwise; control cells are not added. Refusals
    stand in `uns` as in a mean-effects file.

    Raises
    ------
    ModelError
        Every row was refused; no file is written.
    OutputError
        The output exists, equals an input, or cannot be written.
    """
    check_output(out, inputs=[controls], force=force)
    rows = result.rows("predicted", "fallback")
    keys = [result.prediction.keys[i] for i in rows]
    if not rows:
        raise ModelError(
            f"{run.name} refused all {len(result.prediction.keys)} rows; there are no cells to draw."
        )
    pools = control_pools(controls, sorted({context for context, _ in keys}), run.target_sum)
    kind = next(iter(pools.values())).kind
    modes = {context: choose_mode(EMISSION_RULE, pool, kind) for context, pool in pools.items()}
    notes = {context: reason for context, (_, reason) in modes.items()}
    meta = StandardMeta(
        run.dataset_id,
        MatrixMeta(kind, run.target_sum),
        extra={
            **run.provenance,
            "refused": json.dumps(result.refused()),
            "emission": json.dumps({"seed": seed, "n_cells": n_cells, "modes": notes}),
        },
    )

    def column(values: Sequence[str]) -> np.ndarray:
        return np.repeat(np.array(values, dtype=object), n_cells)

    obs = {
        "perturbation": column([label for _, label in keys]),
        "context": column([context for context, _ in keys]),
        "status": column([result.prediction.status[i] for i in rows]),
        "reason": column([result.prediction.reason[i] for i in rows]),
    }
    reports = []
    with write_h5ad_stream(out, genes=[str(g) for g in result.genes], obs=obs, uns=meta.to_uns()) as writer:
        for i, (context, label) in zip(rows, keys, strict=True):
            group = GroupEmission(
                result.prediction.profiles[i],
                pools[context],
                n_cells=n_cells,
                mode=modes[context][0],
                rng_seed=seed,
                context=context,
                perturbation=label,
                space=kind,
            )
            for block in group.blocks():
                writer.append(block)
            reports.append(group.report())
    return reports
