"""Predict with a run folder: choose rows and controls, fit genes together, write mean effects."""

from __future__ import annotations

import csv
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data_specs.atomic import check_output
from ..data_specs.errors import InvalidFile, ModelError, UsageError
from ..data_specs.h5ad_write import write_h5ad_dense
from ..data_specs.issues import Issue, make_issue
from ..data_specs.labels import STANDARD, UNASSIGNED
from ..data_specs.remote import input_path
from ..data_specs.standard import MatrixMeta, StandardMeta
from ..evaluator.executors import Executor
from .base import Key, Prediction
from .data import load_control_means
from .run_folder import Run


@dataclass(frozen=True)
class PredictResult:
    """Profiles in the genes of the controls that were used, and what was decided."""

    genes: np.ndarray
    prediction: Prediction
    notes: tuple[str, ...] = ()

    def rows(self, *statuses: str) -> list[int]:
        """Positions of the rows with one of these statuses."""
        return [i for i, status in enumerate(self.prediction.status) if status in statuses]

    def refused(self) -> list[dict[str, str]]:
        """The refusals, as they stand in the file."""
        p = self.prediction
        return [
            {"context": p.keys[i][0], "perturbation": p.keys[i][1], "reason": p.reason[i]}
            for i in self.rows("refused")
        ]

    def to_json(self) -> dict[str, Any]:
        """A summary for `--format json`."""
        p = self.prediction
        fallback = [
            {"context": p.keys[i][0], "perturbation": p.keys[i][1], "reason": p.reason[i]}
            for i in self.rows("fallback")
        ]
        return {
            "n_rows": len(p.keys),
            **{f"n_{name}": n for name, n in p.counts().items()},
            "n_genes": len(self.genes),
            "fallback": fallback,
            "refused": self.refused(),
            "notes": list(self.notes),
        }


def choose_keys(
    run: Run, *, perturbations: Path | None, everything: bool, contexts: Sequence[str]
) -> list[Key]:
    """The rows to predict: a CSV's, all rows of the split (or training), or the split's test rows.

    Raises
    ------
    InvalidFile
        The CSV cannot be used (code E674).
    UsageError
        Both options are given, or neither and the run has no test rows.
    """
    if perturbations is not None and everything:
        raise UsageError("give either --perturbations or --all, not both.")
    if perturbations is not None:
        return read_requests(perturbations, contexts=contexts)
    if everything:
        rows = run.train_keys if run.split is None else run.split.rows
        return sorted(key for key in rows if key[1] != "control")
    keys = [] if run.split is None else run.split.keys("test")
    if not keys:
        why = "was trained without a split" if run.split is None else "has a split without test rows"
        raise UsageError(f"{run.folder} {why}: say what to predict with --perturbations CSV or --all.")
    return keys


def read_requests(path: str | os.PathLike[str], *, contexts: Sequence[str]) -> list[Key]:
    """The rows of a `context,perturbation` CSV in file order, labels in canonical form.

    Without a context column, every row belongs to the only context there is.

    Raises
    ------
    InvalidFile
        Unreadable, no perturbation column, an empty label, a repeated row, or no context column with several
        contexts (code E674, all at once).
    """
    file = input_path(path)
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns, listed = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidFile([_request_issue(file, "", str(error), "a CSV of rows to predict")]) from error
    if "perturbation" not in columns or ("context" not in columns and len(contexts) != 1):
        expected = "columns context, perturbation" + (
            f" (contexts: {', '.join(contexts)})" if contexts else ""
        )
        raise InvalidFile([_request_issue(file, "1", ", ".join(columns) or "nothing", expected)])
    issues: list[Issue] = []
    keys: list[Key] = []
    seen: set[Key] = set()
    for number, row in enumerate(listed, start=2):
        label = STANDARD.canonical(row["perturbation"])
        key = (row["context"] if "context" in columns else contexts[0], label)
        if label == UNASSIGNED or not key[0]:
            issues.append(_request_issue(file, str(number), "an empty context or perturbation", "both"))
        elif key in seen:
            issues.append(_request_issue(file, str(number), f"{key} again", "each row once"))
        else:
            keys.append(key)
            seen.add(key)
    if not listed:
        issues.append(_request_issue(file, "2", "no rows", "at least one row"))
    if issues:
        raise InvalidFile(issues)
    return keys


def _request_issue(file: Path, place: str, found: str, expected: str) -> Issue:
    return make_issue(
        "E674", where=f"{file.name}:{place}", found=found, expected=expected, file=shlex.quote(str(file))
    )


