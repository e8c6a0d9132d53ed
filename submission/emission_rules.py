"""The five emission rules: how a mean log profile and real control cells become new cells.

Each rule is a plan made once per (context, perturbation), from which any block of its cells can be drawn. Rules and
letters follow Table 10 of the baseline specification: tile (A), shift (B), scale (C), counts (E), thin (F).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import scipy.sparse as sp

from ..data_specs.errors import UsageError
from .control_pool import ControlPool

if TYPE_CHECKING:
    from .emission_draws import SystematicRounding

Mode = Literal["tile", "shift", "scale", "counts", "thin"]
Space = Literal["counts", "log1p"]
MODES: tuple[Mode, ...] = ("tile", "shift", "scale", "counts", "thin")
MAX_FACTOR = 100.0
THIN_SOLVE_CELLS = 1024
# Groups of this many cells get factors fitted to their own control cells, others to a sample of the pool.
FEWEST_FITTED, MOST_FITTED = 100, 2048


@dataclass(frozen=True)
class Solution:
    """Per gene: the `factor` on control counts (NaN where the counts rule applies), and the `share` of the total
    given to genes of the counts rule (0 elsewhere). `capped` marks genes whose factor would exceed the cap;
    `implied_total` is the profile's own total over `target_sum` (1 when the profile is consistent)."""

    factor: np.ndarray
    share: np.ndarray
    capped: np.ndarray
    implied_total: float


class Rule(Protocol):
    """Draws blocks of cells. `draws` are pool rows, one per cell of the block."""

    @property
    def solution(self) -> Solution | None: ...
    @property
    def expected(self) -> np.ndarray | None:
        """Sum per gene that the cells drawn so far aim at, in counts; None in log space or where there is none."""
        ...

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        """The cells in the wanted space, CSR float64, shape (len(draws), n_genes)."""
        ...


def make_rule(
    mode: Mode,
    profile: np.ndarray,
    pool: ControlPool | None,
    space: Space,
    target_sum: float,
    draws: np.ndarray,
) -> Rule:
    """The plan of one group. `profile` is finite and not negative; `draws` are the pool rows of all its cells.

    Raises
    ------
    UsageError
        The mode needs control cells, or control counts, that the pool does not have.
    """
    if mode == "tile":
        if space == "counts" and pool is None:
            raise UsageError("tile as counts needs control cells for the library size.")
        return _Tile(
            profile, space, target_sum, 0.0 if pool is None or space == "log1p" else pool.median_total
        )
    if pool is None:
        raise UsageError(f"emission mode {mode} needs control cells: give --controls.")
    if pool.kind != "counts" and (mode != "shift" or space == "counts"):
        raise UsageError(f"emission mode {mode} needs control cells as counts, and these are log1p values.")
    if mode == "shift":
        return _Shift(profile, pool, space)
    if mode == "scale":
        # Factors that fit the very cells drawn leave no error of the draw in the group mean.
        fitted = FEWEST_FITTED <= len(draws) <= MOST_FITTED
        basis = pool.subset(np.sort(draws)) if fitted else pool.sample
        start = _first_factor(profile, pool.log_mean)
        return _Scale(pool, space, solve_scale(profile, basis, rounded=space == "counts", start=start))
    if mode == "counts":
        return _Counts(pool, space, solve_counts(profile, pool))
    return _Thin(pool, space, solve_thin(profile, pool))


