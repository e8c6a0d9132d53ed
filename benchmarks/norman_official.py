"""Official scores and ours, side by side, on a Norman 2019 subset; written as Markdown.

Usage: norman_official.py SOURCE.h5ad --python08 PYTHON --python06 PYTHON [--report FILE.md]

`--python08` is a Python with cell-eval 0.8.2, pdex 0.3.0 and cell-eval2 0.20.0 (tests/parity/official.txt),
`--python06` one with cell-eval 0.6.6 and pdex 0.1.26 (tests/parity/celleval-0.6.txt).

For 2025 and cell-eval 0.8, one random half of every label's cells predicts the other half. For 2026 the truth is all
cells, and a prediction holds, for each perturbation, half of its own cells and half of the next one's.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from vcbench.data_specs.errors import VCBenchError
from vcbench.evaluator.scoring import score

PARITY = Path(__file__).parents[1] / "tests" / "parity"
COLUMN, CONTROL = "perturbation", "control"
EDITIONS = {"vcc2025": ("python06", "vcc"), "celleval-0.8": ("python08", "full")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--python08", required=True)
    parser.add_argument("--python06", required=True)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        halves, all_cells, doubles = write_inputs(args.source, folder)
        lines = ["# Official scores on the Norman 2019 development subset", "", *_head(), ""]
        for edition, (python, profile) in EDITIONS.items():
            lines += _cell_eval(edition, profile, getattr(args, python), halves, folder)
        lines += _cell_eval2(args.python08, {"whole subset": all_cells, "the 15 doubles": doubles}, folder)
    report = "\n".join(lines).rstrip() + "\n"
    if args.report:
        args.report.write_text(report, encoding="utf-8")
    print(report)


def write_inputs(source: Path, folder: Path) -> list[dict[str, Path]]:
    """Files `pred` and `truth` of the halves, of all cells, and of the doubles, as every official tool reads them."""
    data = ad.read_h5ad(source)
    labels = data.obs[COLUMN].astype(str).to_numpy()
    rng = np.random.default_rng(0)
    half = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        half[rows[: len(rows) // 2]] = True
    halves = {
        "pred": _write(data[half], folder / "half_pred.h5ad"),
        "truth": _write(data[~half], folder / "half.h5ad"),
    }
    out = [halves]
    for name, kept in (
        ("all", np.ones(len(labels), bool)),
        ("doubles", np.array([label == CONTROL or "+" in label for label in labels])),
    ):
        part = data[kept]
        out.append(
            {
                "pred": _write(_mixed(part), folder / f"{name}_pred.h5ad"),
                "truth": _write(part, folder / f"{name}.h5ad"),
            }
        )
    return out


def _mixed(data: ad.AnnData) -> ad.AnnData:
    """For each perturbation half of its own cells and half of the next one's, in label order; the control as it is."""
    labels = data.obs[COLUMN].astype(str).to_numpy()
    names = sorted(set(labels) - {CONTROL})
    rows, new = [np.flatnonzero(labels == CONTROL)], [CONTROL] * int((labels == CONTROL).sum())
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        for place, source in enumerate((name, following)):
            cells = np.flatnonzero(labels == source)
            middle = len(cells) // 2
            rows.append(cells[:middle] if place == 0 else cells[middle:])
            new += [name] * len(rows[-1])
    out = data[np.concatenate(rows)].copy()
    out.obs[COLUMN] = new
    out.obs_names = [str(i) for i in range(out.n_obs)]
    return out


def _write(data: ad.AnnData, path: Path) -> Path:
    out = data.copy()
    out.obs = out.obs[[COLUMN]].copy()
    out.obs[COLUMN] = out.obs[COLUMN].astype(str).astype("category")
    out.uns = {}
    # The official tools fail on stored zeros.
    out.X.eliminate_zeros()
    out.write_h5ad(path)
    return path


