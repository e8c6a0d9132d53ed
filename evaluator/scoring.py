"""Score a prediction against the truth: open, validate, measure by the edition's pipeline, and make the ScoreCard."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_specs.cli_support import command_line
from ..data_specs.errors import InvalidFile, MetricError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.issues import Issue, has_errors, sort_issues
from ..data_specs.remote import is_path_like, public
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from ..data_specs.split_file import Split, read_split
from ..data_specs.standard import MatrixKind
from .entry_tasks import EntryTask, absolute, divided_draws, score_task, sent_arguments
from .input_records import described, truth_inputs
from .kernels.devices import checked_device
from .memory import block_bytes as bytes_per_block
from .pipelines import Progress, load_pipeline
from .profiles import resolve_profile
from .provenance import provenance_of
from .score_options import SUBSETS, ScoreOptions, Subset
from .scorecard import Provenance, ScoreCard, ScoreResult, write_scorecard
from .shared import Shared
from .truth_files import (
    CONTEXT_COLUMN,
    holds_tables,
    listed_truths,
    one_truth,
    open_source,
    open_truth,
    refuse_without_cells,
)
from .uncertainty.cell_noise import check_resamples
from .uncertainty.intervals import with_intervals
from .validation import OpenEntry, opened_entry, validate

if TYPE_CHECKING:
    from .executors import Executor
    from .uncertainty.cell_noise import Draw

VERSIONED = ("vcbench", "numpy", "scipy", "h5py", "pandas")
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Scored:
    """The outcome of `score`: the ScoreCard, and the result with its tables."""

    card: ScoreCard
    result: ScoreResult

    def write(self, folder: PathLike, *, force: bool = False) -> Path:
        """Write card and tables as one folder; see `write_scorecard`."""
        return write_scorecard(self.card, self.result, folder, force=force)


def score(
    pred: Any,
    truth: Any,
    *,
    edition: str | Edition = "core",
    profile: str | None = None,
    split: PathLike | Split | None = None,
    subset: Subset = "test",
    pert_col: str | None = None,
    control: str | None = None,
    context_col: str | None = None,
    matrix: MatrixKind | None = None,
    name: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    block_bytes: int | None = None,
    memory: int | None = None,
    device: str = "cpu",
    references: Mapping[str, Any] | None = None,
    no_target_genes: bool = False,
    target_map: Mapping[str, str | None] | None = None,
    intervals: bool = True,
    cell_resamples: int = 0,
    executor: Executor | None = None,
    tmp: PathLike | None = None,
    provenance: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Score predictions against real cells.

    Parameters
    ----------
    pred
        Path or URL of an `.h5ad` (cells or mean effects) or `.vcc`, or an AnnData in memory.
    truth
        Path or AnnData with the real cells, controls included, or a truth bundle; a mapping {context: path or
        AnnData} or a list of them is read as one. Neither input is modified.
    edition, profile
        Rules and metrics: an edition id, a TOML path or an `Edition`, and one of its profiles (None: the default).
    split, subset
        A split file (or `Split`) and the part of it to evaluate; without a split every perturbation of the truth.
    pert_col, control, context_col, matrix
        See `ScoreOptions`.
    name
        Name of the entry in tables; the file's stem when None.
    threads, memory, block_bytes, device
        See `ScoreOptions`; results depend on none of them.
    references
        What an overall score needs beyond the truth; see the edition.
    no_target_genes, target_map
        See `ScoreOptions`.
    intervals
        Whether aggregated values get 95% intervals over perturbations (`uncertainty.intervals`).
    cell_resamples
        Draws of the cells for standard errors (`uncertainty.cell_noise`); 0 leaves them out.
    executor
        Whose workers do the work (`executors.open_executor`); see `ScoreOptions`. Results do not depend on it.
    tmp
        Where a `.vcc` is unpacked; None: beside it, or in the system's folder.
    provenance
        What made the entry, where its file does not say: `model`, `commit`, `seed`, `command`, and settings.
    progress
        Called with (done, total, text).

    Returns
    -------
    Scored
        Equal for files and for the same content in memory.

    Raises
    ------
    InvalidFile
        A file breaks the edition's rules, or the files do not fit together. No score is given.
    UnknownName
        No such edition, profile or metric.
    MetricError
        A metric could not be computed on valid input.
    """
    arguments = {key: value for key, value in locals().items() if key not in ("pred", "name", "provenance")}
    with Scorer(**arguments, keep_truth=False) as scorer:
        return scorer.score(pred, name=name, provenance=provenance)


