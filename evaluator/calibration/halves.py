"""The truth's cells in four parts per perturbation: two of them play the truth, two the predictions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ...data_specs.errors import UsageError
from ...data_specs.labels import CONTROL
from ...data_specs.split_file import Split
from ...data_specs.standard import MatrixMeta
from ..bulk import GroupMoments, group_moments
from ..core.de import de_table
from ..probes.rows import GroupedRows, Key, declared_target_sum
from ..score_options import Subset

N_PARTS = 4
# A part needs one cell; a half then has the two that a variance needs.
MIN_CELLS = N_PARTS
# The three ways of making two halves of four parts; the first is the one that references use.
SPLITS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
UNKNOWN_TARGET_SUM = 1e4
TIER_BOUNDS = (1, 10, 100)
ALPHA = 0.05


@dataclass(frozen=True)
class Parts:
    """Which cell of the truth belongs to which part of which group.

    Attributes
    ----------
    grouped
        The truth's rows.
    keys
        (context, perturbation) in use, sorted, controls among them.
    evaluated, pool
        Positions in `keys` of the perturbations that references are made for, and of those whose mean is the mean
        reference.
    code
        Position in `keys` of each row, int64, -1 for rows left out.
    part
        0 to 3 of each row; parts 0 and 1 are the half that plays the truth.
    left_out
        Perturbations without references, and why.
    """

    grouped: GroupedRows
    keys: tuple[Key, ...]
    evaluated: tuple[int, ...]
    pool: tuple[int, ...]
    code: np.ndarray
    part: np.ndarray
    left_out: dict[Key, str]

    def rows_by_key(self, half: int) -> list[np.ndarray]:
        """The rows of every key in one half (0: the truth, 1: the prediction), ascending."""
        chosen = np.flatnonzero((self.code >= 0) & (self.part // 2 == half))
        order = np.argsort(self.code[chosen], kind="stable")
        bounds = np.searchsorted(self.code[chosen][order], np.arange(len(self.keys) + 1))
        return [chosen[order[a:b]] for a, b in pairwise(bounds)]

    def controls(self) -> dict[str, int]:
        """Context to the position of its control."""
        return {context: i for i, (context, name) in enumerate(self.keys) if name == CONTROL}

    def control_of(self) -> np.ndarray:
        """The position of the control of each key's context, int64, shape (n_keys,)."""
        places = self.controls()
        return np.array([places[context] for context, _ in self.keys], dtype=np.int64)


def stream(seed: int, *names: str) -> np.random.Generator:
    """A generator that depends on the seed and the names alone, not on the order of calls."""
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])


def split_parts(
    grouped: GroupedRows, *, seed: int = 0, split: Split | None = None, subset: Subset = "test"
) -> Parts:
    """Deal the cells of every group to the four parts, at random and evenly.

    With a split, references are made for the perturbations of `subset` and the mean is that of the training ones.

    Raises
    ------
    UsageError
        Nothing to make references for: no context with control cells and two perturbations of four cells.
    """
    sizes = dict(zip(grouped.keys, grouped.sizes.tolist(), strict=True))
    wanted, train = _chosen(grouped.keys, split, subset)
    left_out: dict[Key, str] = {}
    for key in sorted(wanted):
        if sizes.get((key[0], CONTROL), 0) < MIN_CELLS:
            left_out[key] = f"its context has fewer than {MIN_CELLS} control cells"
        elif sizes[key] < MIN_CELLS:
            left_out[key] = f"{sizes[key]} cells; halves need {MIN_CELLS}"
    usable = {key for key in wanted | train if sizes[key] >= MIN_CELLS}
    usable = {key for key in usable if sizes.get((key[0], CONTROL), 0) >= MIN_CELLS}
    evaluated = (wanted & usable) - set(left_out)
    pool = train & usable if train else evaluated
    for context in {context for context, _ in evaluated}:
        own = {key for key in evaluated if key[0] == context}
        others = {key for key in pool if key[0] == context}
        if not others or (others == own and len(own) < 2):
            left_out |= dict.fromkeys(own, "no other perturbation of its context to take a mean of")
            evaluated -= own
    if not evaluated:
        raise UsageError(
            f"{grouped.source.name}: no perturbation can be calibrated: it takes {MIN_CELLS} cells, as many control "
            "cells in its context, and another perturbation there."
        )
    controls = {(context, CONTROL) for context, _ in evaluated}
    keys = tuple(sorted(evaluated | {k for k in pool if (k[0], CONTROL) in controls} | controls))
    place = {key: i for i, key in enumerate(keys)}
    table = np.array([place.get(key, -1) for key in grouped.keys] + [-1], dtype=np.int64)
    code = table[grouped.codes]
    part = np.zeros(len(code), dtype=np.int8)
    order = np.argsort(code, kind="stable")
    bounds = np.searchsorted(code[order], np.arange(len(keys) + 1))
    for i, key in enumerate(keys):
        rows = order[bounds[i] : bounds[i + 1]]
        part[stream(seed, "parts", *key).permutation(rows)] = np.arange(len(rows)) % N_PARTS
    return Parts(
        grouped,
        keys,
        tuple(i for i, key in enumerate(keys) if key in evaluated),
        tuple(i for i, key in enumerate(keys) if key in pool),
        code,
        part,
        dict(sorted(left_out.items())),
    )


