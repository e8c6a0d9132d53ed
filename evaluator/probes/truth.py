"""What diagnostics need of the truth, from real cells or from a truth bundle, in the entry's genes and contexts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...data_specs.errors import UsageError
from ...data_specs.labels import CONTROL, targets_of
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.standard import MatrixMeta
from ..score_options import ScoreOptions
from .facts import Facts, gather_facts
from .rows import GroupedRows, Key, declared_target_sum, grouped_rows

if TYPE_CHECKING:
    from ..celleval.bundle import CellevalTruth
    from ..vcc2026.bundle import JoinedBundles, TruthBundle

# Log1p values whose sum is unknown are taken as they are; the number only scales counts beside them.
UNKNOWN_TARGET_SUM = 1e4


@dataclass(frozen=True)
class TruthControl:
    """Control cells of one context: log1p mean and variance (n_genes,), their number, and what only cells can tell.

    `variance`, `median_total` and `prints` are None where the truth does not hold them.
    """

    mean: np.ndarray
    n: int
    variance: np.ndarray | None = None
    median_total: float | None = None
    prints: np.ndarray | None = None


@dataclass(frozen=True)
class TruthFacts:
    """The truth beside an entry, genes in the entry's order.

    Attributes
    ----------
    keys
        (context, perturbation) without controls, in the entry's names of contexts.
    effects, noise
        Measured changes from control (n_keys, n_genes) and their sampling variance summed over genes (n_keys,).
    controls
        By context.
    n_significant
        Genes that differ from control by Welch's test, (n_keys,), NaN where unknown.
    target_sum
        The total that counts are scaled to.
    """

    keys: tuple[Key, ...]
    effects: np.ndarray
    noise: np.ndarray
    controls: dict[str, TruthControl]
    n_significant: np.ndarray
    target_sum: float
    kind: str

    def target_direction(self, genes: np.ndarray, at_least: int) -> int:
        """+1 where perturbations raise their own targets, -1 where they lower them, 0 with fewer than `at_least`."""
        place = {str(gene): i for i, gene in enumerate(genes)}
        found = [
            self.effects[i, place[target]]
            for i, (_, name) in enumerate(self.keys)
            for target in targets_of(name)
            if target in place
        ]
        return 0 if len(found) < at_least else 1 if np.mean(found) > 0 else -1


def facts_of_cells(truth: Source, entry: GroupedRows, edition: Edition, options: ScoreOptions) -> TruthFacts:
    """The facts of real cells. Raises `UsageError` when genes, labels or controls do not fit the entry."""
    grouped = grouped_rows(truth, edition, options)
    target_sum = declared_target_sum(truth) or grouped.median_total() or UNKNOWN_TARGET_SUM
    order = gene_order(truth.genes, entry.source.genes, truth.name)
    facts = gather_facts(grouped, target_sum=target_sum, gene_order=order)
    names = context_names(grouped.keys, entry.keys)
    at = facts.controls()
    controls = {
        names[context]: TruthControl(
            facts.mean[i],
            int(facts.n[i]),
            facts.variance[i],
            float(facts.totals[i]) if grouped.kind == "counts" else None,
            facts.prints[grouped.codes == i],
        )
        for context, i in at.items()
    }
    chosen = [i for i, (context, name) in enumerate(grouped.keys) if name != CONTROL and context in at]
    base = np.array([at[grouped.keys[i][0]] for i in chosen], dtype=np.int64)
    noise = facts.noise()
    return TruthFacts(
        tuple((names[grouped.keys[i][0]], grouped.keys[i][1]) for i in chosen),
        facts.mean[chosen] - facts.mean[base],
        noise[chosen] + noise[base],
        controls,
        np.array([significant(facts, i, controls[names[grouped.keys[i][0]]]) for i in chosen]),
        target_sum,
        grouped.kind,
    )


def significant(facts: Facts, i: int, control: TruthControl, *, alpha: float = 0.05) -> float:
    """Genes of group i that differ from control cells: Welch's test, BH below alpha. NaN where it cannot be made."""
    from ..core.de import de_table

    if control.variance is None or facts.grouped.rows == "mean":
        return np.nan
    table = de_table(
        facts.mean[i],
        facts.variance[i],
        int(facts.n[i]),
        control.mean,
        control.variance,
        control.n,
        alpha=alpha,
    )
    return np.nan if table is None else float(table.n_significant)