class Scorer:
    """A truth opened, checked and measured once, against which any number of entries are scored, one after the other.

    Use it as a context manager. Arguments are those of `score`; every result is what `score` gives for the entry alone.
    Without `keep_truth` nothing measured of the truth is kept between entries.
    """

    def __init__(
        self,
        truth: Any,
        *,
        edition: str | Edition = "core",
        profile: str | None = None,
        split: PathLike | Split | None = None,
        subset: Subset = "test",
        pert_col: str | None = None,
        control: str | None = None,
        context_col: str | None = None,
        matrix: MatrixKind | None = None,
        seed: int = 0,
        threads: int | None = None,
        block_bytes: int | None = None,
        memory: int | None = None,
        device: str = "cpu",
        references: Mapping[str, Any] | None = None,
        no_target_genes: bool = False,
        target_map: Mapping[str, str | None] | None = None,
        intervals: bool = True,
        cell_resamples: int = 0,
        executor: Executor | None = None,
        tmp: PathLike | None = None,
        progress: Progress | None = None,
        keep_truth: bool = True,
    ):
        self._arguments = dict(locals())
        if subset not in SUBSETS:
            raise UsageError(f"subset {subset!r} is none of {', '.join(SUBSETS)}.")
        self._rules = load_edition(edition) if isinstance(edition, str) else edition
        self._profile, self._chosen = profile, resolve_profile(self._rules, profile)
        self._truth_items = listed_truths(truth)
        if cell_resamples:
            check_resamples(cell_resamples)
            refuse_without_cells(self._rules, self._truth_items)
        if len(self._truth_items) > 1 and context_col is None and self._rules.file.context_column is None:
            # Rows of several files are never pooled, also where the edition knows no contexts.
            context_col = CONTEXT_COLUMN
        self._options = ScoreOptions(
            split=split if isinstance(split, Split) or split is None else read_split(split),
            subset=subset,
            pert_col=pert_col,
            control=control,
            context_col=context_col,
            matrix=matrix,
            seed=seed,
            threads=threads,
            block_bytes=bytes_per_block(memory) if block_bytes is None else block_bytes,
            memory=memory,
            device=checked_device(device),
            references=dict(references or {}),
            no_target_genes=no_target_genes,
            target_map=target_map,
            shared=Shared() if keep_truth else None,
            executor=executor,
        )
        self._split, self._intervals, self._progress = split, intervals, progress or _no_progress
        self._cell_resamples, self._tmp = cell_resamples, tmp
        self._stack = ExitStack()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def score(
        self,
        pred: Any,
        *,
        name: str | None = None,
        provenance: Mapping[str, str] | None = None,
        command: str | None = None,
    ) -> Scored:
        """The ScoreCard of one entry and its tables; see the function `score`. `command`: None for this process's."""
        rules, options = self._rules, self._options
        timings: dict[str, float] = {}
        started = time.perf_counter()
        with ExitStack() as stack:
            tables = holds_tables(rules)
            entry, problems = (None, []) if tables else _opened_entry(pred, stack, self._tmp)
            issues = _validated(entry or pred, problems, self._truth_items, rules, options)
            pred_source = entry.source if entry else open_source(pred, "prediction", stack, tables=tables)
            made = provenance_of(pred_source, provenance, command=command or command_line())
            timings["validate"] = time.perf_counter() - started
            truths, truth_source = options.remembered("truth", self._opened_truth)
            measured = time.perf_counter()
            result = load_pipeline(rules.scoring.pipeline)(
                pred_source,
                truth_source,
                edition=rules,
                profile=self._chosen,
                options=options,
                progress=self._progress,
            )
            timings["measure"] = time.perf_counter() - measured
            if self._cell_resamples:
                drawn = time.perf_counter()
                result = self._with_cell_noise(result, pred_source, truth_source)
                timings["cell_resamples"] = time.perf_counter() - drawn
            if self._intervals:
                resampled = time.perf_counter()
                family = self._chosen.family or rules.scoring.pipeline
                result = with_intervals(result, edition=rules, family=family, seed=options.seed)
                timings["intervals"] = time.perf_counter() - resampled
            inputs = {"prediction": described(pred_source)}
            inputs |= options.remembered("inputs", lambda: truth_inputs(truths, self._split))
        timings["total"] = time.perf_counter() - started
        label = name or _stem(pred_source)
        card = _card(
            label, rules, self._profile, options, result, [*issues, *result.issues], inputs, timings, made
        )
        return Scored(card, result)

    @property
    def divides_cells(self) -> bool:
        """Whether the workers of an executor share the cells of an entry; otherwise each scores whole entries."""
        return self._rules.scoring.pipeline == "vcc2026"

    def content_key(self, pred: PathLike) -> str:
        """What the ScoreCard of a file depends on, as one hash; see `content_key.content_key`."""
        from .content_key import content_key

        options = self._options
        target_map = None if options.target_map is None else dict(options.target_map)
        return content_key(
            pred,
            self._truth_items,
            edition=self._rules,
            profile=self._profile or self._rules.scoring.default_profile,
            split=self._split,
            references=options.references,
            options={
                "subset": options.subset,
                "pert_col": options.pert_col,
                "control": options.control,
                "context_col": options.context_col,
                "matrix": options.matrix,
                "seed": options.seed,
                "no_target_genes": options.no_target_genes,
                "target_map": target_map,
                "intervals": self._intervals,
                "cell_resamples": self._cell_resamples,
            },
        )

    def score_all(
        self, preds: Sequence[PathLike], *, provenance: Mapping[str, str] | None = None
    ) -> Iterator[tuple[PathLike, Scored | InvalidFile | MetricError]]:
        """(entry, its scores or why it has none) of every file, in order.

        Where cells are not divided among workers (all editions but vcc2026), each worker scores one entry at a time.
        """
        executor = self._options.executor
        if executor is None or self.divides_cells:
            for pred in preds:
                try:
                    yield pred, self.score(pred, provenance=provenance)
                except (InvalidFile, MetricError) as error:
                    yield pred, error
            return
        shared = sent_arguments(self._arguments, threads=self._options.threads or executor.threads)
        about, asked = dict(provenance or {}), command_line()
        tasks = [EntryTask(absolute(pred), shared, about, asked) for pred in preds]
        given = [*(task.pred for task in tasks), *(item for _, item in shared["truth"])]
        opened = [item for item in given if is_path_like(item)]
        done = partial(self._progress, text="entries")
        yield from zip(preds, executor.map(score_task, tasks, done=done, files=opened), strict=True)

    def draws(self, pred: PathLike, numbers: Sequence[int]) -> list[Draw | None]:
        """The scores of some draws of the cells of a prediction's file and of the truth; see `score_draws`."""
        with ExitStack() as stack:
            _, truth = self._options.remembered("truth", self._opened_truth)
            return self._draws(open_source(pred, "prediction", stack), truth, numbers)

    def _draws(self, pred: Source, truth: Any, numbers: Sequence[int]) -> list[Draw | None]:
        from .uncertainty.cell_noise import score_draws

        options = replace(self._options, shared=None, executor=None)
        pipeline = load_pipeline(self._rules.scoring.pipeline)
        about: dict[str, Any] = {"edition": self._rules, "profile": self._chosen, "options": options}
        return score_draws(
            numbers,
            pred,
            truth,
            lambda drawn, real: pipeline(drawn, real, **about, progress=_no_progress),
            edition=self._rules,
            options=options,
            progress=self._progress,
        )

    def _with_cell_noise(self, result: ScoreResult, pred: Source, truth: Any) -> ScoreResult:
        from .uncertainty.cell_noise import with_cell_noise

        executor, n_draws = self._options.executor, self._cell_resamples
        in_files = all(is_path_like(item) for _, item in self._truth_items)
        if executor is None or not (in_files and isinstance(pred, H5ad)):
            return with_cell_noise(result, self._draws(pred, truth, range(n_draws)))
        arguments = sent_arguments(self._arguments, threads=self._options.threads or executor.threads)
        return with_cell_noise(result, divided_draws(executor, pred, arguments, n_draws, self._progress))

    def _opened_truth(self) -> tuple[list[tuple[str | None, Any]], Any]:
        truths = [
            (context, open_truth(item, context or "truth", self._rules, self._stack))
            for context, item in self._truth_items
        ]
        return truths, one_truth(truths, self._rules, self._options)


