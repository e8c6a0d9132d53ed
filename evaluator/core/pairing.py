"""Prediction meets truth: matrix kinds, genes, contexts, labels and the rows to evaluate, with coded issues."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, replace

import numpy as np

from ...data_specs.errors import InvalidFile, UsageError
from ...data_specs.issues import Issue, first_of, has_errors, make_issue, sort_issues
from ...data_specs.labels import CONTROL, UNASSIGNED_LABELS
from ...data_specs.sources import Source
from ...data_specs.spec_models import Edition
from ...data_specs.standard import MatrixMeta, RowKind, read_meta
from ..score_options import ScoreOptions

Key = tuple[str, str]
UNKNOWN_CONTEXT = "unknown"
# Sums that differ by less are equal: the number went through text or float32 on its way.
TARGET_SUM_RTOL = 1e-6


@dataclass(frozen=True)
class Side:
    """One file of the pair.

    `keys` are its (context, perturbation) in sorted order, controls as (context, "control"); `codes` gives the key
    of each row, int64, shape (n_obs,), -1 for rows without a label; `n_rows` counts rows per key. `columns` puts
    its genes into the sorted order that all arrays of the edition use.
    """

    source: Source
    matrix: MatrixMeta
    rows: RowKind
    keys: tuple[Key, ...]
    codes: np.ndarray
    n_rows: np.ndarray
    columns: np.ndarray

    def position(self) -> dict[Key, int]:
        """The index of every key."""
        return {key: i for i, key in enumerate(self.keys)}

    def select(self, keys: list[Key]) -> np.ndarray:
        """The position in `keys` of each row's key, int64, -1 for rows of other keys."""
        wanted = {key: i for i, key in enumerate(keys)}
        table = np.array([wanted.get(key, -1) for key in self.keys] + [-1], dtype=np.int64)
        return table[self.codes]


@dataclass(frozen=True)
class Pair:
    """A prediction and a truth that fit together.

    `genes` are sorted; `evaluated` are the rows to score, sorted; `refused` maps those among them that the model
    declined to its reason; `train` are the training rows of the split that the truth has.
    """

    pred: Side
    truth: Side
    genes: np.ndarray
    evaluated: tuple[Key, ...]
    refused: dict[Key, str]
    train: tuple[Key, ...]
    issues: tuple[Issue, ...]

    @property
    def target_sum(self) -> float | None:
        """The total that cells are scaled to, as the truth declares it."""
        return self.truth.matrix.target_sum


def match(pred: Source, truth: Source, *, edition: Edition, options: ScoreOptions) -> Pair:
    """Match a prediction to the truth.

    Raises
    ------
    InvalidFile
        They do not fit together; all problems found are listed (codes E015, E212, E550 to E563).
    UsageError
        `options.matrix` contradicts what the prediction declares.
    """
    issues: list[Issue] = []
    label_column = options.pert_col or edition.file.perturbation_column
    for source in (pred, truth):
        if label_column not in source.obs_columns:
            found = ", ".join(source.obs_columns) or "no column"
            issues.append(
                _issue("E563", source, "/obs", found=found, expected=label_column, column=label_column)
            )
    issues += _gene_issues(pred, truth)
    pred_matrix, truth_matrix, rows = _matrices(pred, truth, options, issues)
    _stop_on_errors(issues)

    assert pred_matrix is not None and truth_matrix is not None
    truth_context = _only_context(pred, edition, options)
    truth_side = side_of(truth, truth_matrix, "cell", edition, options, truth_context, issues)
    contexts = sorted({context for context, _ in truth_side.keys})
    context_column = _context_column(edition, options)
    if context_column not in pred.obs_columns and len(contexts) > 1:
        issues.append(
            _issue(
                "E556",
                pred,
                "/obs",
                found=f"no column {context_column!r}",
                expected=f"one of {first_of(contexts)} per row",
            )
        )
        _stop_on_errors(issues)
    pred_side = side_of(pred, pred_matrix, rows, edition, options, contexts[0] if contexts else "", issues)
    return _rows_to_evaluate(pred_side, truth_side, options, issues)


def _stop_on_errors(issues: list[Issue]) -> None:
    if has_errors(issues):
        raise InvalidFile(sort_issues(issues))


def _context_column(edition: Edition, options: ScoreOptions) -> str:
    return options.context_col or edition.file.context_column or "context"


def _only_context(pred: Source, edition: Edition, options: ScoreOptions) -> str:
    """The context of a truth without a context column: the split's or the prediction's only one."""
    column = _context_column(edition, options)
    contexts: set[str] = {context for context, _ in options.split.rows} if options.split else set()
    if not contexts and column in pred.obs_columns:
        contexts = {str(name) for name in pred.labels(column).categories}
    return contexts.pop() if len(contexts) == 1 else UNKNOWN_CONTEXT


