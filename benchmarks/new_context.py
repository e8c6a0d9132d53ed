"""Train in one context of a simulated three-context panel, predict the others from their controls, score as vcc2026.

Usage: new_context.py OUT_FOLDER [--models NAME,NAME] [--set MODEL.KEY=VALUE ...] [--report FILE.md]

Every entry is packed and validated as `vcc2026`. A model without a context input adds its learned effect to the control
mean of the new context; `perturbation-mean` adds the effect that was measured in the trained one.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import pandas as pd
from vcbench.baselines.deep_train import train_deep
from vcbench.baselines.predict import choose_keys, predict, write_prediction
from vcbench.baselines.registry import is_deep
from vcbench.baselines.run_folder import load_run
from vcbench.baselines.train import load_data, train
from vcbench.data_specs.labels import CONTROL
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.data_specs.split_file import Split, write_split
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate
from vcbench.submission.packing import pack

SPEC = SimulationSpec(
    genes=600,
    singles=60,
    doubles=0,
    contexts=("A", "B", "C"),
    cells=60,
    controls=400,
    depth=8000.0,
    programs=6,
)
TRAINED = "A"
METRICS = (
    "pds_cosine",
    "expr_mse_unbiased_capped_norm",
    "de_wilcoxon_lfc_nmae",
    "de_wilcoxon_direction_fidelity_yield_raw",
    "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard",
)
ALWAYS = ("no-change", "mean", "perturbation-mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="gears")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="MODEL.KEY=VALUE")
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    start = time.perf_counter()
    args.out.mkdir(parents=True)
    data, gmt = args.out / "data.h5ad", args.out / "go.gmt"
    truth = simulate_dataset(data, SPEC, seed=3, gmt=gmt)
    rows = {key: ("train" if key[0] == TRAINED else "test", "") for key in truth.keys}
    rows |= {(context, CONTROL): ("train", "") for context in truth.contexts}
    split = Split(rows, {"scheme": "one trained context"})
    write_split(split, args.out / "split.csv")
    challenge_files(args.out, data, truth.genes)
    models = [*ALWAYS, *(name for name in args.models.split(",") if name)]
    found = {
        name: entry(name, settings_of(name, args.settings), args.out, data, split, gmt) for name in models
    }
    text = "\n".join(report(found, time.perf_counter() - start)) + "\n"
    (args.report or args.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


def settings_of(model: str, texts: list[str]) -> dict[str, str]:
    """The settings of one model among MODEL.KEY=VALUE texts."""
    pairs = [text.removeprefix(f"{model}.").split("=", 1) for text in texts if text.startswith(f"{model}.")]
    return dict(pairs)


def challenge_files(out: Path, data: Path, genes: tuple[str, ...]) -> None:
    """The gene and perturbation lists of the panel, and its real cells under the challenge's labels."""
    (out / "gene_names.csv").write_text("gene_name\n" + "\n".join(genes) + "\n", encoding="utf-8")
    cells = ad.read_h5ad(data)
    labels = cells.obs["perturbation"].astype(str)
    cells.obs["target_gene"] = labels.where(labels != CONTROL, "non-targeting")
    tested = cells[cells.obs["context"] != TRAINED].copy()
    tested.write_h5ad(out / "real.h5ad")
    perturbed = tested.obs[tested.obs["target_gene"] != "non-targeting"]
    counts = perturbed.groupby(["context", "target_gene"], observed=True).size().rename("n_cells")
    counts.reset_index().to_csv(out / "pert_counts.csv", index=False)


def entry(
    name: str, settings: dict[str, str], out: Path, data: Path, split: Split, gmt: Path
) -> dict[str, float]:
    """Train one model, pack and validate its entry, and return its scores."""
    run_folder = out / "runs" / name
    run_folder.parent.mkdir(exist_ok=True)
    if is_deep(name):
        train_deep(
            name, data, split, run_folder, settings=settings, features=f"go:{gmt}", seed=0, device="cpu"
        )
    else:
        train(name, load_data(data, split), run_folder, settings=settings, seed=0)
    run = load_run(run_folder)
    prediction, packed = out / f"{name}.mean.h5ad", out / f"{name}.h5ad"
    write_prediction(
        prediction, predict(run, choose_keys(run, perturbations=None, everything=False, contexts=())), run
    )
    contexts = [context for context in SPEC.contexts if context != TRAINED]
    lists = {"contexts": contexts, "genes": out / "gene_names.csv", "perts": out / "pert_counts.csv"}
    pack(prediction, "vcc2026", out=packed, controls=data, **lists)
    checked = validate(packed, edition="vcc2026", **lists)
    assert checked.valid, checked.issues
    card = score(packed, out / "real.h5ad", edition="vcc2026", name=name).card
    return {key: float("nan") if (v := card.metrics[key].value) is None else float(v) for key in METRICS}


def report(found: dict[str, dict[str, float]], total_s: float) -> list[str]:
    table = pd.DataFrame(found).T
    lines = [
        "# A context that was not trained",
        "",
        f"Measured {time.strftime('%Y-%m-%d')} with vcbench {version('vcbench')}, Python {platform.python_version()}, "
        f"{total_s:.0f} s. Simulated: {SPEC.genes} genes, {SPEC.singles} targets, {SPEC.cells} cells each, contexts "
        f"{', '.join(SPEC.contexts)}, effects correlated {SPEC.context_similarity} between contexts. Trained in "
        f"{TRAINED}, predicted for the others from their controls, packed, validated and scored as vcc2026 "
        "(raw values of its six members; higher is better but for the errors expr_mse… and …nmae).",
        "",
        "| model | " + " | ".join(METRICS) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{value:.4f}" for value in row) + " |"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return lines


if __name__ == "__main__":
    main()
