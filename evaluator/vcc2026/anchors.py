"""Replicate anchors, the "1" end of scores: one half of the real cells predicts the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data_specs.errors import InvalidFile, MetricError
from ...data_specs.issues import first_of, make_issue
from ...data_specs.joined_source import JoinedSource
from .bulks import Bulks
from .catalog import DE_PREFIX, NORM
from .cells import Cells
from .de import DETable
from .de_direction import nmae_gate
from .de_pair import DEPanel
from .expression import BulkPanel
from .measure import measure, needs_bulk, needs_de
from .panel import TruthCells
from .sides import RealSide, measure_groups
from .targets import TargetRule

BASE_SEED = 0
N_SPLITS = 5
SEED_DERIVATION = "numpy.random.SeedSequence(base_seed).generate_state(n_splits)"
NMAE = DE_PREFIX + "lfc_nmae"


@dataclass(frozen=True)
class AnchorRow:
    """One metric over the splits: mean, population sd, range, and how many perturbations entered (None: a ratio)."""

    metric: str
    replicate: float
    replicate_sd: float
    replicate_min: float
    replicate_max: float
    n_perturbations_min: int | None
    n_perturbations_max: int | None
    estimator: str


@dataclass(frozen=True)
class Anchor:
    """Anchor rows sorted by metric, and the values of every split."""

    seeds: tuple[int, ...]
    rows: tuple[AnchorRow, ...]
    split_values: tuple[dict[str, float], ...]

    @property
    def replicates(self) -> dict[str, float]:
        """Metric to replicate value."""
        return {row.metric: row.replicate for row in self.rows}


@dataclass(frozen=True)
class Half:
    """One half of the cells: bulks with its own control as the last row, and its tests."""

    bulks: Bulks
    de: DETable | None


def split_seeds(base_seed: int = BASE_SEED, n_splits: int = N_SPLITS) -> tuple[int, ...]:
    """The seed of each split.

    Examples
    --------
    >>> split_seeds(0, 2)
    (2968811710, 3677149159)
    """
    return tuple(int(seed) for seed in np.random.SeedSequence(base_seed).generate_state(n_splits))


def group_order(truth: TruthCells, column: str, control: str) -> list[int]:
    """Group codes in the order in which a split draws them: that of the stored categories, else sorted labels.

    anndata stores text columns as categories in natural order (G1, G2, G10), so a file and a plain text column in
    memory are split differently. Several files joined keep their own orders; one file of several contexts has one
    order for all of them.
    """
    codes = {label: i for i, label in enumerate(truth.perturbations)}
    codes[control] = len(truth.perturbations)
    source = truth.cells.source
    if isinstance(source, JoinedSource):
        categories = source.context_categories(truth.context, column)
    else:
        stored = getattr(source, "stored_categories", None)
        categories = None if stored is None else stored(column)
    ordered = sorted(codes) if categories is None else [label for label in categories if label in codes]
    return [codes[label] for label in ordered]


def split_halves(groups: np.ndarray, order: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Group codes of half A and half B, -1 elsewhere; one generator runs through the groups in `order`."""
    rng = np.random.default_rng(seed)
    half_a, half_b = np.full(len(groups), -1, np.int64), np.full(len(groups), -1, np.int64)
    for code in order:
        rows = rng.permutation(np.flatnonzero(groups == code))
        half = len(rows) // 2
        half_a[rows[:half]] = code
        half_b[rows[half : 2 * half]] = code
    return half_a, half_b


def replicate_anchor(
    truth: TruthCells,
    full: RealSide,
    names: Sequence[str],
    rule: TargetRule,
    *,
    order: Sequence[int],
    base_seed: int = BASE_SEED,
    n_splits: int = N_SPLITS,
    threads: int | None = None,
) -> Anchor:
    """Anchors of the metrics: half B scored as a prediction of half A, each half against its own control.

    `lfc_nmae` takes genes and scale from the full data's tests instead of half A's.

    Raises
    ------
    InvalidFile
        A perturbation or the control has fewer than two cells (E595).
    MetricError
        A metric has no finite value in some split.
    """
    _check_sizes(truth)
    seeds = split_seeds(base_seed, n_splits)
    values, counts = [], []
    for index, seed in enumerate(seeds):
        split, n_used = _score_split(truth, full, names, rule, order, seed, threads)
        bad = [name for name in names if not np.isfinite(split[name])]
        if bad:
            raise MetricError(
                f"replicate anchor: {bad[0]} has no finite value in split {index} (seed {seed})."
            )
        values.append(split)
        counts.append(n_used)
    return Anchor(seeds, tuple(_row(name, values, counts) for name in sorted(names)), tuple(values))


