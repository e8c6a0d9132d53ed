"""GEARS on the real Norman subset: cell-gears itself, our two modes and simple baselines, several initialisations.

Usage: gears_norman.py SOURCE.h5ad GO.gmt OUT_FOLDER [--upstream PYTHON] [--seeds N] [--epochs N] [--report FILE.md]

GEARS simulation split, seed 1, on the perturbations that the annotation covers; metrics of profile `gears`. With
`--upstream` (a Python of tests/parity/models.txt) cell-gears 0.1.2 is trained on the same cells, annotation and split,
and ours start from its initial weights. The subset (3,375 cells, 500 genes) is too small for any GEARS to beat the mean
effect: the table shows agreement, not merit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.features import feature_source
from vcbench.baselines.gears.annotation import read_terms
from vcbench.baselines.predict import choose_keys, predict, write_mean_effects, write_prediction
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.suite import SuiteModel, run_suite
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.labels import split_label
from vcbench.data_specs.normalize import to_log1p
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.gears import condition_of
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.data_specs.standard import read_meta
from vcbench.evaluator.scoring import score

METRICS = ("mse_top20_de_non_dropout", "pearson_delta", "mse_de", "mse")
COMPARED = METRICS[:2]
UPSTREAM = "cell-gears 0.1.2"
SIMPLE = (
    SuiteModel("no-change", "no-change"),
    SuiteModel("mean", "mean"),
    SuiteModel("additive", "additive", {"missing": "mean-delta"}),
    SuiteModel("linear-go", "linear", {"perturbation_embedding": "features"}, True),
)
DEEP = {
    "gears, preset=upstream": {"preset": "upstream"},
    "gears, default": {},
}
Found = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--upstream", help="a Python that has cell-gears")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True)
    data = args.out / "data.h5ad"
    convert(args.source, load_dataset("norman2019_subset"), out=data)
    split = draw_split(read_labels(data), "gears-simulation", seed=1, drop_uncovered=args.gmt)
    features = f"go:{args.gmt}"
    found: Found = {}
    for entry in run_suite(data, split, args.out / "simple", models=SIMPLE, features=features):
        if entry.prediction is not None:
            found[entry.label] = [values(entry.prediction, data, split)]
    if args.upstream:
        found[UPSTREAM] = upstream(args, data, split)
    for label, settings in DEEP.items():
        found[label] = []
        for seed in range(args.seeds):
            name = f"{label.replace(', ', '_').replace('=', '-')}-{seed}"
            chosen = {**settings, "epochs": args.epochs}
            if args.upstream:
                chosen["initial_weights"] = str(args.out / "upstream" / f"initial-{seed}.pt")
            train = {"settings": chosen, "features": features, "seed": seed, "device": "cpu"}
            train_deep("gears", data, split, args.out / name, **train)
            run = load_run(args.out / name)
            prediction = args.out / f"{name}.h5ad"
            keys = choose_keys(run, perturbations=None, everything=False, contexts=())
            write_prediction(prediction, predict(run, keys), run)
            found[label].append(values(prediction, data, split))
    text = "\n".join(report(found, split, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def upstream(args: argparse.Namespace, data: Path, split: Split) -> list[dict[str, float]]:
    """Train cell-gears on the cells of the split; metrics of its predictions, and its own values of two of them."""
    folder = args.out / "upstream"
    folder.mkdir()
    with H5ad(data) as file:
        meta = read_meta(file)
        assert meta is not None and meta.matrix.target_sum is not None
        target_sum = meta.matrix.target_sum
    cells = ad.read_h5ad(data)
    published = zip(cells.obs["perturbation"], cells.obs["label_source"], strict=True)
    condition = [condition_of(str(name), str(source)) for name, source in published]
    label_of = dict(zip(condition, cells.obs["perturbation"], strict=True))
    keys = sorted(split.keys("test"))
    part_of = {label: part for (_, label), (part, _) in split.rows.items()}
    parts: dict[str, list[str]] = {"train": ["ctrl"], "val": [], "test": []}
    for name, label in label_of.items():
        part = part_of.get(label)
        if name != "ctrl" and part is not None:
            parts["val" if part == "validation" else part].append(name)
    kept = np.isin(condition, [name for names in parts.values() for name in names])
    obs = pd.DataFrame({"condition": condition, "cell_type": "K562"}, index=cells.obs_names)[kept]
    genes = [str(gene) for gene in cells.var_names]
    x = to_log1p(cells.X, meta.matrix).astype(np.float32)
    screen = ad.AnnData(sp.csr_matrix(x[kept]), obs=obs, var=pd.DataFrame({"gene_name": genes}, index=genes))
    screen.write_h5ad(folder / "cells.h5ad")
    terms = read_terms(feature_source(f"go:{args.gmt}"))
    wanted = {*genes, *(target for label in label_of.values() for target in split_label(label))}
    job = {
        "cells": str((folder / "cells.h5ad").resolve()),
        "gene2go": {gene: sorted(found) for gene, found in terms.items() if gene in wanted},
        "split": parts,
        "epochs": args.epochs,
        "batch_size": 32,
        "seeds": list(range(args.seeds)),
        "queries": [split_label(label) for _, label in keys],
        "folder": str(folder),
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    script = Path(__file__).with_name("gears_norman_upstream.py")
    subprocess.run([args.upstream, str(script), str(folder / "job.json")], check=True)
    rows = []
    for seed in range(args.seeds):
        with np.load(folder / f"trained-{seed}.npz", allow_pickle=False) as trained:
            own = {f"own {name}": float(trained[name]) for name in COMPARED}
            profiles = trained["profiles"]
        path = folder / f"prediction-{seed}.h5ad"
        write_mean_effects(
            path, profiles, genes=genes, keys=keys, target_sum=target_sum, dataset_id="norman2019_subset"
        )
        rows.append({**values(path, data, split), **own})
    return rows


def values(prediction: Path, data: Path, split: Split) -> dict[str, float]:
    """The metrics of one prediction file on the test rows."""
    card = score(prediction, data, edition="core", profile="gears", split=split).card
    found = card.metrics
    return {name: float("nan") if found[name].value is None else float(found[name].value) for name in METRICS}


def report(found: Found, split: Split, args: argparse.Namespace, total_s: float) -> list[str]:
    lines = [
        "# GEARS on the Norman 2019 development subset",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}: simulation "
        f"split, seed 1, {len(split.keys('train'))} training and {len(split.keys('test'))} test perturbations, "
        f"{args.epochs} epochs, {args.seeds} initialisations (mean ± standard deviation), {total_s:.0f} s in all. The "
        "subset is too small for GEARS to win; the rows of GEARS should agree with each other.",
        "",
        "| model | " + " | ".join(METRICS) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    for label, rows in found.items():
        cells = []
        for name in METRICS:
            column = np.array([row[name] for row in rows])
            spread = f" ± {column.std(ddof=1):.4f}" if len(column) > 1 else ""
            cells.append("–" if np.isnan(column).all() else f"{column.mean():.4f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    if UPSTREAM in found:
        lines += agreement(found)
    return lines


def agreement(found: Found) -> list[str]:
    """Differences of our modes from cell-gears in pooled standard errors, and its own metric values."""
    lines = [
        "",
        "Same cells, annotation, split and initial weights; batches and control pairs are drawn by each side.",
        "",
        "| difference from cell-gears | "
        + " | ".join(f"{name} (standard errors)" for name in COMPARED)
        + " |",
        "|---|" + "---|" * len(COMPARED),
    ]
    for label in DEEP:
        cells = []
        for name in COMPARED:
            mine, theirs = (np.array([row[name] for row in found[key]]) for key in (label, UPSTREAM))
            error = np.sqrt(mine.var(ddof=1) / len(mine) + theirs.var(ddof=1) / len(theirs))
            gap = mine.mean() - theirs.mean()
            cells.append(f"{gap:+.4f} ({gap / error:+.2f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    own = [np.array([row[f"own {name}"] for row in found[UPSTREAM]]) for name in COMPARED]
    pairs = zip(COMPARED, own, strict=True)
    text = "; ".join(f"{name} {column.mean():.4f} ± {column.std(ddof=1):.4f}" for name, column in pairs)
    return [*lines, "", f"cell-gears' own test metrics (on paired controls, which add noise): {text}."]


if __name__ == "__main__":
    main()
