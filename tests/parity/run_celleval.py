"""Score panels with the official cell-eval; run by a Python that has it installed.

Usage: python run_celleval.py JOB.json OUT.json
JOB.json: {"profile", "threads"?, "tables"?, "ceiling"?, "score_columns"?,
           "panels": [{"name", "pred", "truth", "column", "control", "score_against"?}]}.
OUT.json: versions and, per panel, its per-target table, its aggregate table, its DE tables and the seconds
taken; null stays null and NaN is the text "NaN".
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def plain(frame):
    """A polars frame as {column: list}, NaN and infinities as text."""
    return {name: [clean(v) for v in frame[name].to_list()] for name in frame.columns}


def clean(value):
    """A JSON value: NaN and infinities become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def main(job_path: str, out_path: str) -> None:
    """Score every panel of the job."""
    import polars as pl
    from cell_eval import MetricsEvaluator, score_agg_metrics

    job = json.loads(Path(job_path).read_text())
    out = {
        "versions": {name: version(name) for name in ("cell-eval", "pdex", "scipy", "numpy", "polars")},
        "panels": {},
    }
    aggregates = {}
    for panel in job["panels"]:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            evaluator = MetricsEvaluator(
                adata_pred=panel["pred"],
                adata_real=panel["truth"],
                control_pert=panel["control"],
                pert_col=panel["column"],
                num_threads=job.get("threads", 1),
                outdir=folder,
            )
            results, aggregate = evaluator.compute(profile=job["profile"], write_csv=False)
            seconds = time.perf_counter() - started
            entry = {"results": plain(results), "aggregate": plain(aggregate), "seconds": seconds}
            if job.get("tables"):
                for side in ("real", "pred"):
                    entry[f"{side}_de"] = plain(pl.read_csv(Path(folder) / f"{side}_de.csv"))
            if job.get("ceiling"):
                raw, corrected = evaluator.compute_ceiling(profile=job["profile"], write_csv=False, seed=0)
                entry["ceiling_results"], entry["ceiling"] = plain(raw), plain(corrected)
        aggregates[panel["name"]] = aggregate
        base = panel.get("score_against")
        if base is not None:
            columns = ["statistic", *job["score_columns"]]
            terms = score_agg_metrics(aggregate.select(columns), aggregates[base].select(columns))
            entry["from_baseline"] = plain(terms)
        out["panels"][panel["name"]] = entry
    Path(out_path).write_text(json.dumps(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