def _gene_issues(pred: Source, truth: Source) -> list[Issue]:
    issues = []
    for source in (pred, truth):
        repeated = _repeated(source.genes)
        if repeated:
            issues.append(
                _issue(
                    "E551", source, "/var", found=f"repeated: {first_of(repeated)}", expected="each gene once"
                )
            )
    missing, extra = sorted(set(truth.genes) - set(pred.genes)), sorted(set(pred.genes) - set(truth.genes))
    if missing or extra:
        issues.append(
            _issue(
                "E551",
                pred,
                "/var",
                found=f"missing {first_of(missing)}; extra {first_of(extra)}",
                expected=f"the {truth.n_vars:,} genes of {truth.name}",
            )
        )
    return issues


def _repeated(names: np.ndarray) -> list[str]:
    unique, counts = np.unique(names.astype(str), return_counts=True)
    return [str(name) for name in unique[counts > 1]]


def _matrices(
    pred: Source, truth: Source, options: ScoreOptions, issues: list[Issue]
) -> tuple[MatrixMeta | None, MatrixMeta | None, RowKind]:
    metas = {"pred": read_meta(pred), "truth": read_meta(truth)}
    declared = {role: meta.matrix.kind for role, meta in metas.items() if meta}
    if options.matrix and len(declared) == 2 and declared["pred"] != options.matrix:
        raise UsageError(
            f"{pred.name} declares {declared['pred']}, --matrix says {options.matrix}; "
            "--matrix is for files that declare nothing."
        )
    found: dict[str, MatrixMeta | None] = {}
    for role, source in (("pred", pred), ("truth", truth)):
        meta = metas[role]
        if meta:
            found[role] = meta.matrix
        elif options.matrix:
            found[role] = MatrixMeta(options.matrix)
        else:
            found[role] = None
            issues.append(
                _issue("E559", source, "/uns/vcbench", found="no declaration", expected="counts or log1p")
            )
    pred_meta, truth_meta = metas["pred"], metas["truth"]
    rows: RowKind = pred_meta.rows if pred_meta else "cell"
    if truth_meta and truth_meta.rows == "mean":
        issues.append(_issue("E561", truth, "/uns/vcbench/rows", found="mean", expected="cell"))
    if rows == "mean" and found["pred"] and found["pred"].kind == "counts":
        issues.append(_issue("E560", pred, "/uns/vcbench/matrix", found="counts", expected="log1p"))
    if found["pred"] and found["truth"]:
        found["pred"] = _shared_scale(pred, truth, found["pred"], found["truth"], issues)
    return found["pred"], found["truth"], rows


def _shared_scale(
    pred: Source, truth: Source, pred_matrix: MatrixMeta, truth_matrix: MatrixMeta, issues: list[Issue]
) -> MatrixMeta:
    """The prediction's matrix with the truth's target sum; a problem becomes an issue."""
    ours, theirs = pred_matrix.target_sum, truth_matrix.target_sum
    if theirs is None and "counts" in (pred_matrix.kind, truth_matrix.kind):
        issues.append(
            _issue(
                "E553", truth, "/uns/vcbench/matrix/target_sum", found="nothing", expected="a positive number"
            )
        )
    elif ours is not None and theirs is not None and abs(ours - theirs) > TARGET_SUM_RTOL * theirs:
        issues.append(
            _issue(
                "E552",
                pred,
                "/uns/vcbench/matrix/target_sum",
                found=f"{ours:.10g}",
                expected=f"{theirs:.10g}, as in {truth.name}",
            )
        )
    elif (ours is None and pred_matrix.kind == "log1p") or theirs is None:
        source = pred if ours is None and pred_matrix.kind == "log1p" else truth
        issues.append(
            _issue(
                "W552",
                source,
                "/uns/vcbench/matrix/target_sum",
                found="nothing",
                expected="the target_sum of the values",
            )
        )
    return replace(pred_matrix, target_sum=theirs)


