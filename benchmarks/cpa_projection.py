"""CPA on unseen genes: a trained against upstream's frozen projection of external features, simulated data.

Usage: cpa_projection.py OUT_FOLDER [--seeds 3] [--epochs 60] [--report FILE.md]

Each seed simulates a CRISPRi screen of 160 genes (330 measured genes, 10 programs) and draws 40 of them as test genes.
Two feature tables determine the true effects: `narrow`, the pushes of each gene on the programs, rotated into as many
columns as the latent space has; `wide`, the same in 256 columns among 60 directions of equal strength that have nothing
to do with expression, as in an embedding made for another purpose. The truth is the simulator's own expected profile.
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

N_TEST = 40
# Feature tables: columns, directions without meaning.
TABLES = {"narrow": (64, 0), "wide": (256, 60)}
SPEC = SimulationSpec(genes=330, singles=160, doubles=0, cells=40, controls=200, depth=3000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    start = time.perf_counter()
    rows = []
    for seed in range(args.seeds):
        truth, split, tables = simulated(args.out / f"seed{seed}", seed)
        for table, features in tables.items():
            for projection in ("frozen", "trained"):
                run_folder = args.out / f"seed{seed}" / f"{table}-{projection}"
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
                found = [agreement(run, truth, split, part) for part in ("test", "train")]
                rows.append((table, seed, projection, *found))
                print(*rows[-1])
    rows.sort(key=lambda row: row[:2])
    text = "\n".join(report(rows, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def simulated(folder: Path, seed: int) -> tuple[SimulationTruth, Split, dict[str, Path]]:
    """A screen with its truth, a split with unseen test genes, and the feature files by name."""
    folder.mkdir()
    truth = simulate_dataset(folder / "screen.h5ad", SPEC, seed)
    rng = np.random.default_rng(seed)
    tests = set(rng.permutation(len(truth.keys))[:N_TEST].tolist())
    parts = {key: ("test" if i in tests else "train", "") for i, key in enumerate(truth.keys)}
    tables = {}
    for name, (n_columns, n_meaningless) in TABLES.items():
        values = standardised(truth.activity @ rng.normal(size=(truth.activity.shape[1], n_columns)))
        if n_meaningless:
            other = rng.normal(size=(len(values), n_meaningless)) @ rng.normal(
                size=(n_meaningless, n_columns)
            )
            values = values + standardised(other)
        lines = ["gene\t" + "\t".join(f"f{i}" for i in range(n_columns))]
        for (_, gene), row in zip(truth.keys, values, strict=True):
            lines.append(gene + "\t" + "\t".join(f"{value:.6f}" for value in row))
        tables[name] = folder / f"{name}.tsv"
        tables[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return truth, Split(parts, {"scheme": "unseen genes"}), tables


def standardised(values: np.ndarray) -> np.ndarray:
    """`values` with one common scale: standard deviation 1 over the whole table."""
    return values / values.std()


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


def report(
    rows: list[tuple[str, int, str, float, float]], args: argparse.Namespace, total_s: float
) -> list[str]:
    lines = [
        "# CPA on unseen genes: trained against frozen projection",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}: simulated "
        f"CRISPRi screens of {SPEC.singles} genes, {N_TEST} of them unseen; {args.epochs} epochs, default settings "
        f"otherwise; {total_s:.0f} s in all. Feature tables: "
        + "; ".join(
            f"{name} of {columns} columns with {other} directions that have nothing to do with expression"
            for name, (columns, other) in TABLES.items()
        )
        + ". Correlation of predicted and true effects (the simulator's expectation):",
        "",
        "| features | seed | projection | unseen genes | training genes |",
        "|---|---|---|---|---|",
    ]
    for table in TABLES:
        own = [row for row in rows if row[0] == table]
        lines += [
            f"| {table} | {seed} | {name} | {test:.3f} | {train:.3f} |" for _, seed, name, test, train in own
        ]
        for name in ("frozen", "trained"):
            found = np.array([row[3:] for row in own if row[2] == name])
            lines.append(f"| {table} | mean | {name} | {found[:, 0].mean():.3f} | {found[:, 1].mean():.3f} |")
    return lines


if __name__ == "__main__":
    main()