def _no_progress(done: int, total: int, text: str) -> None:
    """Progress for callers that want none."""


def _opened_entry(pred: Any, stack: ExitStack, tmp: PathLike | None) -> tuple[OpenEntry | None, list[Issue]]:
    """The prediction's file, opened once for validation and scoring, or why it cannot be; nothing for an AnnData."""
    if not is_path_like(pred):
        return None, []
    try:
        return stack.enter_context(opened_entry(pred, tmp=tmp)), []
    except InvalidFile as error:
        return None, list(error.issues)


def _validated(
    pred: Any,
    problems: list[Issue],
    truths: list[tuple[str | None, Any]],
    edition: Edition,
    options: ScoreOptions,
) -> list[Issue]:
    """Warnings and notes of validation. Raises `InvalidFile` with the problems of all files when one has errors.

    `problems` says why the prediction could not be opened; it is validated only without them.
    """

    # vcc2026 has its own rules for scoring (controls, any number of cells); the entry's are those of
    # `vcbench validate`. The entry rules of a challenge (no controls, a cap on cells) are not rules for its truth.
    def of(item: Any) -> list[Issue]:
        report = validate(
            item,
            edition=edition,
            pert_col=options.pert_col,
            control=options.control,
            context_col=options.context_col,
            matrix=options.matrix,
            block_bytes=options.block_bytes,
        )
        return list(report.issues)

    def of_truths() -> list[Issue]:
        checked = edition.scoring.pipeline in ("core", "openproblems")
        return [issue for _, item in truths for issue in of(item)] if checked else []

    issues = list(problems)
    if not problems and edition.scoring.pipeline != "vcc2026":
        issues += of(pred)
    issues += options.remembered("truth issues", of_truths)
    if has_errors(issues):
        raise InvalidFile(sort_issues(issues))
    return issues


