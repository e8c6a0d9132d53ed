"""What a trained CPA can be asked beside mean effects: cells, reconstructions, distances to training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ...data_specs.errors import ModelError, ShapeError
from ...data_specs.labels import CONTROL
from ..base import Key
from .counterfactual import Decoded, decode
from .data import CONTEXT

if TYPE_CHECKING:
    from .baseline import Cpa

# Fewer cells tell little about where a condition lies.
MOST_UNCERTAIN_CELLS = 30
BLOCK_CELLS = 1024
Output = Literal["mean", "sample"]


@torch.no_grad()
def reconstruct(
    model: Cpa, x: sp.csr_array, keys: Sequence[Key], covariates: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Expected expression of cells decoded from themselves under their own labels; see `Cpa.reconstruct`."""
    _check_shape(model, x, len(keys))
    codes = {name: _codes(model, name, values, len(keys)) for name, values in covariates.items()}
    codes[CONTEXT] = _codes(model, CONTEXT, [context for context, _ in keys], len(keys))
    absent = sorted(set(model.covariates) - set(codes))
    if absent:
        raise ModelError(f"the model was trained with {', '.join(absent)}: give its value for every cell.")
    labels = sorted({label for _, label in keys})
    found = {label: model.encodable(label) for label in labels}
    unknown = [reason for encoded, reason in found.values() if encoded is None]
    if unknown:
        raise ModelError(f"{len(unknown)} label(s) cannot be decoded (first: {unknown[0]}).")
    encoded = [value for value, _ in found.values() if value is not None]
    place = {label: i for i, label in enumerate(labels)}
    vectors = model.vectors(encoded)[[place[label] for _, label in keys]]
    parts = []
    for start in range(0, len(keys), BLOCK_CELLS):
        own = slice(start, start + BLOCK_CELLS)
        part = {name: values[own] for name, values in codes.items()}
        parts.append(_decoded(model, x[own], part, vectors[own]).expected)
    return np.concatenate(parts) if parts else np.empty((0, len(model.genes)))


@torch.no_grad()
def counterfactual(
    model: Cpa, key: Key, controls: sp.csr_array, *, output: Output, rng: np.random.Generator
) -> np.ndarray:
    """Control cells decoded under another perturbation; see `Cpa.counterfactual`."""
    _check_shape(model, controls, controls.shape[0])  # type: ignore[index]
    context, label = key
    encoded, reason = model.encodable(label)
    if encoded is None:
        raise ModelError(f"{label} cannot be decoded: {reason}.")
    found = _under(model, context, controls, model.vectors([encoded])[0], rng)
    return found.expected if output == "mean" else found.sample(rng)


@torch.no_grad()
def own_cells(model: Cpa, key: Key, controls: sp.csr_array, rng: np.random.Generator) -> np.ndarray:
    """One sampled cell per control cell. A label that cannot be decoded shifts decoded controls by the mean effect."""
    context, label = key
    encoded, _ = model.encodable(label)
    if encoded is not None:
        return _under(model, context, controls, model.vectors([encoded])[0], rng).sample(rng)
    found = _under(model, context, controls, model.vectors([([1], [1.0])])[0], rng)
    if not found.counts:
        return np.maximum(found.sample(rng) + model.mean_effect, 0.0)
    means = model.control_means
    control = means[context] if context in means else np.mean(list(means.values()), axis=0)
    before = np.expm1(control)
    factors = np.expm1(np.maximum(control + model.mean_effect, 0.0)) / np.where(before > 0, before, 1.0)
    factors[before == 0] = 1.0
    return Decoded(found.mean * factors, found.spread, found.zeros, counts=True).sample(rng)


