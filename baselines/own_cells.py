"""Cells that a model predicts itself (`DeepModel.cells`), one per control cell, instead of emitted ones."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.atomic import check_output
from ..data_specs.errors import ModelError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.h5ad_write import write_h5ad_stream
from ..data_specs.labels import CONTROL
from ..data_specs.normalize import to_log1p
from ..data_specs.standard import MatrixMeta, StandardMeta
from .data import standard_rows
from .deep import DeepModel
from .predict import PredictResult
from .run_folder import Run
from .training.data import Space
from .training.seeding import numpy_generator

CHUNK_CELLS = 1024


def write_own_cells(
    out: str | os.PathLike[str],
    result: PredictResult,
    run: Run,
    *,
    controls: str | os.PathLike[str],
    n_cells: int,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Write `n_cells` of the model's own cells per predicted or fallback row, on the scale that the model works on.

    Each starts from a control cell of its context, drawn without replacement as long as there are enough. Draws depend
    on seed, context and perturbation alone. Genes that the run does not know keep the value of the control cell.

    Raises
    ------
    ModelError
        Every row was refused; no file is written.
    UsageError
        The model reads counts and the controls are log1p values.
    OutputError
        The output exists, equals an input, or cannot be written.
    """
    check_output(out, inputs=[controls], force=force)
    model: DeepModel[Any] = run.model
    rows = result.rows("predicted", "fallback")
    keys = [result.prediction.keys[i] for i in rows]
    if not rows:
        raise ModelError(
            f"{run.name} refused all {len(result.prediction.keys)} rows; there are no cells to predict."
        )
    genes, pools = control_cells(controls, sorted({c for c, _ in keys}), model.space, run.target_sum)
    columns = _Columns(genes, run, model.space)
    meta = StandardMeta(
        run.dataset_id,
        MatrixMeta(model.space, run.target_sum),
        extra={
            **run.provenance,
            "refused": json.dumps(result.refused()),
            "cells": json.dumps({"source": "the model's own", "seed": seed, "n_cells": n_cells}),
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
    with write_h5ad_stream(out, genes=[str(g) for g in genes], obs=obs, uns=meta.to_uns()) as writer:
        for context, label in keys:
            rng = numpy_generator(seed, "own cells", context, label)
            pool = pools[context]
            n_pool, _ = tuple(pool.shape)  # type: ignore[misc]
            drawn = _drawn(int(n_pool), n_cells, rng)
            for start in range(0, n_cells, CHUNK_CELLS):
                part = pool[drawn[start : start + CHUNK_CELLS]]
                if label == CONTROL:
                    writer.append(part)
                else:
                    writer.append(
                        columns.back(model.cells((context, label), columns.inner(part), rng=rng), part)
                    )


def control_cells(
    path: str | os.PathLike[str], contexts: Sequence[str], space: Space, target_sum: float
) -> tuple[np.ndarray, dict[str, sp.csr_array]]:
    """Genes of a standard file, and the control cells of some of its contexts in log1p space or as counts.

    Raises `UsageError` for counts from a log1p file.
    """
    with H5ad(path) as file:
        rows = standard_rows(file)
        if space == "counts" and rows.matrix.kind != "counts":
            raise UsageError(
                f"{Path(path)}: holds log1p values; the model's own cells start from raw counts."
            )
        matrix = rows.matrix if rows.matrix.kind == "log1p" else MatrixMeta("counts", target_sum)
        code = {c: i for i, (c, label) in enumerate(rows.keys) if label == CONTROL and c in set(contexts)}
        parts: dict[str, list[sp.csr_array]] = {context: [] for context in code}
        for block in file.row_blocks():
            for context, wanted in code.items():
                chosen = rows.codes[block.start : block.stop] == wanted
                if chosen.any():
                    own = sp.csr_array(block.matrix[chosen])
                    parts[context].append(own if space == "counts" else to_log1p(own, matrix))
        return file.genes, {c: sp.csr_array(sp.vstack(blocks)) for c, blocks in parts.items()}


def _drawn(n_pool: int, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    rounds = [rng.permutation(n_pool) for _ in range(-(-n_cells // n_pool))]
    return np.concatenate(rounds)[:n_cells]


class _Columns:
    """Control cells of a file to the genes of the run, and predicted cells back to those of the file."""

    def __init__(self, genes: np.ndarray, run: Run, space: Space):
        position = {str(gene): i for i, gene in enumerate(run.genes)}
        own = np.array([position.get(str(gene), -1) for gene in genes], dtype=np.int64)
        self.same = len(own) == len(run.genes) and bool((own == np.arange(len(own))).all())
        self.shared = np.flatnonzero(own >= 0)
        self.own = own[self.shared]
        known = np.mean([run.control_means[c] for c in sorted(run.control_means)], axis=0)
        # Genes that the file lacks take part as in mean effects; a count model reads none of them.
        self.fill = known if space == "log1p" else np.zeros(len(run.genes))

    def inner(self, cells: sp.csr_array) -> sp.csr_array:
        if self.same:
            return cells
        known = cells[:, self.shared].toarray()
        dense = np.tile(self.fill, (len(known), 1))
        dense[:, self.own] = known
        return sp.csr_array(dense)

    def back(self, predicted: sp.csr_array | np.ndarray, controls: sp.csr_array) -> sp.csr_array | np.ndarray:
        if self.same:
            return predicted
        dense = predicted if isinstance(predicted, np.ndarray) else predicted.toarray()
        out = controls.toarray()
        out[:, self.shared] = dense[:, self.own]
        return out
