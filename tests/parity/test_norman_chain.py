"""The real Norman subset through check, convert, filter, split and export; cell-gears reads the result alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from parity.official import tool_python
from vcbench.data_specs.gmt import read_gmt
from vcbench.data_specs.splits.gears import condition_genes

pytestmark = pytest.mark.parity
ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../../shared/data"
SUBSET, GMT = (SHARED / name for name in ("norman2019_subset.h5ad", "go_bp_human_2022-07.gmt.gz"))
PARTS = {"train": "train", "validation": "val", "test": "test"}


def vcbench(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "vcbench.evaluator.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("recipe", [None, "perturbench"])
def test_cell_gears_reads_the_converted_filtered_and_split_subset(tmp_path, recipe):
    python = tool_python("VCBENCH_PARITY_MODELS_PYTHON", "gears")
    for file in (SUBSET, GMT):
        if not file.exists():
            pytest.skip(f"no real data at {file.name}")
    assert vcbench("data", "check", SUBSET, "--format", "json", cwd=tmp_path)["valid"]
    convert = (
        "data",
        "convert",
        SUBSET,
        "--spec",
        "norman2019_subset",
        "-o",
        "norman.h5ad",
        "--format",
        "json",
    )
    assert vcbench(*convert, cwd=tmp_path)["n_perturbations"] == 33
    file = "norman.h5ad"
    if recipe is not None:
        file = "filtered.h5ad"
        told = vcbench(
            *("data", "filter", "norman.h5ad", "--recipe", recipe, "-o", file, "--format", "json"),
            cwd=tmp_path,
        )
        assert told["before"] == {"cells": 3375, "genes": 500, "perturbations": 33, "controls": 100}
        assert told["after"] == {**told["before"], "genes": 120}
        assert vcbench("data", "check", file, "--format", "json", cwd=tmp_path)["valid"]
    split = (
        "data",
        "split",
        file,
        "--scheme",
        "gears-simulation",
        "--seed",
        "1",
        "--drop-uncovered",
        GMT.resolve(),
    )
    record = vcbench(*split, "-o", "split.csv", "--format", "json", cwd=tmp_path)["splits"][0]
    rows = pd.read_csv(tmp_path / "split.csv", keep_default_na=False)

    export = ("data", "export", file, "--to", "gears", "-o", "gears.h5ad", "--format", "json")
    assert vcbench(*export, cwd=tmp_path)["matrix"] == "log1p"
    made = ad.read_h5ad(tmp_path / "gears.h5ad")
    conditions = list(dict.fromkeys(made.obs["condition"]))
    wanted = {*made.var_names, *(gene for name in conditions for gene in condition_genes(name))}
    terms = {gene: sorted(found) for gene, found in read_gmt(GMT).items() if gene in wanted}
    job = {"cells": "gears.h5ad", "gene2go": terms, "split": "simulation", "seed": 1, "batch_size": 32}
    (tmp_path / "job.json").write_text(json.dumps({**job, "folder": "work"}))
    script = ROOT / "parity" / "run_gears_loader.py"
    done = subprocess.run(
        [python, str(script.resolve()), str(tmp_path / "job.json"), str(tmp_path / "found.json")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())

    condition_by_name = dict(
        zip(ad.read_h5ad(tmp_path / file).obs["perturbation"], made.obs["condition"], strict=True)
    )
    for part, upstream in PARTS.items():
        own = {condition_by_name[name] for name in rows.perturbation[rows.split == part]}
        assert own == set(found["parts"][upstream]), part
    for group, members in found["subgroups"].items():
        own = {
            condition_by_name[n] for n in rows.perturbation[(rows.split == "test") & (rows.subgroup == group)]
        }
        assert own == set(members) and record["conditions"]["subgroups"]["test"][group] == len(members)
    dropped = record["drop_uncovered"]["dropped"]
    assert len(conditions) - 1 - len(dropped) == sum(record["n"].values())
    assert found["n_cells"] == int((~made.obs["condition"].isin(dropped)).sum())
    assert found["genes"] == list(made.var_names)
    for condition in found["parts"]["test"]:
        cells = made[(made.obs["condition"] == condition).to_numpy()]
        assert found["test_cells"][condition] == cells.n_obs
        mean = np.asarray(cells.X.mean(axis=0, dtype=np.float64)).ravel()
        np.testing.assert_allclose(found["test_means"][condition], mean, rtol=1e-5, atol=1e-6)
    in_train = made.obs["condition"].isin(found["parts"]["train"]).sum()
    assert found["train_batches"] == in_train // 32