def _under(
    model: Cpa, context: str, controls: sp.csr_array, vector: Tensor, rng: np.random.Generator
) -> Decoded:
    n = int(controls.shape[0])  # type: ignore[index]
    codes: dict[str, np.ndarray] = {}
    for name, values in model.covariates.items():
        if name == CONTEXT:
            # -1: a context that was not trained has the mean of the trained contexts' vectors.
            codes[name] = np.full(n, values.index(context) if context in values else -1)
        else:
            pools = [model.pools[context]] if context in model.pools else list(model.pools.values())
            codes[name] = rng.choice(np.concatenate([pool.covariates[name] for pool in pools]), n)
    return _decoded(model, controls, codes, vector.expand(n, -1))


def _decoded(model: Cpa, x: sp.csr_array, codes: Mapping[str, np.ndarray], vectors: Tensor) -> Decoded:
    network = model.network
    weight = network.encoder.z.weight
    dense = torch.as_tensor(x.toarray(), dtype=weight.dtype, device=weight.device)
    z = network.basal(dense) + vectors
    for name, own in codes.items():
        table: Tensor = network.covars_embeddings[name].weight  # type: ignore[assignment]
        extended = torch.cat([table, table.mean(dim=0, keepdim=True)])
        z = z + extended[torch.as_tensor(own, device=weight.device)]
    return decode(network, z, dense.sum(dim=1))


def _check_shape(model: Cpa, x: sp.csr_array, n: int) -> None:
    if x.shape != (n, len(model.genes)):
        raise ShapeError(f"cells are {x.shape} for {n} keys and {len(model.genes)} genes")


def _codes(model: Cpa, name: str, values: Sequence[str], n: int) -> np.ndarray:
    known = model.covariates.get(name)
    if known is None:
        raise ModelError(f"no covariate {name!r} was trained; there are {', '.join(model.covariates)}.")
    unseen = sorted(set(values) - set(known))
    if unseen:
        raise ModelError(f"{name} {unseen[0]!r} was not trained; there are {', '.join(known)}.")
    if len(values) != n:
        raise ShapeError(f"{len(values)} values of {name} for {n} cells")
    place = {value: i for i, value in enumerate(known)}
    return np.array([place[value] for value in values], dtype=np.int64)


@dataclass(frozen=True)
class Uncertainty:
    """How far a condition lies from the nearest trained one in latent space; 0 for a trained condition."""

    cosine: float
    euclidean: float
    nearest_cosine: Key
    nearest_euclidean: Key


@torch.no_grad()
def uncertainty(model: Cpa, keys: Sequence[Key]) -> list[Uncertainty]:
    """Distances of conditions to the training conditions; see `Cpa.uncertainty`."""
    reference = [
        key
        for key, n in sorted(model.conditions.items())
        if n > MOST_UNCERTAIN_CELLS and key[0] in model.covariates[CONTEXT]
    ]
    if not reference:
        raise ModelError(f"no training condition has more than {MOST_UNCERTAIN_CELLS} cells.")
    known, asked = _condition_vectors(model, reference), _condition_vectors(model, keys)
    norms = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (asked, known)]
    cosine = 1 - norms[0] @ norms[1].T
    euclidean = np.linalg.norm(asked[:, None] - known[None], axis=2)
    return [
        Uncertainty(
            max(0.0, float(cosine[i].min())),
            float(euclidean[i].min()),
            reference[int(cosine[i].argmin())],
            reference[int(euclidean[i].argmin())],
        )
        for i in range(len(keys))
    ]


def _condition_vectors(model: Cpa, keys: Sequence[Key]) -> np.ndarray:
    """Dosed perturbation plus context vectors, float64, shape (n, L)."""
    table: Tensor = model.network.covars_embeddings[CONTEXT].weight  # type: ignore[assignment]
    contexts = model.covariates[CONTEXT]
    rows, encoded = [], []
    for context, label in keys:
        found, reason = model.encodable(label) if label != CONTROL else (([1], [1.0]), "")
        if found is None or context not in contexts:
            raise ModelError(f"({context}, {label}): {reason or f'context {context!r} was not trained'}.")
        rows.append(contexts.index(context))
        encoded.append(found)
    return (model.vectors(encoded) + table[rows]).double().cpu().numpy()