def facts_of_2026_bundle(bundle: TruthBundle | JoinedBundles, entry: GroupedRows) -> TruthFacts:
    """The facts of a vcc2026 bundle: its control cells, and the measured changes of its bulks.

    Changes are those of log bulks, which the bundle stores; they are somewhat larger than changes of mean log values.
    """
    from ..bulk import group_moments
    from ..vcc2026.bulks import BULK_TARGET_SUM

    keys: list[Key] = []
    effects, noise = [], []
    controls: dict[str, TruthControl] = {}
    sides = bundle.sides()
    names = context_names([(side.context, "") for side in sides], entry.keys)
    for side in sides:
        order = gene_order(np.array(side.genes, dtype=object), entry.source.genes, bundle.name)
        held = side.control.source
        moments = group_moments(
            held,  # type: ignore[arg-type]
            side.control.groups,
            1,
            MatrixMeta("counts", BULK_TARGET_SUM),
            block_bytes=entry.block_bytes,
        )
        totals = np.concatenate([np.asarray(rows.sum(axis=1)).ravel() for rows, _ in side.control.blocks()])
        context = names[side.context]
        controls[context] = TruthControl(
            moments.mean[0][order], int(moments.n[0]), moments.variance[0][order], float(np.median(totals))
        )
        keys += [(context, name) for name in side.perturbations]
        effects.append((side.bulks.bulk[:-1] - side.bulks.bulk[-1])[:, order])
        noise.append(side.bulks.noise[:-1] + side.bulks.noise[-1])
    unknown = np.full(len(keys), np.nan)
    return TruthFacts(
        tuple(keys),
        np.concatenate(effects),
        np.concatenate(noise),
        controls,
        unknown,
        BULK_TARGET_SUM,
        "counts",
    )


def facts_of_celleval_bundle(truth: CellevalTruth, entry: GroupedRows) -> TruthFacts:
    """The facts of bundles of the cell-eval editions, which hold means and nothing of single cells."""
    keys: list[Key] = []
    effects: list[np.ndarray] = []
    controls: dict[str, TruthControl] = {}
    names = context_names([(context, "") for context in truth.parts], entry.keys)
    for context, part in truth.parts.items():
        order = gene_order(np.array(part.manifest["genes"], dtype=object), entry.source.genes, part.name)
        measured = part.side().measured
        bulk = measured.exact_bulk[:, order]
        controls[names[context]] = TruthControl(bulk[-1], int(measured.sizes[-1]))
        keys += [(names[context], name) for name in part.targets]
        effects.append(bulk[:-1] - bulk[-1])
    unknown = np.full(len(keys), np.nan)
    target_sum = entry.median_total() or UNKNOWN_TARGET_SUM
    return TruthFacts(
        tuple(keys), np.concatenate(effects), np.zeros(len(keys)), controls, unknown, target_sum, "log1p"
    )


def context_names(theirs: object, ours: tuple[Key, ...]) -> dict[str, str]:
    """The entry's name of each context of the truth; two single contexts are one, whatever they are called."""
    found = sorted({context for context, _ in theirs})  # type: ignore[attr-defined]
    own = sorted({context for context, _ in ours})
    if len(found) == 1 and len(own) == 1:
        return {found[0]: own[0]}
    return {context: context for context in found}


def gene_order(theirs: np.ndarray, ours: np.ndarray, name: str) -> np.ndarray:
    """Columns of the truth in the entry's order. Raises `UsageError` when the genes differ."""
    place = {str(gene): i for i, gene in enumerate(theirs)}
    if len(place) != len(ours) or any(str(gene) not in place for gene in ours):
        raise UsageError(
            f"{name}: its genes are not those of the entry; `vcbench score` lists the differences."
        )
    return np.array([place[str(gene)] for gene in ours], dtype=np.int64)


def matched(truth: TruthFacts, keys: tuple[Key, ...]) -> TruthFacts:
    """The truth of those keys that it has, in their order."""
    place = {key: i for i, key in enumerate(truth.keys)}
    rows = [place[key] for key in keys if key in place]
    return replace(
        truth,
        keys=tuple(truth.keys[i] for i in rows),
        effects=truth.effects[rows],
        noise=truth.noise[rows],
        n_significant=truth.n_significant[rows],
    )
