"""Filter a standard file by a recipe: rules in passes over X, then one pass that writes what is left."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import check_output, write_text
from ..errors import InvalidFile, UsageError
from ..h5ad import DEFAULT_BLOCK_BYTES, H5ad
from ..h5ad_columns import Labels
from ..h5ad_write import write_h5ad_stream
from ..hashing import file_facts
from ..issues import Issue, make_issue
from ..labels import CONTROL
from ..matrix_scan import OnRows
from ..normalize import median_total
from ..remote import input_path
from ..split_file import Key
from ..standard import CONTEXT, PERTURBATION, UNS_KEY, MatrixMeta, StandardMeta, read_meta
from .recipes import FilterRecipe
from .rules import KNOCKDOWN_RULES, RULES
from .state import FilterState

TOTAL_COUNTS = "total_counts"


@dataclass(frozen=True)
class Size:
    """How much of a file there is; perturbations are counted per context, without control."""

    cells: int
    genes: int
    perturbations: int
    controls: int


@dataclass(frozen=True)
class StepReport:
    """What one rule removed, and why each (context, perturbation) went that lost its last cell."""

    rule: str
    parameters: Mapping[str, Any]
    removed: Size
    perturbations: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class FilterReport:
    """What `filter_file` did. `target_sum` is that of the output; `path` is None for a dry run."""

    recipe: str
    title: str
    seed: int
    path: Path | None
    source: Mapping[str, Any]
    before: Size
    after: Size
    target_sum: float | None
    steps: tuple[StepReport, ...]
    left_out: tuple[str, ...]
    issues: tuple[Issue, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The report as it is written beside the output, without the path."""
        steps = [
            {
                "rule": step.rule,
                "parameters": dict(step.parameters),
                "removed": asdict(step.removed),
                "perturbations": [
                    {"context": context, "perturbation": name, "why": why}
                    for context, name, why in step.perturbations
                ],
            }
            for step in self.steps
        ]
        return {
            "recipe": self.recipe,
            "title": self.title,
            "seed": self.seed,
            "source": dict(self.source),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "target_sum": self.target_sum,
            "steps": steps,
            "left_out": list(self.left_out),
            "issues": [issue.to_json() for issue in self.issues],
        }


def report_path(out: str | os.PathLike[str]) -> Path:
    """Where the report of an output goes: beside it, with `.filter.json`."""
    return Path(out).with_suffix(".filter.json")


