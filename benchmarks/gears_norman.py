"""GEARS on the real Norman subset: upstream preset, default mode and simple baselines, several initialisations.

Usage: gears_norman.py SOURCE.h5ad GO.gmt OUT_FOLDER [--seeds N] [--epochs N] [--report FILE.md]

GEARS simulation split, seed 1, on the perturbations that the annotation covers; metrics of profile `gears`. The subset
(3,375 cells, 500 genes) is too small for any GEARS to beat the mean effect: the table shows agreement, not merit.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.suite import SuiteModel, run_suite
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.evaluator.scoring import score

METRICS = ("mse_top20_de_non_dropout", "pearson_delta", "mse_de", "mse")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("out", type=Path)
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
    rows: list[tuple[str, list[dict[str, float]]]] = []
    for entry in run_suite(data, split, args.out / "simple", models=SIMPLE, features=features):
        if entry.prediction is not None:
            rows.append((entry.label, [values(entry.prediction, data, split)]))
    for label, settings in DEEP.items():
        found = []
        for seed in range(args.seeds):
            folder = args.out / f"{label.replace(', ', '_').replace('=', '-')}-{seed}"
            chosen = {**settings, "epochs": args.epochs}
            train_deep(
                "gears", data, split, folder, settings=chosen, features=features, seed=seed, device="cpu"
            )
            run = load_run(folder)
            keys = choose_keys(run, perturbations=None, everything=False, contexts=())
            prediction = args.out / f"{folder.name}.h5ad"
            write_prediction(prediction, predict(run, keys), run)
            found.append(values(prediction, data, split))
        rows.append((label, found))
    text = "\n".join(report(rows, split, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def values(prediction: Path, data: Path, split: Split) -> dict[str, float]:
    """The metrics of one prediction file on the test rows."""
    card = score(prediction, data, edition="core", profile="gears", split=split).card
    found = card.metrics
    return {name: float("nan") if found[name].value is None else float(found[name].value) for name in METRICS}


def report(
    rows: list[tuple[str, list[dict[str, float]]]], split: Split, args: argparse.Namespace, total_s: float
) -> list[str]:
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
    for label, found in rows:
        cells = []
        for name in METRICS:
            column = np.array([row[name] for row in found])
            spread = f" ± {column.std(ddof=1):.4f}" if len(column) > 1 else ""
            cells.append(f"{column.mean():.4f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
