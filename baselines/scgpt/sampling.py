"""Which genes a training step sees: draws that depend on epoch and step alone, never on processes or chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shared_genes(
    candidates: np.ndarray, forced: np.ndarray, limit: int, rng: np.random.Generator
) -> np.ndarray:
    """Columns for a whole batch, int64, sorted: all candidates, or `limit` of them with the forced ones among them.

    Candidates and forced columns are sorted and without repeats; forced ones join the candidates. The rest is a
    uniform draw without replacement.
    """
    everything = np.union1d(candidates, forced)
    if not limit or len(everything) <= limit:
        return everything
    others = np.setdiff1d(everything, forced, assume_unique=True)
    drawn = rng.permutation(others)[: limit - len(forced)]
    return np.sort(np.concatenate([forced, drawn]))


def genes_per_cell(
    candidates: Sequence[np.ndarray], forced: Sequence[np.ndarray], limit: int, seeds: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """The same for each cell alone, each with a generator of its own seed."""
    return [
        shared_genes(own, np.asarray(must, dtype=np.int64), limit, np.random.default_rng(list(seed)))
        for own, must, seed in zip(candidates, forced, seeds, strict=True)
    ]


def gene_groups(
    genes: np.ndarray, forced: np.ndarray, limit: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Random disjoint groups of genes, the forced ones added to each; one group when all fit into `limit`.

    No group is larger than `limit`, unless the forced genes alone nearly fill it.
    """
    everything = np.union1d(genes, forced)
    if not limit or len(everything) <= limit:
        return [everything]
    others = rng.permutation(np.setdiff1d(everything, forced, assume_unique=True))
    room = max(1, limit - len(forced))
    parts = np.array_split(others, -(-len(others) // room))
    return [np.sort(np.concatenate([forced, part])) for part in parts]


def bucketed_order(
    order: np.ndarray, lengths: np.ndarray, step_rows: int, rng: np.random.Generator, *, bucket: int = 50
) -> np.ndarray:
    """An order whose steps hold cells of similar length, steps shuffled; rows after the last whole step stay last.

    Cells are sorted within `bucket` steps' worth of the random order, so that every epoch has other batches.
    """
    n_steps = len(order) // step_rows
    whole, rest = order[: n_steps * step_rows], order[n_steps * step_rows :]
    size = bucket * step_rows
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    ordered = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
    steps = (np.concatenate(ordered) if ordered else whole).reshape(n_steps, step_rows)
    return np.concatenate([steps[rng.permutation(n_steps)].reshape(-1), rest])


def padded(sequences: Sequence[np.ndarray], *, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as one array, shape (n, L), short ones padded with 0, and where padding stands, bool.

    L is the longest length, rounded up to a multiple, so that compiled code meets few shapes.
    """
    longest = max(len(sequence) for sequence in sequences)
    length = -(-longest // multiple) * multiple
    out = np.zeros((len(sequences), length), dtype=np.int64)
    is_padding = np.ones((len(sequences), length), dtype=bool)
    for row, sequence in enumerate(sequences):
        out[row, : len(sequence)] = sequence
        is_padding[row, : len(sequence)] = False
    return out, is_padding
