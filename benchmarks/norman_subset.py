"""Leaderboards of the simple baselines on a Norman 2019 subset, written as Markdown.

Usage: norman_subset.py SOURCE.h5ad GO.gmt OUT_FOLDER [--report FILE.md]

Two settings: GEARS simulation splits (seeds 1 to 5), and leave-one-double-out over the doubles whose two
singles are measured (one fit per double, the held-out predictions scored together).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from vcbench.baselines.predict import write_mean_effects
from vcbench.baselines.registry import default_suite
from vcbench.baselines.suite import SuiteEntry, run_suite, write_perfect
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.split_file import Split, write_split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.data_specs.standard import read_meta
from vcbench.evaluator.entries import read_entries
from vcbench.evaluator.leaderboard import Leaderboard, compare, format_value
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

COLUMNS = (
    "pearson_delta",
    "mse_top20_de",
    "mse",
    "mae",
    "r2_delta",
    "pearson_delta_top20_de",
    "direction_accuracy",
    "top20_overlap",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True)
    data = args.out / "data.h5ad"
    convert(args.source, load_dataset("norman2019_subset"), out=data)
    table = read_labels(data)
    lines = [
        "# Simple baselines on the Norman 2019 development subset",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, numpy {version('numpy')}, "
        f"Python {platform.python_version()}; edition core, mean effects, features from {args.gmt.name}.",
        "Every table ranks on the rows that all its entries predict; refusals stand below.",
        "",
    ]
    for seed in range(1, 6):
        split = draw_split(table, "gears-simulation", seed=seed)
        folder = args.out / f"gears-seed{seed}"
        lines += [f"## GEARS simulation, seed {seed}", "", *_gears(data, split, folder, args.gmt), ""]
    lines += ["## Leave one double out (five doubles with both singles measured)", ""]
    lines += _doubles(data, draw_split(table, "leave-one-double-out"), args.out / "doubles", args.gmt)
    lines += ["", f"Total time {time.perf_counter() - start:.0f} s."]
    report = args.report or args.out / "report.md"
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(report.read_text(encoding="utf-8"))


def _gears(data: Path, split: Split, folder: Path, gmt: Path) -> list[str]:
    folder.mkdir()
    entries = run_suite(data, split, folder, features=f"go:{gmt}", models=default_suite(features=True))
    write_perfect(data, split, folder / "predictions" / "perfect.h5ad")
    files = {e.label: e.prediction for e in entries if e.prediction is not None}
    files["perfect"] = folder / "predictions" / "perfect.h5ad"
    return _scored(files, data, split, folder) + refusals(entries)


def _doubles(data: Path, splits: dict[str, Split], folder: Path, gmt: Path) -> list[str]:
    """One suite per held-out double; each model's predictions of its own held-out double are scored together."""
    folder.mkdir()
    models = default_suite(features=True)
    per_double = {
        double: run_suite(data, split, folder / double, features=f"go:{gmt}", models=models)
        for double, split in splits.items()
    }
    entries = merge_doubles(list(per_double.values()), folder / "predictions")
    return score_doubles(entries, data, splits, folder) + refusals(entries)


def merge_doubles(per_double: Sequence[Sequence[SuiteEntry]], folder: Path) -> list[SuiteEntry]:
    """The entries of each model over all held-out doubles as one, predictions written below `folder`."""
    folder.mkdir()
    return [
        _merge(parts[0].label, parts, folder / f"{parts[0].label}.h5ad")
        for parts in zip(*per_double, strict=True)
    ]


def score_doubles(
    entries: Sequence[SuiteEntry], data: Path, splits: dict[str, Split], folder: Path
) -> list[str]:
    """The leaderboards of merged entries and the perfect prediction, as Markdown lines."""
    tests = {key for split in splits.values() for key in split.keys("test")}
    first = next(iter(splits.values()))
    merged = Split(
        {key: ("test" if key in tests else "train", subgroup) for key, (_, subgroup) in first.rows.items()},
        {"scheme": "leave-one-double-out, merged for scoring", "doubles": sorted(splits)},
    )
    write_split(merged, folder / "merged.csv")
    files = {entry.label: entry.prediction for entry in entries if entry.prediction is not None}
    files["perfect"] = folder / "predictions" / "perfect.h5ad"
    write_perfect(data, merged, files["perfect"])
    return _scored(files, data, merged, folder)


def _merge(label: str, parts: Sequence[SuiteEntry], out: Path) -> SuiteEntry:
    refused = tuple(r for p in parts for r in (p.refused or _all_refused(p)))
    keys, profiles, genes, target_sum = [], [], None, 0.0
    for part in parts:
        if part.prediction is None:
            continue
        with H5ad(part.prediction) as file:
            meta = read_meta(file)
            assert meta is not None and meta.matrix.target_sum is not None
            genes, target_sum = file.genes, meta.matrix.target_sum
            keys += list(
                zip(file.labels("context").values(), file.labels("perturbation").values(), strict=True)
            )
            profiles += [block.matrix.toarray() for block in file.row_blocks()]
    n = len(keys)
    if genes is None:
        return SuiteEntry(label, parts[0].name, None, None, 0, 0, len(parts), refused, parts[0].reason)
    extra = {"model": label, "refused": json.dumps(list(refused))}
    rows = np.concatenate(profiles)
    write_mean_effects(
        out, rows, genes=genes, keys=keys, target_sum=target_sum, dataset_id="merged", extra=extra
    )
    fallback = sum(p.n_fallback for p in parts)
    return SuiteEntry(label, parts[0].name, None, out, n - fallback, fallback, len(parts), refused)


def _all_refused(part: SuiteEntry) -> tuple[dict[str, str], ...]:
    return (
        ({"context": "", "perturbation": "the held-out double", "reason": part.reason},)
        if part.reason
        else ()
    )


def _scored(files: dict[str, Path], data: Path, split: Split, folder: Path) -> list[str]:
    (folder / "entries").mkdir()
    (folder / "scores").mkdir()
    for label, prediction in files.items():
        entry = folder / "entries" / f"{label}.h5ad"
        pack(prediction, "core", out=entry)
        report = validate(entry, edition="core")
        assert report.valid, report.issues
        score(entry, data, edition="core", split=split, name=label).write(folder / "scores" / label)
    boards = compare(read_entries([folder / "scores"]), columns=COLUMNS)
    return [line for board in boards for line in _markdown(board)]


def _markdown(board: Leaderboard) -> list[str]:
    head = ["rank", "entry", *board.columns, "filled"]
    lines = [f"**{board.title}**: {board.n_rows} of {board.n_total}, by {board.by}", ""]
    if not board.rows:
        return [*lines, "; ".join(board.notes), ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in board.rows:
        cells = [
            format_value(row.values[c]) + ("" if row.n[c] == board.n_rows else f" ({row.n[c]})")
            for c in board.columns
        ]
        lines.append("| " + " | ".join([str(row.rank or "–"), row.name, *cells, str(row.n_filled)]) + " |")
    return [*lines, ""]


def refusals(entries: Sequence[SuiteEntry]) -> list[str]:
    lines = ["What was predicted, and why not:", ""]
    for entry in entries:
        text = (
            f"- {entry.label}: {entry.n_predicted} predicted, {entry.n_fallback} fallback of {entry.n_total}"
        )
        reasons: dict[str, list[str]] = {}
        for item in entry.refused:
            reasons.setdefault(item["reason"], []).append(item["perturbation"])
        if entry.prediction is None and entry.reason:
            text += f"; {entry.reason}"
        elif reasons:
            text += "; " + "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        lines.append(text)
    return lines


if __name__ == "__main__":
    main()