def predict(
    run: Run,
    keys: Sequence[Key],
    *,
    controls: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
) -> PredictResult:
    """Profiles of (context, perturbation) rows.

    Without `controls` the run's own control means are used. With it, its contexts and genes are: genes that the run
    knows get the predicted effect, other genes the mean effect over the shared genes of the same row; genes of the
    run that the file lacks take part as their mean over training contexts. An executor's workers predict a share of the
    rows each, with the same result.

    Raises
    ------
    InvalidFile
        The controls do not fit the run (codes E671, E675).
    ModelError
        The run folder is broken.
    """
    if controls is None:
        return PredictResult(run.genes, _model_predict(run, keys, run.control_means, executor))
    genes, means = load_control_means(controls, target_sum=run.target_sum)
    return _aligned(run, keys, genes, means, input_path(controls), executor)


def _model_predict(
    run: Run, keys: Sequence[Key], means: Mapping[str, np.ndarray], executor: Executor | None
) -> Prediction:
    if executor is None:
        return run.model.predict(keys, means)
    from .sharded import predict_divided

    return predict_divided(run, keys, means, executor)


def _aligned(
    run: Run,
    keys: Sequence[Key],
    genes: np.ndarray,
    means: Mapping[str, np.ndarray],
    file: Path,
    executor: Executor | None,
) -> PredictResult:
    position = {str(gene): i for i, gene in enumerate(run.genes)}
    own = np.array([position.get(str(gene), -1) for gene in genes], dtype=np.int64)
    shared = np.flatnonzero(own >= 0)
    if not len(shared):
        raise InvalidFile(
            [
                make_issue(
                    "E675",
                    where=f"{file.name}:/var",
                    found=f"none of the run's {len(run.genes):,} genes",
                    expected="shared gene symbols",
                    file=shlex.quote(str(file)),
                )
            ]
        )
    known = np.mean([run.control_means[c] for c in sorted(run.control_means)], axis=0)
    inner = {}
    for context, profile in means.items():
        inner[context] = known.copy()
        inner[context][own[shared]] = profile[shared]
    raw = _model_predict(run, keys, inner, executor)
    profiles = np.full((len(keys), len(genes)), np.nan)
    foreign = np.flatnonzero(own < 0)
    for i, (context, _) in enumerate(keys):
        if raw.status[i] == "refused":
            continue
        profiles[i, shared] = raw.profiles[i, own[shared]]
        shift = float((profiles[i, shared] - means[context][shared]).mean())
        profiles[i, foreign] = means[context][foreign] + shift
    notes = [f"Control profiles of {len(means)} context(s) from {file.name}."]
    if len(foreign):
        notes.append(f"{len(foreign):,} genes are new to the run and get the mean shift of each row.")
    absent = len(run.genes) - len(shared)
    if absent:
        notes.append(f"{absent:,} genes of the run are not in {file.name} and are not predicted.")
    return PredictResult(genes, Prediction(raw.keys, profiles, raw.status, raw.reason), tuple(notes))


def write_prediction(
    out: str | os.PathLike[str],
    result: PredictResult,
    run: Run,
    *,
    inputs: Sequence[str | os.PathLike[str]] = (),
    force: bool = False,
) -> None:
    """Write the mean-effects file: one float32 row per predicted or fallback row; refusals stand in `uns`.

    Raises
    ------
    ModelError
        Every row was refused; no file is written.
    OutputError
        The output exists, equals an input, or cannot be written.
    """
    check_output(out, inputs=inputs, force=force)
    rows = result.rows("predicted", "fallback")
    prediction = result.prediction
    if not rows:
        reasons = sorted(set(prediction.reason))
        raise ModelError(f"{run.name} refused all {len(prediction.keys)} rows; first reason: {reasons[0]}.")
    write_mean_effects(
        out,
        prediction.profiles[rows],
        genes=result.genes,
        keys=[prediction.keys[i] for i in rows],
        status=[prediction.status[i] for i in rows],
        reason=[prediction.reason[i] for i in rows],
        target_sum=run.target_sum,
        dataset_id=run.dataset_id,
        extra={**run.provenance, "refused": json.dumps(result.refused())},
    )


def write_mean_effects(
    out: str | os.PathLike[str],
    profiles: np.ndarray,
    *,
    genes: Sequence[str] | np.ndarray,
    keys: Sequence[Key],
    target_sum: float,
    dataset_id: str,
    status: Sequence[str] | None = None,
    reason: Sequence[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write absolute mean log1p profiles, shape (len(keys), G), as a mean-effects h5ad."""
    meta = StandardMeta(
        dataset_id, MatrixMeta("log1p", target_sum), rows="mean", extra={"refused": "[]", **dict(extra or {})}
    )
    obs = {
        "perturbation": [label for _, label in keys],
        "context": [context for context, _ in keys],
        "status": list(status) if status is not None else ["predicted"] * len(keys),
        "reason": list(reason) if reason is not None else [""] * len(keys),
    }
    write_h5ad_dense(out, profiles, genes=[str(gene) for gene in genes], obs=obs, uns=meta.to_uns())
