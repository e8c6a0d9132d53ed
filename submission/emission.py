"""Emission: cells whose group mean is a predicted profile, made from real control cells.

A profile is E[ln(1 + scaled x)] per gene. Cells of one (context, perturbation) come from a random stream seeded by
the root seed and the two names, so order, chunking and other groups never change them; every group has its own draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import UsageError
from .control_pool import SMALL_POOL, ControlPool
from .emission_rules import MODES, Mode, Rule, Space, blocks_of, make_rule

GUARD = (0.25, 4.0)
DEFAULT_BLOCK_ROWS = 512
# Cells are drawn in strata of this size, whatever the size of the blocks they leave in.
STRATUM_ROWS = 512


@dataclass(frozen=True)
class EmissionReport:
    """How the emitted cells of one group compare with what was asked for.

    Errors are of the group's log mean against the profile: `max_abs_error` and `rmse` over all genes,
    `max_rel_error_expressed` over genes above one count per cell (None when there is none). `max_rel_error_counts` is
    that of the mean count of these genes against the mean that the rule aims at, `dispersion_ratio` the median over
    them of variance / mean, relative to that of the control cells. Library sizes and detected
    genes are medians over cells; those of log1p output are None. `share_by_counts_rule` is the part of
    the total that went to genes which scaling cannot reach: silent in every control (`n_silent`) or beyond the largest
    factor (`n_capped`). `implied_total` is the profile's own total over its target sum: away from 1 no cells
    reproduce it.
    """

    context: str
    perturbation: str
    mode: Mode
    space: Space
    n_cells: int
    n_negative_clipped: int
    n_silent: int
    n_capped: int
    share_by_counts_rule: float
    implied_total: float | None
    max_factor: float | None
    n_factors_outside_guard: int
    max_abs_error: float
    rmse: float
    max_rel_error_expressed: float | None
    max_rel_error_counts: float | None
    dispersion_ratio: float | None
    library_median: float | None
    library_median_control: float | None
    detected_median: float
    detected_median_control: float | None

    def to_json(self) -> dict[str, Any]:
        """The report as a flat dict."""
        return asdict(self)


@dataclass(frozen=True)
class EmittedGroup:
    """Cells of one (context, perturbation): `rows` CSR float32, shape (n_cells, n_genes), without stored zeros."""

    rows: sp.csr_array
    report: EmissionReport


def group_seed(root_seed: int, context: str, perturbation: str) -> np.random.SeedSequence:
    """The seed of one group's stream: sha256 of the root seed and both names."""
    text = "\0".join((str(root_seed), context, perturbation)).encode()
    return np.random.SeedSequence(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))


def choose_mode(
    rule: str, pool: ControlPool | None, space: Space, requested: Mode | None = None
) -> tuple[Mode, str]:
    """The emission mode and the reason, in one sentence for the record.

    Parameters
    ----------
    rule
        The edition's default (`edition.emission`).

    Raises
    ------
    UsageError
        An unknown mode, or an edition that needs control cells when there are none.
    """
    if requested is not None:
        if requested not in MODES:
            raise UsageError(f"no emission mode {requested!r}; the modes are {', '.join(MODES)}.")
        return requested, f"{requested}: asked for."
    if rule not in MODES:
        raise UsageError(f"the edition names an unknown emission mode {rule!r}.")
    mode: Mode = rule  # type: ignore[assignment]
    if mode == "tile" and space == "log1p":
        return (
            mode,
            "tile: every cell is the predicted mean, exact for MAE and PDS; rank tests see zero variance.",
        )
    if pool is None:
        raise UsageError("emission needs control cells: give --controls FILE.h5ad.")
    if pool.kind == "log1p":
        return (
            "shift",
            "shift: the control cells are log1p values, so the predicted change is added in log space.",
        )
    if space == "counts" and pool.small:
        return (
            "counts",
            f"counts: only {pool.n_cells:,} control cells (fewer than {SMALL_POOL}), too few to resample.",
        )
    return mode, f"{mode}: the edition's default; control cells keep library size, sparsity and covariance."