def filter_file(
    src: str | os.PathLike[str],
    recipe: FilterRecipe,
    *,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    de_genes: str | os.PathLike[str] | None = None,
    force: bool = False,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> FilterReport:
    """Write to `out` what the rules of `recipe` leave of the standard file `src`, and the report beside it.

    Rules run in order, each on what the earlier ones left, in at most a few passes over X; memory holds one block of
    rows and a few numbers per cell and per gene. X keeps its values (float32 CSR), obs and var their columns. Where
    genes go, `total_counts` is recomputed, and so is the target sum of counts (the median total of the control cells,
    as conversion takes it); that of log1p values stays. Without `out`, nothing is written. `seed` serves rules that
    choose cells at random. `src` is not modified.

    Raises
    ------
    InvalidFile
        The file is not standard or does not fit the recipe (E614, E615, E619, E624, E626, E628, E651 to E655).
    UsageError
        The recipe needs `de_genes` and none is given.
    OutputError
        `out` or the report cannot be written, exists without `force`, or is `src`.
    """
    target = None
    if out is not None:
        inputs = [src] if de_genes is None else [src, de_genes]
        target = check_output(out, inputs=inputs, force=force)
        check_output(report_path(out), inputs=inputs, force=force)
    with H5ad(src) as file:
        state = _open_state(file, recipe, seed, block_bytes, on_rows)
        if de_genes is not None:
            state.de_counts = read_de_counts(de_genes, recipe.id)
        before = _size(state)
        steps = tuple(_run(state, step.rule, step.parameters) for step in recipe.steps)
        after = _size(state)
        totals, target_sum = _rescaled(state)
        report = FilterReport(
            recipe=recipe.id,
            title=recipe.title,
            seed=seed,
            path=target,
            source={"name": file.name, **file_facts(file.path)},
            before=before,
            after=after,
            target_sum=target_sum,
            steps=steps,
            left_out=recipe.left_out,
            issues=tuple(state.issues),
        )
        if target is not None:
            _write(state, recipe, report, totals, target)
            write_text(report_path(target), json.dumps(report.to_json(), indent=2) + "\n")
        return report


def read_de_counts(path: str | os.PathLike[str], recipe: str) -> dict[Key, int]:
    """Numbers of DE genes by (context, perturbation); the context is "" where the table has no such column.

    Raises `InvalidFile` (E655) for a table that cannot be used.
    """
    file = input_path(path)

    def broken(found: object, expected: str, line: int = 1) -> InvalidFile:
        where, quoted = f"{file.name}:{line}", shlex.quote("FILE.h5ad")
        return InvalidFile(
            [make_issue("E655", where=where, found=found, expected=expected, file=quoted, recipe=recipe)]
        )

    counts: dict[Key, int] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or ()
            if not {"perturbation", "n_de_genes"} <= set(columns):
                raise broken(", ".join(columns) or "nothing", "the columns perturbation and n_de_genes")
            for number, row in enumerate(reader, start=2):
                key = (row.get("context") or "", row["perturbation"] or "")
                text = (row["n_de_genes"] or "").strip()
                if not text.isdecimal():
                    raise broken(repr(text), "a whole number", number)
                if counts.setdefault(key, int(text)) != int(text):
                    raise broken(f"{key[1]!r} again with another number", "one number each", number)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise broken(error, "a CSV") from error
    return counts


def _open_state(
    file: H5ad, recipe: FilterRecipe, seed: int, block_bytes: int, on_rows: OnRows | None
) -> FilterState:
    def issue(code: str, place: str, found: str, expected: str, **fill: Any) -> Issue:
        where, quoted = f"{file.name}:/{place}", shlex.quote(str(file.path))
        return make_issue(
            code, where=where, found=found, expected=expected, file=quoted, recipe=recipe.id, **fill
        )

    meta = read_meta(file)
    if meta is None:
        raise InvalidFile([issue("E624", "uns", "no uns/vcbench", "a standard file")])
    missing = [column for column in (PERTURBATION, CONTEXT) if column not in file.obs_columns]
    issues = [
        issue("E626", "obs", ", ".join(file.obs_columns) or "no column", column, column=column)
        for column in missing
    ]
    if meta.rows != "cell":
        issues.append(issue("E651", "uns/vcbench/rows", meta.rows, "cell"))
    on_targets = [step.rule for step in recipe.steps if step.rule in (*KNOCKDOWN_RULES, "measured_targets")]
    falls = [rule for rule in on_targets if rule in KNOCKDOWN_RULES]
    if (on_targets and meta.modality in ("drug", "cytokine")) or (falls and meta.modality == "CRISPRa"):
        rule = (falls or on_targets)[0]
        found = f"modality {meta.modality} and the rule {rule}"
        issues.append(
            issue("E652", "uns/vcbench/modality", found, "CRISPRi or knockout", modality=meta.modality)
        )
    if issues:
        raise InvalidFile(issues)
    perturbation, context = file.labels(PERTURBATION), file.labels(CONTEXT)
    unlabelled = int(((perturbation.codes < 0) | (context.codes < 0)).sum())
    if unlabelled:
        raise InvalidFile([issue("E627", "obs", f"{unlabelled:,} cells without a label", "labels for all")])
    state = FilterState(
        file=file,
        meta=meta,
        recipe=recipe.id,
        perturbation=perturbation,
        context=context,
        cells=np.ones(file.n_obs, dtype=bool),
        genes=np.ones(file.n_vars, dtype=bool),
        rng=np.random.default_rng(seed),
        block_bytes=block_bytes,
        on_rows=on_rows,
    )
    bare = _contexts_without_controls(state)
    if bare:
        raise InvalidFile([issue("E619", "obs/perturbation", f"none in {', '.join(bare)}", repr(CONTROL))])
    others = [group for group in file.groups if group != "uns"]
    if others:
        state.issues.append(issue("W651", ", ".join(others), ", ".join(others), "X, obs, var and uns"))
    return state


def _contexts_without_controls(state: FilterState) -> list[str]:
    codes = state.context.codes[state.cells]
    with_controls = set(state.context.codes[state.cells & state.controls].tolist())
    return [str(state.context.categories[c]) for c in sorted(set(codes.tolist()) - with_controls)]


def _size(state: FilterState) -> Size:
    sizes, controls = state.key_sizes(), state.is_control_key
    return Size(
        cells=int(state.cells.sum()),
        genes=int(state.genes.sum()),
        perturbations=int(np.count_nonzero(sizes[~controls])),
        controls=int(sizes[controls].sum()),
    )


def _run(state: FilterState, rule: str, parameters: Mapping[str, Any]) -> StepReport:
    before, sizes = _size(state), state.key_sizes()
    removal = RULES[rule](state, **parameters)
    if removal.cells is not None:
        state.cells = state.cells & ~removal.cells
    if removal.genes is not None:
        state.genes = state.genes & ~removal.genes
    after = _size(state)
    gone = np.flatnonzero((sizes > 0) & (state.key_sizes() == 0) & ~state.is_control_key)
    lost = tuple((*state.keys[i], removal.why.get(state.keys[i], "no cell passes")) for i in gone)
    if not after.perturbations or not after.genes:
        found = f"{after.perturbations:,} perturbations, {after.genes:,} genes"
        expected = "at least one perturbation and one gene"
        raise InvalidFile([state.issue("E653", "X", found, expected, rule=rule)])
    bare = _contexts_without_controls(state)
    if bare:
        expected = "control cells in every context"
        raise InvalidFile([state.issue("E654", "obs", f"none left in {', '.join(bare)} by {rule}", expected)])
    removed = Size(
        **{name: getattr(before, name) - getattr(after, name) for name in Size.__dataclass_fields__}
    )
    return StepReport(rule, dict(parameters), removed, lost)


def _rescaled(state: FilterState) -> tuple[np.ndarray | None, float | None]:
    """(total_counts of the cells left, target sum) of the output; no totals where genes stay or X holds no counts."""
    matrix = state.meta.matrix
    if state.genes.all() or matrix.kind != "counts":
        return None, matrix.target_sum
    totals = np.zeros(state.file.n_obs)
    for rows, values in state.blocks():
        kept = state.genes[values.indices]
        entry_rows = np.repeat(np.arange(len(rows)), np.diff(values.indptr))
        totals[rows] = np.bincount(entry_rows[kept], values.data[kept].astype(np.float64), len(rows))
    try:
        return totals[state.cells], median_total(totals[state.cells & state.controls])
    except UsageError as error:
        found, expected = "control cells without a count in the genes left", "a control cell with a count"
        raise InvalidFile([state.issue("E631", "X", found, expected)]) from error


def _write(
    state: FilterState, recipe: FilterRecipe, report: FilterReport, totals: np.ndarray | None, target: Path
) -> None:
    file, cells, genes = state.file, np.flatnonzero(state.cells), np.flatnonzero(state.genes)
    obs = dict(_taken(file, "obs", cells))
    if totals is not None and TOTAL_COUNTS in obs:
        obs[TOTAL_COUNTS] = totals.astype(np.float32)
    meta = _meta(state, recipe, report)
    uns = {key: value for key, value in file.uns.items() if key != UNS_KEY}
    with write_h5ad_stream(
        target,
        genes=[str(gene) for gene in file.genes[genes]],
        obs=obs,
        obs_names=file.obs_names[cells].tolist(),
        var=dict(_taken(file, "var", genes)),
        uns={**uns, **meta.to_uns()},
    ) as writer:
        for _, values in state.blocks():
            kept: Any = values if state.genes.all() else values[:, genes]
            writer.append(kept.astype(np.float32))


def _taken(file: H5ad, axis: Any, rows: np.ndarray) -> Iterator[tuple[str, Any]]:
    for name in file.obs_columns if axis == "obs" else file.var_columns:
        values = file.values(name, axis=axis)
        if values.dtype == object:
            labels = file.labels(name, axis=axis)
            yield name, Labels.from_codes(labels.codes[rows], labels.categories)
        else:
            yield name, values[rows]


def _meta(state: FilterState, recipe: FilterRecipe, report: FilterReport) -> StandardMeta:
    told = report.to_json()
    listed = state.meta.extra.get("filters")
    earlier = json.loads(listed) if isinstance(listed, str) else []
    n_cells, n_genes = report.before.cells, report.before.genes
    for step in report.steps:
        entry = {"filter": f"{recipe.id}: {step.rule}", "before": n_cells, "genes_before": n_genes}
        n_cells, n_genes = n_cells - step.removed.cells, n_genes - step.removed.genes
        earlier.append({**entry, "after": n_cells, "genes_after": n_genes})
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    filtering = {
        "recipe": recipe.id,
        "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "source_sha256": report.source["sha256"],
        "report": json.dumps(told),
    }
    matrix = MatrixMeta(state.meta.matrix.kind, report.target_sum)
    extra = {**state.meta.extra, "filters": json.dumps(earlier), "filtering": filtering}
    return replace(state.meta, matrix=matrix, extra=extra)
