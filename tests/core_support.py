"""Panels, predictions and mean files for the tests of scoring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from vcbench.data_specs.h5ad_write import write_h5ad_dense, write_h5ad_stream
from vcbench.data_specs.labels import split_label
from vcbench.data_specs.split_file import Split
from vcbench.data_specs.standard import MatrixMeta, StandardMeta

TARGET_SUM = 80.0
Key = tuple[str, str]


def cell_file(
    path: Path,
    x: np.ndarray,
    labels: Sequence[str],
    contexts: Sequence[str],
    genes: Sequence[str],
    *,
    kind: str = "counts",
    target_sum: float | None = TARGET_SUM,
    dtype: Any = np.float64,
    columns: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A standard file of cells."""
    obs = {
        "perturbation": list(labels),
        "context": list(contexts),
        "is_control": np.array([name == "control" for name in labels]),
        "n_targets": np.array([len(split_label(name)) for name in labels], dtype=np.int8),
        "label_source": list(labels),
    }
    obs = dict(columns) if columns is not None else obs
    meta = StandardMeta("test", MatrixMeta(kind, target_sum), extra=extra or {})  # type: ignore[arg-type]
    with write_h5ad_stream(path, genes=genes, obs=obs, uns=meta.to_uns(), dtype=dtype) as writer:
        writer.append(sp.csr_array(x))
    return path


def mean_file(
    path: Path,
    profiles: Mapping[Key, np.ndarray],
    genes: Sequence[str],
    *,
    refused: Sequence[tuple[str, str, str]] = (),
    status: Mapping[Key, tuple[str, str]] | None = None,
    kind: str = "log1p",
    target_sum: float | None = TARGET_SUM,
    refused_text: str | None = None,
) -> Path:
    """A file of mean effects."""
    keys = list(profiles)
    states = [(status or {}).get(key, ("predicted", "")) for key in keys]
    obs = {
        "perturbation": [name for _, name in keys],
        "context": [context for context, _ in keys],
        "status": [state for state, _ in states],
        "reason": [reason for _, reason in states],
    }
    listed = [{"context": c, "perturbation": p, "reason": r} for c, p, r in refused]
    extra = {"refused": refused_text if refused_text is not None else json.dumps(listed)}
    meta = StandardMeta("test", MatrixMeta(kind, target_sum), rows="mean", extra=extra)  # type: ignore[arg-type]
    write_h5ad_dense(path, np.stack(list(profiles.values())), genes=genes, obs=obs, uns=meta.to_uns())
    return path


def draw_cells(
    rng: np.random.Generator,
    groups: Mapping[Key, int],
    n_genes: int,
    *,
    effect: float = 1.0,
) -> tuple[np.ndarray, list[str], list[str]]:
    """Counts, labels and contexts: every group shifts a few genes of its context's base rates."""
    labels, contexts, parts = [], [], []
    base = {context: rng.gamma(1.0, 2.0, n_genes) for context, _ in sorted(groups)}
    for (context, name), n in groups.items():
        rates = base[context].copy()
        if name != "control":
            moved = rng.choice(n_genes, size=max(1, n_genes // 5), replace=False)
            rates[moved] *= np.exp(rng.normal(0, effect, len(moved)))
        x = rng.poisson(rates, (n, n_genes)).astype(np.float64)
        x[x.sum(axis=1) == 0, 0] = 1
        parts.append(x)
        labels += [name] * n
        contexts += [context] * n
    return np.concatenate(parts), labels, contexts


def log_normalized(x: np.ndarray, target_sum: float = TARGET_SUM) -> np.ndarray:
    """ln(1 + x * target_sum / total), written out."""
    return np.log1p(x * (target_sum / x.sum(axis=1, keepdims=True)))


def split_of(train: Sequence[Key], test: Sequence[Key], validation: Sequence[Key] = ()) -> Split:
    """A split without subgroups."""
    rows = dict.fromkeys(train, ("train", "")) | dict.fromkeys(test, ("test", ""))
    return Split(rows | dict.fromkeys(validation, ("validation", "")))  # type: ignore[arg-type]
