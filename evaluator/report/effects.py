"""Predicted against observed effects of a few perturbations, for the report's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data_specs.errors import UsageError
from ...data_specs.h5ad import H5ad
from ...data_specs.issues import Issue
from ...data_specs.joined_source import JoinedSource
from ...data_specs.labels import CONTROL
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.specs import load_edition
from ...data_specs.standard import MatrixKind, MatrixMeta, RowKind, read_meta
from ..bulk import GroupMoments
from ..bundles import is_bundle
from ..core.de import welch
from ..core.pairing import Side, side_of
from ..core.space import sorted_moments
from ..score_options import ScoreOptions
from ..validation import opened_entry

Key = tuple[str, str]
# Counts that declare no total are compared at ten thousand per cell.
TARGET_SUM = 10_000.0
NO_COLUMN = "(no context)"
# Genes of a plot: the most changed ones, in the truth and in the predictions.
OBSERVED_GENES, PREDICTED_GENES = 400, 100


@dataclass(frozen=True)
class Effect:
    """One perturbation: changes from the control mean in log1p space, float64, shape (n_genes,).

    `p` are two-sided Welch p-values of the true cells against the control cells (NaN below two cells). `predicted` maps
    entries to their changes, against the same control mean; entries that refused the row are not in it. `shown` are the
    positions of the genes worth plotting, rising.
    """

    key: Key
    which: str
    genes: np.ndarray
    observed: np.ndarray
    p: np.ndarray
    predicted: dict[str, np.ndarray]
    shown: np.ndarray


def effects_of(
    predictions: Mapping[str, Path],
    truth: Sequence[tuple[str | None, str]],
    keys: Sequence[tuple[Key, str]],
    *,
    edition: str,
    pert_col: str | None = None,
    control: str | None = None,
    matrix: MatrixKind | None = None,
) -> list[Effect]:
    """Effects of some rows.

    Parameters
    ----------
    predictions
        Entry name to its file (cells or mean effects).
    truth
        Real cells as `score` takes them, (context, path); not a bundle.
    keys
        (context, perturbation), and what the row is to the reader (`best`, `worst`).
    pert_col, control, matrix
        As in `score`; counts that declare no total are scaled to 10,000.

    Raises
    ------
    InvalidFile
        A file cannot be read or does not fit the truth.
    UsageError
        The truth is a bundle, or the truth has none of the rows.
    """

    rules, wanted = load_edition(edition), [key for key, _ in keys]
    contexts = sorted({context for context, _ in wanted})
    # Editions without contexts know the rows by their perturbation alone, whatever columns the files have.
    column = NO_COLUMN if contexts == [""] else None
    options = ScoreOptions(pert_col=pert_col, control=control, matrix=matrix, context_col=column)
    with ExitStack() as stack:
        real = _truth(truth, stack, rules)
        kind, _ = _scale(real, rules, matrix, TARGET_SUM)
        side = side_of(real, kind, "cell", rules, options, contexts[0], [])
        genes = real.genes[side.columns]
        present = [key for key in wanted if key in side.keys and (key[0], CONTROL) in side.keys]
        if not present:
            raise UsageError(
                f"{real.name} has none of the {len(wanted)} rows with control cells beside them; is it the truth "
                "that the entries were scored with?"
            )
        rows = [*present, *dict.fromkeys((context, CONTROL) for context, _ in present)]
        measured = sorted_moments(side, rows, block_bytes=options.block_bytes)
        found = {
            name: _predicted(path, rules, options, genes, kind.target_sum, present, contexts[0])
            for name, path in predictions.items()
        }
    for name, values in (
        (real.name, measured.mean),
        *((name, v) for name, rows_of in found.items() for v in rows_of.values()),
    ):
        if not np.isfinite(values).all():
            raise UsageError(f"{name} holds values that are not finite; `vcbench validate` says where.")
    at = {key: i for i, key in enumerate(rows)}
    which = dict(keys)
    return [_effect(key, which[key], genes, measured, at[key], at[key[0], CONTROL], found) for key in present]


def _truth(truth: Sequence[tuple[str | None, str]], stack: ExitStack, edition: Edition) -> Source:
    for _, path in truth:
        if is_bundle(path):
            raise UsageError(f"{path}: a truth bundle has no cells; plots of effects need the real h5ad.")
    files = [(context, stack.enter_context(H5ad(path))) for context, path in truth]
    if len(files) == 1 and files[0][0] is None:
        return files[0][1]
    return JoinedSource(files, context_column=edition.file.context_column or "context")


def _scale(
    source: Source, edition: Edition, asked: MatrixKind | None, target_sum: float | None
) -> tuple[MatrixMeta, RowKind]:
    """What X of a file holds: as declared, asked for, or as the edition says; counts get `target_sum`."""
    meta = read_meta(source)
    kind = meta.matrix.kind if meta else asked or ("counts" if edition.file.matrix == "counts" else None)
    if kind is None:
        raise UsageError(f"{source.name} does not say whether it holds counts or log1p; add --matrix.")
    own = meta.matrix.target_sum if meta else None
    return MatrixMeta(kind, own or target_sum), meta.rows if meta else "cell"


def _predicted(
    path: Path,
    edition: Edition,
    options: ScoreOptions,
    genes: np.ndarray,
    target_sum: float | None,
    keys: Sequence[Key],
    context: str,
) -> dict[Key, np.ndarray]:
    """Mean profile of each row that the entry predicts, genes in sorted order."""
    problems: list[Issue] = []
    with opened_entry(path) as entry:
        source = entry.source
        matrix, rows = _scale(source, edition, options.matrix, target_sum)
        if matrix.kind == "counts" and target_sum is not None:
            matrix = MatrixMeta("counts", target_sum)
        side = side_of(source, matrix, rows, edition, options, context, problems)
        own = source.genes[side.columns]
        if len(own) != len(genes) or (own != genes).any():
            raise UsageError(f"{path}: its genes are not those of the truth.")
        kept = [key for key in keys if key in side.keys]
        moments = sorted_moments(_only(side, kept), kept, block_bytes=options.block_bytes)
    return {key: moments.mean[i] for i, key in enumerate(kept)}


def _only(side: Side, keys: Sequence[Key]) -> Side:
    if not keys:
        raise UsageError(f"{side.source.name} predicts none of the rows to plot.")
    return side


def _effect(
    key: Key,
    which: str,
    genes: np.ndarray,
    truth: GroupMoments,
    row: int,
    base: int,
    found: Mapping[str, Mapping[Key, np.ndarray]],
) -> Effect:
    control = truth.mean[base]
    observed = truth.mean[row] - control
    _, p = welch(
        truth.mean[row],
        truth.variance[row],
        int(truth.n[row]),
        control,
        truth.variance[base],
        int(truth.n[base]),
    )
    predicted = {name: profiles[key] - control for name, profiles in found.items() if key in profiles}
    chosen = [np.argsort(-np.abs(observed), kind="stable")[:OBSERVED_GENES]]
    chosen += [np.argsort(-np.abs(values), kind="stable")[:PREDICTED_GENES] for values in predicted.values()]
    return Effect(key, which, genes, observed, p, predicted, np.unique(np.concatenate(chosen)))
