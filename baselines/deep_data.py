"""Cells of a standard file for training: rows of training, validation and control, read once, test rows left out."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.labels import CONTROL
from ..data_specs.normalize import to_log1p
from ..data_specs.split_file import Split
from ..data_specs.standard import MatrixMeta
from .data import EXCLUDED, check_values, standard_rows, train_keys
from .training.data import CellData, Space, held_out_cells


def load_cells(
    path: str | os.PathLike[str],
    split: Split | None,
    *,
    space: Space = "log1p",
    validation: str = "auto",
    columns: Sequence[str] = (),
) -> CellData:
    """The cells of a standard file that training may see.

    Without a split every perturbation trains. `validation`: see `TrainingConfig.validation`; validation rows of a
    split are left out unless they validate. Counts are normalised unless `space` is `counts`. `columns` are further
    obs columns that the model reads: `extras["columns"]` has (codes, categories) of each.

    Raises
    ------
    InvalidFile
        As `data.load_training_data`.
    UsageError
        `space` is counts and the file holds log1p values; no such column, or a cell without a value in it.
    """
    with H5ad(path) as file:
        rows = standard_rows(file)
        train, notes = train_keys(rows, split, file.path)
        if space == "counts" and rows.matrix.kind != "counts":
            raise UsageError(f"{path}: holds log1p values; the model reads raw counts.")
        listed = set() if split is None else set(split.keys("validation"))
        in_split = tuple(sorted(key for key in rows.keys if key in listed and key[1] != CONTROL))
        chosen = ("perturbations" if in_split else "cells") if validation == "auto" else validation
        kept_validation = in_split if chosen == "perturbations" else ()
        controls = tuple(key for key in rows.keys if key[1] == CONTROL)
        keys = tuple(sorted({*controls, *train, *kept_validation}))
        at = {key: i for i, key in enumerate(keys)}
        table = np.array([at.get(key, EXCLUDED) for key in rows.keys] + [EXCLUDED], dtype=np.int64)
        codes = table[rows.codes]
        used = codes >= 0
        check_values(file, rows.matrix, used)
        x = _read(file, used, rows.matrix if space == "log1p" else MatrixMeta("log1p"))
        held_out = np.zeros(int(used.sum()), dtype=bool)
        if chosen == "cells":
            wanted = np.array([key in set(train) for key in keys], dtype=bool)
            held_out = held_out_cells(file.obs_names[used].tolist(), codes[used], wanted)
            notes.append(f"{int(held_out.sum()):,} training cells are held out to choose the best weights.")
        return CellData(
            x=x,
            codes=codes[used],
            keys=keys,
            train_keys=train,
            validation_keys=kept_validation,
            held_out=held_out,
            genes=file.genes,
            target_sum=float(rows.matrix.target_sum or 0.0),
            space=space,
            extras={
                "dataset_id": rows.dataset_id,
                # Names alone: some models reserve a row for every target that may be asked for.
                "labels": tuple(sorted({label for _, label in (*rows.keys, *(split.rows if split else ()))})),
                "published": _published(file, used),
                "columns": {name: _column(file, name, used) for name in columns},
                # Sizes alone: some losses weigh conditions by all cells of the file.
                "n_cells": dict(
                    zip(rows.keys, np.bincount(rows.codes[rows.codes >= 0]).tolist(), strict=True)
                ),
            },
            notes=tuple(notes),
        )


def _published(file: H5ad, used: np.ndarray) -> np.ndarray | None:
    """Code of the published label of each used cell, None where the file does not keep them."""
    return file.labels("label_source").codes[used] if "label_source" in file.obs_columns else None


def _column(file: H5ad, name: str, used: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and categories of an obs column of the used cells."""
    if name not in file.obs_columns:
        raise UsageError(f"{file.path}: no obs column {name!r}; there are {', '.join(file.obs_columns)}.")
    labels = file.labels(name)
    codes = labels.codes[used].astype(np.int64)
    if (codes < 0).any():
        raise UsageError(f"{file.path}: {int((codes < 0).sum())} cells have no value of {name!r}.")
    return codes, tuple(str(value) for value in labels.categories)


def _read(file: H5ad, used: np.ndarray, matrix: MatrixMeta) -> sp.csr_array:
    """The used rows as one CSR float32 matrix, in little more memory than it takes."""
    # Memory that is never written costs nothing, so a sparse file's own number of entries is a free upper bound.
    room = file.matrix.n_stored if file.matrix.storage != "dense" else 0
    data, indices = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.int32)
    bounds = [np.zeros(1, dtype=np.int64)]
    at = 0
    for block in file.row_blocks():
        keep = used[block.start : block.stop]
        if not keep.any():
            continue
        part = to_log1p(sp.csr_array(block.matrix[keep]), matrix)
        end = at + part.nnz
        if end > len(data):
            room = max(end, len(data) + len(data) // 4)
            data.resize(room, refcheck=False)
            indices.resize(room, refcheck=False)
        data[at:end] = part.data
        indices[at:end] = part.indices
        bounds.append(part.indptr[1:].astype(np.int64) + at)
        at = end
    data.resize(at, refcheck=False)
    indices.resize(at, refcheck=False)
    # Row bounds of 64 bits would make scipy widen the column indices as well.
    indptr = np.concatenate(bounds).astype(np.int32 if at < 2**31 else np.int64)
    return sp.csr_array((data, indices, indptr), shape=(int(used.sum()), file.n_vars))
