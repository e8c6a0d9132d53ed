"""The upload rules of 2026 as files: one valid entry, and one defect per rule with what both tools say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builders_entry import TEXT, defect, replace_dataset, set_index, set_labels
from packing_2026 import CONTEXTS, Files2026

Change = Callable[[Any], None]


@dataclass(frozen=True)
class Case:
    """One file: `codes` are ours (empty: valid), `says` a part of the official message ("" where it accepts).

    `edition` are panel rules, `official` options of the official tool, `lists` other lists by name (None: no such
    file), `place` what else stands at the path in place of the file.
    """

    rule: str
    name: str
    codes: tuple[str, ...]
    says: str
    change: Change | None = None
    lists: dict[str, str | None] = field(default_factory=dict)
    edition: dict[str, Any] = field(default_factory=dict)
    official: dict[str, Any] = field(default_factory=dict)
    contexts: tuple[str, ...] = CONTEXTS
    perts: bool = True
    place: Callable[[Path], None] | None = None


def data(change: Callable[[np.ndarray], None], dtype: Any = None) -> Change:
    """Change `X/data` in place."""

    def apply(file: Any) -> None:
        values = file["X/data"][()]
        values = values if dtype is None else values.astype(dtype)
        change(values)
        replace_dataset(file, "X/data", values)

    return apply


def array(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda file: replace_dataset(file, key, change(file[key][()]))


def relabel(column: str, change: Callable[[list[Any]], None]) -> Change:
    def apply(file: Any) -> None:
        group = file[f"obs/{column}"]
        categories = [c.decode() for c in group["categories"][()]]
        values: list[Any] = [categories[code] for code in group["codes"][()]]
        change(values)
        set_labels(file, column, values)

    return apply


def put(index: int, value: Any) -> Callable[[Any], None]:
    def apply(values: Any) -> None:
        values[index] = value

    return apply


def rename_all(old: str, new: Callable[[int], Any]) -> Callable[[list[Any]], None]:
    def apply(values: list[Any]) -> None:
        values[:] = [new(i) if v == old else v for i, v in enumerate(values)]

    return apply


def first_row(value: float) -> Callable[[np.ndarray], None]:
    def apply(values: np.ndarray) -> None:
        values[0] = value

    return apply


def empty_target(file: Any) -> None:
    """All cells of the first target of the first context and of the second hold nothing but stored zeros."""
    names = _labels(file, "target_gene")
    indptr, values = file["X/indptr"][()], file["X/data"][()]
    for row in np.flatnonzero(names == "G000"):
        values[indptr[row] : indptr[row + 1]] = 0
    replace_dataset(file, "X/data", values)


def _labels(file: Any, column: str) -> np.ndarray:
    group = file[f"obs/{column}"]
    categories = np.array([c.decode() for c in group["categories"][()]], dtype=object)
    return categories[group["codes"][()]]


def no_rows(file: Any) -> None:
    for key in ("X/data", "X/indices"):
        replace_dataset(file, key, file[key][:0])
    replace_dataset(file, "X/indptr", np.zeros(1, np.int32))
    file["X"].attrs["shape"] = np.array([0, 40])
    set_index(file, "obs", [])
    for column in ("target_gene", "context"):
        set_labels(file, column, [])


def drop(key: str) -> Change:
    def apply(file: Any) -> None:
        del file[key]
        if key.startswith("obs/"):
            kept = [c for c in file["obs"].attrs["column-order"] if c != key[4:]]
            del file["obs"].attrs["column-order"]
            file["obs"].attrs.create(
                "column-order", np.array(kept, dtype=object), dtype=TEXT, shape=(len(kept),)
            )

    return apply


def swap_genes(file: Any) -> None:
    genes = [g.decode() for g in file["var/_index"][()]]
    genes[0], genes[1] = genes[1], genes[0]
    set_index(file, "var", genes)


def one_gene(name: str) -> Change:
    def apply(file: Any) -> None:
        genes = [g.decode() for g in file["var/_index"][()]]
        set_index(file, "var", [name, *genes[1:]])

    return apply


def void(_: object) -> None:
    """Nothing of a call's result."""


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GENES_40 = "\n".join(f"G{i:03d}" for i in range(40))
CASES = (
    Case("", "valid", (), ""),
    Case("", "stored zero", (), "", data(first_row(0))),
    Case("", "another gene order", (), "", swap_genes),
    Case("", "value 3.0000005", (), "", data(first_row(3.0000005), np.float64)),
    Case("", "float64", (), "", data(lambda v: None, np.float64)),
    Case("", "integers", (), "", data(lambda v: None, np.int32)),
    Case("", "total of exactly the cap", (), "", None, {}, {"max_cell_total": 1e6}, {}),
    Case(
        "", "a list of another length", (), "", edition={"gene_count": 41}, official={"expected_gene_dim": 41}
    ),
    Case("U06", "no file", ("E001",), "not found", place=Path.unlink),
    Case("U06", "a folder", ("E002",), "directory", place=as_folder),
    Case("U06", "text", ("E003",), "Failed to read", place=lambda p: void(p.write_text("gene,cell\n"))),
    Case("U06", "half a file", ("E004",), "Failed to read", place=cut),
    Case("U07", "no X", ("E005",), "no expression matrix", drop("X")),
    Case("U08", "indptr too short", ("E008",), "pointer", array("X/indptr", lambda v: v[:-1])),
    Case(
        "U08",
        "indptr starts at 1",
        ("E008",),
        "starts at 1",
        array("X/indptr", lambda v: np.append(1, v[1:])),
    ),
    Case(
        "U08",
        "indptr decreases",
        ("E008",),
        "monotonic",
        array("X/indptr", lambda v: np.r_[v[:2], v[1] - 1, v[3:]]),
    ),
    Case(
        "U08", "index outside", ("E008",), "out of range", array("X/indices", lambda v: np.append(v[:-1], 40))
    ),
    Case(
        "U08",
        "negative index",
        ("E008",),
        "out of range",
        array("X/indices", lambda v: np.append(v[:-1], -1)),
    ),
    Case(
        "U08", "more indices than values", ("E008",), "indices", array("X/indices", lambda v: np.append(v, 0))
    ),
    Case(
        "U08",
        "indptr beyond the values",
        ("E008",),
        "",
        array("X/indptr", lambda v: np.append(v[:-1], v[-1] + 9)),
    ),
    Case("U09", "empty gene list", ("E107",), "gene list", lists={"genes": "\n"}),
    Case("U09", "gene list of a header", ("E107",), "header", lists={"genes": "gene_name\n"}),
    Case("U09", "repeated gene in the list", ("E102",), "uplicate", lists={"genes": GENES_40 + "\nG000\n"}),
    Case("U09", "no gene list", ("E101",), "not found", lists={"genes": None}),
    Case("U10", "repeated gene in the file", ("E103",), "Duplicate gene names", one_gene("G001")),
    Case("U11", "no cells", ("E213",), "0 cells", no_rows),
    Case("U12", "no label column", ("E201",), "target_gene", drop("obs/target_gene")),
    Case("U14", "a control cell", ("E210",), "control", relabel("target_gene", put(0, "non-targeting"))),
    Case("U15", "no context column", ("E202",), "context", drop("obs/context")),
    Case("U16", "unknown context", ("E205",), "nknown", relabel("context", put(0, "Z"))),
    Case("U17", "context without cells", ("E206",), "C", contexts=("A", "B", "C")),
    Case("U18", "no perturbation list", ("E407",), "--perts", perts=False),
    Case("U18", "no such list", ("E403",), "not found", lists={"perts": None}),
    Case("U18", "list without its column", ("E404",), "target_gene", lists={"perts": "name\nG000\n"}),
    Case("U18", "empty list", ("E405",), "no perturbations", lists={"perts": "target_gene\nnon-targeting\n"}),
    Case(
        "U19",
        "a target that is not listed",
        ("E402",),
        "G009",
        relabel("target_gene", rename_all("G000", lambda i: "G009")),
    ),
    Case(
        "U19",
        "a listed target is missing",
        ("E401",),
        "G003",
        lists={"perts": "target_gene,n_cells\nG000,30\nG001,30\nG002,30\nG003,30\n"},
    ),
    Case(
        "U19",
        "guide suffixes",
        ("E207",),
        "-",
        relabel("target_gene", rename_all("G000", lambda i: f"G000-{i % 2}")),
    ),
    Case("U19", "a missing label", ("E203",), "nan", relabel("target_gene", put(0, None))),
    Case("U20", "one cell of another target", ("E410",), "cells", relabel("target_gene", put(0, "G000"))),
    Case(
        "U20",
        "400 where nothing is listed",
        ("E410",),
        "400",
        lists={"perts": "target_gene\nG000\nG001\nG002\n"},
    ),
    Case("U21", "another gene", ("E105", "E106"), "G000", one_gene("NEW")),
    Case(
        "U23",
        "too many cells",
        ("E408",),
        "Cell count",
        edition={"max_cells": 179},
        official={"max_cell_dim": 179},
    ),
    Case(
        "U24", "too many entries", ("E409",), "dense", edition={"max_stored": 100}, official={"max_nnz": 100}
    ),
    Case("U25", "NaN", ("E301",), "NaN", data(first_row(np.nan))),
    Case("U25", "infinity", ("E302",), "nf", data(first_row(np.inf))),
    Case("U26", "a cell of more than a million", ("E311",), "total", data(first_row(1e6 + 8))),
    Case("U27", "a target of empty cells", ("E313",), "zero", empty_target),
    Case("U28", "a negative value", ("E303",), "negative", data(first_row(-1))),
    Case("U29", "a fraction", ("E304",), "FRACTIONAL", data(first_row(1.5))),
    Case("U29", "value 2.9999", ("E304",), "FRACTIONAL", data(first_row(2.9999))),
)