def side_of(
    source: Source,
    matrix: MatrixMeta,
    rows: RowKind,
    edition: Edition,
    options: ScoreOptions,
    default_context: str,
    issues: list[Issue],
) -> Side:
    """One file by itself: its keys, the key of every row, its genes in sorted order.

    `default_context` is that of all rows where there is no context column. Rows without a label become issue W556.
    """
    labels = source.labels(options.pert_col or edition.file.perturbation_column)
    control = options.control or edition.file.control_label
    names = [CONTROL if name == control else str(name) for name in labels.categories]
    context_column = _context_column(edition, options)
    if context_column in source.obs_columns:
        context = source.labels(context_column)
        context_codes, contexts = context.codes.astype(np.int64), [str(c) for c in context.categories]
    else:
        context_codes, contexts = np.zeros(source.n_obs, np.int64), [default_context]
    codes = labels.codes.astype(np.int64)
    unassigned = [i for i, name in enumerate(names) if name.strip() in UNASSIGNED_LABELS]
    known = (codes >= 0) & (context_codes >= 0) & ~np.isin(codes, unassigned)
    if not known.all():
        issues.append(
            _issue(
                "W556", source, "/obs", found=f"{int((~known).sum()):,} rows", expected="a label on every row"
            )
        )
    joint = np.where(known, context_codes * max(1, len(names)) + codes, -1)
    used = np.unique(joint[known])
    found = [(contexts[int(j) // len(names)], names[int(j) % len(names)]) for j in used]
    keys = sorted(set(found))
    place = {key: i for i, key in enumerate(keys)}
    row_codes = np.full(source.n_obs, -1, dtype=np.int64)
    row_codes[known] = np.array([place[key] for key in found], dtype=np.int64)[
        np.searchsorted(used, joint[known])
    ]
    n_rows = np.bincount(row_codes[row_codes >= 0], minlength=len(keys)).astype(np.int64)
    columns = np.argsort(source.genes.astype(str), kind="stable")
    return Side(source, matrix, rows, tuple(keys), row_codes, n_rows, columns)


def _rows_to_evaluate(pred: Side, truth: Side, options: ScoreOptions, issues: list[Issue]) -> Pair:
    in_truth = {key for key in truth.keys if key[1] != CONTROL}
    train: set[Key] = set()
    evaluated = in_truth
    if options.split is not None:
        train = set(options.split.keys("train")) & in_truth
        parts = ("train", "validation", "test") if options.subset == "all" else (options.subset,)
        chosen = {key for part in parts for key in options.split.keys(part) if key[1] != CONTROL}
        evaluated = chosen & in_truth
        absent = sorted(chosen - in_truth)
        if absent:
            issues.append(
                _row_issue("W553", truth, absent, f"cells of all {len(chosen):,} {options.subset} rows")
            )
    if not evaluated:
        part = f" of subset {options.subset!r} of the split" if options.split else ""
        issues.append(
            _row_issue("E555", truth, sorted(in_truth), f"a perturbation{part} with cells in the truth")
        )
        _stop_on_errors(issues)
    predicted = set(pred.keys)
    for context in sorted({context for context, _ in evaluated} - {c for c, p in truth.keys if p == CONTROL}):
        issues.append(
            _issue(
                "E550",
                truth.source,
                "/obs",
                found="0 control cells",
                expected="control cells in every evaluated context",
                context=context,
            )
        )
    refused = _refused(pred.source, issues)
    both = sorted(set(refused) & predicted & evaluated)
    if both:
        issues.append(_row_issue("W555", pred, both, "a row or a refusal, not both"))
    declined = {key: refused[key] for key in sorted(evaluated - predicted) if key in refused}
    missing = sorted(evaluated - predicted - set(refused))
    if missing:
        issues.append(_row_issue("E554", pred, missing, f"all {len(evaluated):,} evaluated rows", "missing "))
    if declined:
        issues.append(_row_issue("W554", pred, sorted(declined), "a prediction for every row", "refused "))
    extra = sorted(key for key in predicted - evaluated if key[1] != CONTROL)
    if extra:
        issues.append(_row_issue("W550", pred, extra, f"the {len(evaluated):,} evaluated rows"))
    if any(name == CONTROL for _, name in predicted):
        issues.append(_issue("W551", pred.source, "/obs", found="control rows", expected="none needed"))
    if pred.rows == "mean":
        repeated = [key for key, n in zip(pred.keys, pred.n_rows, strict=True) if n > 1]
        if repeated:
            issues.append(_row_issue("E212", pred, repeated, "one row per (context, perturbation)"))
    _stop_on_errors(issues)
    return Pair(
        pred=pred,
        truth=truth,
        genes=truth.source.genes[truth.columns],
        evaluated=tuple(sorted(evaluated)),
        refused=declined,
        train=tuple(sorted(train)),
        issues=tuple(sort_issues(issues)),
    )


def _row_issue(code: str, side: Side, keys: list[Key], expected: str, prefix: str = "") -> Issue:
    return make_issue(
        code,
        where=f"{side.source.name}:/obs",
        found=prefix + first_of(f"{context}/{name}" for context, name in keys),
        expected=expected,
        file=shlex.quote(str(side.source.path)),
    )


def _refused(source: Source, issues: list[Issue]) -> dict[Key, str]:
    text = source.vcbench.get("refused")
    if text is None:
        return {}
    problem = ""
    listed: list[dict[str, str]] = []
    try:
        listed = json.loads(text)
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        wanted = {"context", "perturbation", "reason"}
        if not isinstance(listed, list) or not all(isinstance(r, dict) and wanted <= set(r) for r in listed):
            problem = "entries without context, perturbation or reason"
    if problem:
        issues.append(
            _issue(
                "E015",
                source,
                "/uns/vcbench/refused",
                found=problem,
                expected="a JSON list of {context, perturbation, reason}",
            )
        )
        return {}
    return {(str(r["context"]), str(r["perturbation"])): str(r["reason"]) for r in listed}


def _issue(
    code: str,
    source: Source,
    place: str,
    *,
    found: object,
    expected: object,
    column: str = "",
    context: str = "",
) -> Issue:
    return make_issue(
        code,
        where=f"{source.name}:{place}",
        found=found,
        expected=expected,
        file=shlex.quote(str(source.path)),
        column=repr(column),
        context=repr(context),
    )
