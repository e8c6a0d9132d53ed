"""What emission alone does to each 2026 score: cells made from the true mean profiles, scored against the true cells.

    python benchmarks/packing_emission.py --genes 1500 --targets 20 --cells 200 --work DIR

Overdispersed counts of one context are simulated twice with the same effects. One set is the truth; its own mean
profiles are packed in every mode, so all that is lost is lost by emission. The other set, real cells of the same
effects, shows what a perfect cell model would score.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from vcbench.data_specs.h5ad_columns import Labels
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.normalize import lognormalize
from vcbench.evaluator.scoring import score
from vcbench.submission.control_pool import ControlPool
from vcbench.submission.emission import emit_cells

CONTROL, TARGET_SUM = "non-targeting", 20_000.0
MODES = ("scale", "counts", "thin", "tile")


def draw(rates: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Counts of n cells with gene noise (shape 4) and library sizes that spread by a third."""
    size = rng.lognormal(0, 0.3, (n, 1))
    return rng.poisson(size * rates * rng.gamma(4, 0.25, (n, len(rates))))


def write(path: Path, groups: dict[str, np.ndarray]) -> Path:
    """Cells of one context as a file of the challenge."""
    names = [name for name, x in groups.items() for _ in range(x.shape[0])]
    n_genes = next(iter(groups.values())).shape[1]
    obs = {"target_gene": Labels.from_values(names), "context": Labels.from_values(["A"] * len(names))}
    with write_h5ad_stream(path, genes=[f"G{i}" for i in range(n_genes)], obs=obs) as writer:
        for x in groups.values():
            writer.append(sp.csr_array(np.asarray(x, dtype=np.float32)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("genes", 1500), ("targets", 20), ("cells", 200), ("controls", 1200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    base = np.exp(rng.normal(0, 1.8, args.genes))
    base *= TARGET_SUM / base.sum()
    targets = [f"G{i}" for i in range(args.targets)]
    effects = {
        t: np.exp(rng.normal(0, 0.5, args.genes) * (rng.random(args.genes) < rng.uniform(0.02, 0.2)))
        for t in targets
    }
    controls = draw(base, args.controls, rng)
    truth = {CONTROL: controls, **{t: draw(base * effects[t], args.cells, rng) for t in targets}}
    again = {t: draw(base * effects[t], args.cells, rng) for t in targets}
    real = write(args.work / "truth.h5ad", truth)
    pool = ControlPool(sp.csr_array(controls.astype(np.float64)), TARGET_SUM)
    profiles = {
        t: np.asarray(lognormalize(sp.csr_array(truth[t]), TARGET_SUM).mean(axis=0)).ravel() for t in targets
    }
    table, reports = {}, {}
    for mode in MODES:
        emitted = {
            t: emit_cells(p, pool, n_cells=args.cells, mode=mode, rng_seed=0, context="A", perturbation=t)
            for t, p in profiles.items()
        }
        reports[mode] = {
            key: float(np.median([getattr(g.report, key) or 0 for g in emitted.values()]))
            for key in ("max_rel_error_counts", "max_rel_error_expressed", "dispersion_ratio")
        }
        entry = write(args.work / f"{mode}.h5ad", {t: g.rows.toarray() for t, g in emitted.items()})
        table[mode] = values(entry, real)
    table["other real cells"] = values(write(args.work / "again.h5ad", again), real)
    print(json.dumps({"reports": reports, "metrics": table}, indent=1))


def values(entry: Path, real: Path) -> dict[str, float | None]:
    """The six scored members."""
    card = score(entry, real, edition="vcc2026").card
    wanted = ("pds", "capped_norm", "nmae", "fidelity", "reach", "jaccard")
    return {name: m.value for name, m in card.metrics.items() if any(part in name for part in wanted)}


if __name__ == "__main__":
    main()