def _check_sizes(truth: TruthCells) -> None:
    sizes = np.bincount(truth.cells.groups[truth.cells.groups >= 0], minlength=len(truth.perturbations) + 1)
    labels = [*truth.perturbations, "control"]
    small = [label for label, size in zip(labels, sizes, strict=True) if size < 2]
    if small:
        source = truth.cells.source
        raise InvalidFile(
            [
                make_issue(
                    "E595",
                    where=f"{source.name}:/obs",
                    found=first_of(small),
                    expected="2 cells or more of each label",
                    file=source.path,
                )
            ]
        )


def _score_split(
    truth: TruthCells,
    full: RealSide,
    names: Sequence[str],
    rule: TargetRule,
    order: Sequence[int],
    seed: int,
    threads: int | None,
) -> tuple[dict[str, float], dict[str, int]]:
    want_de = needs_de(names)
    codes = split_halves(truth.cells.groups, order, seed)
    half_a, half_b = (_measure_half(truth, truth.cells.with_groups(c), want_de, threads) for c in codes)
    tests = None
    if half_a.de is not None and half_b.de is not None:
        tests = DEPanel(truth.perturbations, truth.genes, half_a.de, half_b.de, rule)
    bulks = _bulk_panel(truth, half_a.bulks, half_b.bulks, rule) if needs_bulk(names) else None
    measured = measure(names, truth.perturbations, bulks=bulks, tests=tests)
    split, n_used = dict(measured.aggregate), dict(measured.n_used)
    if NMAE in names and half_a.de is not None and half_b.de is not None:
        errors = _full_gate_nmae(truth, full, half_a.de, half_b.de, rule)
        split[NMAE], n_used[NMAE] = float(np.mean(errors)), len(errors)
    return split, n_used


def _measure_half(truth: TruthCells, cells: Cells, want_de: bool, threads: int | None) -> Half:
    n = len(truth.perturbations)
    return Half(*measure_groups(cells, n + 1, len(truth.genes), need_de=want_de, threads=threads))


def _bulk_panel(truth: TruthCells, real: Bulks, pred: Bulks, rule: TargetRule) -> BulkPanel:
    return BulkPanel(
        perturbations=truth.perturbations,
        genes=truth.genes,
        real=real.bulk[:-1],
        pred=pred.bulk[:-1],
        real_control=real.bulk[-1],
        pred_control=pred.bulk[-1],
        real_noise=real.noise[:-1],
        pred_noise=pred.noise[:-1],
        control_noise=float(real.noise[-1]),
        target_rule=rule,
    )


def _full_gate_nmae(
    truth: TruthCells, full: RealSide, half_a: DETable, half_b: DETable, rule: TargetRule
) -> list[float]:
    """mean|l_A - l_B| / mean|l_full| on the genes that are significant in the full data, per gated perturbation."""
    if full.de is None:
        raise MetricError("replicate anchor: the full data were measured without tests.")
    panel = DEPanel(truth.perturbations, truth.genes, full.de, full.de, rule)
    folds = [_spread_folds(table, len(truth.genes))[:, panel.union] for table in (half_a, half_b)]
    out = []
    for row, pair in enumerate(panel.without_own):
        gate = nmae_gate(pair)
        if gate is None:
            continue
        a, b = (np.where(np.isfinite(fold[row, gate]), fold[row, gate], 0.0) for fold in folds)
        scale = float(np.mean(np.abs(pair.real.fold[gate])))
        if np.isfinite(scale) and scale > 0:
            out.append(float(np.mean(np.abs(a - b)) / scale))
    if not out:
        raise MetricError(
            "replicate anchor: no perturbation has ten significant genes, so lfc_nmae has no anchor."
        )
    return out


def _spread_folds(table: DETable, n_genes: int) -> np.ndarray:
    out = np.full((len(table.log2_fold_change), n_genes), np.nan)
    out[:, table.genes] = table.log2_fold_change
    return out


def _row(name: str, values: Sequence[dict[str, float]], counts: Sequence[dict[str, int]]) -> AnchorRow:
    series = np.array([split[name] for split in values])
    n = [count[name] for count in counts]
    ratio = name == NORM
    return AnchorRow(
        name,
        float(series.mean()),
        float(series.std()),
        float(series.min()),
        float(series.max()),
        None if ratio else min(n),
        None if ratio else max(n),
        "full_gate_raw" if name == NMAE else "split_half_raw",
    )