def _head() -> list[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("vcbench", "numpy", "scipy"))
    return [
        f"Measured {time.strftime('%Y-%m-%d')} by `benchmarks/norman_official.py`; ours with {packages}, "
        f"Python {platform.python_version()}.",
        "3,375 cells, 500 genes, 33 perturbations; a dash is a null or NaN. n is how many perturbations entered.",
    ]


def _official(python: str, script: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, str(PARITY / script), str(folder / "job.json"), str(folder / "out.json")]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((folder / "out.json").read_text())


def _cell_eval(edition: str, profile: str, python: str, files: dict[str, Path], folder: Path) -> list[str]:
    panel = {"name": "p", **{k: str(v) for k, v in files.items()}, "column": COLUMN, "control": CONTROL}
    found = _official(
        python, "run_celleval.py", {"profile": profile, "threads": 2, "panels": [panel]}, folder
    )
    table = found["panels"]["p"]["aggregate"]
    mean = table["statistic"].index("mean")
    theirs = {name: _number(column[mean]) for name, column in table.items() if name != "statistic"}
    started = time.perf_counter()
    card = score(
        files["pred"], files["truth"], edition=edition, profile=profile, pert_col=COLUMN, control=CONTROL
    ).card
    seconds = time.perf_counter() - started
    tools = f"cell-eval {found['versions']['cell-eval']}, pdex {found['versions']['pdex']}"
    title = f"## {edition}, profile {profile}: whole subset, half against half"
    official = found["panels"]["p"]["seconds"]
    speed = f"Official {official:.1f} s, ours {seconds:.1f} s, validation and compilation included."
    return [title, "", f"Official: {tools}.", speed, "", *_table(card, theirs), ""]


def _cell_eval2(python: str, panels: dict[str, dict[str, Path]], folder: Path) -> list[str]:
    job = [
        {
            "name": name,
            **{k: str(v) for k, v in files.items()},
            "column": COLUMN,
            "control": CONTROL,
            "no_target_genes": True,
            "profiles": ["vcc2026"],
            "may_refuse": True,
        }
        for name, files in panels.items()
    ]
    found = _official(python, "run_celleval2.py", {"panels": job}, folder)
    lines = []
    for name, files in panels.items():
        theirs = found["panels"][name]
        lines += [f"## vcc2026, profile vcc2026: {name}, own cells mixed with the next perturbation's", ""]
        lines += [
            f"Official: cell-eval2 {found['versions']['cell-eval2']}, without target genes, no anchor.",
            "",
        ]
        try:
            card = score(
                files["pred"],
                files["truth"],
                edition="vcc2026",
                pert_col=COLUMN,
                control=CONTROL,
                no_target_genes=True,
            ).card
        except VCBenchError as error:
            lines += [f"- official refuses: {theirs.get('refused', 'no')}", f"- ours refuses: {error}", ""]
            continue
        if "refused" in theirs:
            lines += [f"The official tool refuses: {theirs['refused']}", ""]
            continue
        values = {metric: _number(v) for metric, v in theirs["values"]["vcc2026"]["aggregate"].items()}
        lines += [*_table(card, values), ""]
    return lines


def _table(card: Any, theirs: dict[str, float]) -> list[str]:
    lines = ["| metric | official | ours | difference | n |", "|---|---|---|---|---|"]
    for name, value in card.metrics.items():
        official, ours = theirs.get(name, math.nan), math.nan if value.value is None else value.value
        shown = [_text(official), _text(ours), _text(ours - official, "{:.1e}"), f"{value.n}/{value.n_total}"]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    reasons = [f"- `{name}`: {value.reason}" for name, value in card.metrics.items() if value.value is None]
    return [*lines, *(["", "Nulls:", "", *reasons] if reasons else [])]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _text(value: float, form: str = "{:.9g}") -> str:
    if math.isnan(value):
        return "–"
    return "0" if value == 0 else form.format(value)


if __name__ == "__main__":
    main()