def _drawn(rng: np.random.Generator, n_pool: int, n_cells: int) -> np.ndarray:
    """Pool rows for the cells: every control cell is used once before one is used again."""
    if n_pool == 1:
        return np.zeros(n_cells, dtype=np.int64)
    rounds = -(-n_cells // n_pool)
    return np.concatenate([rng.permutation(n_pool) for _ in range(rounds)])[:n_cells]


class GroupEmission:
    """One group, emitted block by block; `report()` after the last block.

    Parameters
    ----------
    profile
        Mean log1p profile, shape (n_genes,), finite. Negative values are set to 0 and counted in the report.
    pool
        Control cells of the context; None is enough for `tile` as log1p values.
    target_sum
        Needed when `pool` is None; otherwise the pool's.

    Raises
    ------
    UsageError
        NaN in the profile, no cells asked for, or a mode that this pool cannot serve.
    """

    def __init__(
        self,
        profile: np.ndarray,
        pool: ControlPool | None,
        *,
        n_cells: int,
        mode: Mode,
        rng_seed: int,
        context: str,
        perturbation: str,
        space: Space = "counts",
        target_sum: float | None = None,
    ):
        who = f"{perturbation} in {context}" if context else perturbation
        wanted = np.asarray(profile, dtype=np.float64)
        if not np.isfinite(wanted).all():
            n_bad = int((~np.isfinite(wanted)).sum())
            raise UsageError(f"{who}: the profile has {n_bad:,} values that are not finite.")
        if n_cells < 1:
            raise UsageError(f"{who}: {n_cells} cells asked for; at least one is needed.")
        if pool is not None:
            pool.check_genes(len(wanted))
        target_sum = pool.target_sum if pool is not None else target_sum
        if target_sum is None:
            raise UsageError(f"{who}: emission without control cells needs a target sum.")
        self.n_cells = n_cells
        self.mode: Mode = mode
        self.space: Space = space
        self._names, self._pool, self._target_sum = (context, perturbation), pool, target_sum
        self._n_negative = int((wanted < 0).sum())
        self._profile = np.maximum(wanted, 0.0)
        streams = group_seed(rng_seed, context, perturbation).spawn(3)
        draw, self._rounding, self._counting = (np.random.Generator(np.random.PCG64(s)) for s in streams)
        self._draws = _drawn(draw, pool.n_cells if pool is not None else 1, n_cells)
        self._rule: Rule = make_rule(mode, self._profile, pool, space, target_sum, self._draws)
        self._log_sum = np.zeros(len(wanted))
        self._sums = np.zeros((2, len(wanted)))
        self._totals: list[np.ndarray] = []
        self._detected: list[np.ndarray] = []

    def blocks(self, block_rows: int = DEFAULT_BLOCK_ROWS) -> Iterator[sp.csr_array]:
        """The cells in order, CSR float32 without stored zeros. The values do not depend on `block_rows`."""
        for part in blocks_of(self.n_cells, STRATUM_ROWS):
            cells = self._rule.cells(self._draws[part], self._rounding, self._counting)
            cells.eliminate_zeros()
            cells.sort_indices()
            rows = sp.csr_array(cells, dtype=np.float32)
            self._detected.append(np.diff(rows.indptr))
            self._add(rows)
            for piece in blocks_of(len(rows.indptr) - 1, block_rows):
                yield rows if len(rows.indptr) - 1 <= block_rows else sp.csr_array(rows[piece])

    def _add(self, rows: sp.csr_array) -> None:
        if self.space == "log1p":
            self._log_sum += np.bincount(rows.indices, weights=rows.data, minlength=len(self._profile))
            return
        from .emission_solve import add_cells

        totals = np.empty(len(rows.indptr) - 1)
        add_cells(rows.data, rows.indices, rows.indptr, self._target_sum, self._log_sum, self._sums, totals)
        self._totals.append(totals)

    def report(self) -> EmissionReport:
        """The comparison, once all blocks were drawn."""
        error = self._log_sum / self.n_cells - self._profile
        pool, solution, expected = self._pool, self._rule.solution, self._rule.expected
        expressed, off, dispersion = np.zeros(len(error), dtype=bool), None, None
        if self.space == "counts" and expected is not None:
            wanted = expected / self.n_cells
            expressed = wanted > 1
            mean = self._sums[0] / self.n_cells
            if expressed.any():
                off = float((np.abs(mean - wanted)[expressed] / wanted[expressed]).max())
            if expressed.any() and pool is not None and pool.kind == "counts" and self.n_cells > 1:
                own = (self._sums[1] / self.n_cells - mean**2)[expressed] / mean[expressed]
                base = pool.fano[expressed]
                dispersion = float(np.median(own[base > 0] / base[base > 0])) if (base > 0).any() else None
        factor = np.empty(0) if solution is None else solution.factor[np.isfinite(solution.factor)]
        used = factor[factor > 0]
        silent = 0 if pool is None else int(((pool.mean_counts == 0) & (self._profile > 0)).sum())
        by_share = solution is not None and self.mode != "counts"
        totals = np.concatenate(self._totals) if self._totals else None
        return EmissionReport(
            context=self._names[0],
            perturbation=self._names[1],
            mode=self.mode,
            space=self.space,
            n_cells=self.n_cells,
            n_negative_clipped=self._n_negative,
            n_silent=silent,
            n_capped=0 if solution is None else int(solution.capped.sum()),
            share_by_counts_rule=float(solution.share.sum()) if by_share and solution is not None else 0.0,
            implied_total=None if solution is None else solution.implied_total,
            max_factor=float(used.max()) if len(used) else None,
            n_factors_outside_guard=int(((used < GUARD[0]) | (used > GUARD[1])).sum()),
            max_abs_error=float(np.abs(error).max(initial=0.0)),
            rmse=float(np.sqrt(np.mean(error**2))) if len(error) else 0.0,
            max_rel_error_expressed=float(
                (np.abs(error) / np.maximum(self._profile, 1e-300))[expressed].max()
            )
            if expressed.any()
            else None,
            max_rel_error_counts=off,
            dispersion_ratio=dispersion,
            library_median=None if totals is None else float(np.median(totals)),
            library_median_control=pool.median_total if pool is not None and pool.kind == "counts" else None,
            detected_median=float(np.median(np.concatenate(self._detected))),
            detected_median_control=None if pool is None else pool.median_detected,
        )


def emit_cells(
    profile: np.ndarray,
    pool: ControlPool | None,
    *,
    n_cells: int,
    mode: Mode,
    rng_seed: int,
    context: str,
    perturbation: str,
    space: Space = "counts",
    target_sum: float | None = None,
) -> EmittedGroup:
    """All cells of one (context, perturbation) and the report. Arguments and errors as `GroupEmission`."""
    group = GroupEmission(
        profile,
        pool,
        n_cells=n_cells,
        mode=mode,
        rng_seed=rng_seed,
        context=context,
        perturbation=perturbation,
        space=space,
        target_sum=target_sum,
    )
    rows = sp.csr_array(sp.vstack(list(group.blocks()), format="csr"))
    return EmittedGroup(rows, group.report())


def check_effect_scale(factor: float) -> None:
    """Raise `UsageError` for a factor that is not a positive number."""
    if not (np.isfinite(factor) and factor > 0):
        raise UsageError(f"an effect scale must be a positive number, not {factor!r}.")


def amplify(profile: np.ndarray, control: np.ndarray, factor: float) -> tuple[np.ndarray, bool]:
    """The profile with its change from control multiplied by `factor`, and whether that is outside [0.25, 4]."""
    check_effect_scale(factor)
    return control + factor * (profile - control), not GUARD[0] <= factor <= GUARD[1]
