"""Perturbations without a map of their own: which trained maps resemble them, by features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..features import FeatureTable, standardized

NEIGHBOURS = (1, 3, 5, 10, 20, 0)
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0, 10.0)


@dataclass(frozen=True)
class Similarity:
    """Features of the trained perturbations, and the table that gives those of others.

    `vectors` are float64 (P - 1, k), NaN for a label with a target that has no features.
    """

    table: FeatureTable
    labels: tuple[str, ...]
    vectors: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, table: FeatureTable, labels: Sequence[str]) -> Similarity:
        """Features standardised on the targets of `labels`. Raises `ModelError` when none has features."""
        scaled = standardized(table, labels)
        return cls(scaled, tuple(labels), _vectors(scaled, labels))

    def reduced(self, n_dims: int) -> Similarity:
        """Principal components of the whole table, at most `n_dims`, with unit variance over the trained labels."""
        values = self.table.values
        _, _, axes = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
        scores = (values - values.mean(axis=0)) @ axes[:n_dims].T
        at_labels = _vectors(FeatureTable(self.table.names, scores), self.labels)
        known = at_labels[np.isfinite(at_labels).all(axis=1)]
        spread = known.std(axis=0) if len(known) > 1 else np.ones(scores.shape[1])
        table = FeatureTable(self.table.names, scores / np.where(spread > 1e-12, spread, 1.0))
        return Similarity(table, self.labels, _vectors(table, self.labels))

    def vector(self, label: str) -> tuple[np.ndarray, list[str]]:
        """Features of a label, and its targets that have none."""
        return self.table.label(label)

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """Cosine with each trained label, float64 (P - 1,); NaN where it has no features, 0 for a zero vector."""
        scale = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(vector)
        inner = self.vectors @ vector
        return np.where(np.isnan(inner), np.nan, inner / np.where(scale > 0, scale, 1.0))

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays for npz."""
        return {f"{prefix}_names": self.table.names.astype(np.str_), f"{prefix}_values": self.table.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str, labels: Sequence[str]) -> Similarity:
        """The inverse of `arrays`."""
        table = FeatureTable(arrays[f"{prefix}_names"], arrays[f"{prefix}_values"])
        return cls(table, tuple(labels), _vectors(table, labels))


def _vectors(table: FeatureTable, labels: Sequence[str]) -> np.ndarray:
    out = np.full((len(labels), table.n_dims), np.nan)
    for i, label in enumerate(labels):
        vector, missing = table.label(label)
        if not missing:
            out[i] = vector
    return out


def averaging_weights(cosines: np.ndarray, neighbours: int, temperature: float) -> np.ndarray:
    """softmax(cosine / temperature) over the nearest labels (0: all), float64, sums to 1; NaN cosines weigh 0."""
    order = np.argsort(-np.where(np.isnan(cosines), -np.inf, cosines), kind="stable")
    known = order[: int(np.isfinite(cosines).sum())]
    nearest = known[:neighbours] if neighbours else known
    weights = np.zeros(len(cosines))
    raised = np.exp((cosines[nearest] - cosines[nearest].max()) / temperature)
    weights[nearest] = raised / raised.sum()
    return weights


@dataclass(frozen=True)
class Averaging:
    """How maps are averaged, and what leaving out each trained perturbation gave.

    Errors are mean distances, in code space, between mean displacements of maps and the true mean shifts: `averaged`
    for U1, `pooled` for the pooled map (U0), over `n` perturbations; NaN when fewer than three have features.
    """

    neighbours: int
    temperature: float
    averaged: float = float("nan")
    pooled: float = float("nan")
    n: int = 0


def tune_averaging(
    similarity: Similarity,
    displacements: np.ndarray,
    pooled: np.ndarray,
    shifts: np.ndarray,
    *,
    neighbours: int = 0,
    temperature: float = 0.0,
) -> Averaging:
    """Neighbours and temperature with the lowest leave-one-out error; those given (not 0) stay.

    `displacements` (P - 1, d) are the mean displacements of the maps, `pooled` (d,) that of the pooled map, `shifts`
    (P - 1, d) the true ones. An average of maps moves the mean by the average of their displacements.
    """
    known = np.flatnonzero(np.isfinite(similarity.vectors).all(axis=1))
    chosen_k, chosen_t = (
        (neighbours,) if neighbours else NEIGHBOURS,
        (temperature,) if temperature else TEMPERATURES,
    )
    if len(known) < 3:
        return Averaging(chosen_k[-1], chosen_t[-1], n=len(known))
    cosines = [_without(similarity.cosines(similarity.vectors[p]), int(p)) for p in known]
    found = []
    for k in chosen_k:
        for tau in chosen_t:
            gaps = [
                np.linalg.norm(averaging_weights(own, k, tau) @ displacements - shifts[p])
                for p, own in zip(known, cosines, strict=True)
            ]
            found.append((float(np.mean(gaps)), k, tau))
    error, k, tau = min(found, key=lambda item: item[0])
    reference = float(np.linalg.norm(pooled - shifts[known], axis=1).mean())
    return Averaging(k, tau, error, reference, len(known))


def _without(cosines: np.ndarray, place: int) -> np.ndarray:
    out = cosines.copy()
    out[place] = np.nan
    return out