def stochastic_round(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each value rounded down or up at random so that its mean is kept; whole numbers stay."""
    whole = np.floor(values)
    return whole + (rng.random(values.shape) < values - whole)


def solve_scale(
    profile: np.ndarray, pool: ControlPool, *, rounded: bool, start: np.ndarray | None = None
) -> Solution:
    """Factors on control counts, totals kept, whose (rounded) cells have log mean `profile` over the whole pool.

    `start` are first guesses of the factors.

    Genes silent in every control, and genes that would need a factor above 100, get the counts rule instead.
    """
    from .emission_solve import MAX_STEPS, TOLERANCE, counts_shares, log_step, log_table, scale_means

    columns, table = pool.columns, log_table(pool.scales)
    silent = np.diff(columns.indptr) == 0
    by_share = silent & (profile > 0)
    wanted = ~silent & (profile > 0)
    capped = np.zeros(len(profile), dtype=bool)
    guess = _first_factor(profile, pool.log_mean) if start is None else start
    factor = np.where(wanted, guess, 0.0)
    means, slopes = np.zeros(len(profile)), np.zeros(len(profile))
    rounds, implied, fill = 0, 1.0, np.ones(pool.n_cells)
    while True:
        share = np.where(by_share | capped, counts_shares(profile, pool.count_table), 0.0)
        rest = max(0.0, 1.0 - share.sum())
        for _ in range(MAX_STEPS):
            now = np.where(capped, 0.0, factor)
            scaled = np.asarray(pool.counts @ now)
            fill = np.divide(pool.totals * rest, scaled, out=np.zeros_like(scaled), where=scaled > 0)
            given = (columns.data, columns.indices, columns.indptr, now, fill, pool.scales, table)
            scale_means(*given, rounded, means, slopes)
            open_genes = wanted & ~capped & (means > 0)
            step = log_step(profile[open_genes], means[open_genes], slopes[open_genes])
            if not len(step):
                break
            mass = now[open_genes] * pool.mean_counts[open_genes]
            drift = float(np.average(step, weights=mass)) if mass.sum() > 0 else 0.0
            implied = float(np.exp(drift))
            factor[open_genes] *= np.exp(step - drift)
            if np.abs(step - drift).max() < TOLERANCE:
                break
        # The totals say how much of the factors is common to all genes and undone by keeping each cell's total.
        common = float(np.mean(fill[fill > 0])) if (fill > 0).any() else 1.0
        factor *= common
        over = wanted & ~capped & (factor > MAX_FACTOR)
        rounds += 1
        if not over.any() or rounds == 4:
            capped |= over
            break
        capped |= over
    share = np.where(by_share | capped, counts_shares(profile, pool.count_table), 0.0)
    return Solution(np.where(by_share | capped, np.nan, factor), share, capped, implied)


def solve_counts(profile: np.ndarray, pool: ControlPool) -> Solution:
    """Shares of the total, summing to 1, whose Poisson counts have log mean `profile` up to one common factor."""
    from .emission_solve import counts_shares

    share = counts_shares(profile, pool.count_table)
    total = float(share.sum())
    return Solution(
        np.full(len(profile), np.nan), share / total if total else share, np.zeros(len(profile), bool), total
    )


def solve_thin(profile: np.ndarray, pool: ControlPool) -> Solution:
    """Factors of molecules kept (below 1) or added (above 1) whose cells have log mean `profile`.

    At most 1,024 evenly spaced control cells enter the expectation. Silent and capped genes get the counts rule.
    """
    from .emission_solve import MAX_STEPS, TOLERANCE, counts_shares, log_step, thin_means

    step_size = -(-pool.n_cells // THIN_SOLVE_CELLS)
    part = pool.counts[::step_size]
    totals = pool.totals[::step_size]
    dense = np.ascontiguousarray(part.toarray().T)
    silent = pool.mean_counts == 0
    wanted = ~silent & (profile > 0)
    factor = np.where(wanted, _first_factor(profile, pool.log_mean), 0.0)
    scales = pool.target_sum / totals
    means, slopes = np.zeros(len(profile)), np.zeros(len(profile))
    low, high = np.full(len(profile), -np.inf), np.full(len(profile), np.inf)
    for _ in range(MAX_STEPS):
        thin_means(dense, factor, pool.mean_counts, scales, means, slopes)
        at = np.flatnonzero(wanted & (means > 0))
        if not len(at):
            break
        here = np.log(factor[at])
        low[at] = np.where(means[at] <= profile[at], here, low[at])
        high[at] = np.where(means[at] >= profile[at], here, high[at])
        step = log_step(profile[at], means[at], slopes[at])
        # The slope jumps at a factor of 1, where Newton's steps could go back and forth.
        outside = (here + step < low[at]) | (here + step > high[at])
        step[outside] = (low[at] + high[at])[outside] / 2 - here[outside]
        factor[at] = np.exp(here + step)
        if np.abs(step).max() < TOLERANCE:
            break
    capped = factor > MAX_FACTOR
    by_share = (silent & (profile > 0)) | capped
    share = np.where(by_share, counts_shares(profile, pool.count_table), 0.0)
    kept = np.where(by_share, 0.0, factor)
    implied = float(kept @ pool.mean_counts / pool.mean_counts.sum() + share.sum())
    return Solution(np.where(by_share, np.nan, factor), share, capped, implied)


def _first_factor(profile: np.ndarray, control: np.ndarray) -> np.ndarray:
    base = np.expm1(control)
    ratio = np.divide(np.expm1(np.minimum(profile, 50.0)), base, out=np.ones_like(base), where=base > 0)
    return np.clip(ratio, 1e-6, 1e6)


@dataclass(frozen=True)
class _Tile:
    profile: np.ndarray
    space: Space
    target_sum: float
    total: float
    solution: Solution | None = None
    expected: np.ndarray | None = None

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        if self.space == "log1p":
            return sp.csr_array(np.broadcast_to(self.profile, (len(draws), len(self.profile))))
        rate = np.expm1(self.profile) * self.total / self.target_sum
        return sp.csr_array(stochastic_round(np.broadcast_to(rate, (len(draws), len(rate))), rounding))


@dataclass(frozen=True)
class _Shift:
    profile: np.ndarray
    pool: ControlPool
    space: Space
    solution: Solution | None = None
    expected: np.ndarray | None = None

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        logs = self.pool.log_rows(draws).toarray() + (self.profile - self.pool.log_mean)
        logs = np.maximum(logs, 0.0)
        if self.space == "log1p":
            return sp.csr_array(logs)
        back = np.expm1(logs) * (self.pool.totals[draws] / self.pool.target_sum)[:, None]
        return sp.csr_array(stochastic_round(back, rounding))


@dataclass
class _Scale:
    pool: ControlPool
    space: Space
    solution: Solution
    expected: np.ndarray | None = None
    _rounding: SystematicRounding | None = None

    def _rounded(self, rng: np.random.Generator) -> SystematicRounding:
        from .emission_draws import SystematicRounding

        if self._rounding is None:
            self._rounding = SystematicRounding(self.pool.n_genes, rng)
        return self._rounding

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        rows = self.pool.counts[draws]
        factor = np.nan_to_num(self.solution.factor, nan=0.0)
        data = rows.data * factor[rows.indices]
        scaled = sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
        totals = np.asarray(scaled.sum(axis=1)).ravel()
        kept = self.pool.totals[draws] * max(0.0, 1.0 - self.solution.share.sum())
        fill = np.divide(kept, totals, out=np.zeros_like(totals), where=totals > 0)
        data = data * np.repeat(fill, np.diff(rows.indptr))
        if self.space == "counts":
            aim = np.bincount(rows.indices, weights=data, minlength=self.pool.n_genes)
            aim += self.solution.share * self.pool.totals[draws].sum()
            self.expected = aim if self.expected is None else self.expected + aim
            data = self._rounded(rounding)(data, rows.indices)
        scaled = sp.csr_array((data, rows.indices, rows.indptr), shape=rows.shape)
        cells = sp.csr_array(scaled + _poisson(self.pool.totals[draws], self.solution.share, counting))
        return cells if self.space == "counts" else log_of(cells, self.pool.target_sum)


@dataclass
class _Counts:
    pool: ControlPool
    space: Space
    solution: Solution
    expected: np.ndarray | None = None

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        totals = self.pool.totals[draws]
        aim = self.solution.share * totals.sum()
        self.expected = aim if self.expected is None else self.expected + aim
        cells = _poisson(totals, self.solution.share, counting)
        return cells if self.space == "counts" else log_of(cells, self.pool.target_sum)


@dataclass
class _Thin:
    pool: ControlPool
    space: Space
    solution: Solution
    expected: np.ndarray | None = None

    def cells(
        self, draws: np.ndarray, rounding: np.random.Generator, counting: np.random.Generator
    ) -> sp.csr_array:
        rows = self.pool.counts[draws]
        totals = self.pool.totals[draws]
        factor = np.nan_to_num(self.solution.factor, nan=0.0)
        keep = np.minimum(factor, 1.0)[rows.indices]
        kept = rounding.binomial(rows.data.astype(np.int64), keep).astype(np.float64)
        cells = sp.csr_array((kept, rows.indices, rows.indptr), shape=rows.shape)
        # Added molecules are Poisson with mean proportional to the cell's total, so they join the counts rule.
        added = np.maximum(factor - 1.0, 0.0) * self.pool.mean_counts / self.pool.totals.mean()
        share = self.solution.share + added
        aim = np.bincount(rows.indices, weights=rows.data * keep, minlength=self.pool.n_genes)
        aim += share * totals.sum()
        self.expected = aim if self.expected is None else self.expected + aim
        cells = sp.csr_array(cells + _poisson(totals, share, counting))
        return cells if self.space == "counts" else log_of(cells, self.pool.target_sum)


def _poisson(totals: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> sp.csr_array:
    # Imported here, so that packing which draws nothing loads no numba.
    from .emission_draws import poisson_with_totals

    return poisson_with_totals(totals, share, rng)


def log_of(cells: sp.csr_array, target_sum: float) -> sp.csr_array:
    """ln(1 + x * target_sum / total) of emitted counts; an empty cell stays zero."""
    from ..data_specs.normalize import lognormalize

    return lognormalize(cells, target_sum)


def blocks_of(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
