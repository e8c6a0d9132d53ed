"""CPA on unseen genes: a trained against upstream's frozen projection of external features, simulated data.

Usage: cpa_projection.py OUT_FOLDER [--seeds 3] [--epochs 100] [--report FILE.md]

Each seed simulates a CRISPRi screen of 80 genes (300 measured genes, 10 programs), draws 20 of them as test genes, and
writes features that determine the true effects: the pushes of each gene on the programs, rotated into 64 columns, with
noise. The truth is the simulator's own expected profile.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.run_folder import Run, load_run
from vcbench.data_specs.simulate import SimulationTruth, simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.data_specs.split_file import Split

N_TEST, N_COLUMNS, NOISE = 20, 64, 0.1
SPEC = SimulationSpec(genes=300, singles=80, doubles=0, cells=40, controls=200, depth=3000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    start = time.perf_counter()
    rows = []
    for seed in range(args.seeds):
        truth, split, features = simulated(args.out / f"seed{seed}", seed)
        for projection in ("frozen", "trained"):
            run_folder = args.out / f"seed{seed}" / projection
            settings = {"projection": projection, "epochs": args.epochs, "patience": 0}
            train_deep(
                "cpa",
                truth.path,
                split,
                run_folder,
                settings=settings,
                features=str(features),
                seed=seed,
                device="cpu",
            )
            run = load_run(run_folder)
            rows.append(
                (
                    seed,
                    projection,
                    agreement(run, truth, split, "test"),
                    agreement(run, truth, split, "train"),
                )
            )
            print(*rows[-1])
    text = "\n".join(report(rows, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def simulated(folder: Path, seed: int) -> tuple[SimulationTruth, Split, Path]:
    """A screen with its truth, a split with unseen test genes, and the feature file."""
    folder.mkdir()
    truth = simulate_dataset(folder / "screen.h5ad", SPEC, seed)
    rng = np.random.default_rng(seed)
    tests = set(rng.permutation(len(truth.keys))[:N_TEST].tolist())
    parts = {key: ("test" if i in tests else "train", "") for i, key in enumerate(truth.keys)}
    turned = truth.activity @ rng.normal(size=(truth.activity.shape[1], N_COLUMNS))
    values = turned + NOISE * turned.std() * rng.normal(size=turned.shape)
    lines = ["gene\t" + "\t".join(f"f{i}" for i in range(N_COLUMNS))]
    for (_, gene), row in zip(truth.keys, values, strict=True):
        lines.append(gene + "\t" + "\t".join(f"{value:.6f}" for value in row))
    features = folder / "features.tsv"
    features.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return truth, Split(parts, {"scheme": "unseen genes"}), features


def agreement(run: Run, truth: SimulationTruth, split: Split, part: str) -> float:
    """Mean correlation of predicted and true effects over genes, the target itself left out."""
    keys = [key for key in split.keys(part) if key[1] != "control"]
    found = run.model.predict(keys, run.control_means)
    genes = list(truth.genes)
    values = []
    for i, (context, gene) in enumerate(keys):
        share = truth.baseline[truth.contexts.index(context)] * truth.target_sum
        expected = np.log1p(share * np.exp(truth.log_fold_change(context, gene))) - np.log1p(share)
        kept = np.arange(len(genes)) != genes.index(gene)
        predicted = found.profiles[i] - run.control_means[context]
        values.append(np.corrcoef(predicted[kept], expected[kept])[0, 1])
    return float(np.mean(values))


def report(rows: list[tuple[int, str, float, float]], args: argparse.Namespace, total_s: float) -> list[str]:
    lines = [
        "# CPA on unseen genes: trained against frozen projection",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}: simulated "
        f"CRISPRi screens of {SPEC.singles} genes, {N_TEST} of them unseen, {N_COLUMNS} feature columns; {args.epochs} "
        f"epochs, default settings otherwise; {total_s:.0f} s in all. Correlation of predicted and true effects (the "
        "simulator's expectation):",
        "",
        "| seed | projection | unseen genes | training genes |",
        "|---|---|---|---|",
    ]
    lines += [f"| {seed} | {name} | {test:.3f} | {train:.3f} |" for seed, name, test, train in rows]
    for name in ("frozen", "trained"):
        own = np.array([row[2:] for row in rows if row[1] == name])
        lines.append(f"| mean | {name} | {own[:, 0].mean():.3f} | {own[:, 1].mean():.3f} |")
    return lines


if __name__ == "__main__":
    main()
