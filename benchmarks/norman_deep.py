"""Deep models beside all simple baselines on a Norman 2019 subset: leave one double out, several seeds, one table.

Usage: norman_deep.py SOURCE.h5ad GO.gmt OUT_FOLDER --models cpa,gears [--seeds 3] [--set NAME.key=value ...]
                      [--title TEXT] [--report FILE.md]

One fit per held-out double (those whose two singles are measured), model and seed; the held-out predictions are scored
together. Fits that OUT_FOLDER holds already are not repeated, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from norman_subset import COLUMNS, merge_doubles, refusals, score_doubles
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.registry import default_suite
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.suite import SuiteEntry, run_suite
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels

# Models whose targets need features; the others learn a vector or a map per target.
NEEDS_FEATURES = ("gears",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", required=True, help="deep models, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="NAME.key=value")
    parser.add_argument("--title", default="Deep models on the Norman 2019 development subset")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / "data.h5ad"
    if not data.exists():
        convert(args.source, load_dataset("norman2019_subset"), out=data)
    splits: dict[str, Split] = draw_split(read_labels(data), "leave-one-double-out")
    models = [name.strip() for name in args.models.split(",")]
    settings = {name: own_settings(name, args.set) for name in models}
    per_double, costs = [], {name: [] for name in models}
    for double, split in splits.items():
        folder = args.out / "fits" / double
        entries = simple_entries(data, split, folder, args.gmt)
        for name in models:
            for seed in range(args.seeds):
                label = f"{name}, seed {seed}"
                entry, cost = deep_entry(
                    name, label, data, split, folder, args.gmt, seed=seed, settings=settings[name]
                )
                entries.append(entry)
                costs[name].append(cost)
        per_double.append(entries)
    scored = args.out / "scored"
    shutil.rmtree(scored, ignore_errors=True)
    scored.mkdir()
    entries = merge_doubles(per_double, scored / "predictions")
    boards = score_doubles(entries, data, splits, scored)
    lines = [
        f"# {args.title}",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, torch {version('torch')}, "
        f"{machine()}; edition core, mean effects. Leave one double out over "
        f"{', '.join(splits)}: one fit per double, model and seed, on every other perturbation.",
        "",
        *spread(models, args.seeds, scored / "scores"),
        "",
    ]
    for name in models:
        shown = ", ".join(f"{key}={value}" for key, value in settings[name].items()) or "the defaults"
        mean = {key: float(np.mean([cost[key] for cost in costs[name]])) for key in costs[name][0]}
        lines.append(
            f"- {name}: {shown}; {mean['n_parameters']:,.0f} trained numbers, {mean['steps']:,.0f} steps and "
            f"{mean['fit_s']:.0f} s per fit on the CPU."
        )
    lines += ["", *boards, *refusals(entries), "", f"Total time {time.perf_counter() - start:.0f} s."]
    report = args.report or args.out / "report.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))


def own_settings(name: str, assignments: Sequence[str]) -> dict[str, str]:
    """The settings of one model among `NAME.key=value` texts."""
    own = [text.removeprefix(f"{name}.") for text in assignments if text.startswith(f"{name}.")]
    return dict(text.split("=", 1) for text in own)


def simple_entries(data: Path, split: Split, folder: Path, gmt: Path) -> list[SuiteEntry]:
    """All simple baselines on one split, or what stands there already."""
    record = folder / "simple.json"
    if record.exists():
        return [entry_of(found) for found in json.loads(record.read_text(encoding="utf-8"))]
    shutil.rmtree(folder / "simple", ignore_errors=True)
    models = default_suite(features=True)
    entries = run_suite(data, split, folder / "simple", features=f"go:{gmt}", models=models)
    record.write_text(json.dumps([entry.to_json() for entry in entries]), encoding="utf-8")
    return entries


def entry_of(found: dict[str, Any]) -> SuiteEntry:
    """The inverse of `SuiteEntry.to_json`."""
    paths = {key: None if found[key] is None else Path(found[key]) for key in ("run", "prediction")}
    counts = {key: found[key] for key in ("n_predicted", "n_fallback", "n_total", "reason")}
    return SuiteEntry(found["label"], found["model"], **paths, **counts, refused=tuple(found["refused"]))


def deep_entry(
    name: str,
    label: str,
    data: Path,
    split: Split,
    folder: Path,
    gmt: Path,
    *,
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[SuiteEntry, dict[str, float]]:
    """One fit of a deep model and its prediction, or those that stand there already; and what the fit cost."""
    run_folder, record = folder / f"{name}-{seed}", folder / f"{name}-{seed}.json"
    if not record.exists():
        features = f"go:{gmt}" if name in NEEDS_FEATURES else None
        done = train_deep(
            name,
            data,
            split,
            run_folder,
            settings=settings,
            features=features,
            seed=seed,
            device="cpu",
            resume=True,
        )
        assert done is not None
        cost = {"n_parameters": done.n_parameters, "steps": done.steps, "fit_s": done.fit_s}
        record.write_text(json.dumps(cost), encoding="utf-8")
    run = load_run(run_folder)
    keys = choose_keys(run, perturbations=None, everything=False, contexts=())
    result = predict(run, keys)
    counts, refused = result.prediction.counts(), tuple(result.refused())
    file = None
    if len(refused) < len(keys):
        file = folder / f"{name}-{seed}.h5ad"
        write_prediction(file, result, run, force=True)
    entry = SuiteEntry(
        label, name, run_folder, file, counts["predicted"], counts["fallback"], len(keys), refused
    )
    return entry, json.loads(record.read_text(encoding="utf-8"))


def spread(models: Sequence[str], n_seeds: int, scores: Path) -> list[str]:
    """Mean and standard deviation over seeds of each deep model, as a table."""
    lines = [
        f"Mean and standard deviation over {n_seeds} seeds:",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for name in models:
        cards = [
            json.loads((scores / f"{name}, seed {seed}" / "scorecard.json").read_text(encoding="utf-8"))
            for seed in range(n_seeds)
        ]
        cells = []
        for column in COLUMNS:
            values = [card["metrics"][column]["value"] for card in cards]
            known = [value for value in values if value is not None]
            deviation = f" ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else ""
            cells.append(f"{np.mean(known):.4f}{deviation}" if known else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
