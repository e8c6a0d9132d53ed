"""A valid entry of 2025 kind and one-defect mutators of h5ad files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from builders import counts
from vcbench.data_specs.h5ad_columns import Labels
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.spec_models import Edition
from vcbench.data_specs.specs import load_edition

ENTRY_GENES = tuple(f"G{i:03d}" for i in range(30))
TARGETS = ("G000", "G001", "G002")
CELLS, CONTROLS = 6, 10
TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class EntryPaths:
    """A valid entry and the official lists it is checked against."""

    entry: Path
    genes: Path
    perts: Path

    def options(self) -> dict[str, Path]:
        return {"genes": self.genes, "perts": self.perts}


def entry_counts(n_rows: int, rng: np.random.Generator, *, n_genes: int = len(ENTRY_GENES)) -> np.ndarray:
    """Counts without an empty row and with a value of 2 or more in every row."""
    x = counts(n_rows, n_genes, rng, mean=4.0)
    x[:, 7] += 3
    return x


def entry_labels(targets: Sequence[str] = TARGETS, *, control: str | None = "non-targeting") -> list[str]:
    labels = [control] * CONTROLS if control else []
    return labels + [name for name in targets for _ in range(CELLS)]


def write_entry(
    path: Path,
    labels: Sequence[Any],
    x: np.ndarray | None = None,
    *,
    genes: Sequence[str] = ENTRY_GENES,
    obs: dict[str, Any] | None = None,
    uns: dict[str, Any] | None = None,
    obs_names: Sequence[str] | None = None,
    dtype: Any = np.float32,
    column: str = "target_gene",
) -> Path:
    """An entry with these labels; random counts unless `x` is given."""
    if x is None:
        x = entry_counts(len(labels), np.random.default_rng(0), n_genes=len(genes))
    columns = {column: Labels.from_values(labels), **(obs or {})}
    with write_h5ad_stream(
        path, genes=genes, obs=columns, uns=uns, obs_names=obs_names, dtype=dtype
    ) as writer:
        writer.append(sp.csr_array(x))
    return path


def valid_entry(folder: Path) -> EntryPaths:
    """A valid 2025 entry of counts (3 targets, controls, 30 genes) with its gene and perturbation lists."""
    entry = write_entry(folder / "pred.h5ad", entry_labels())
    genes = folder / "gene_names.csv"
    genes.write_text("\n".join(ENTRY_GENES) + "\n")
    perts = folder / "pert_counts.csv"
    rows = [f"{name},{CELLS},54000.5" for name in TARGETS]
    perts.write_text("\n".join(["target_gene,n_cells,median_umi_per_cell", *rows]) + "\n")
    return EntryPaths(entry, genes, perts)


def small_edition(**panel: Any) -> Edition:
    """Edition vcc2025 for panels of 30 genes, with other panel rules on request."""
    edition = load_edition("vcc2025")
    rules = {"gene_count": len(ENTRY_GENES), **panel}
    return edition.model_copy(update={"panel": edition.panel.model_copy(update=rules)})


def future_edition(**panel: Any) -> Edition:
    """An edition of 2026 kind: raw counts, required contexts, no controls, fixed cells per perturbation."""
    rules = {
        "control": "forbidden",
        "perturbation_list": "required",
        "gene_order": "free",
        "cells_per_perturbation": CELLS,
        "max_log1p": None,
        **panel,
    }
    edition = small_edition(**rules)
    file = {
        "matrix": "counts",
        "detection": None,
        "rows": ("cell",),
        "context_column": "context",
        "context_required": True,
    }
    return edition.model_copy(update={"file": edition.file.model_copy(update=file), "emission": "counts"})


def defect(source: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy of an h5ad with one change, made through h5py."""
    shutil.copyfile(source, target)
    with h5py.File(target, "r+") as file:
        change(file)
    return target


def replace_dataset(file: Any, key: str, values: Any, **options: Any) -> None:
    """Put other values (and dtype) at a place; attributes are kept."""
    attributes = dict(file[key].attrs)
    del file[key]
    file.create_dataset(key, data=values, **options)
    file[key].attrs.update(attributes)


def set_index(file: Any, axis: str, names: Sequence[str]) -> None:
    """Replace the index of obs or var."""
    replace_dataset(file, f"{axis}/_index", np.array(list(names), dtype=object), dtype=TEXT)


def set_labels(file: Any, column: str, values: Sequence[Any]) -> None:
    """Replace an obs column by a categorical of these values (None: missing)."""
    labels = Labels.from_values(list(values))
    group = file[f"obs/{column}"]
    replace_dataset(group, "codes", labels.codes.astype(np.int8))
    replace_dataset(group, "categories", labels.categories.astype(object), dtype=TEXT)


def with_paths(paths: EntryPaths, **changes: Path) -> EntryPaths:
    """The same entry with other files."""
    return replace(paths, **changes)
