"""What the draw of genes changes in scGPT: upstream's, perturbed genes always sampled, and all genes.

Usage: scgpt_sampling.py OUT_FOLDER [--seeds N] [--steps N] [--report FILE.md]

A simulated screen of 120 genes with every target among them; a step sees 36 genes (30%), as 1,536 of 5,060 would be.
Held-out doubles of trained singles are predicted; the same data, split and number of steps for every draw. Runs that
OUT_FOLDER holds already are not repeated.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.suite import SuiteModel, run_suite
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.evaluator.scoring import score

SPEC = SimulationSpec(
    genes=120,
    singles=12,
    doubles=12,
    cells=60,
    controls=300,
    depth=2000.0,
    programs=6,
    interaction_fraction=0.0,
)
DRAWS = {
    "upstream's draw (`gene_sampling=random`)": {"gene_sampling": "random", "max_seq_len": 36},
    "perturbed genes always (`random+perturbed`)": {"gene_sampling": "random+perturbed", "max_seq_len": 36},
    "all genes (`max_seq_len=0`)": {"max_seq_len": 0},
}
SETTINGS = {
    "preset": "tiny",
    "lr": 2e-3,
    "batch_size": 32,
    "epochs": 1000,
    "validation": "none",
    "pool_size": 60,
}
SIMPLE = (
    SuiteModel("mean", "mean"),
    SuiteModel("additive", "additive"),
)
OF_CARD = ("training Pearson delta", "mean correlation among predicted effects")
COLUMNS = (
    "test Pearson delta",
    "test mse top 20",
    "training Pearson delta",
    "correlation among test effects",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=len(DRAWS), help="the first of them")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "data.h5ad"
    simulate_dataset(data, SPEC, seed=1, force=True)
    split = held_out_doubles(data)
    shutil.rmtree(args.out / "simple", ignore_errors=True)
    rows: list[tuple[str, list[tuple[float, ...]]]] = []
    for entry in run_suite(data, split, args.out / "simple", models=SIMPLE):
        if entry.prediction is not None:
            rows.append((entry.label, [figures(entry.prediction, data, split, None)]))
    for place, (name, draw) in enumerate(list(DRAWS.items())[: args.draws]):
        found = []
        for seed in range(args.seeds):
            folder = args.out / f"run-{place}-{seed}"
            prediction = args.out / f"{folder.name}.h5ad"
            if not prediction.exists():
                settings = {**SETTINGS, **draw, "steps": args.steps}
                train_deep(
                    "scgpt", data, split, folder, settings=settings, seed=seed, device="cpu", force=True
                )
                run = load_run(folder)
                keys = choose_keys(run, perturbations=None, everything=False, contexts=())
                write_prediction(prediction, predict(run, keys), run)
            found.append(figures(prediction, data, split, folder / "card.md"))
        rows.append((name, found))
    text = "\n".join(report(rows, split, args, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def held_out_doubles(data: Path) -> Split:
    """Every second double is a test row; everything else trains."""
    labels = sorted({label for _, label, _ in read_labels(data).rows if label != "control"})
    doubles = [label for label in labels if "+" in label]
    test = set(doubles[::2])
    rows = {("A", label): ("test" if label in test else "train", "") for label in labels}
    return Split(rows, {"scheme": "every second double"})


def figures(prediction: Path, data: Path, split: Split, card: Path | None) -> tuple[float, ...]:
    """Metrics of the test rows, and of a run's card its fit and how alike its predictions are."""
    metrics = score(prediction, data, edition="core", split=split).card.metrics
    values = [metrics[name].value for name in ("pearson_delta", "mse_top20_de")]
    told = [None, None] if card is None else [of_card(card, name) for name in OF_CARD]
    return tuple(float("nan") if v is None else float(v) for v in (*values, *told))


def of_card(card: Path, name: str) -> float:
    """One figure of a card's table."""
    lines = card.read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(f"| {name} |")).split("|")[2])


def report(
    rows: list[tuple[str, list[tuple[float, ...]]]], split: Split, args: argparse.Namespace, total_s: float
) -> list[str]:
    lines = [
        "# scGPT: what the draw of genes changes",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}, Python "
        f"{platform.python_version()}: simulated CRISPRi screen of {SPEC.genes} genes, {SPEC.singles} singles and "
        f"{SPEC.doubles} doubles of {SPEC.cells} cells, {len(split.keys('train'))} training and "
        f"{len(split.keys('test'))} test rows (doubles of trained singles); 32 wide, 2 layers, {args.steps:,} steps of "
        f"{SETTINGS['batch_size']} cells, {args.seeds} seeds (mean ± standard deviation), {total_s:.0f} s in all.",
        "",
        "| genes of a step | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for label, found in rows:
        cells = []
        for column in np.array(found).T:
            spread = f" ± {column.std(ddof=1):.3f}" if len(column) > 1 else ""
            cells.append("–" if np.isnan(column).any() else f"{column.mean():.3f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