@dataclass(frozen=True)
class CommandCase:
    """A way to call both packers on a valid file that neither takes.

    `official` are options of the client and `says` a part of its message; `words` are ours, `told` a part of our
    message. `FILE`, `LINK` (a hard link to the file), `GENES` and `TAKEN` (an existing file) stand for paths.
    """

    rule: str
    name: str
    official: dict[str, Any]
    says: str
    words: tuple[str, ...]
    told: str


COMMAND_CASES = (
    CommandCase("U01", "encoding 16", {"encoding": 16}, "Encoding", ("--encoding", "16"), "No such option"),
    CommandCase("U02", "no cells", {"cells_per_pert": 0}, ">= 1", ("--cells", "0"), "x>=1"),
    CommandCase(
        "U03",
        "a cap of nothing",
        {"max_counts_per_cell": 0},
        ">= 1",
        ("--max-counts-per-cell", "0"),
        "No such option",
    ),
    CommandCase("U04", "over the input", {"output_path": "FILE"}, "Refusing", ("-o", "FILE"), "input"),
    CommandCase(
        "U04",
        "over the input by another name, with --force",
        {"output_path": "LINK", "force": True},
        "Refusing",
        ("-o", "LINK", "--force"),
        "input",
    ),
    CommandCase(
        "U04",
        "over the gene list",
        {"output_path": "GENES", "force": True},
        "Refusing",
        ("-o", "GENES", "--force"),
        "input",
    ),
    CommandCase("U05", "over a file", {"output_path": "TAKEN"}, "already exists", ("-o", "TAKEN"), "exists"),
    CommandCase(
        "U13",
        "a cell-type column that is not there",
        {"celltype_col": "celltype"},
        "celltype",
        ("--celltype-col", "celltype"),
        "No such option",
    ),
)


