"""A local panel like the challenge of 2026, cut out of a standard data set: the competitor's files and the truth."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from .atomic import atomic_folder
from .errors import UsageError
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .h5ad_columns import Labels
from .h5ad_write import write_h5ad_stream
from .labels import CONTROL, targets_of
from .matrix_scan import OnRows
from .normalize import median_total
from .standard import CONTEXT, PERTURBATION, MatrixMeta, StandardMeta, read_meta

TARGET_GENE, NON_TARGETING = "target_gene", "non-targeting"


@dataclass(frozen=True)
class Panel:
    """What `simulate_panel` wrote. `too_small` are targets with fewer cells than asked, `n_shallow` the cells with
    fewer counts than `depth`, which stay as they are."""

    folder: Path
    contexts: tuple[str, ...]
    n_perturbations: int
    n_cells: int
    n_controls: int
    n_shallow: int
    too_small: tuple[str, ...]


def thin_row(counts: np.ndarray, depth: int, rng: np.random.Generator) -> np.ndarray:
    """`depth` counts of a cell drawn without replacement, int64, shape of `counts`; all of them when it has fewer.

    The multivariate hypergeometric law: what sequencing the same library less deeply gives.
    """
    whole = counts.astype(np.int64)
    if int(whole.sum()) <= depth:
        return whole
    return rng.multivariate_hypergeometric(whole, depth, method="marginals")


def simulate_panel(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    contexts: Sequence[str] | None = None,
    cells: int = 400,
    controls: int | None = None,
    depth: int = 20_000,
    seed: int = 0,
    force: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> Panel:
    """Cut a panel out of a standard h5ad of counts: `gene_names.csv`, `pert_counts.csv`, `manifest.json`,
    `controls.h5ad` (what a competitor gets) and `truth.h5ad` (all cells, controls included), in one folder.

    Every target with at least `cells` cells in each context enters with that many, drawn without replacement;
    combinations are left out. All control cells enter, or `controls` per context. Cells are thinned to `depth` counts.
    The draw of a cell depends on `seed` and its row alone, so results do not depend on `block_bytes`.

    Raises
    ------
    UsageError
        The file is no standard h5ad of counts, lacks a context, or has no target with enough cells, or no control.
    InvalidFile, OutputError
        The file cannot be read, the folder cannot be written.
    """
    with H5ad(source) as file:
        meta = read_meta(file)
        if meta is None or meta.matrix.kind != "counts" or meta.rows != "cell":
            raise UsageError(
                f"{file.path}: a panel is cut out of cells with counts, as `vcbench data convert` writes."
            )
        labels, context = file.labels(PERTURBATION), file.labels(CONTEXT)
        wanted = tuple(contexts or [str(name) for name in context.categories])
        absent = [name for name in wanted if name not in context.categories]
        if absent:
            raise UsageError(
                f"{file.path}: no context {absent[0]!r}; it has {', '.join(map(str, context.categories))}."
            )
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
        keep, names, too_small = _drawn(labels, context, wanted, cells, controls, rng, str(file.path))
        n_shallow = 0
        with atomic_folder(out, force=force) as part:
            chosen = np.flatnonzero(keep)
            is_control = labels.codes[chosen] == list(labels.categories).index(CONTROL)
            target = [
                NON_TARGETING if c else str(v)
                for c, v in zip(is_control, labels.values()[chosen], strict=True)
            ]
            shared = {"genes": file.genes.tolist(), "uns": {}}
            totals: list[np.ndarray] = []
            blocks = part / "truth.h5ad", part / "controls.h5ad"
            pieces = [
                (blocks[0], np.ones(len(chosen), dtype=bool)),
                (blocks[1], is_control),
            ]
            # The scale is known only after thinning: totals first, then the two files in one pass each.
            for matrix in _thinned(file, keep, depth, seed, block_bytes, None):
                totals.append(np.asarray(matrix.sum(axis=1)).ravel())
            sums = np.concatenate(totals)
            scale = StandardMeta(
                dataset_id=f"{meta.dataset_id}-panel",
                matrix=MatrixMeta("counts", median_total(sums[is_control])),
                modality=meta.modality,
                organism=meta.organism,
                control_label=NON_TARGETING,
                extra={
                    "panel": json.dumps({"cells": cells, "depth": depth, "seed": seed, "source": file.name})
                },
            )
            shared["uns"] = scale.to_uns()
            n_shallow = int((sums < depth).sum())
            for path, mask in pieces:
                obs = {
                    TARGET_GENE: Labels.from_values([t for t, m in zip(target, mask, strict=True) if m]),
                    CONTEXT: Labels.from_codes(context.codes[chosen][mask], context.categories),
                }
                obs_names = file.obs_names[chosen][mask].tolist()
                with write_h5ad_stream(path, obs=obs, obs_names=obs_names, **shared) as writer:
                    done = 0
                    for matrix in _thinned(file, keep, depth, seed, block_bytes, on_rows):
                        n_rows = len(matrix.indptr) - 1
                        rows = mask[done : done + n_rows]
                        done += n_rows
                        writer.append(matrix[np.flatnonzero(rows)])
            (part / "gene_names.csv").write_text("".join(f"{g}\n" for g in file.genes), encoding="utf-8")
            lines = [f"{TARGET_GENE},n_cells", *(f"{name},{cells}" for name in names)]
            (part / "pert_counts.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            manifest = {"contexts": list(wanted), "panel_id": f"{meta.dataset_id}-panel"}
            (part / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return Panel(
        Path(out), wanted, len(names), len(chosen), int(is_control.sum()), n_shallow, tuple(too_small)
    )


def _drawn(
    labels: Labels,
    context: Labels,
    wanted: Sequence[str],
    cells: int,
    controls: int | None,
    rng: np.random.Generator,
    path: str,
) -> tuple[np.ndarray, list[str], list[str]]:
    """The mask of chosen rows, the targets of the panel, and those with too few cells."""
    singles = [str(n) for n in labels.categories if n != CONTROL and len(targets_of(str(n))) == 1]
    places = {str(name): i for i, name in enumerate(labels.categories)}
    where = {str(name): i for i, name in enumerate(context.categories)}
    rows = {
        (c, name): np.flatnonzero((context.codes == where[c]) & (labels.codes == places[name]))
        for c in wanted
        for name in [*singles, *([CONTROL] if CONTROL in places else [])]
    }
    names = [name for name in singles if all(len(rows[c, name]) >= cells for c in wanted)]
    if not names:
        raise UsageError(
            f"{path}: no single target has {cells} cells in each of {', '.join(wanted)}; lower --cells."
        )
    keep = np.zeros(len(labels.codes), dtype=bool)
    for c in wanted:
        found = rows.get((c, CONTROL), np.empty(0, np.int64))
        if not len(found):
            raise UsageError(f"{path}: context {c!r} has no control cell.")
        keep[
            found
            if controls is None or controls >= len(found)
            else rng.choice(found, controls, replace=False)
        ] = True
        for name in names:
            keep[rng.choice(rows[c, name], cells, replace=False)] = True
    return keep, names, sorted(set(singles) - set(names))


def _thinned(file: H5ad, keep: np.ndarray, depth: int, seed: int, block_bytes: int, on_rows: OnRows | None):
    for block in file.row_blocks(max_bytes=block_bytes, wanted=keep):
        rows = np.flatnonzero(keep[block.start : block.stop])
        matrix = sp.csr_array(block.matrix[rows])
        data = matrix.data.astype(np.float32)
        for i, row in enumerate(rows):
            low, high = matrix.indptr[i], matrix.indptr[i + 1]
            rng = np.random.default_rng(np.random.SeedSequence([seed, 1, int(block.start + row)]))
            data[low:high] = thin_row(data[low:high], depth, rng)
        thinned = sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
        thinned.eliminate_zeros()
        if on_rows is not None:
            on_rows(block.stop, file.n_obs)
        yield thinned
