"""Truths and informative entries for the tests of probes, cut out of one data set of cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
from core_support import cell_file, mean_file
from vcbench.data_specs.simulate import simulate_dataset
from vcbench.data_specs.simulate_model import SimulationSpec
from vcbench.evaluator.probes.run import ProbeReport, probe_entry
from vcbench.evaluator.score_options import ScoreOptions

NORMAN = Path(__file__).parents[1] / "../shared/data/norman2019_subset.h5ad"
CONTROL = "control"
# Share of a predicted group that really responds; the rest are control cells, so that effects are shrunken.
RESPONDING = 0.6
# Edition and form of the entry: what its file holds.
FORMS = [
    ("core", "counts"),
    ("core", "log1p"),
    ("core", "mean"),
    ("vcc2025", "counts"),
    ("vcc2025", "log1p"),
    ("celleval-0.8", "counts"),
    ("celleval-0.8", "log1p"),
    ("vcc2026", "counts"),
]


@dataclass(frozen=True)
class Cells:
    """Counts (dense float64) and labels of a data set; `target_sum` is what its cells are scaled to."""

    x: np.ndarray
    labels: np.ndarray
    genes: list[str]
    target_sum: float

    def log1p(self) -> np.ndarray:
        totals = np.maximum(self.x.sum(axis=1, keepdims=True), 1.0)
        return np.log1p(self.x * self.target_sum / totals)


def simulated(folder: Path, *, seed: int = 0, genes: int = 150, cells: int = 60) -> Cells:
    """A small CRISPRi screen."""
    spec = SimulationSpec(
        genes=genes,
        singles=12,
        doubles=0,
        cells=cells,
        controls=120,
        depth=1500.0,
        effect_scale=1.0,
        escape=0.0,
    )
    path = folder / f"sim{seed}.h5ad"
    simulate_dataset(path, spec, seed=seed)
    return _read(path)


def norman(folder: Path) -> Cells:
    """The real subset."""
    from vcbench.data_specs.conversion import convert
    from vcbench.data_specs.specs import load_dataset

    path = folder / "norman.h5ad"
    convert(NORMAN, load_dataset("norman2019_subset"), out=path)
    return _read(path)


def _read(path: Path) -> Cells:
    data = ad.read_h5ad(path)
    x = data.X.toarray().astype(np.float64)
    keep = x.sum(axis=1) > 0
    labels = data.obs["perturbation"].astype(str).to_numpy()
    control = x[(labels == CONTROL) & keep].sum(axis=1)
    return Cells(x[keep], labels[keep], list(data.var_names), float(np.median(control)))


def halves(cells: Cells, *, seed: int = 0) -> tuple[Cells, Cells]:
    """(truth, replicate): a random half of every label's cells each."""
    rng = np.random.default_rng(seed)
    first = np.zeros(len(cells.labels), dtype=bool)
    for label in np.unique(cells.labels):
        rows = rng.permutation(np.flatnonzero(cells.labels == label))
        first[rows[: len(rows) // 2]] = True
    return tuple(
        Cells(cells.x[rows], cells.labels[rows], cells.genes, cells.target_sum) for rows in (first, ~first)
    )  # type: ignore[return-value]


def informative(truth: Cells, replicate: Cells, *, seed: int = 0, responding: float = RESPONDING) -> Cells:
    """An entry that points the right way with smaller effects: replicate cells among control cells of the replicate.

    Its own control cells are the truth's, as entries copy them.
    """
    rng = np.random.default_rng(seed)
    controls = np.flatnonzero(replicate.labels == CONTROL)
    parts, labels = [truth.x[truth.labels == CONTROL]], [CONTROL] * int((truth.labels == CONTROL).sum())
    for label in sorted(set(replicate.labels) - {CONTROL}):
        rows = np.flatnonzero(replicate.labels == label)
        n = max(1, round(responding * len(rows)))
        filler = rng.choice(controls, size=len(rows) - n)
        parts.append(replicate.x[np.concatenate([rows[:n], filler])])
        labels += [label] * len(rows)
    return Cells(np.concatenate(parts), np.array(labels, dtype=object), truth.genes, truth.target_sum)


def strongest(cells: Cells) -> Cells:
    """The double perturbations and controls alone: effects that the 2026 noise correction leaves above zero."""
    keep = np.array([label == CONTROL or "+" in label for label in cells.labels])
    return Cells(cells.x[keep], cells.labels[keep], cells.genes, cells.target_sum)


def write_truth(cells: Cells, path: Path) -> Path:
    """Counts as a standard file."""
    return cell_file(
        path, cells.x, list(cells.labels), ["A"] * len(cells.labels), cells.genes, target_sum=cells.target_sum
    )


def write_entry(cells: Cells, path: Path, *, edition: str, form: str) -> Path:
    """The entry of an edition: 2026 entries and mean profiles have no control rows."""
    keep = np.ones(len(cells.labels), dtype=bool)
    if edition == "vcc2026" or form == "mean":
        keep = cells.labels != CONTROL
    x = cells.x if form == "counts" else cells.log1p()
    labels = cells.labels[keep]
    if form == "mean":
        means = {("A", str(p)): x[keep][labels == p].mean(axis=0) for p in sorted(set(labels))}
        return mean_file(path, means, cells.genes, target_sum=cells.target_sum)
    return cell_file(
        path,
        x[keep].astype(np.float32),
        list(labels),
        ["A"] * int(keep.sum()),
        cells.genes,
        kind=form,
        target_sum=cells.target_sum,
        dtype=np.float32,
    )


def options(edition: str) -> ScoreOptions:
    """Columns of the standard files under any edition; the cell-eval editions take them as one context."""
    return ScoreOptions(
        pert_col="perturbation",
        control=CONTROL,
        context_col=None if edition in ("vcc2025", "celleval-0.8") else "context",
        threads=1,
    )


def report(folder: Path, entry: Cells, truth: Cells, *, edition: str, form: str, **arguments) -> ProbeReport:
    """Probe the entry in one edition and form. Combinations of targets have no own gene in the 2026 edition."""
    folder.mkdir(parents=True, exist_ok=True)
    real = write_truth(truth, folder / "truth.h5ad")
    pred = write_entry(entry, folder / f"{form}.h5ad", edition=edition, form=form)
    no_targets = edition == "vcc2026" and any("+" in label for label in truth.labels)
    chosen = replace(options(edition), no_target_genes=no_targets)
    return probe_entry(pred, real, edition=edition, options=chosen, **arguments)
