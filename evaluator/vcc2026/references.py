"""Baselines and anchors as files: `baseline_agg.csv` and `anchor_agg.parquet` or `.csv`, as cell-eval2 has them."""

from __future__ import annotations

import csv
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.issues import make_issue
from ...data_specs.remote import input_path
from .catalog import ENTRIES

PathLike = str | os.PathLike[str]


def read_baseline(path: PathLike) -> dict[str, float]:
    """Metric to baseline value: the `mean` row of a wide aggregate CSV. A blank cell is NaN.

    Raises `InvalidFile` (E594) when the file cannot be read, has no `statistic` column or no `mean` row.
    """
    rows = _csv_rows(path)
    header = rows[0]
    if "statistic" not in header:
        raise _broken(path, f"columns {', '.join(header[:4])}", "a column statistic")
    mean = next((row for row in rows[1:] if row[header.index("statistic")] == "mean"), None)
    if mean is None:
        raise _broken(path, "no row mean", "one row per statistic")
    return _known({name: cell for name, cell in zip(header, mean, strict=True) if name != "statistic"}, path)


def read_anchor(path: PathLike) -> dict[str, float]:
    """Metric to replicate value: columns `metric` and `replicate` of a Parquet file or CSV, or in an anchor folder.

    Raises
    ------
    UsageError
        A Parquet file and pyarrow is not installed.
    InvalidFile
        The file cannot be read or has other columns (E594).
    """
    file = input_path(path)
    if file.is_dir():
        found = [file / name for name in ("anchor_agg.csv", "anchor_agg.parquet") if (file / name).is_file()]
        if not found:
            raise _broken(file, "no anchor_agg.csv or anchor_agg.parquet", "one of them in the folder")
        file = found[0]
    table = _parquet_columns(file) if file.suffix in (".parquet", ".pq") else _csv_columns(file)
    if not {"metric", "replicate"} <= set(table):
        raise _broken(file, f"columns {', '.join(list(table)[:4])}", "columns metric and replicate")
    return _known(dict(zip(table["metric"], table["replicate"], strict=True)), file)


def _parquet_columns(file: Path) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"{file}: reading Parquet needs pyarrow: pip install 'vcbench[fast]'. A CSV with the columns metric and "
            "replicate is read without it."
        ) from error
    import pyarrow  # pyright: ignore[reportMissingImports]

    try:
        return parquet.read_table(file).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise _broken(file, str(error).splitlines()[0], "a Parquet file") from error


def _csv_columns(file: Path) -> Mapping[str, Sequence[Any]]:
    rows = _csv_rows(file)
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}


def _csv_rows(path: PathLike) -> list[list[str]]:
    try:
        with input_path(path).open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.reader(handle) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _broken(path, str(error), "a UTF-8 CSV") from error
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise _broken(path, f"{len(rows)} rows of different or no content", "a header and rows of one length")
    return rows


def _known(cells: Mapping[str, Any], path: PathLike) -> dict[str, float]:
    """The metrics of the catalogue as floats; columns of other tools' own are left out."""
    out = {}
    for name, cell in cells.items():
        if name not in ENTRIES:
            continue
        try:
            out[name] = math.nan if cell in ("", None) else float(cell)
        except ValueError as error:
            raise _broken(path, f"{name} = {cell!r}", "a number") from error
    if not out:
        raise _broken(path, "no metric of the catalogue", "metrics such as pds_cosine")
    return out


def _broken(path: PathLike, found: str, expected: str) -> InvalidFile:
    where = str(path)
    return InvalidFile(
        [make_issue("E594", where=where, found=found, expected=expected, file=shlex.quote(where))]
    )
