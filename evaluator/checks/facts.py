"""Plain facts about a source for the report: sizes, labels, scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from .case import Case
from .labels import label_names, n_controls
from .matrix_kind import KindVerdict
from .rows import refused_keys
from .value_scan import ValueScan
from .values import distinct_rows


def header_facts(case: Case) -> dict[str, Any]:
    """What the header says; counts are rows, genes or stored entries."""
    source, info = case.source, case.source.matrix
    facts: dict[str, Any] = {
        "edition": case.edition.id,
        "rows": case.rows,
        "n_obs": source.n_obs,
        "n_vars": source.n_vars,
        "n_stored": info.n_stored,
        "storage": info.storage,
        "dtype": str(info.dtype),
        "dataset_id": case.meta.dataset_id if case.meta else None,
        "target_sum": case.meta.matrix.target_sum if case.meta else None,
        "n_refused": len(refused_keys(case) or ()),
    }
    if case.perturbations is not None:
        n_per_group = [
            int(n) for (_, name), n in zip(case.groups, case.group_sizes, strict=True) if name != case.control
        ]
        facts |= {
            "n_perturbations": len([name for name in label_names(case) if name != case.control]),
            "n_control_cells": n_controls(case),
            "n_unlabelled": int(np.count_nonzero(case.unlabelled)),
            "cells_per_group": {
                "min": min(n_per_group, default=0),
                "median": float(np.median(n_per_group)) if n_per_group else 0.0,
                "max": max(n_per_group, default=0),
            },
        }
    if case.contexts is not None:
        facts["contexts"] = {str(name): n for name, n in case.contexts.counts().items()}
    return facts


def value_facts(case: Case, scan: ValueScan, verdict: KindVerdict, detected: KindVerdict) -> dict[str, Any]:
    """What the pass over the values found. `median_depth` is in counts, or expm1 units when X holds log values."""
    depth = scan.expm1_totals if verdict.kind == "log1p" else scan.totals
    return {
        "matrix": {
            "kind": verdict.kind,
            "how": verdict.how,
            "detail": verdict.detail,
            "detected": detected.kind,
            "detection": detected.detail,
        },
        "median_depth": float(np.median(depth)),
        "median_detected_genes": float(np.median(scan.n_detected)),
        "maximum": scan.maximum,
        "n_nonzero": scan.n_values,
        "n_stored_zeros": scan.n_stored_zeros,
        "n_duplicate_entries": scan.n_duplicates,
        "n_empty_rows": int(np.count_nonzero(scan.n_detected == 0)),
        "n_repeated_rows": int((case.group_sizes - distinct_rows(case, scan)).sum()),
    }
