"""The checker of published files: recognised, compared with their spec rule by rule, traps named. Streaming."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .conversion import cell_issues, column_issues, file_issue, source_issues
from .errors import InvalidFile
from .gene_names import unique_genes
from .h5ad import DEFAULT_BLOCK_BYTES, H5ad
from .hashing import file_sha256
from .issues import Issue, first_of, sort_issues
from .labels import targets_of
from .matrix_scan import OnRows, scale_issues, scan_matrix, value_issues
from .recognise import Recognition, recognise_file
from .remote import input_path
from .schema_check import check_standard
from .source_cells import source_cells, taken_labels
from .spec_models import DatasetSpec
from .standard import MatrixMeta
from .traps import trap_issues


@dataclass(frozen=True)
class Checked:
    """What a check found. `spec` is the layout the file was compared with, None for the standard schema."""

    issues: tuple[Issue, ...]
    spec: DatasetSpec | None
    recognition: Recognition | None


def check_file(
    path: str | os.PathLike[str],
    spec: DatasetSpec | None = None,
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> Checked:
    """Check a standard file under the schema, any other under `spec` or the layout it is recognised as.

    A file that no layout fits is checked as a standard one, with W636 and the nearest layout. The file is not modified.
    """
    options: dict[str, Any] = {"block_bytes": block_bytes, "on_rows": on_rows}
    if spec is not None:
        return Checked(tuple(check_published(path, spec, **options)), spec, None)
    try:
        with H5ad(path) as file:
            standard = bool(file.vcbench)
        recognition = None if standard else recognise_file(path)
    except InvalidFile as error:
        return Checked(tuple(sort_issues(error.issues)), None, None)
    if recognition is None:
        return Checked(tuple(check_standard(path, **options)), None, None)
    where = input_path(path)
    name = where.name
    if recognition.best is None:
        issue = file_issue("W636", where, name, found=recognition.why(), expected="a known layout")
        return Checked(tuple(sort_issues([issue, *check_standard(path, **options)])), None, recognition)
    chosen = recognition.best.spec
    issues = check_published(path, chosen, **options)
    if recognition.rivals:
        found = ", ".join(c.spec.id for c in (recognition.best, *recognition.rivals))
        issues.append(
            file_issue(
                "W637", where, name, found=found, expected="one layout that fits best", severity="info"
            )
        )
    return Checked(tuple(sort_issues(issues)), chosen, recognition)


def check_published(
    path: str | os.PathLike[str],
    spec: DatasetSpec,
    *,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    on_rows: OnRows | None = None,
) -> list[Issue]:
    """Every problem of a published file under its spec, errors first; numbers known from memory only warn.

    Compared are: size and checksum, structure, columns, labels, controls, matrix values (one pass), gene names,
    targets among the genes, cells per perturbation, expected counts, and the traps of published files.
    """
    try:
        with H5ad(path, location=spec.matrix.location) as file:
            issues = column_issues(file, spec)
            if issues:
                return sort_issues(issues)
            names, _, issues = unique_genes(file, spec.genes)
            cells = source_cells(file, spec)
            issues += cell_issues(file, spec, cells) + _identity_issues(file, spec)
            scan = scan_matrix(file, expm1=True, keep=cells.keep, block_bytes=block_bytes, on_rows=on_rows)
            issues += value_issues(scan, file, spec.matrix.kind)
            issues += scale_issues(scan, file, MatrixMeta(spec.matrix.kind, spec.matrix.target_sum))
            issues += _absent_columns(file, spec)
            if spec.modality not in ("drug", "cytokine"):
                issues += _unmeasured(file, cells, names)
            issues += trap_issues(file, spec, cells, scan)
            return sort_issues(issues)
    except InvalidFile as error:
        return sort_issues(error.issues)


def _identity_issues(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    n_bytes = file.path.stat().st_size
    sizes = {f.name: f.bytes for f in spec.files if f.bytes is not None}
    if sizes and n_bytes not in sizes.values():
        expected = " or ".join(f"{name} of {size:,} bytes" for name, size in sizes.items())
        found = f"{n_bytes:,} bytes"
        return [file_issue("W617", file.path, file.name, found=found, expected=expected, spec=spec.id)]
    if any(f.sha256 for f in spec.files):
        return source_issues(file, spec, file_sha256(file.path))
    if spec.files and not any(f.md5 for f in spec.files):
        found, expected = "no published checksum", "a checksum to compare"
        return [
            file_issue(
                "W618", file.path, file.name, found=found, expected=expected, spec=spec.id, severity="info"
            )
        ]
    return []


def _absent_columns(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    absent = [name for name in spec.obs_columns if name not in file.obs_columns]
    absent += [name for name in spec.var_columns if name not in file.var_columns]
    if not absent:
        return []
    found = f"without {first_of(absent)}"
    expected = f"the columns that {spec.id} publishes"
    return [
        file_issue("W619", file.path, f"{file.name}:/obs", found=found, expected=expected, severity="info")
    ]


def _unmeasured(file: H5ad, cells: Any, names: list[str]) -> list[Issue]:
    labels = taken_labels(cells.perturbation, cells.keep)
    targets = sorted({t for name in labels.categories for t in targets_of(str(name))})
    symbols = {name.split("_ENSG")[0] for name in names} | set(names)
    missing = [t for t in targets if t not in symbols]
    if not missing:
        return []
    expected = f"all {len(targets):,} targets among the genes"
    return [file_issue("W612", file.path, f"{file.name}:/var", found=first_of(missing), expected=expected)]