def _chosen(keys: tuple[Key, ...], split: Split | None, subset: Subset) -> tuple[set[Key], set[Key]]:
    """Keys to evaluate and training keys; a file without contexts has one, whatever the split calls it."""
    own = {key for key in keys if key[1] != CONTROL}
    if split is None:
        return own, set()
    named = any(context for context, _ in own)

    def of(part: str) -> set[Key]:
        listed = {key if named else key[1] for key in split.keys(part)}  # type: ignore[arg-type]
        return {key for key in own if (key if named else key[1]) in listed}

    parts = ("train", "validation", "test") if subset == "all" else (subset,)
    return set().union(*(of(part) for part in parts)), of("train")


@dataclass(frozen=True)
class PartMoments:
    """Moments of every part of every group in log1p space; rows of `moments` are `key * 4 + part`."""

    parts: Parts
    moments: GroupMoments
    target_sum: float

    def half(self, key: int, parts: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
        """Cells, mean and unbiased variance of some parts of a group together."""
        rows = [key * N_PARTS + part for part in parts]
        n = self.moments.n[rows].astype(np.float64)
        mean = n @ self.moments.mean[rows] / n.sum()
        within = (n - 1) @ np.nan_to_num(self.moments.variance[rows])
        between = n @ (self.moments.mean[rows] - mean) ** 2
        return int(n.sum()), mean, (within + between) / (n.sum() - 1)


def part_moments(parts: Parts) -> PartMoments:
    """Read the truth once and keep what halves and reliabilities need, float64, 4 x groups x genes."""
    grouped = parts.grouped
    target_sum = declared_target_sum(grouped.source) or grouped.median_total() or UNKNOWN_TARGET_SUM
    codes = np.where(parts.code >= 0, parts.code * N_PARTS + parts.part, -1)
    moments = group_moments(
        grouped.source,
        codes,
        len(parts.keys) * N_PARTS,
        MatrixMeta(grouped.kind, target_sum),
        block_bytes=grouped.block_bytes,
    )
    return PartMoments(parts, moments, target_sum)


@dataclass(frozen=True)
class Reliability:
    """How well the cells of one perturbation determine its effect.

    `half_correlation` is the Pearson correlation over genes of the changes from control in two halves of the cells,
    the mean of three ways to halve; each half has its own control cells. `reliability` is what all cells would give by
    the formula of Spearman and Brown, 2 r / (1 + r); None where r is not positive or undefined. `n_de` counts genes
    that differ from control (Welch's t, BH < 0.05), `effect_tier` is its tier.
    """

    context: str
    perturbation: str
    n_cells: int
    half_correlation: float | None
    reliability: float | None
    n_de: int | None
    effect_tier: str


def reliabilities(found: PartMoments) -> list[Reliability]:
    """The reliability of every evaluated perturbation, sorted by (context, perturbation)."""
    from ..core.aggregate import effect_tier

    parts, everything = found.parts, tuple(range(N_PARTS))
    halves = {
        half: {i: found.half(i, half) for i in parts.controls().values()} for pair in SPLITS for half in pair
    }
    whole = {i: found.half(i, everything) for i in parts.controls().values()}
    out, controls = [], parts.control_of()
    for key in parts.evaluated:
        control = int(controls[key])
        values = []
        for pair in SPLITS:
            first, second = (found.half(key, half)[1] - halves[half][control][1] for half in pair)
            values.append(correlation(first, second))
        r = float(np.mean(values))
        n, mean, variance = found.half(key, everything)
        n_control, control_mean, control_variance = whole[control]
        table = de_table(mean, variance, n, control_mean, control_variance, n_control, alpha=ALPHA)
        n_de = None if table is None else table.n_significant
        known = bool(np.isfinite(r))
        out.append(
            Reliability(
                *parts.keys[key],
                n,
                r if known else None,
                spearman_brown(r) if known else None,
                n_de,
                effect_tier(n_de, TIER_BOUNDS),
            )
        )
    return out


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two vectors; NaN when one is constant."""
    a, b = first - first.mean(), second - second.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def spearman_brown(r: float) -> float | None:
    """The reliability of twice as many cells, 2 r / (1 + r); None unless r is positive.

    Examples
    --------
    >>> spearman_brown(0.5), spearman_brown(-0.1)
    (0.6666666666666666, None)
    """
    return 2 * r / (1 + r) if r > 0 else None
