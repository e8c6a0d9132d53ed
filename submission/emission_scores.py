"""What emission alone costs in each score: the entry's own cells, scored against stand-in real cells of the same means.

No truth is needed, so it can be asked of any prediction. The stand-in is emitted by `scale` (control cells moved to the
profile, which keep dispersion, library size and sparsity of the controls) with a stream of its own; a second draw of it
shows what sampling alone costs, so the difference between the two columns is what the entry's emission costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import UsageError
from ..data_specs.labels import CONTROL
from ..data_specs.spec_models import Edition
from .pack_rows import EmittedRows, Group, Logged, Pools, Rows, write_rows

if TYPE_CHECKING:
    from .pack_build import Build, Draft

FEWEST = 2


@dataclass(frozen=True)
class EmissionScore:
    """One metric: its mean over the perturbations looked at, of the `entry` and of a `second_draw` of stand-in cells.

    None where a metric cannot be computed on these cells (`reason` says why); `perfect` and `better` as in a ScoreCard.
    """

    metric: str
    entry: float | None
    second_draw: float | None
    perfect: float | None
    better: str
    reason: str | None = None


@dataclass(frozen=True)
class _Cells:
    """Control cells as rows."""

    matrix: Any
    perturbation: np.ndarray
    context: np.ndarray

    def blocks(self) -> Iterator[sp.csr_array]:
        yield self.matrix


def emission_scores(build: Build, draft: Draft, n: int, work: Path, *, threads: int) -> dict[str, Any]:
    """Score the emission of an entry that is planned.

    Parameters
    ----------
    n
        Perturbations of each context to look at, evenly spaced in the entry's order; at least 2.
    work
        An existing folder for temporary files.

    Returns
    -------
    `n_perturbations` (per context), `metrics` (one `EmissionScore` each, of the edition's default profile) and `note`
    for the record. The same for any number of threads.

    Raises
    ------
    UsageError
        No cells are emitted, or there are no control cells as counts to stand in for real ones.
    MetricError
        The edition's metrics cannot be computed on these cells.
    """
    emitted = draft.emitted
    if emitted is None:
        raise UsageError("--score-emission is for mean effects that become cells; nothing is emitted here.")
    if n < FEWEST:
        raise UsageError(f"--score-emission {n}: metrics need at least {FEWEST} perturbations.")
    groups = _spread(emitted.groups, n)
    contexts = list(dict.fromkeys(group.context for group in groups))
    controls = _controls(contexts, emitted.pools)
    truth, second, entry = (work / f"{name}.h5ad" for name in ("stand-in", "second-draw", "emitted"))
    real = replace(emitted, groups=groups, mode="scale", space="counts", progress=None, reports=[])
    own = replace(emitted, groups=groups, progress=None, reports=[])
    forbidden = build.edition.panel.control == "forbidden"
    with_controls: list[Rows] = [] if forbidden else list(controls)
    write = _Writer(build, draft, emitted.target_sum)
    write(truth, [replace(real, seed=_seed(emitted.seed, "stand-in")), *controls])
    write(second, [replace(real, seed=_seed(emitted.seed, "second draw")), *with_controls])
    write(entry, [own, *with_controls])
    found = _scored(build.edition, truth, {"entry": entry, "second_draw": second}, threads)
    return {
        "n_perturbations": max(sum(g.context == context for g in groups) for context in contexts),
        "metrics": [asdict(score) for score in found],
        "note": "an error-free prediction against stand-in cells (scale) of its own means",
    }


def _spread(groups: Sequence[Group], n: int) -> list[Group]:
    """At most n groups of every context, evenly spaced in their order."""
    out: list[Group] = []
    for context in dict.fromkeys(group.context for group in groups):
        own = [group for group in groups if group.context == context]
        if len(own) < FEWEST:
            raise UsageError(f"--score-emission: {context or 'the entry'} has {len(own)} perturbation.")
        picked = np.unique(np.linspace(0, len(own) - 1, min(n, len(own))).round().astype(int))
        out += [own[i] for i in picked]
    return out


def _controls(contexts: Sequence[str], pools: Pools) -> list[Rows]:
    out: list[Rows] = []
    for context in contexts:
        pool = pools.get(context)
        if pool is None or pool.kind != "counts":
            raise UsageError(
                "--score-emission needs control cells as raw counts: give them with --controls FILE."
            )
        names = np.full(pool.n_cells, CONTROL, dtype=object)
        out.append(_Cells(pool.counts, names, np.full(pool.n_cells, context, dtype=object)))
    return out


def _seed(root: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{root}\0{name}".encode()).digest()[:8], "big")


@dataclass(frozen=True)
class _Writer:
    """Writes rows as a file of the edition: counts, or log1p where its entries are."""

    build: Build
    draft: Draft
    target_sum: float

    def __call__(self, path: Path, parts: Sequence[Rows]) -> None:
        from .pack_build import columns_of

        build, rules = self.build, self.build.edition.file
        logged = self.draft.kind.kind == "log1p" or not (build.standard or build.counts_only)
        rows = [self._logged(part) for part in parts] if logged else list(parts)
        column, control = rules.perturbation_column, rules.control_label
        obs = columns_of(rows, column, control, with_context=build.standard or rules.context_required)
        uns = build.standard_uns(self.draft, "cell") if build.standard else {}
        write_rows(path, rows, genes=build.genes, obs=obs, uns=uns, durable=False)

    def _logged(self, part: Rows) -> Rows:
        as_log = isinstance(part, EmittedRows) and part.space == "log1p"
        return part if as_log else Logged(part, self.target_sum)


def _scored(
    edition: Edition, truth: Path, entries: dict[str, Path], threads: int
) -> tuple[EmissionScore, ...]:
    from ..evaluator.scoring import Scorer

    with Scorer(truth, edition=edition, threads=threads, intervals=False) as scorer:
        cards = {name: scorer.score(path).card for name, path in entries.items()}
    first, second = cards["entry"].metrics, cards["second_draw"].metrics
    return tuple(
        EmissionScore(
            name, value.value, second[name].value, value.perfect, value.better, value.reason or None
        )
        for name, value in first.items()
    )
