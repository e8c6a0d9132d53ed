"""Predictions of a trained network: control cells decoded under perturbations, cells decoded from themselves."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .data import Pool
from .encoding import CONTROL_ROW
from .network import CpaNetwork, GaussianDecoder

# Entries of one block of cells x genes.
BLOCK = 500_000


@dataclass(frozen=True)
class Decoded:
    """Likelihood parameters of cells, float64, shape (n, G) each.

    Counts: `mean` is the expected count before extra zeros, `spread` the inverse dispersion (1, G), `zeros` the
    probability of an extra zero or None. Gaussian: mean and variance of log1p values.
    """

    mean: np.ndarray
    spread: np.ndarray
    zeros: np.ndarray | None
    counts: bool

    @property
    def expected(self) -> np.ndarray:
        """The expected value: counts (extra zeros included), or log1p values."""
        return self.mean if self.zeros is None else self.mean * (1 - self.zeros)

    def sample(self, rng: np.random.Generator, *, gamma: np.ndarray | None = None) -> np.ndarray:
        """One draw per cell, shape (n, G): counts, or log1p values cut at 0.

        `gamma` are standard gamma draws with shapes `spread`, shared between predictions that are compared.
        """
        if not self.counts:
            return np.maximum(rng.normal(self.mean, np.sqrt(self.spread)), 0.0)
        if gamma is None:
            gamma = rng.standard_gamma(np.broadcast_to(self.spread, self.mean.shape))
        drawn = rng.poisson(self.mean * gamma / self.spread).astype(np.float64)
        if self.zeros is not None:
            drawn[rng.random(drawn.shape) < self.zeros] = 0.0
        return drawn


def decode(network: CpaNetwork, z: Tensor, library: Tensor) -> Decoded:
    """Likelihood parameters of latent states (n, L) for cells of these library sizes (n,)."""
    if isinstance(network.decoder, GaussianDecoder):
        mean, variance = network.decoder(z)
        return Decoded(_float64(mean), _float64(variance), None, counts=False)
    shares, logits = network.decoder(z)
    zeros = None if logits is None else _float64(torch.sigmoid(logits))
    mean = _float64(shares) * _float64(library)[:, None]
    return Decoded(mean, _float64(network.theta)[None, :], zeros, counts=True)


def _float64(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def log_scaled(counts: np.ndarray, target_sum: float) -> np.ndarray:
    """ln(1 + x * target_sum / total) of each cell; a cell without counts is 0."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts * np.divide(target_sum, totals, out=np.zeros_like(totals), where=totals > 0))


@dataclass(frozen=True)
class _Block:
    """Some pool cells on the device: basal state plus covariates, and library sizes."""

    number: int
    z: Tensor
    library: Tensor

    def __len__(self) -> int:
        return len(self.library)


class Counterfactuals:
    """Mean profiles of contexts under perturbations, from each context's control cells.

    Every draw has a stream of its own, named by seed, context, perturbation and block of cells, so a profile does
    not depend on what else is asked for. The network is used in evaluation mode, without gradients.
    """

    def __init__(self, network: CpaNetwork, pools: Mapping[str, Pool], target_sum: float, seed: int):
        self.network, self.pools, self.target_sum, self.seed = network, pools, target_sum, seed
        self._parameter = network.encoder.z.weight

    def profiles(
        self, context: str, vectors: Mapping[str, Tensor], *, n_samples: int
    ) -> dict[str, np.ndarray]:
        """Mean log1p profile of each named perturbation vector (L,), float64, shape (G,).

        Counts: the mean of ln(1 + x * target_sum / total) over about `n_samples` sampled cells, each pool cell
        equally often. Gaussian: the mean of the decoded means.
        """
        pool = self.pools[context]
        repeats = max(1, -(-n_samples // len(pool))) if self.network.counts else 1
        sums = {name: np.zeros(pool.x.shape[1]) for name in vectors}  # type: ignore[index]
        for block in self._blocks(pool):
            gammas = [self._gamma(context, block, i) for i in range(repeats)]
            for name, vector in vectors.items():
                found = decode(self.network, block.z + vector, block.library)
                if not found.counts:
                    sums[name] += found.mean.sum(axis=0)
                    continue
                for i, gamma in enumerate(gammas):
                    rng = self._stream(context, name, str(block.number), str(i))
                    sums[name] += log_scaled(found.sample(rng, gamma=gamma), self.target_sum).sum(axis=0)
        return {name: total / (len(pool) * repeats) for name, total in sums.items()}

    def _gamma(self, context: str, block: _Block, repeat: int) -> np.ndarray | None:
        if not self.network.counts:
            return None
        theta = _float64(self.network.theta)
        rng = self._stream(context, "gamma", str(block.number), str(repeat))
        return rng.standard_gamma(np.broadcast_to(theta, (len(block), len(theta))))

    def _blocks(self, pool: Pool) -> Iterator[_Block]:
        n_genes = int(pool.x.shape[1])  # type: ignore[index]
        size = max(1, BLOCK // n_genes)
        for number, start in enumerate(range(0, len(pool), size)):
            rows = slice(start, start + size)
            dense = torch.as_tensor(
                pool.x[rows].toarray(), dtype=self._parameter.dtype, device=self._parameter.device
            )
            codes = {
                name: torch.as_tensor(values[rows], device=dense.device)
                for name, values in pool.covariates.items()
            }
            with torch.no_grad():
                z = self.network.basal(dense)
                for name, own in codes.items():
                    z = z + self.network.covars_embeddings[name](own)
            yield _Block(number, z, dense.sum(dim=1))

    def _stream(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32("\x1f".join(names).encode())])


@torch.no_grad()
def perturbation_vectors(
    network: CpaNetwork,
    slots: Sequence[Sequence[int]],
    doses: Sequence[Sequence[float]],
    trained: np.ndarray,
) -> Tensor:
    """The latent vector of each perturbation, shape (n, L), from rows and scaled doses of its parts.

    A row that was not trained (`trained`, bool, shape (P,)) has the mean dose response of those that were: its own
    parameters never moved.
    """
    encoder = network.pert_network
    weight = network.encoder.z.weight
    out = []
    for rows, values in zip(slots, doses, strict=True):
        factors = torch.cat(
            [dose_factors(network, row, [dose], trained) for row, dose in zip(rows, values, strict=True)]
        )
        index = torch.as_tensor(rows, device=weight.device).unsqueeze(0)
        out.append((factors.unsqueeze(-1) * encoder.vectors(index)[0]).sum(dim=0))
    return torch.stack(out) if out else weight.new_zeros((0, weight.shape[0]))


@torch.no_grad()
def dose_factors(network: CpaNetwork, row: int, doses: Sequence[float], trained: np.ndarray) -> Tensor:
    """The dose response of a table row at scaled doses, shape (n,); the mean of the trained rows for another."""
    dosers, weight = network.pert_network.dosers, network.encoder.z.weight
    known = np.flatnonzero(trained)
    known = known[known > CONTROL_ROW]
    rows = [row] if trained[row] or not len(known) else known.tolist()
    dose = torch.as_tensor(doses, dtype=weight.dtype, device=weight.device).unsqueeze(1)
    index = torch.as_tensor(rows, device=weight.device).expand(len(doses), -1)
    return dosers(dose.expand(-1, len(rows)), index).mean(dim=1)
