"""scGPT on the real Norman subset, end to end: train, predict, pack, validate, score, compare; several seeds.

Usage: scgpt_norman.py SOURCE.h5ad GO.gmt OUT_FOLDER [--seeds N] [--epochs N] [--report FILE.md]

Fits that OUT_FOLDER holds already are not repeated, so an interrupted run goes on. GEARS simulation split, seed 1. From
scratch, from a synthetic checkpoint in the official layout (random weights: it shows that the way works, not what
pre-training is worth), and from scratch with GO features of the targets. All but one target of the subset are not among
its 500 genes (`unmeasured_target=token`).
"""

from __future__ import annotations

import argparse
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.scgpt.checkpoint import write_checkpoint
from vcbench.baselines.scgpt.config import ScGPTConfig
from vcbench.baselines.scgpt.model import TransformerGenerator
from vcbench.baselines.scgpt.vocabulary import Vocabulary
from vcbench.baselines.suite import SuiteModel, run_suite, write_perfect
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.labels import targets_of
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import compare, format_value
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

MODELS = ("scgpt", "scgpt-checkpoint", "scgpt-go")
COLUMNS = ("pearson_delta", "mse_top20_de", "mse", "pearson_delta_top20_de", "top20_overlap")
SIMPLE = (
    SuiteModel("no-change", "no-change"),
    SuiteModel("mean", "mean"),
    SuiteModel("additive", "additive", {"missing": "mean-delta"}),
    SuiteModel("linear-go", "linear", {"perturbation_embedding": "features"}, True),
)
SIZES = {"d_model": 32, "nhead": 4, "nlayers": 2, "d_hid": 32}
SETTINGS = {
    "preset": "tiny",
    "unmeasured_target": "token",
    "max_seq_len": 64,
    "batch_size": 32,
    "validation": "cells",
    "validate_every": 4,
    "validation_cells": 8,
    "pool_size": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--fit-only", action="store_true", help="fit what is missing, without a report")
    parser.add_argument("--no-fit", action="store_true", help="report on the fits that are there")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data, checkpoint = args.out / "data.h5ad", args.out / "synthetic-checkpoint"
    if not data.exists():
        convert(args.source, load_dataset("norman2019_subset"), out=data)
        synthetic_checkpoint(data, checkpoint)
    split = draw_split(read_labels(data), "gears-simulation", seed=1)
    features = f"go:{args.gmt}"
    more = {"scgpt-checkpoint": {"checkpoint": str(checkpoint)}}
    files: dict[str, Path] = {}
    notes = []
    for seed in range(args.seeds):
        for name in args.models:
            label = f"{name}-{seed}"
            if args.no_fit and not (args.out / f"{label}.txt").exists():
                continue
            files[label] = args.out / f"{label}.h5ad"
            settings = {**SETTINGS, **more.get(name, {}), "epochs": args.epochs}
            source = features if name == "scgpt-go" else None
            notes += fitted(label, settings, source, seed, data, split, files[label])
    if args.fit_only:
        return
    for folder in ("entries", "scores", "simple"):
        shutil.rmtree(args.out / folder, ignore_errors=True)
    for entry in run_suite(data, split, args.out / "simple", models=SIMPLE, features=features):
        if entry.prediction is not None:
            files[entry.label] = entry.prediction
    files["perfect"] = args.out / "perfect.h5ad"
    write_perfect(data, split, files["perfect"], force=True)
    text = "\n".join(report(scored(files, data, split, args.out), notes, split, args, start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def fitted(
    label: str, settings: dict, features: str | None, seed: int, data: Path, split: Split, out: Path
) -> list[str]:
    """Train, predict, and say what was done; or what stands there already."""
    record = out.with_suffix(".txt")
    if not record.exists():
        folder = out.with_suffix("")
        result = train_deep(
            "scgpt",
            data,
            split,
            folder,
            settings=settings,
            features=features,
            seed=seed,
            device="cpu",
            force=True,
        )
        assert result is not None
        run = load_run(folder)
        found = predict(run, choose_keys(run, perturbations=None, everything=False, contexts=()))
        write_prediction(out, found, run, force=True)
        counts = found.prediction.counts()
        text = (
            f"- {label}: {result.n_parameters:,} numbers, {result.steps:,} steps in {result.fit_s:.0f} s, best "
            f"{result.select} {result.best:.3f} at step {result.best_step:,}; {counts['predicted']} predicted, "
            f"{counts['fallback']} fallback"
        )
        told = [f"  {note}" for note in result.notes if note.startswith("Checkpoint") and seed == 0]
        record.write_text("\n".join([text, *told]), encoding="utf-8")
    return record.read_text(encoding="utf-8").splitlines()


def synthetic_checkpoint(data: Path, folder: Path) -> None:
    """Random weights in the official layout: flash names, pre-training tensors only, a vocabulary beyond the data's."""
    with H5ad(data) as file:
        genes = [str(gene) for gene in file.genes]
    labels = {label for _, label, _ in read_labels(data).rows}
    targets = sorted({t for label in labels for t in targets_of(label)} - set(genes))
    others = [f"OTHER{i}" for i in range(1000)]
    vocabulary = Vocabulary((*others, *targets, *genes[::-1], "<pad>", "<cls>", "<eoc>"))
    torch.manual_seed(0)
    net = TransformerGenerator(ScGPTConfig(**SIZES), len(vocabulary), vocabulary.pad)
    write_checkpoint(net, vocabulary, folder, layout="flash")
    state = torch.load(folder / "best_model.pt", weights_only=True)
    unused = ("pert_encoder.", "decoder.", "cls_decoder.")
    kept = {name: value for name, value in state.items() if not name.startswith(unused)}
    kept["flag_encoder.weight"] = torch.zeros(2, SIZES["d_model"])
    torch.save(kept, folder / "best_model.pt")


def scored(files: dict[str, Path], data: Path, split: Split, folder: Path) -> list[str]:
    """Every prediction packed, validated and scored; the leaderboards as Markdown."""
    for label, prediction in files.items():
        entry = folder / "entries" / f"{label}.h5ad"
        entry.parent.mkdir(exist_ok=True)
        pack(prediction, "core", out=entry)
        checked = validate(entry, edition="core")
        assert checked.valid, checked.issues
        score(entry, data, edition="core", split=split, name=label).write(folder / "scores" / label)
    lines = []
    for board in compare(read_entries([folder / "scores"]), columns=COLUMNS):
        lines += [f"**{board.title}**: {board.n_rows} of {board.n_total}, by {board.by}", ""]
        if not board.rows:
            lines += ["; ".join(board.notes), ""]
            continue
        lines.append("| rank | entry | " + " | ".join(board.columns) + " |")
        lines.append("|---|---|" + "---|" * len(board.columns))
        by_model: dict[str, list[list[float]]] = {}
        for row in board.rows:
            values = [row.values[c] for c in board.columns]
            lines.append(
                f"| {row.rank or '–'} | {row.name} | " + " | ".join(map(format_value, values)) + " |"
            )
            name, _, seed = row.name.rpartition("-")
            if seed.isdigit():
                by_model.setdefault(name, []).append(
                    [float("nan") if v is None else float(v) for v in values]
                )
        for name, found in sorted(by_model.items()):
            table = np.array(found)
            spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
            cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(table.mean(axis=0), spread, strict=True)]
            lines.append(f"| | {name}, mean of {len(table)} seeds | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def report(
    boards: list[str], notes: list[str], split: Split, args: argparse.Namespace, start: float
) -> list[str]:
    return [
        "# scGPT on the Norman 2019 development subset",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}: GEARS "
        f"simulation split, seed 1, {len(split.keys('train'))} training and {len(split.keys('test'))} test rows; 32 "
        f"wide, 2 layers, {args.epochs} epochs, {SETTINGS['max_seq_len']} genes per step, "
        f"{time.perf_counter() - start:.0f} s in all. Edition core, mean effects, every entry packed and validated. "
        "30 of the 31 targets are not among the 500 genes, so that a target without features and training cells falls "
        "back to the mean effect; the checkpoint is synthetic (random weights).",
        "",
        *boards,
        "What was trained:",
        "",
        *notes,
    ]


if __name__ == "__main__":
    main()