def build_command(plain: Path, files: Files2026, folder: Path) -> dict[str, Path]:
    """The paths that the words of a command case stand for, in a folder made for it."""
    folder.mkdir(parents=True)
    paths = {
        name: folder / text
        for name, text in {
            "FILE": "cells.h5ad",
            "LINK": "link.vcc",
            "GENES": "genes.vcc",
            "TAKEN": "taken.vcc",
        }.items()
    }
    paths["FILE"].write_bytes(plain.read_bytes())
    paths["LINK"].hardlink_to(paths["FILE"])
    paths["GENES"].write_bytes(files.genes.read_bytes())
    paths["TAKEN"].write_bytes(b"taken")
    return paths


def build(case: Case, plain: Path, files: Files2026, folder: Path) -> tuple[Path, dict[str, Path]]:
    """The file of a case, and the paths of its lists."""
    folder.mkdir(parents=True)
    path = folder / "entry.h5ad"
    defect(plain, path, case.change or (lambda file: None))
    if case.place is not None:
        case.place(path)
    lists = {"genes": files.genes, "perts": files.perts}
    for name, text in case.lists.items():
        lists[name] = folder / f"{name}.csv"
        if text is not None:
            lists[name].write_text(text)
    if not case.perts:
        del lists["perts"]
    return path, lists
