"""The organisers' baseline of 2025: every predicted cell is the mean of the training perturbations' means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from ...data_specs.errors import UsageError
from ...data_specs.h5ad_write import write_h5ad_stream
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ..score_options import ScoreOptions
from .measure import measure
from .pairing import open_alone
from .rules import Rules
from .side import Side

_ROWS_PER_BLOCK = 4096


def mean_profile(side: Side, rules: Rules) -> np.ndarray:
    """Unweighted mean, over all labels with the control among them, of their mean profiles; dtype of the data."""
    bulk = measure(side, rules, with_de=False).bulk
    return bulk.astype(np.float64).mean(axis=0).astype(bulk.dtype)


def write_mean_baseline(
    train: Source,
    out: str | os.PathLike[str],
    *,
    counts: Mapping[str, int] | None,
    edition: Edition,
    options: ScoreOptions,
) -> Path:
    """Write the baseline prediction as an h5ad of log1p cells: `counts` copies of one profile, then the controls.

    Parameters
    ----------
    train
        Cells with the perturbation column and control label of the edition (or of `options`).
    counts
        Cells to write per perturbation, in this order; None: as many as `train` has. A control entry is ignored.

    Raises
    ------
    InvalidFile
        The training file cannot be used.
    UsageError
        A count below one, or no perturbation.
    """
    rules = Rules.of(edition)
    column = options.pert_col or edition.file.perturbation_column
    control = options.control or edition.file.control_label
    side = open_alone(train, edition=edition, options=options)
    if counts is None:
        counts = {target: int(n) for target, n in zip(side.targets, side.sizes, strict=False)}
    cells = {label: n for label, n in counts.items() if label != control}
    wrong = [label for label, n in cells.items() if n < 1]
    if wrong or not cells:
        raise UsageError(f"the baseline needs at least one cell per perturbation; {wrong or 'none'} given.")
    profile = mean_profile(side, rules)
    n_rows = sum(cells.values())
    controls = np.flatnonzero(side.groups == side.control)
    labels = [label for label, n in cells.items() for _ in range(n)] + [control] * len(controls)
    names = [f"p.{i}" for i in range(n_rows)] + [str(train.obs_names[row]) for row in controls]
    with write_h5ad_stream(
        out, genes=list(train.genes), obs={column: labels}, obs_names=names, dtype=profile.dtype
    ) as writer:
        for start in range(0, n_rows, _ROWS_PER_BLOCK):
            copies = min(_ROWS_PER_BLOCK, n_rows - start)
            writer.append(sp.csr_array(np.tile(profile, (copies, 1))))
        for _, rows, groups in side.blocks():
            writer.append(sp.csr_array(rows[np.flatnonzero(groups == side.control)]))
    return Path(out)
