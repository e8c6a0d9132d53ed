"""Simulated Perturb-seq data sets as standard h5ad, with the truth they were drawn from written beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from .atomic import check_output, write_text
from .h5ad_write import write_h5ad_dense, write_h5ad_stream
from .labels import CONTROL, parse_dose, split_label
from .matrix_scan import OnRows
from .normalize import median_total
from .simulate_model import Model, SimulationSpec
from .standard import (
    CONTEXT,
    IS_CONTROL,
    LABEL_SOURCE,
    N_TARGETS,
    PERTURBATION,
    MatrixMeta,
    StandardMeta,
)

Key = tuple[str, str]


@dataclass(frozen=True)
class SimulationTruth:
    """What a simulated file was drawn from.

    `keys` are (context, perturbation) without controls; row i of `log_fold_changes` (natural logarithm,
    float64, keys x genes) is the exact change of each gene's expected share of a cell's counts against the
    controls of that context. `activity` and `interaction` (keys x programs) say how it came about through
    `loadings` (programs x genes). `baseline` (contexts x genes) holds the control shares.
    """

    path: Path
    truth_path: Path
    genes: tuple[str, ...]
    contexts: tuple[str, ...]
    keys: tuple[Key, ...]
    log_fold_changes: np.ndarray
    baseline: np.ndarray
    loadings: np.ndarray
    activity: np.ndarray
    interaction: np.ndarray
    target_sum: float

    def log_fold_change(self, context: str, perturbation: str) -> np.ndarray:
        """The row of one key. Raises `ValueError` for an unknown one."""
        return self.log_fold_changes[self.keys.index((context, perturbation))]


def truth_path(path: str | os.PathLike[str]) -> Path:
    """Where the truth of a simulated file stands: `sim.h5ad` has `sim.truth.h5ad`."""
    out = Path(path)
    return out.with_name(f"{out.stem}.truth.h5ad")


def simulate_dataset(
    path: str | os.PathLike[str],
    spec: SimulationSpec,
    seed: int = 0,
    *,
    gmt: str | os.PathLike[str] | None = None,
    force: bool = False,
    on_rows: OnRows | None = None,
) -> SimulationTruth:
    """Write simulated counts to `path`, the truth beside it, and gene sets that follow the programs to `gmt`.

    Equal specs and seeds give equal bytes. Rows are grouped by context, controls first, then perturbations
    by label; the cells of a group depend on the seed, context, label and model alone, so they are the same
    whatever else is simulated. The target sum is the median total of the control cells.

    Raises
    ------
    UsageError
        The specification is impossible; all problems at once.
    OutputError
        An output cannot be written, or exists without `force`.
    """
    out = check_output(path, force=force)
    truth_out = check_output(truth_path(out), force=force)
    gmt_out = None if gmt is None else check_output(gmt, force=force)
    model = Model(spec, seed)
    target_sum = median_total(_control_totals(model))
    truth = _truth(model, out, truth_out, target_sum)
    _write_cells(model, out, target_sum, on_rows)
    _write_truth(model, truth)
    if gmt_out is not None:
        write_text(gmt_out, _gmt_text(model))
    return truth


def _groups(model: Model) -> list[Key]:
    return [(context, name) for context in model.contexts for name in (CONTROL, *model.perturbations)]


def _control_totals(model: Model) -> np.ndarray:
    blocks = (counts for context in model.contexts for counts, _ in model.cells(context, CONTROL))
    return np.concatenate([counts.sum(axis=1, dtype=np.float64) for counts in blocks])


def _write_cells(model: Model, out: Path, target_sum: float, on_rows: OnRows | None) -> None:
    groups = _groups(model)
    sizes = [model.spec.controls if name == CONTROL else model.spec.cells for _, name in groups]
    n_cells = sum(sizes)
    labels = np.repeat(np.array([name for _, name in groups], dtype=object), sizes)
    n_targets = np.array([len(split_label(name)) for _, name in groups], dtype=np.int8)
    # Filled while the rows stream; the writer stores obs after the last row.
    totals, batches = np.zeros(n_cells, np.float32), np.zeros(n_cells, np.int64)
    batch_names = np.array([f"batch{i + 1}" for i in range(model.spec.batches)], dtype=object)
    batch_column = np.empty(n_cells, dtype=object)
    obs: dict[str, Any] = {
        PERTURBATION: labels,
        CONTEXT: np.repeat(np.array([context for context, _ in groups], dtype=object), sizes),
        IS_CONTROL: labels == CONTROL,
        N_TARGETS: np.repeat(n_targets, sizes),
        LABEL_SOURCE: labels,
        "batch": batch_column,
        "total_counts": totals,
    }
    if model.spec.modality == "drug":
        parsed = [parse_dose(name) if "+" not in name else (name, None, None, None) for _, name in groups]
        doses = [np.nan if dose is None else dose for _, dose, _, _ in parsed]
        obs["dose"] = np.repeat(np.array(doses), sizes)
        obs["dose_unit"] = np.repeat(np.array([unit or "" for _, _, unit, _ in parsed], dtype=object), sizes)
    obs_names = [f"{c}-{p}-{i + 1}" for (c, p), n in zip(groups, sizes, strict=True) for i in range(n)]
    targets = {target for name in model.perturbations for target in split_label(name)}
    extra = {"simulation": json.dumps({"seed": model.seed, **asdict(model.spec)}, sort_keys=True)}
    meta = StandardMeta(
        "simulated",
        MatrixMeta("counts", target_sum),
        modality=model.spec.modality,
        organism="simulated",
        extra=extra,
    )
    with write_h5ad_stream(
        out,
        genes=model.genes,
        obs=obs,
        obs_names=obs_names,
        var={"is_target": np.array([gene in targets for gene in model.genes])},
        uns=meta.to_uns(),
    ) as writer:
        start = 0
        for context, name in groups:
            for counts, batch in model.cells(context, name):
                stop = start + len(batch)
                totals[start:stop] = counts.sum(axis=1, dtype=np.float64)
                batches[start:stop] = batch
                writer.append(sp.csr_array(counts))
                start = stop
            if on_rows is not None:
                on_rows(start, n_cells)
        batch_column[:] = batch_names[batches]


def _truth(model: Model, out: Path, truth_out: Path, target_sum: float) -> SimulationTruth:
    keys = [key for key in _groups(model) if key[1] != CONTROL]
    effects = [model.effect(*key) for key in keys]
    return SimulationTruth(
        path=out,
        truth_path=truth_out,
        genes=model.genes,
        contexts=model.contexts,
        keys=tuple(keys),
        log_fold_changes=_stacked([e.log_fold_change for e in effects], model.spec.genes),
        baseline=np.exp([model.log_baseline(context) for context in model.contexts]),
        loadings=model.loadings,
        activity=_stacked([e.activity for e in effects], model.spec.programs),
        interaction=_stacked([e.interaction for e in effects], model.spec.programs),
        target_sum=target_sum,
    )


def _stacked(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, width))


def _write_truth(model: Model, truth: SimulationTruth) -> None:
    interacts = (truth.interaction != 0).any(axis=1)
    write_h5ad_dense(
        truth.truth_path,
        truth.log_fold_changes,
        genes=truth.genes,
        obs={
            PERTURBATION: [name for _, name in truth.keys],
            CONTEXT: [context for context, _ in truth.keys],
            "interacts": interacts,
        },
        obs_names=[f"{context}-{name}" for context, name in truth.keys],
        uns={
            "vcbench_truth": {
                "meaning": "natural log fold change of the expected share of a gene in a cell's counts",
                "simulation": json.dumps({"seed": model.seed, **asdict(model.spec)}, sort_keys=True),
                "contexts": list(truth.contexts),
                "baseline": truth.baseline,
                "loadings": truth.loadings,
                "activity": truth.activity,
                "interaction": truth.interaction,
            }
        },
    )


def _gmt_text(model: Model) -> str:
    """Per program: its members, and its regulators by sign, with a tenth missing; random terms as noise."""
    regulators = np.stack([model.shared_activity(gene) for gene in model.genes])
    lines = []
    for k in range(model.spec.programs):
        terms = {
            f"PROGRAM {k + 1} MEMBERS": model.loadings[k] != 0,
            f"PROGRAM {k + 1} REGULATORS": regulators[:, k] != 0,
            f"PROGRAM {k + 1} REGULATORS UP": regulators[:, k] > 0,
            f"PROGRAM {k + 1} REGULATORS DOWN": regulators[:, k] < 0,
            f"UNRELATED {k + 1}": None,
        }
        for term, member in terms.items():
            rng = model.stream("term", term)
            if member is None:
                genes = rng.choice(model.spec.genes, min(15, model.spec.genes), replace=False)
            else:
                listed = np.flatnonzero(member)
                genes = listed[rng.random(len(listed)) >= 0.1]
            names = [model.genes[i] for i in np.sort(genes)]
            if names:
                lines.append("\t".join([term, "simulated", *names]))
    return "\n".join(lines) + "\n"
