"""Gene embeddings of trained models as feature tables, which `--features` and the linear baseline read."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data_specs.atomic import atomic_file, check_output
from ..data_specs.errors import ModelError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.labels import targets_of
from .data import standard_rows
from .features import FeatureTable
from .registry import is_deep
from .run_folder import CONFIG, load_run

ENDINGS = (".tsv", ".csv", ".parquet")


def embedding_table(source: str | os.PathLike[str]) -> FeatureTable:
    """The gene embeddings of a run folder, or of an scGPT checkpoint folder.

    Raises
    ------
    ModelError
        The folder is neither, is broken, or its model has no gene embeddings.
    """
    folder = Path(source)
    if not (folder / CONFIG).is_file():
        from .deep import require_torch

        require_torch("scgpt")
        from .scgpt.checkpoint import checkpoint_embeddings, read_checkpoint

        return checkpoint_embeddings(read_checkpoint(folder))
    run = load_run(folder)
    if not is_deep(run.name):
        raise ModelError(f"{run.name} has no gene embeddings to write.")
    return run.model.gene_embeddings()


def names_in(data: str | os.PathLike[str]) -> list[str]:
    """Genes of a standard file in order, then its targets that are not among them. Raises `InvalidFile`."""
    with H5ad(data) as file:
        genes = [str(gene) for gene in file.genes]
        labels = [label for _, label in standard_rows(file).keys]
    own = set(genes)
    return [*genes, *sorted({target for label in labels for target in targets_of(label)} - own)]


def only(table: FeatureTable, names: Sequence[str]) -> FeatureTable:
    """The rows of some names, in their order; names without a row are left out. Raises `ModelError` without any."""
    found = [name for name in names if name in table.position]
    if not found:
        raise ModelError(
            f"none of {len(names):,} names has an embedding (first: {names[0] if names else 'none'!r})."
        )
    return FeatureTable(np.array(found), table.values[[table.position[name] for name in found]])


def write_feature_table(
    out: str | os.PathLike[str],
    table: FeatureTable,
    *,
    inputs: Sequence[str | os.PathLike[str]] = (),
    force: bool = False,
) -> None:
    """Write a .tsv, .csv or .parquet table: column `gene`, then one column per dimension, float32 precision.

    Raises
    ------
    UsageError
        Another file ending, or parquet without pyarrow.
    OutputError
        The output exists, equals an input, or cannot be written.
    """
    target = Path(out)
    if target.suffix not in ENDINGS:
        raise UsageError(f"{target}: feature tables are {', '.join(ENDINGS)} files.")
    check_output(target, inputs=list(inputs), force=force)
    columns = [f"d{i + 1}" for i in range(table.n_dims)]
    values = table.values.astype(np.float32)
    with atomic_file(target) as part:
        if target.suffix == ".parquet":
            import pandas as pd

            frame = pd.DataFrame(values, columns=pd.Index(columns))
            frame.insert(0, "gene", table.names.astype(str))
            try:
                frame.to_parquet(part, index=False)
            except ImportError as error:
                raise UsageError(f"{target}: parquet needs pyarrow: pip install 'vcbench[fast]'.") from error
            return
        with part.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(
                handle, delimiter="\t" if target.suffix == ".tsv" else ",", lineterminator="\n"
            )
            writer.writerow(["gene", *columns])
            writer.writerows(
                [str(n), *(f"{v:.8g}" for v in row)] for n, row in zip(table.names, values, strict=True)
            )
