"""How well maps move control cells onto held-out cells: MMD and distance of means, on fixed cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..training.data import CellData
from .conditional import ConditionalPotential
from .config import CellotConfig
from .icnn import Weights, transport
from .measures import masked_mean, median_distance, mmd
from .sampling import PairSampler, evenly

MAPS_AT_ONCE = 32


@dataclass(frozen=True)
class Distances:
    """`mmd` and `l2` (of means) of each map, float64 (P,); NaN for maps without true validation cells."""

    mmd: Tensor
    l2: Tensor


@dataclass(frozen=True)
class MapValidation:
    """Fixed validation cells of P maps.

    `sources` are codes of control cells, (P, S, d); `targets` of held-out cells, (P, M, d) with `used` (P, M);
    `scale` (P,) is the distance that bandwidths are multiples of; `few` marks maps that share a stopping time;
    `trained` are training cells of each map, (P, S, d): what a perfect map would give.
    """

    sources: Tensor
    targets: Tensor
    used: Tensor
    scale: Tensor
    few: Tensor
    trained: Tensor

    @classmethod
    def build(
        cls,
        cells: CellData,
        sampler: PairSampler,
        codes: Tensor,
        config: CellotConfig,
        *,
        generator: torch.Generator,
    ) -> MapValidation | None:
        """The sets of a run, None without held-out cells."""
        held_out = [np.flatnonzero(cells.held_out & _has_label(cells, label)) for label in sampler.labels]
        if not any(len(rows) for rows in held_out):
            return None
        held_out.append(np.sort(np.concatenate(held_out)))
        chosen = [evenly(rows, config.validation_cells) for rows in held_out]
        width = max(len(rows) for rows in chosen)
        table = np.zeros((len(chosen), width), dtype=np.int64)
        used = np.zeros((len(chosen), width), dtype=bool)
        for p, rows in enumerate(chosen):
            table[p, : len(rows)], used[p, : len(rows)] = rows, True
        device = codes.device
        mask = torch.as_tensor(used, device=device)
        targets = codes[torch.as_tensor(table, device=device)]

        def drawn() -> Tensor:
            shape = (len(chosen), config.validation_cells, 2)
            return torch.rand(*shape, generator=generator, dtype=torch.float64).to(device)

        sources = codes[sampler.sources(drawn())]
        trained = codes[sampler.targets(drawn())]
        scale = codes.new_ones(len(chosen))
        if config.mmd_scale == "median":
            # Training cells: a few validation cells would give a scale by chance.
            scale = median_distance(trained)
        few = mask.sum(dim=1) < config.fewest_validation_cells
        return cls(sources, targets, mask, scale, few, trained)

    @property
    def measured(self) -> Tensor:
        """Maps with true validation cells, bool (P,)."""
        return self.used.any(dim=1)

    @torch.no_grad()
    def measure(self, weights: Weights) -> Distances:
        """Distances of the maps with these weights."""
        moved = []
        for start in range(0, len(self.sources), MAPS_AT_ONCE):
            rows = torch.arange(
                start, min(start + MAPS_AT_ONCE, len(self.sources)), device=self.sources.device
            )
            moved.append(transport(weights.rows(rows), self.sources[rows]))
        return self.distances(torch.cat(moved))

    @torch.no_grad()
    def distances(self, predicted: Tensor) -> Distances:
        """Distances of predicted codes (P, S, d)."""
        values = []
        for start in range(0, len(predicted), MAPS_AT_ONCE):
            part = slice(start, start + MAPS_AT_ONCE)
            used = self.used[part]
            own = mmd(predicted[part], self.targets[part], y_used=used, scale=self.scale[part])
            gap = predicted[part].mean(dim=1) - masked_mean(self.targets[part], used)
            values.append(torch.stack([own, gap.norm(dim=1)]))
        found = torch.cat(values, dim=1).double()
        found[:, ~self.measured] = float("nan")
        return Distances(found[0], found[1])

    def grouped(self, values: Tensor) -> Tensor:
        """The value that judges each map, (P,): its own, or with few cells the mean over the maps with few.

        Where none of those has a validation cell, the mean over all maps. NaN values are left out of means.
        """
        few = values[self.few & self.measured]
        common = (few if len(few) else values[self.measured]).nanmean()
        return torch.where(self.few, common, values)

    def comparisons(self, shifts: Tensor) -> dict[str, tuple[float, float]]:
        """Mean MMD and l2 of the comparison maps in code space: `identity`, `average` (mean shift of each map,
        which decoded is scGen's prediction), and `random` (training cells of the perturbation itself)."""
        out = {}
        for name, predicted in (
            ("identity", self.sources),
            ("average", self.sources + shifts[:, None, :].to(self.sources.dtype)),
            ("random", self.trained),
        ):
            found = self.distances(predicted)
            keep = self.measured.clone()
            keep[-1] = False
            out[name] = (float(found.mmd[keep].mean()), float(found.l2[keep].mean()))
        return out


def _has_label(cells: CellData, label: str) -> np.ndarray:
    return np.array([name == label for _, name in cells.keys], dtype=bool)[cells.codes]


@dataclass(frozen=True)
class ConditionalValidation:
    """Cells of the perturbations that the conditional map never sees: sources and targets (K, S, d), scales (K,)."""

    sources: Tensor
    targets: Tensor
    scale: Tensor

    @classmethod
    def build(
        cls,
        sampler: PairSampler,
        codes: Tensor,
        maps: Tensor,
        config: CellotConfig,
        *,
        generator: torch.Generator,
    ) -> ConditionalValidation:
        """The sets of a run, drawn from the training cells of `maps`."""
        own = sampler.of_maps(maps)

        def drawn() -> Tensor:
            shape = (len(maps), config.validation_cells, 2)
            return torch.rand(*shape, generator=generator, dtype=torch.float64).to(codes.device)

        sources, targets = codes[own.sources(drawn())], codes[own.targets(drawn())]
        return cls(sources, targets, median_distance(targets))

    def measure(self, potential: ConditionalPotential, contexts: Tensor) -> tuple[float, float]:
        """Mean over perturbations of the MMD, and of the distance of means."""
        moved = torch.stack(
            [
                potential.transport(own, context.expand(len(own), -1))
                for own, context in zip(self.sources, contexts, strict=True)
            ]
        )
        gap = (moved.mean(dim=1) - self.targets.mean(dim=1)).norm(dim=1)
        return float(mmd(moved, self.targets, scale=self.scale).mean()), float(gap.mean())
