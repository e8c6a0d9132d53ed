"""The table of expected signs on simulated and real cells, and the ranges behind the limits of flags, as Markdown.

Usage: probe_table.py NORMAN_SUBSET.h5ad GO.gmt [--report FILE]

Entries are those of tests/probe_support.py: replicate cells of which 60% respond. Trained models are the simple
baselines of a leaderboard: as mean effects, and as cells emitted by rule `scale` and by rule `tile`.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from vcbench.baselines.registry import default_suite
from vcbench.baselines.suite import run_suite
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.data_specs.specs import load_dataset
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import read_labels
from vcbench.evaluator.probes import judge
from vcbench.evaluator.probes.run import ProbeReport, probe_entry
from vcbench.submission.packing import pack

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import probe_support

SIMULATED_SEEDS, NORMAN_SEEDS, SPLIT_SEEDS = (0, 1, 2, 3, 4), (0, 1, 2), (1, 2, 3)
N_CELLS = 60
# Flag: the diagnostic that it limits, and the limits.
LIMITS: dict[str, tuple[tuple[str, str], str]] = {
    "amplified-effects": (("effect_size", "ratio"), f"> {judge.AMPLIFIED_RATIO:g}"),
    "implausible-depth": (
        ("library_size", "ratio"),
        f"outside {1 / judge.DEPTH_FACTOR:g} to {judge.DEPTH_FACTOR:g}",
    ),
    "implausible-depth (profiles)": (
        ("library_size", "profile_ratio"),
        f"outside {1 / judge.DEPTH_FACTOR:g} to {judge.DEPTH_FACTOR:g}",
    ),
    "inflated-variance": (("variance", "ratio"), f"> {judge.VARIANCE_RATIO:g}"),
    "significant-genes-out-of-range": (
        ("significant_genes", "mean_share"),
        f"> {judge.SIGNIFICANT_SHARE:g} and > {judge.SIGNIFICANT_FACTOR:g} x truth",
    ),
    "target-spikes": (
        ("target_genes", "index"),
        f"> {judge.SPIKE_INDEX:g} and > {judge.SPIKE_FACTOR:g} x truth",
    ),
    "twisted-controls": (("controls", "shift_ratio"), f"> {judge.CONTROL_SHIFT:g}"),
}
KEY_METRICS = {
    ("vcc2025", "log1p"): ("overlap_at_N", "discrimination_score_l1", "mae"),
    ("vcc2026", "counts"): (
        "pds_cosine",
        "expr_mse_unbiased",
        "expr_mse_unbiased_capped_norm",
        "de_wilcoxon_lfc_nmae",
        "de_wilcoxon_direction_fidelity_yield_raw",
        "de_wilcoxon_direction_reach_raw",
        "de_wilcoxon_sig_jaccard",
    ),
}
Ranges = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("norman", type=Path)
    parser.add_argument("gmt", type=Path)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    probe_support.NORMAN = args.norman
    start = time.perf_counter()
    ranges: Ranges = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        lines = [
            "# Probes: signs, and the ranges behind the limits of flags",
            "",
            f"Measured {time.strftime('%Y-%m-%d')} by `benchmarks/probe_table.py` with vcbench {version('vcbench')}, "
            f"numpy {version('numpy')}, Python {platform.python_version()}. What the probes do and what the limits "
            "are for: `docs/probes.md`.",
            "",
            *_signs(folder, ranges),
            *_models(folder, args.gmt, ranges),
            *_range_table(ranges),
        ]
    lines.append(f"Total time {time.perf_counter() - start:.0f} s.")
    report = "\n".join(lines) + "\n"
    if args.report:
        args.report.write_text(report, encoding="utf-8")
    print(report)


def _reports(folder: Path) -> Iterator[tuple[str, int, str, str, ProbeReport]]:
    for data, seeds in (("simulated", SIMULATED_SEEDS), ("Norman", NORMAN_SEEDS)):
        for seed in seeds:
            place = folder / f"{data}{seed}"
            place.mkdir()
            make = probe_support.simulated if data == "simulated" else None
            cells = probe_support.norman(place) if make is None else make(place, seed=seed)
            truth, replicate = probe_support.halves(cells, seed=seed)
            for edition, form in probe_support.FORMS:
                real, source = truth, replicate
                if data == "Norman" and edition == "vcc2026":
                    # Half of a hundred shallow cells show no effect above the noise that this edition takes off.
                    real = source = probe_support.strongest(cells)
                entry = probe_support.informative(real, source, seed=seed)
                found = probe_support.report(
                    place / f"{edition}-{form}", entry, real, edition=edition, form=form
                )
                yield data, seed, edition, form, found


def _signs(folder: Path, ranges: Ranges) -> list[str]:
    tally: dict[tuple[str, str, str], Counter[bool | None]] = defaultdict(Counter)
    moves: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    missed, wrong = [], []
    for data, seed, edition, form, found in _reports(folder):
        for row in found.rows:
            tally[data, edition, form][row.as_expected if row.expected else None] += 1
            if row.as_expected is False:
                wrong.append(f"{data} {seed}, {edition} {form}: {row.probe} {row.metric} {row.change:+.3g}")
            if row.metric in KEY_METRICS.get((edition, form), ()) and row.change is not None:
                moves[edition, data, row.probe, row.metric].append(row.change)
        _add(ranges, f"informative entries, {data}", found.diagnostics)
        for outcome in found.outcomes:
            if outcome.caught is False:
                missed.append(f"{data} {seed}, {edition} {form}: {outcome.name}")
            for flag in outcome.flags:
                _add(ranges, f"exploit {flag.name}", outcome.diagnostics, only=flag.name)
        if found.flags:
            missed.append(f"{data} {seed}, {edition} {form}: the entry itself is flagged")
    lines = [
        "## Expected signs against seen ones",
        "",
        "Entries are replicate cells of which 60% respond; in the 2026 edition on Norman, where half of a hundred "
        "shallow cells show no effect above the noise that the edition takes off, they are cells of the truth itself "
        "(15 doubles), so values there are no scores.",
        f"{len(SIMULATED_SEEDS)} simulated screens, {len(NORMAN_SEEDS)} halvings of the Norman 2019 subset.",
        "",
        "| data | edition | form | sign expected and seen | not seen | no sign expected |",
        "|---|---|---|---|---|---|",
    ]
    for (data, edition, form), counts in tally.items():
        lines.append(f"| {data} | {edition} | {form} | {counts[True]} | {counts[False]} | {counts[None]} |")
    lines += ["", f"Signs not seen: {'; '.join(wrong) or 'none'}.", ""]
    lines += [f"Exploits not caught, entries flagged before any probe: {'; '.join(missed) or 'none'}.", ""]
    for (edition, _), metrics in KEY_METRICS.items():
        lines += [f"## Mean change of each metric, {edition}", ""]
        lines += ["| data | probe | " + " | ".join(metrics) + " |", "|---" * (2 + len(metrics)) + "|"]
        for data, probe in dict.fromkeys((d, p) for e, d, p, _ in moves if e == edition):
            cells = [f"{np.mean(moves[edition, data, probe, m]):+.3f}" for m in metrics]
            lines.append(f"| {data} | {probe} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _add(ranges: Ranges, group: str, found: Any, only: str | None = None) -> None:
    for flag, ((part, name), _) in LIMITS.items():
        value = found[part][name]
        if value is not None and (only is None or flag.split(" ")[0] == only):
            ranges[flag][group].append(value)


def _models(folder: Path, gmt: Path, ranges: Ranges) -> list[str]:
    marks: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    flagged, n_entries = [], 0
    for data, source, features in _data_sets(folder, gmt):
        for seed in SPLIT_SEEDS:
            place = folder / f"models-{data}{seed}"
            split = draw_split(read_labels(source), "gears-simulation", seed=seed)
            suite = default_suite(features=features is not None)
            for entry in run_suite(source, split, place, models=suite, features=features):
                if entry.prediction is None:
                    continue
                files = {"mean effects": entry.prediction}
                for mode in ("scale", "tile"):
                    files[mode] = place / f"{entry.label}-{mode}.h5ad"
                    pack(
                        entry.prediction,
                        "core",
                        out=files[mode],
                        controls=source,
                        n_cells=N_CELLS,
                        mode=mode,  # type: ignore[arg-type]
                    )
                for form, file in files.items():
                    found = probe_entry(file, source, edition="core", profile="means", split=split, probes=())
                    n_entries += 1
                    marks[entry.label, form].update(mark.name for mark in found.marks)
                    marks[entry.label, form]["entries"] += 1
                    flagged += [f"{data} {seed} {entry.label} {form}: {f.evidence}" for f in found.flags]
                    _add(ranges, f"trained models, {form}", found.diagnostics)
    lines = [
        "## Trained models",
        "",
        f"{n_entries} entries: the simple baselines on GEARS simulation splits {', '.join(map(str, SPLIT_SEEDS))} of "
        f"the Norman subset and of a simulated screen, each as mean effects and as {N_CELLS} cells per perturbation. "
        f"Flags: {'; '.join(flagged) or 'none'}.",
        "",
        "| model | form | entries | marks |",
        "|---|---|---|---|",
    ]
    for (label, form), counts in marks.items():
        named = ", ".join(f"{name} {n}" for name, n in sorted(counts.items()) if name != "entries")
        lines.append(f"| {label} | {form} | {counts['entries']} | {named} |")
    return [*lines, ""]


def _data_sets(folder: Path, gmt: Path) -> Iterator[tuple[str, Path, str | None]]:
    norman = folder / "norman-standard.h5ad"
    convert(probe_support.NORMAN, load_dataset("norman2019_subset"), out=norman)
    yield "Norman", norman, f"go:{gmt}"
    simulated = folder / "screen.h5ad"
    simulate_dataset(
        simulated, SimulationSpec(genes=400, singles=40, doubles=25, cells=60, controls=300), seed=1
    )
    yield "simulated", simulated, None


def _range_table(ranges: Ranges) -> list[str]:
    lines = [
        "## Ranges behind the limits",
        "",
        "Smallest to largest value of each diagnostic. `exploits` are the changed entries that were flagged.",
        "",
        "| flag | limit | entries | n | range |",
        "|---|---|---|---|---|",
    ]
    for flag, (_, limit) in LIMITS.items():
        for group, values in sorted(ranges[flag].items(), key=lambda item: item[0].startswith("exploit")):
            name = "exploits" if group.startswith("exploit") else group
            lines.append(
                f"| {flag} | {limit} | {name} | {len(values)} | {min(values):.3g} to {max(values):.3g} |"
            )
    return [*lines, ""]


if __name__ == "__main__":
    main()
