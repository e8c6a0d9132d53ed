"""GEARS on a simulated screen whose effects follow the gene graph, beside the mean and additive baselines.

Usage: gears_simulated.py OUT_FOLDER [--seeds N] [--epochs N] [--report FILE.md]

Targets of the same gene program share GO terms and push the same genes. The GEARS simulation split holds out singles
and doubles. The additive baseline takes the mean training effect for a missing single.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.suite import SuiteModel, run_suite, write_perfect
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.data_specs.split_file import Split, write_split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.evaluator.scoring import score

SPEC = SimulationSpec(
    genes=800,
    singles=400,
    doubles=200,
    cells=25,
    controls=1000,
    depth=10000.0,
    programs=8,
    dispersion=0.1,
    escape=0.0,
    strength_sigma=0.2,
    specific_scale=0.2,
    interaction_fraction=0.0,
)
METRICS = ("pearson_delta", "mse_top20_de", "mse")
GROUPS = {
    "unseen genes (singles)": ("unseen_single",),
    "doubles with an unseen gene": ("combo_seen0", "combo_seen1"),
    "doubles of seen genes": ("combo_seen2",),
}
SIMPLE = (
    SuiteModel("no-change", "no-change"),
    SuiteModel("mean", "mean"),
    SuiteModel("additive, missing single = mean effect", "additive", {"missing": "mean-delta"}),
    SuiteModel("linear-go", "linear", {"perturbation_embedding": "features"}, True),
)
SETTINGS = {"schedule": "cosine", "schedule_factor": 0.01, "batch_size": 64, "select": "pearson_delta"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True)
    data, gmt = args.out / "data.h5ad", args.out / "go.gmt"
    simulate_dataset(data, SPEC, seed=1, gmt=gmt)
    split = draw_split(read_labels(data), "gears-simulation", seed=1)
    write_split(split, args.out / "split.csv")
    features = f"go:{gmt}"
    found: dict[str, list[pd.DataFrame]] = {}
    for entry in run_suite(data, split, args.out / "simple", models=SIMPLE, features=features):
        assert entry.prediction is not None, entry.reason
        found[entry.label] = [values(entry.prediction, data, split)]
    found["gears"] = []
    for seed in range(args.seeds):
        folder = args.out / f"gears-{seed}"
        settings = {**SETTINGS, "epochs": args.epochs}
        train_deep(
            "gears", data, split, folder, settings=settings, features=features, seed=seed, device="cpu"
        )
        run = load_run(folder)
        path = args.out / f"gears-{seed}.h5ad"
        write_prediction(
            path, predict(run, choose_keys(run, perturbations=None, everything=False, contexts=())), run
        )
        found["gears"].append(values(path, data, split))
    perfect = args.out / "perfect.h5ad"
    write_perfect(data, split, perfect)
    found["perfect"] = [values(perfect, data, split)]
    text = "\n".join(report(found, split, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def values(prediction: Path, data: Path, split: Split) -> pd.DataFrame:
    """Metrics of every test row, with its subgroup."""
    table = score(prediction, data, edition="core", split=split).result.per_perturbation.copy()
    keys = zip(table["context"], table["perturbation"], strict=True)
    table["subgroup"] = [split.rows[key][1] for key in keys]
    return table


def report(
    found: dict[str, list[pd.DataFrame]], split: Split, args: argparse.Namespace, total_s: float
) -> list[str]:
    lines = [
        "# GEARS on a simulated screen",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}, Python "
        f"{platform.python_version()}, {total_s:.0f} s. {SPEC.genes} genes, {SPEC.singles} singles and {SPEC.doubles} "
        f"doubles of {SPEC.cells} cells, {SPEC.programs} gene programs that the GO terms follow, no interactions; "
        f"GEARS simulation split, seed 1: {len(split.keys('train')) - 1} training, {len(split.keys('validation'))} "
        f"validation and {len(split.keys('test'))} test perturbations. Default mode, {args.epochs} epochs, "
        f"{', '.join(f'{k}={v}' for k, v in SETTINGS.items())}, {args.seeds} seeds (mean ± standard deviation).",
    ]
    for title, groups in GROUPS.items():
        first = next(iter(found.values()))[0]
        n = int(first["subgroup"].isin(groups).sum())
        lines += [
            "",
            f"## {title}: {n}",
            "",
            "| model | " + " | ".join(METRICS) + " |",
            "|---|" + "---|" * len(METRICS),
        ]
        for label, tables in found.items():
            rows = [t[t["subgroup"].isin(groups)][list(METRICS)].mean() for t in tables]
            cells = []
            for name in METRICS:
                column = np.array([row[name] for row in rows])
                spread = f" ± {column.std(ddof=1):.4f}" if len(column) > 1 else ""
                cells.append("–" if np.isnan(column).all() else f"{column.mean():.4f}{spread}")
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
