"""Fingerprints of cell-eval2 and of the official client, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data_specs.h5ad import DEFAULT_BLOCK_BYTES

if TYPE_CHECKING:
    from ...data_specs.sources import Source


def perturbations_fingerprint(labels: Iterable[str]) -> str:
    """`sha256:` and the hash of the distinct stripped labels, sorted, joined by newlines; empty ones dropped."""
    names = sorted({label.strip() for label in labels} - {""})
    return "sha256:" + hashlib.sha256("\n".join(names).encode()).hexdigest()


def source_fingerprint(
    source: Source, column: str, *, strict: bool = True, block_bytes: int = DEFAULT_BLOCK_BYTES
) -> str:
    """The fingerprint of an AnnData: shape, dtype, genes, labels in row order and, when `strict`, the stored matrix.

    It depends on dtype and storage (sparse or dense), not on the order of categories.
    """
    labels = [str(label) for label in source.labels(column).values()]
    parts: list[object] = [
        "adata",
        int(source.n_obs),
        int(source.n_vars),
        str(source.matrix.dtype),
        strings_hash([str(gene) for gene in source.genes]),
        labels_hash(labels),
    ]
    if strict:
        parts.append(_matrix_hash(source, block_bytes))
    return combined_hash(*parts)


def combined_hash(*parts: object) -> str:
    """sha256 over the Python repr of each part, each followed by a zero byte."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()


def strings_hash(values: Sequence[str]) -> str:
    """sha256 over the number of strings and, for each, its byte length and bytes; numbers as 8 bytes little-endian."""
    digest = hashlib.sha256(len(values).to_bytes(8, "little"))
    for value in values:
        raw = value.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def labels_hash(labels: Sequence[str]) -> str:
    """sha256 over the hash of the sorted distinct labels and the index of each row's label as int64."""
    unique, inverse = np.unique(np.array(labels, dtype=object), return_inverse=True)
    digest = hashlib.sha256(strings_hash([str(name) for name in unique]).encode("ascii"))
    digest.update(inverse.astype("<i8").tobytes())
    return digest.hexdigest()


def _matrix_hash(source: Source, block_bytes: int) -> str:
    """The stored matrix: data, then int64 column indices and row pointers of its CSR; the plain bytes when dense."""
    digest = hashlib.sha256()
    if source.matrix.storage == "dense":
        for block in source.row_blocks(max_bytes=block_bytes, canonical=False):
            digest.update(np.ascontiguousarray(block.matrix.toarray().astype(source.matrix.dtype)).tobytes())
        return digest.hexdigest()
    for rows in _sorted_rows(source, block_bytes):
        digest.update(np.ascontiguousarray(rows.data).tobytes())
    lengths = [np.zeros(1, np.int64)]
    for rows in _sorted_rows(source, block_bytes):
        digest.update(rows.indices.astype("<i8").tobytes())
        lengths.append(np.diff(rows.indptr).astype(np.int64))
    digest.update(np.cumsum(np.concatenate(lengths)).astype("<i8").tobytes())
    return digest.hexdigest()


def _sorted_rows(source: Source, block_bytes: int) -> Iterable[Any]:
    for block in source.row_blocks(max_bytes=block_bytes, canonical=False):
        if not block.matrix.has_sorted_indices:
            block.matrix.sort_indices()
        yield block.matrix
