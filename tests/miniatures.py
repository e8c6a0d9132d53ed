"""Miniatures of published files: real column names, label forms and traps of each layout, a few dozen cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from vcbench.data_specs import load_dataset
from vcbench.data_specs.source_cells import recipe_of
from vcbench.data_specs.spec_models import DatasetSpec

TARGETS = ("MYC", "TP53", "SOX2", "KLF4", "ELF1", "E2F4", "HSPA5", "ATF6", "PERK")
SYMBOLS = (*TARGETS, "TBCE", "HSPA14", *(f"GENE{i}" for i in range(20)))
GEARS = ("ctrl", "MYC+ctrl", "ctrl+SOX2", "TP53+MYC")
SINGLES = ("non-targeting", "MYC", "TP53", "SOX2")
DRUGS = ("(+)-JQ1", "Nutlin-3")
# Published labels of each layout, the first one control; the pairs are made up.
LABELS: dict[str, tuple[str, ...]] = {
    "norman2019_scperturb": ("control", "MYC", "TP53_MYC", "SOX2_KLF4"),
    "norman2019_pertpy": ("control", "MYC", "TP53+MYC"),
    "norman2019_cpa": ("ctrl", "MYC", "TP53+MYC"),
    "norman2019_subset": ("control", "MYC", "TP53+MYC"),
    "norman2019_gears": GEARS,
    "norman2019_scfoundation": GEARS,
    "adamson2016_gears": ("ctrl", "HSPA5+ctrl", "ATF6+ctrl"),
    "dixit2016_gears": ("ctrl", "ELF1+ctrl", "E2F4+ELF1"),
    "replogle2022_k562_essential_gears": ("ctrl", "MYC+ctrl", "SOX2+ctrl"),
    "replogle2022_rpe1_gears": ("ctrl", "MYC+ctrl", "SOX2+ctrl"),
    "nadig2025_hepg2_scperturb": ("control", *SINGLES[1:]),
    "nadig2025_jurkat_scperturb": ("control", *SINGLES[1:]),
    "adamson2016_upr": ("62(mod)_pBA581", "Gal4-4(mod)_pBA582", "HSPA5_pDS123", "ATF6_pDS001", "*"),
    "adamson2016_pilot": ("62(mod)_pBA581", "HSPA5_pDS123", "ATF6_pDS001", "*"),
    "adamson2016_epistasis": ("3x_neg_ctrl_pMJ144-1", "ATF6_only_pMJ145", "ATF6_PERK_pMJ150", "*"),
    "dixit2016_scperturb_v1": (
        "p-INTERGENIC393453",
        "p-sgELF1-2",
        "p-sgELF1-4",
        "p-sgELF1-2_p-sgE2F4-6",
        "p-sgE2F4-6_p-INTERGENIC393453",
        "control",
    ),
    "dixit2016_scperturb": ("control", "p-sgELF1-2", "p-sgELF1-4", "p-sgELF1-2_p-sgE2F4-6", "None"),
    "op3_neurips2023_counts": ("Dimethyl Sulfoxide", *DRUGS),
    "sciplex3_scperturb": ("control", *DRUGS, "nan"),
    "sciplex3_perturbench": ("control", "JQ1", "Nutlin-3"),
    "kang2018_pertpy": ("ctrl", "stim"),
    "kang2018_liana": ("ctrl", "stim"),
    "kang2018_cpa": ("control", "stimulated"),
    "tahoe100m": ("[('DMSO_TF', 0.0, 'uM')]", "[('Trametinib', 0.05, 'uM')]", "[('Trametinib', 5.0, 'uM')]"),
    "vcc2026_controls": ("non-targeting",),
}
TEXT = {
    "guide_id",
    "library",
    "sgID_AB",
    "plate",
    "plate_name",
    "sample",
    "well",
    "donor_id",
    "replicate",
    "patient",
    "ntc_id",
    "batch",
}


def labels_of(spec: DatasetSpec) -> list[str]:
    """The published label of each cell: 12 cells a label, 24 of the first control, 3 without a guide."""
    recipe = recipe_of(spec)
    out: list[str] = []
    for i, name in enumerate(LABELS.get(spec.id, SINGLES)):
        out += [name] * (24 if i == 0 else 3 if recipe.kind(name) == "unassigned" else 12)
    return out


def miniature(path: Path, name: str) -> Path:
    """Write the miniature of a shipped layout."""
    spec = load_dataset(name)
    rng = np.random.default_rng(0)
    labels = labels_of(spec)
    var = _var(spec)
    counts = rng.poisson(3.0, (len(labels), len(var))).astype(np.float32)
    counts[:, -1] += 1
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 50.0).astype(np.float32)
    dense = spec.id.startswith(("replogle2022", "nadig2025")) and spec.genes.index == "ensembl"
    pack: Any = np.asarray if dense else sp.csr_matrix
    x = counts if spec.matrix.kind == "counts" and spec.matrix.location == "X" else log
    data = ad.AnnData(pack(x), obs=_obs(spec, labels, counts), var=var)
    if spec.matrix.location != "X":
        data.layers["counts"] = pack(counts)
    for entry in spec.fingerprint.groups:
        kind, key = entry.split("/")
        if kind == "uns":
            data.uns[key] = {"K562_MYC+ctrl_1+1": np.array(var.index[:20], dtype=object)}
        elif kind == "obsm":
            data.obsm[key] = np.zeros((len(labels), 2))
    data.write_h5ad(path)
    return path


def base_spec(path: Path, name: str, file: Path) -> DatasetSpec:
    """A spec that extends the shipped one with the numbers of its miniature."""
    shipped = load_dataset(name)
    recipe = recipe_of(shipped)
    labels = labels_of(shipped)
    shape = ad.read_h5ad(file).shape
    n_controls = sum(recipe.kind(label) == "control" for label in labels)
    known = {"n_cells": shape[0], "n_genes": shape[1], "n_control_cells": n_controls}
    lines = [f"base = {json.dumps(name)}", f'id = "mini_{name}"']
    gone = [key for key in ("files", "n_perturbations") if getattr(shipped, key)]
    gone = [key for key in gone if key != "n_perturbations" or shipped.n_perturbations is not None]
    lines += [f"unset = {json.dumps(gone)}"] if gone else []
    lines += [f'[{key}]\nvalue = {n}\nverified = "file"\nrel_tolerance = 0.0' for key, n in known.items()]
    path.write_text("\n".join(lines) + "\n")
    return load_dataset(str(path))


def _var(spec: DatasetSpec) -> pd.DataFrame:
    symbols = list(SYMBOLS)
    rules = spec.genes
    has_ids = rules.gene_id_column is not None or rules.index == "ensembl"
    if has_ids:
        symbols += ["TBCE", "HSPA14"]
    ids = [f"ENSG{i:011d}" for i in range(len(symbols))]
    index = ids if rules.index == "ensembl" else symbols
    var = pd.DataFrame(index=pd.Index(index))
    for column in spec.var_columns:
        if column == rules.gene_id_column:
            var[column] = ids
        elif column == rules.symbol_column:
            var[column] = symbols
        elif column in ("chr", "class", "strand"):
            var[column] = ["chr1"] * len(symbols)
        else:
            var[column] = np.arange(len(symbols)) / 8
    return var


def _obs(spec: DatasetSpec, labels: list[str], counts: np.ndarray) -> pd.DataFrame:
    recipe, n = recipe_of(spec), len(labels)
    frame = pd.DataFrame(index=pd.Index([f"cell{i}-1" for i in range(n)]))
    dose = spec.labels.dose
    perturbed = np.array([recipe.kind(label) == "perturbation" for label in labels])
    for at, column in enumerate(spec.obs_columns):
        values: Any = np.arange(n) % 7 / 4 + at
        if column in spec.fingerprint.values:
            known = spec.fingerprint.values[column]
            values = [known[i % len(known)] for i in range(n)]
            if spec.contexts.column is None or column != spec.contexts.column:
                values = [known[0]] * n
        elif column == spec.contexts.column:
            values = [("T cells", "B cells")[i % 2] for i in range(n)]
        elif column in TEXT:
            values = [f"{column}_{i % 3}" for i in range(n)]
        elif column in (
            "gene",
            "drug",
            "product_name",
            "sm_name",
            "celltype",
            "organism",
            "cancer",
            "cell_name",
        ):
            values = [f"{column} of {label}" for label in labels]
        if dose is not None and column == dose.column:
            values = np.where(perturbed, np.where(np.arange(n) % 2, 10.0, 0.1), np.nan)
        elif dose is not None and column == dose.unit_column:
            values = ["nM"] * n
        elif dose is not None and column == dose.time_column:
            values = np.where(np.arange(n) % 4 < 2, 24.0, 72.0)
        if column == spec.labels.column:
            values = pd.array([None if label == "nan" else label for label in labels], dtype=object)
        frame[column] = values
    if "condition_name" in frame:
        doubles = frame["condition"].str.count(r"\+") == 1
        frame["dose_val"] = np.where(doubles, "1+1", "1")
        frame["control"] = np.where(doubles, 0, 1)
        frame["condition_name"] = (
            frame["cell_type"].astype(str) + "_" + frame["condition"] + "_" + frame["dose_val"]
        )
    if spec.depth_column is not None:
        frame[spec.depth_column] = counts.sum(axis=1) * 3
    return frame
