"""From checked inputs to the rows of an entry: which rows, which emission mode, which scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.h5ad_write import write_h5ad_dense
from ..data_specs.labels import CONTROL
from ..data_specs.normalize import median_total
from ..data_specs.spec_models import Edition
from ..data_specs.standard import CONTEXT, PERTURBATION, MatrixMeta, StandardMeta
from ..evaluator.checks.value_scan import ValueScan
from ..evaluator.reference_files import PerturbationList
from .control_pool import ControlPool
from .emission import GUARD, EmissionReport, Space, amplify, choose_mode
from .pack_inputs import NO_CONTEXT, Part, Problems
from .pack_rows import (
    EmittedRows,
    FileRows,
    Group,
    Logged,
    Normalised,
    Pools,
    Progress,
    Rows,
    control_pool,
    row_sums,
    write_rows,
)

if TYPE_CHECKING:
    from .packing import PackOptions

_BYTES_PER_ENTRY = 8


@dataclass
class Draft:
    """What will be written: mean profiles as they are (`means`), or `emitted` and file rows in order.

    `record` goes into the manifest. Counts that are `rescaled` to a median over all rows are emitted in `two_steps`,
    through a temporary file.
    """

    record: dict[str, Any]
    estimated_bytes: int
    emitted: EmittedRows | None = None
    predicted: FileRows | None = None
    controls: FileRows | None = None
    means: np.ndarray | None = None
    kind: MatrixMeta = field(default_factory=lambda: MatrixMeta("counts"))
    rescaled: bool = False

    @property
    def two_steps(self) -> bool:
        return self.rescaled and self.emitted is not None and self.emitted.space == "counts"

    def reports(self) -> list[EmissionReport]:
        """One report per emitted group, after writing."""
        return [] if self.emitted is None else self.emitted.reports


@dataclass
class Build:
    """Checked inputs of one pack. Gene positions (`order`) are those of the entry; `contexts` those it must hold."""

    edition: Edition
    options: PackOptions
    part: Part
    order: np.ndarray
    genes: list[str]
    expected: PerturbationList | None
    control_part: Part | None
    control_order: np.ndarray | None
    problems: Problems
    contexts: tuple[str, ...] | None = None
    progress: Progress | None = None

    @property
    def standard(self) -> bool:
        """Whether the entry has the standard columns (editions of our own) or the challenge's."""
        return self.edition.file.perturbation_column == PERTURBATION

    @property
    def counts_only(self) -> bool:
        """Whether the edition takes raw counts and nothing else."""
        return self.edition.file.matrix == "counts"

    def plan(self) -> Draft:
        """Decide rows and scale; estimates but writes nothing. Raises `InvalidFile` with all problems."""
        self._one_context()
        if self.part.rows == "mean":
            draft = self._mean_draft()
        else:
            draft = self._cell_draft()
        draft.rescaled = not self.standard and not self.counts_only
        self._count_rows(draft)
        self.problems.stop()
        return draft

    def _one_context(self) -> None:
        used = self.part.keep & ~self.part.is_control
        found = sorted({str(c) for c in self.part.context[used]} - {NO_CONTEXT})
        if self.edition.file.context_column is None and len(found) > 1:
            place = f"/obs/{CONTEXT}"
            self.problems.add("E531", self.part.source, place, ", ".join(found[:3]), "one context")
            self.problems.stop()

    def _notes(self) -> list[str]:
        return [*self.part.notes, *(self.control_part.notes if self.control_part else ())]

    def _cell_draft(self) -> Draft:
        part = self.part
        if self.options.mode or self.options.n_cells or self.options.effect_scale != 1.0:
            raise UsageError(
                "--mode, --cells and --effect-scale are for mean effects; this prediction holds cells."
            )
        if self.counts_only and part.matrix.kind != "counts":
            self.problems.add("E539", part.source, "/X", "log1p cells", "raw counts, or mean profiles")
            self.problems.stop()
        own_controls = part.control_rows()
        wants = self.edition.panel.control == "required"
        if wants and self.control_part is not None and len(own_controls):
            raise UsageError(f"{part.source.name} has control cells of its own; leave --controls out.")
        if wants and not len(own_controls) and self.control_part is None:
            self._no_controls()
        keep = part.keep & ~part.is_control if self.edition.panel.control == "forbidden" else part.keep
        predicted = self._rows(part, self.order, np.flatnonzero(keep))
        controls = self._control_rows() if wants and self.control_part is not None else None
        stored = part.scan.n_nonzero if part.scan is not None else part.source.matrix.n_stored
        if controls is not None and self.control_part is not None and self.control_part.scan is not None:
            stored += self.control_part.scan.n_nonzero
        record = {"rows": "cell", "mode": None, "mode_reason": "", "amplified": False, "notes": self._notes()}
        return Draft(record, stored * _BYTES_PER_ENTRY, None, predicted, controls, kind=part.matrix)

    def _mean_draft(self) -> Draft:
        part, options = self.part, self.options
        rows = np.flatnonzero(part.keep & ~part.is_control)
        predicted = self._rows(part, self.order, rows)
        blocks = [block.toarray() for block in predicted.blocks()]
        profiles = np.concatenate(blocks) if blocks else np.empty((0, len(self.genes)))
        target_sum = part.matrix.target_sum
        if part.matrix.kind != "log1p" or target_sum is None:
            found = f"{part.matrix.kind}, target sum {target_sum}"
            self.problems.add("E528", part.source, "/uns/vcbench/matrix", found, "log1p with a target sum")
            self.problems.stop()
        keys = list(zip(part.context[rows], part.perturbation[rows], strict=True))
        twice = sorted(f"{p} in {c}" for (c, p), n in Counter(keys).items() if n > 1)
        if twice:
            self.problems.add("E535", part.source, "/obs", ", ".join(twice[:3]), "one row each")
        as_means = (
            self.standard and "mean" in self.edition.file.rows and not (options.mode or options.n_cells)
        )
        wants = self.edition.panel.control == "required"
        if self.control_part is None and (wants or options.effect_scale != 1.0):
            self._no_controls()
        target_sum = float(target_sum or 1.0)
        pools = self._pools(sorted({str(c) for c, _ in keys}), target_sum)
        outside = not GUARD[0] <= options.effect_scale <= GUARD[1]
        record: dict[str, Any] = {"amplified": outside, "notes": self._notes()}
        if as_means:
            record |= {"rows": "mean", "mode": None, "mode_reason": "mean profiles are kept as they are"}
            profiles = self._amplified(keys, profiles, pools)
            return Draft(record, profiles.size * 4, means=profiles, predicted=predicted, kind=part.matrix)
        first = pools.get(str(keys[0][0])) if keys else None
        space: Space = "log1p" if (options.mode or self.edition.emission) in ("tile", "shift") else "counts"
        mode, reason = choose_mode(self.edition.emission, first, space, options.mode)
        space = "log1p" if mode in ("tile", "shift") and not self.counts_only else "counts"
        groups = self._groups(keys, profiles)
        emitted = EmittedRows(
            groups, pools, mode, space, options.seed, target_sum, options.effect_scale, self.progress
        )
        controls = self._control_rows() if wants and self.control_part is not None else None
        record |= {"rows": "cell", "mode": mode, "mode_reason": reason}
        stored = sum(self._stored(g, first, mode) * g.n_cells for g in groups)
        if controls is not None and self.control_part is not None and self.control_part.scan is not None:
            stored += self.control_part.scan.n_nonzero
        kind = MatrixMeta("log1p" if space == "log1p" else "counts", target_sum)
        return Draft(record, int(stored) * _BYTES_PER_ENTRY, emitted, None, controls, kind=kind)

    def _stored(self, group: Group, pool: ControlPool | None, mode: str) -> float:
        if mode == "tile" or pool is None:
            return float((group.profile > 0).sum())
        return float(len(group.profile)) if mode == "shift" else pool.median_detected

    def _amplified(self, keys: Sequence[tuple[Any, Any]], profiles: np.ndarray, pools: Pools) -> np.ndarray:
        factor = self.options.effect_scale
        if factor == 1.0:
            return profiles
        out = np.array(profiles, dtype=np.float64)
        for i in sorted(range(len(keys)), key=lambda i: str(keys[i][0])):
            pool = pools.get(str(keys[i][0]))
            if pool is not None:
                out[i], _ = amplify(out[i], pool.log_mean, factor)
        return out

    def _groups(self, keys: Sequence[tuple[Any, Any]], profiles: np.ndarray) -> list[Group]:
        groups, unknown = [], []
        at = {(str(c), str(p)): i for i, (c, p) in enumerate(keys)}
        contexts = self.contexts or tuple(sorted({context for context, _ in at}))
        listed = {c: self.expected.expected(c) if self.expected else {} for c in contexts}
        for (context, perturbation), i in at.items():
            wanted = listed.get(context, {}).get(perturbation)
            n = self.options.n_cells or wanted or self.edition.panel.cells_per_perturbation
            if n is None:
                unknown.append(perturbation)
                continue
            groups.append(Group(context, perturbation, profiles[i], n))
        if unknown:
            found = f"no number for {len(unknown):,} perturbations (first: {unknown[0]!r})"
            self.problems.add("E533", self.part.source, "", found, "a list with n_cells, or --cells")
            self.problems.stop()
        place = {c: {name: i for i, name in enumerate(listed[c])} for c in contexts}
        order = {c: i for i, c in enumerate(contexts)}
        groups.sort(
            key=lambda g: (order[g.context], place[g.context].get(g.perturbation, len(place[g.context])))
        )
        return groups

    def _pools(self, contexts: Sequence[str], target_sum: float) -> Pools:
        """The control cells of the contexts, read one context at a time; missing ones are refused now."""
        if self.control_part is None:
            return Pools(lambda context: None)
        matrix = self.control_part.matrix
        rows = {context: self._control_rows(context or None) for context in contexts}
        for context, found_rows in rows.items():
            if not len(found_rows.positions):
                found = f"{int((self.control_part.is_control).sum()):,} control cells, none of {context!r}"
                self.problems.add(
                    "E530", self.control_part.source, f"/obs/{CONTEXT}", found, f"cells of {context!r}"
                )
        if contexts and matrix.kind == "log1p" and matrix.target_sum not in (None, target_sum):
            found = f"target sum {matrix.target_sum:g}"
            self.problems.add("E534", self.control_part.source, "/X", found, f"{target_sum:g}, or counts")
        self.problems.stop()
        return Pools(
            lambda context: control_pool(
                rows[context], context, target_sum=target_sum, kind=matrix.kind, seed=self.options.seed
            )
        )

    def _no_controls(self) -> None:
        self.problems.add(
            "E520", self.part.source, "/obs", "no control cell", "control cells, or --controls FILE"
        )
        self.problems.stop()

    def _control_rows(self, context: str | None = None) -> FileRows:
        part, order = self.control_part, self.control_order
        if part is None or order is None:
            raise UsageError("no control file was given.")
        positions = part.control_rows(context)
        if context is None and not len(positions):
            found = f"{part.source.n_obs:,} rows and no control cell"
            self.problems.add("E520", part.source, "/obs", found, "control cells")
            self.problems.stop()
        return self._rows(part, order, positions)

    def _rows(self, part: Part, order: np.ndarray, positions: np.ndarray) -> FileRows:
        return FileRows(part.source, positions, order, part.perturbation[positions], part.context[positions])

    def _count_rows(self, draft: Draft) -> None:
        parts: list[Any] = [p for p in (draft.emitted, draft.predicted, draft.controls) if p is not None]
        n_rows = sum(len(p.perturbation) for p in parts)
        draft.record["planned"] = {
            "n_rows": n_rows,
            "n_genes": len(self.genes),
            "estimated_bytes": draft.estimated_bytes,
        }
        limit = self.edition.panel.max_cells
        if limit is not None and n_rows > limit:
            self.problems.add("E536", self.part.source, "", f"{n_rows:,} rows", f"at most {limit:,}")

    def write(
        self, draft: Draft, path: Path, work: Path, *, threads: int = 1, durable: bool = True
    ) -> tuple[dict[str, Any], ValueScan | None]:
        """Write the h5ad of the draft.

        `work` is a folder for temporary files; `threads` and `durable` as in `write_rows`. Returns facts for the
        record, and what was seen of the values (None for mean profiles).
        """
        if draft.means is not None and draft.predicted is not None:
            return self._write_means(draft, path), None
        with ExitStack() as stack:
            first: Rows | None = draft.predicted
            if draft.emitted is not None:
                first = self._through_file(draft.emitted, work, stack) if draft.two_steps else draft.emitted
            if first is None:
                raise UsageError("nothing to pack.")
            parts: list[Rows] = [first, *([draft.controls] if draft.controls is not None else [])]
            facts: dict[str, Any] = {}
            if self.standard:
                uns = self.standard_uns(draft, "cell")
                obs = columns_of(parts, PERTURBATION, CONTROL, with_context=True)
            else:
                uns = {}
                if not self.counts_only:
                    parts, facts, uns = self._challenge_scale(draft, parts)
                rules = self.edition.file
                obs = columns_of(
                    parts, rules.perturbation_column, rules.control_label, with_context=rules.context_required
                )
            cap = self.edition.panel.max_log1p
            written, scan = write_rows(
                path, parts, genes=self.genes, obs=obs, uns=uns, cap=cap, threads=threads, durable=durable
            )
            return facts | written, scan

    def _through_file(self, emitted: EmittedRows, work: Path, stack: ExitStack) -> FileRows:
        path = work / "emitted.h5ad"
        write_rows(path, [emitted], genes=self.genes, obs={}, uns={}, durable=False)
        source = stack.enter_context(H5ad(path))
        everything = np.arange(source.n_obs)
        return FileRows(source, everything, np.arange(len(self.genes)), emitted.perturbation, emitted.context)

    def _challenge_scale(
        self, draft: Draft, parts: list[Rows]
    ) -> tuple[list[Rows], dict[str, Any], dict[str, Any]]:
        """All rows in log1p space: counts to the median total of all rows, or controls to the prediction's scale."""
        control_kind = (
            self.control_part.matrix.kind if self.control_part and draft.controls is not None else None
        )
        if draft.kind.kind == "counts":
            if control_kind == "log1p" and self.control_part is not None:
                self.problems.add(
                    "E534", self.control_part.source, "/X", "log1p values", "counts, as the prediction"
                )
                self.problems.stop()
            target = float(np.float32(np.median(row_sums(parts))))
            if target <= 0:
                target = median_total(row_sums(parts))
            logged: list[Rows] = [Normalised(part, target) for part in parts]
            return logged, {"normalised_to_median_total": target}, {"log1p": {"base": None}}
        if control_kind == "counts" and draft.controls is not None and self.control_part is not None:
            if draft.kind.target_sum is None:
                self.problems.add(
                    "E528", self.part.source, "/X", "log1p values of unknown target sum", "a known one"
                )
                self.problems.stop()
            parts = [parts[0], Logged(draft.controls, float(draft.kind.target_sum or 1.0))]
            return parts, {"controls_normalised_to": draft.kind.target_sum}, {}
        if control_kind == "log1p" and self.control_part is not None:
            own, other = draft.kind.target_sum, self.control_part.matrix.target_sum
            if own and other and abs(own - other) > 1e-3 * own:
                self.problems.add("E534", self.control_part.source, "/X", f"target sum {other:g}", f"{own:g}")
                self.problems.stop()
        return parts, {}, {}

    def standard_uns(self, draft: Draft, rows: Any) -> dict[str, Any]:
        """The standard record of a file of the draft's scale."""
        meta = self.part.meta or StandardMeta("unknown", draft.kind)
        return replace(meta, matrix=draft.kind, rows=rows).to_uns()

    def _write_means(self, draft: Draft, path: Path) -> dict[str, Any]:
        rows = draft.predicted
        if rows is None or draft.means is None:
            raise UsageError("nothing to pack.")
        obs: dict[str, Any] = {PERTURBATION: rows.perturbation, CONTEXT: rows.context}
        for column in ("status", "reason"):
            if column in self.part.source.obs_columns:
                obs[column] = self.part.source.labels(column).values()[rows.positions]
        write_h5ad_dense(path, draft.means, genes=self.genes, obs=obs, uns=self.standard_uns(draft, "mean"))
        return {"n_rows": len(draft.means), "n_stored": int(draft.means.size)}


def columns_of(
    parts: Sequence[Rows], column: str, control: str, *, with_context: bool = False
) -> dict[str, np.ndarray]:
    """The label columns of rows of an entry; contexts only where every row has one."""
    labels = np.concatenate([part.perturbation for part in parts])
    obs = {column: np.where(labels == CONTROL, control, labels).astype(object)}
    if with_context:
        context = np.concatenate([part.context for part in parts])
        if (context != NO_CONTEXT).all():
            obs[CONTEXT] = context
    return obs
