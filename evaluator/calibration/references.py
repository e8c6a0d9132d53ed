"""The references: entries made of the prediction half of the truth's cells, from no change to an exact replicate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...data_specs.labels import CONTROL
from ...data_specs.normalize import row_totals
from ..kernels.moments import add_moments
from .drawn import DrawnRows, Rescaling
from .halves import PartMoments, stream

ReferenceName = Literal["no_change", "mean", "permuted", "replicate", "interpolated_duplicate"]
REFERENCES: tuple[ReferenceName, ...] = (
    "no_change",
    "mean",
    "permuted",
    "replicate",
    "interpolated_duplicate",
)
# Room below an edition's limit of log1p values, for float32.
CAP_MARGIN = 0.01


@dataclass(frozen=True)
class Draw:
    """Rows of the truth and the position in `Parts.keys` that each of them stands for, in the order of the rows."""

    rows: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, pieces: list[tuple[np.ndarray, int]]) -> Draw:
        """The draw of (rows, code) pieces."""
        rows = np.concatenate([rows for rows, _ in pieces])
        codes = np.concatenate([np.full(len(rows), code, dtype=np.int64) for rows, code in pieces])
        order = np.lexsort((codes, rows))
        return cls(rows[order], codes[order])


class ReferenceMaker:
    """Makes the truth and the references of one calibration.

    Predictions have as many cells as the prediction half of their perturbation. No change and the mean are drawn cells
    (of the control; of the other perturbations, each as likely as the next), scaled gene by gene to the exact mean
    profile of all the cells they were drawn from, so that they carry no more noise than the published baselines.

    Parameters
    ----------
    with_controls
        Whether the edition measures predictions from control cells of their own: then they get those of their half.
    max_log1p
        The edition's limit of log1p values.
    """

    def __init__(self, found: PartMoments, *, seed: int, with_controls: bool, max_log1p: float | None):
        self.found, self.parts, self.seed = found, found.parts, seed
        self._with_controls = with_controls
        self._cap = None if max_log1p is None or self.whole else max_log1p - CAP_MARGIN
        self._cells = self.parts.rows_by_key(1)
        self._controls = self.parts.control_of()
        self._pools = {
            context: np.array(
                [i for i in self.parts.pool if self.parts.keys[i][0] == context], dtype=np.int64
            )
            for context in self.parts.controls()
        }
        self._weights = self._trusted()
        self._profiles: np.ndarray | None = None

    @property
    def whole(self) -> bool:
        """Whether values are counts."""
        return self.parts.grouped.kind == "counts"

    @property
    def weights(self) -> dict[int, float]:
        """The weight of a perturbation's own cells in its interpolated duplicate, by position in `Parts.keys`."""
        return dict(self._weights)

    def truth(self) -> Any:
        """The half that plays the truth, with its controls and the training perturbations."""
        cells = self.parts.rows_by_key(0)
        return self._source(Draw.of(list(zip(cells, range(len(cells)), strict=True))), "truth half")

    def reference(self, name: ReferenceName) -> Any | None:
        """A reference as a source to score; None where it cannot be made (one perturbation cannot be permuted)."""
        pieces = {
            "no_change": self._no_change,
            "mean": self._mean,
            "permuted": self._permuted,
            "replicate": self._replicate,
            "interpolated_duplicate": self._interpolated,
        }[name]()
        if pieces is None:
            return None
        draw, wanted = Draw.of(pieces), None
        if name in ("no_change", "mean", "interpolated_duplicate"):
            wanted = self._wanted(name)
        return self._source(self._joined(draw), name, wanted, draw)

    def _joined(self, draw: Draw) -> Draw:
        """The draw and, where the edition needs them, the control cells of the prediction half."""
        if not self._with_controls:
            return draw
        controls = [(self._cells[i], i) for i, key in enumerate(self.parts.keys) if key[1] == CONTROL]
        return Draw.of([*((draw.rows[draw.codes == c], int(c)) for c in np.unique(draw.codes)), *controls])

    def _replicate(self) -> list[tuple[np.ndarray, int]]:
        return [(self._cells[key], key) for key in self.parts.evaluated]

    def _no_change(self) -> list[tuple[np.ndarray, int]]:
        pieces = []
        for key in self.parts.evaluated:
            control = self._cells[self._controls[key]]
            rng = stream(self.seed, "no change", *self.parts.keys[key])
            pieces.append((control[rng.integers(0, len(control), len(self._cells[key]))], key))
        return pieces

    def _mean(self) -> list[tuple[np.ndarray, int]]:
        return [(self._pooled(key, len(self._cells[key])), key) for key in self.parts.evaluated]

    def _permuted(self) -> list[tuple[np.ndarray, int]] | None:
        pieces = []
        for context, keys in self._by_context():
            if len(keys) < 2:
                return None
            order = stream(self.seed, "permuted", context).permutation(keys)
            pieces += [
                (self._cells[other], int(key)) for key, other in zip(order, np.roll(order, 1), strict=True)
            ]
        return pieces

    def _interpolated(self) -> list[tuple[np.ndarray, int]]:
        pieces = []
        for key in self.parts.evaluated:
            own = self._cells[key]
            n = round(self._weights[key] * len(own))
            chosen = stream(self.seed, "interpolated", *self.parts.keys[key]).permutation(own)[:n]
            pieces.append((np.concatenate([chosen, self._pooled(key, len(own) - n)]), key))
        return pieces

    def _by_context(self) -> Iterator[tuple[str, list[int]]]:
        contexts = sorted({self.parts.keys[key][0] for key in self.parts.evaluated})
        for context in contexts:
            yield context, [key for key in self.parts.evaluated if self.parts.keys[key][0] == context]

    def _pooled(self, key: int, n: int) -> np.ndarray:
        """`n` cells of other perturbations of the context: a perturbation at random, then one of its cells."""
        pool = self._pools[self.parts.keys[key][0]]
        pool = pool[pool != key]
        rng = stream(self.seed, "mean", *self.parts.keys[key])
        chosen = pool[rng.integers(0, len(pool), n)]
        sizes = np.array([len(self._cells[i]) for i in chosen], dtype=np.int64)
        places = rng.integers(0, sizes) if n else sizes
        return np.array([self._cells[i][j] for i, j in zip(chosen, places, strict=True)], dtype=np.int64)

    def _pool_means(self, profiles: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(key, equal-weight mean of the profiles of its context's other pool perturbations) of evaluated keys."""
        sums = {context: profiles[pool].sum(axis=0) for context, pool in self._pools.items()}
        within = set(self.parts.pool)
        for key in self.parts.evaluated:
            context = self.parts.keys[key][0]
            own = profiles[key] if key in within else 0.0
            yield key, (sums[context] - own) / (len(self._pools[context]) - (key in within))

    def _trusted(self) -> dict[int, float]:
        """How far each half's own change is trusted over the mean: 1 - noise / size, at least 0 (James and Stein)."""
        halves = [self.found.half(i, (2, 3)) for i in range(len(self.parts.keys))]
        profiles = np.stack([mean for _, mean, _ in halves])
        out = {}
        for key, mean in self._pool_means(profiles):
            n, own, variance = halves[key]
            size, noise = float(np.sum((own - mean) ** 2)), float(variance.sum()) / n
            out[key] = max(0.0, 1.0 - noise / size) if size > 0 else 0.0
        return out

    def _wanted(self, name: ReferenceName) -> np.ndarray:
        """The profiles that drawn cells are scaled to, (n_keys, n_genes); rows of other keys are zero."""
        if self._profiles is None:
            cells = self._cells
            draw = Draw.of(list(zip(cells, range(len(cells)), strict=True)))
            self._profiles = self._mean_profiles(draw)
        profiles, out = self._profiles, np.zeros_like(self._profiles)
        if name == "no_change":
            chosen = list(self.parts.evaluated)
            out[chosen] = profiles[self._controls[chosen]]
            return out
        for key, mean in self._pool_means(profiles):
            weight = self._weights[key] if name == "interpolated_duplicate" else 0.0
            # Sums that cancel leave rounding below zero.
            out[key] = np.maximum(mean + weight * (profiles[key] - mean), 0.0)
        return out

    def _mean_profiles(self, draw: Draw) -> np.ndarray:
        """Means per key of log1p values, or of counts as shares of their cell, float64, (n_keys, n_genes)."""
        source = DrawnRows(self.parts.grouped.source, draw.rows, {}, name="drawn")
        shape = (len(self.parts.keys), source.n_vars)
        sums, squares = np.zeros(shape), np.zeros(shape)
        for block in source.row_blocks(max_bytes=self.parts.grouped.block_bytes):
            rows = block.matrix
            data = rows.data.astype(np.float64)
            if self.whole:
                totals = row_totals(rows)
                data /= np.repeat(np.where(totals > 0, totals, 1.0), np.diff(rows.indptr))
            add_moments(data, rows.indices, rows.indptr, draw.codes[block.start : block.stop], sums, squares)
        n = np.bincount(draw.codes, minlength=shape[0])
        return sums / np.maximum(n, 1)[:, None]

    def _source(
        self, draw: Draw, name: str, wanted: np.ndarray | None = None, scaled: Draw | None = None
    ) -> DrawnRows:
        rescaling = None
        if wanted is not None and scaled is not None:
            now = self._mean_profiles(scaled)
            factors = np.divide(wanted, now, out=np.ones_like(now), where=now > 0)
            factors[[i for i, key in enumerate(self.parts.keys) if key[1] == CONTROL]] = 1.0
            rescaling = Rescaling(
                factors.astype(np.float32), draw.codes, _places(draw.codes), self.whole, self._cap
            )
        columns = self.parts.grouped.columns
        keys = self.parts.keys
        names = np.array([columns.control if key[1] == CONTROL else key[1] for key in keys], dtype=object)
        obs = {columns.perturbation: names[draw.codes]}
        if columns.context is not None and columns.context in self.parts.grouped.source.obs_columns:
            obs[columns.context] = np.array([key[0] for key in keys], dtype=object)[draw.codes]
        return DrawnRows(self.parts.grouped.source, draw.rows, obs, name=name, rescaling=rescaling)


def _places(codes: np.ndarray) -> np.ndarray:
    """How many rows of the same group stand before each row, int64."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    out = np.empty(len(codes), dtype=np.int64)
    out[order] = np.arange(len(codes)) - np.searchsorted(ordered, ordered, side="left")
    return out
