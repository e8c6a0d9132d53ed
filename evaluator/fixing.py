"""`validate --fix`: a corrected copy of an entry, for what can be corrected without a decision of the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from ..data_specs.atomic import check_output
from ..data_specs.container_write import write_vcc2025, write_vcc2026
from ..data_specs.containers import open_entry
from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.h5ad_columns import Labels
from ..data_specs.h5ad_write import write_h5ad_stream
from ..data_specs.remote import input_path
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from ..data_specs.temporary import remove_leftovers, temporary_path
from .checks.case import Case
from .checks.labels import suffixed_labels
from .entry_meta import entry_meta
from .reference_files import find_manifest
from .validation import CheckedNames, checked_case


@dataclass
class FixResult:
    """The corrected file and what was changed, one line per kind of change; nothing changed: no lines."""

    path: Path
    changes: list[str] = field(default_factory=list)


def fix_entry(
    entry: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    edition: str | Edition,
    names: CheckedNames,
    tmp: str | os.PathLike[str] | None = None,
    threads: int = 1,
    force: bool = False,
) -> FixResult:
    """Write a copy of an entry with genes in list order, without stored zeros and repeated entries, X as CSR float32,
    labels without spaces around them and without guide suffixes, no unused categories, and distinct row names.

    Values, cells and genes stay as they are: nothing is dropped, added or rounded. The input is never changed.

    Parameters
    ----------
    out
        `.h5ad`, or `.vcc` for the edition's container; written whole or not at all.
    names
        The lists and column names, as `validate` takes them.

    Raises
    ------
    InvalidFile
        The entry cannot be opened, or a list cannot be read.
    OutputError
        The output exists, is a folder or the entry itself, or the disk is full.
    UsageError
        `out` has another suffix, or the edition has no container.
    """
    chosen = load_edition(edition) if isinstance(edition, str) else edition
    source_path = input_path(entry)
    target = check_output(out, inputs=[source_path], force=force)
    containers = [name for name in chosen.file.containers if name != "h5ad"]
    suffix = target.suffix.lower()
    if suffix not in (".h5ad", ".vcc") or (suffix == ".vcc" and not containers):
        raise UsageError(f"{target}: edition {chosen.id} takes {', '.join(chosen.file.containers)}.")
    folder = target.absolute().parent
    remove_leftovers(folder)
    with ExitStack() as stack:
        opened = stack.enter_context(open_entry(source_path, tmp=tmp or folder))
        source = stack.enter_context(H5ad(opened.h5ad))
        source.path = source_path
        case = checked_case(source, chosen, names)
        result = FixResult(target)
        plan = _Plan(case, result)
        work = stack.enter_context(temporary_path(folder, ".fix.h5ad"))
        plan.write(work)
        if suffix == ".h5ad":
            work.replace(target)
            return result
        if containers == ["vcc2025"]:
            write_vcc2025(work, target, threads=threads)
            return result
        manifest = find_manifest((names.genes, names.perts))
        with H5ad(work) as fixed:
            contexts = case.required_contexts or ()
            meta = entry_meta(fixed, fixed.labels(case.pert_col), contexts, manifest)
        write_vcc2026(work, target, meta=meta, threads=threads)
    return result


class _Plan:
    """What changes, decided from the header; stored zeros and repeats are counted while writing."""

    def __init__(self, case: Case, result: FixResult):
        self.case, self.result = case, result
        source = case.source
        self.genes, self.order = [str(gene) for gene in source.genes], None
        listed = None if case.gene_list is None else list(case.gene_list.genes)
        if listed is not None and listed != self.genes and sorted(listed) == sorted(self.genes):
            place = {gene: i for i, gene in enumerate(listed)}
            self.order = np.array([place[gene] for gene in self.genes], dtype=np.int64)
            self.genes = listed
            result.changes.append(f"genes put into the order of {case.gene_list.name}")  # type: ignore[union-attr]
        self.obs = self._columns()
        self.names = [str(name) for name in source.obs_names]
        if len(set(self.names)) < len(self.names):
            self.names = [str(i) for i in range(len(self.names))]
            result.changes.append("rows numbered anew: names were repeated")

    def _columns(self) -> dict[str, Any]:
        case, source = self.case, self.case.source
        columns: dict[str, Any] = {}
        for name in source.obs_columns:
            values = source.values(name)
            if name not in (case.pert_col, case.context_col):
                columns[name] = values
                continue
            labels = source.labels(name)
            renamed = {str(c): str(c).strip() for c in labels.categories}
            if name == case.pert_col:
                suffixed = suffixed_labels(case)
                renamed = {old: suffixed.get(new, suffixed.get(old, new)) for old, new in renamed.items()}
            changed = [f"{old!r} to {new!r}" for old, new in renamed.items() if old != new]
            if changed:
                self.result.changes.append(f"{len(changed):,} labels of {name} renamed (first: {changed[0]})")
            unused = set(source.stored_categories(name) or ()) - set(renamed)  # type: ignore[union-attr]
            if unused:
                self.result.changes.append(f"{len(unused):,} unused categories of {name} left out")
            table = np.array([renamed[str(c)] for c in labels.categories] + [None], dtype=object)
            columns[name] = Labels.from_values(table[labels.codes])
        return columns

    def write(self, path: Path) -> None:
        """Write the corrected h5ad."""
        source, info = self.case.source, self.case.source.matrix
        if info.storage != "csr" or info.dtype.newbyteorder("=") != np.float32:
            self.result.changes.append(f"X stored as CSR float32, not {info.storage} {info.dtype}")
        uns = source.uns
        with write_h5ad_stream(path, genes=self.genes, obs=self.obs, obs_names=self.names, uns=uns) as writer:
            for block in self._blocks():
                writer.append(block)
        gone = 0 if info.storage == "dense" else info.n_stored - writer.n_stored
        if gone:
            self.result.changes.append(f"{gone:,} stored zeros and repeated entries merged away")

    def _blocks(self) -> Iterator[sp.csr_array]:
        for block in self.case.source.row_blocks():
            rows: Any = block.matrix
            if self.order is not None:
                indices = self.order[rows.indices].astype(np.int32)
                rows = sp.csr_array((rows.data, indices, rows.indptr), shape=rows.shape)
                rows.sort_indices()
            yield sp.csr_array(rows, dtype=np.float32)