def _stem(source: Source) -> str:
    return source.path.name.removesuffix(".h5ad").removesuffix(".vcc")


def _shared(issue: dict[str, Any]) -> dict[str, Any]:
    """An issue for a file that is passed on: what it says of URLs has no passwords."""
    return {key: public(value) if isinstance(value, str) else value for key, value in issue.items()}


def _card(
    name: str,
    edition: Edition,
    profile: str | None,
    options: ScoreOptions,
    result: ScoreResult,
    issues: list[Issue],
    inputs: dict[str, dict[str, Any]],
    timings: dict[str, float],
    provenance: Provenance,
) -> ScoreCard:
    asked = {
        "subset": options.subset if options.split else None,
        "split": dict(options.split.record) if options.split else None,
        "pert_col": options.pert_col,
        "control": options.control,
        "context_col": options.context_col,
        "matrix": options.matrix,
    }
    return ScoreCard(
        name=name,
        edition=edition.id,
        profile=profile or edition.scoring.default_profile,
        score=result.score,
        score_reason=result.score_reason,
        score_interval=result.score_interval,
        metrics=dict(result.metrics),
        strata={key: dict(values) for key, values in result.strata.items()},
        issues=[_shared(issue.to_json()) for issue in sort_issues(issues)],
        refused=dict(result.refused),
        inputs=inputs,
        parameters={"options": asked, **result.parameters},
        seeds={"root": options.seed},
        versions={
            **{package: version(package) for package in VERSIONED},
            "python": platform.python_version(),
        },
        timings_s={key: round(value, 3) for key, value in timings.items()},
        notes=list(result.notes),
        provenance=provenance,
    )
