"""Score panels with the official cell-eval2; run by a Python that has it installed.

Usage: python run_celleval2.py JOB.json OUT.json
JOB.json: {"panels": [{"name", "pred", "truth", "baseline"?, "column", "control", "no_target_genes"?, "profiles",
           "anchor"?}]}. With a baseline file, a real bundle is built and the prediction scored against it.
OUT.json: versions and, per panel: `fingerprint` of the truth, `values` (per profile: metric to {perturbation: value}
and `aggregate`), `arms` (generic baselines), `anchor`, `scores`, `seconds`, `refused` (why the tool gave up).
NaN is the text "NaN".
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path


def clean(value):
    """A JSON value: NaN and infinities become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def mean_row(wide):
    """Metric to its `mean` in a wide aggregate frame."""
    row = wide.filter(wide["statistic"] == "mean").to_dicts()[0]
    return {name: clean(value) for name, value in row.items() if name != "statistic"}


def tidy(frame):
    """Metric to {perturbation: value} of a tidy frame."""
    out = {}
    for row in frame.to_dicts():
        out.setdefault(row["metric"], {})[row["perturbation"]] = clean(row["value"])
    return out


def configuration(panel, profile):
    """The preset vcc2026 on CPU with this panel's columns and profile."""
    from cell_eval2 import EvalConfig

    config = replace(
        EvalConfig.from_preset("vcc2026"),
        pert_col=panel["column"],
        control=panel["control"],
        metrics=profile,
        device="cpu",
        num_threads=1,
    )
    return replace(config, target_gene_map={"*": None}) if panel.get("no_target_genes") else config


def score_panel(panel, folder):
    """Everything asked of one panel."""
    import anndata as ad
    import cell_eval2
    from cell_eval2.cache import fingerprint_adata

    truth = ad.read_h5ad(panel["truth"])
    out = {"values": {}, "arms": {}}
    started = time.perf_counter()
    for profile in panel["profiles"]:
        config = configuration(panel, profile)
        frame = cell_eval2.compute_metrics(panel["pred"], panel["truth"], config=config)
        wide = cell_eval2.aggregate_metrics_wide(frame)
        out["values"][profile] = {"per": tidy(frame), "aggregate": mean_row(wide)}
    out["seconds"] = time.perf_counter() - started
    out["fingerprint"] = {
        key: fingerprint_adata(truth, pert_col=panel["column"], strict=strict)
        for key, strict in (("strict", True), ("loose", False))
    }
    for emission in panel.get("arms", ()):
        arm = cell_eval2.build_generic_baseline(
            panel["truth"],
            config=configuration(panel, "vcc2026"),
            emit=emission,
            seed=0,
            allow_degenerate=True,
        )
        out["arms"][emission] = mean_row(arm.agg)
    if panel.get("baseline"):
        out.update(against_bundle(panel, folder))
    return out


def against_bundle(panel, folder):
    """Build the official bundle of a panel and score its prediction against it, through the official commands."""
    import polars as pl
    from cell_eval2 import cli
    from cell_eval2.real_bundle import build_real_bundle

    config = configuration(panel, "vcc2026")
    bundle, run = folder / "bundle", folder / "run"
    config.to_yaml(folder / "config.yaml")
    build_real_bundle(panel["truth"], panel["baseline"], config=config, outdir=str(bundle), bundle_id="panel")
    shared = ["--config", str(folder / "config.yaml")]
    commands = (
        ["run", "-ap", panel["pred"], "-ar", panel["truth"], "-o", str(run), *shared],
        [
            *["score", "--user-agg", str(run / "agg_results.csv"), "--user-meta", str(run / "run_meta.json")],
            *[
                "--real-bundle",
                str(bundle),
                "--scale",
                "low-random_high-1_v10",
                "-o",
                str(folder / "scores.csv"),
            ],
        ],
    )
    for command in commands:
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(command)
        if code not in (0, None):
            raise RuntimeError(f"cell-eval2 {command[0]} ended with {code}")
    anchor = pl.read_parquet(bundle / "anchor_agg.parquet")
    scores = pl.read_csv(folder / "scores.csv")
    return {
        "anchor": {row["metric"]: {k: clean(v) for k, v in row.items()} for row in anchor.to_dicts()},
        "baseline": mean_row(pl.read_csv(bundle / "baseline_agg.csv")),
        "scores": {row["metric"]: {k: clean(v) for k, v in row.items()} for row in scores.to_dicts()},
        "anchor_file": anchor.to_dict(as_series=False),
    }


def main(job_path: str, out_path: str) -> None:
    """Score every panel of the job."""
    job = json.loads(Path(job_path).read_text())
    packages = ("cell-eval2", "pdex", "scipy", "numpy", "polars", "anndata")
    out = {"versions": {name: version(name) for name in packages}, "panels": {}}
    for panel in job["panels"]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                out["panels"][panel["name"]] = score_panel(panel, Path(folder))
            except ValueError as error:
                if not panel.get("may_refuse"):
                    raise
                out["panels"][panel["name"]] = {"refused": str(error)}
    Path(out_path).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
