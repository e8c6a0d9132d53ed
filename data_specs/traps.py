"""The traps of published files, each a coded issue: what misleads a reader although the file is well-formed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .conversion import file_issue
from .h5ad import H5ad
from .issues import Issue, Severity, first_of
from .labels import (
    CONTROL,
    CONTROL_ALIASES,
    CONTROL_PATTERNS,
    UNASSIGNED,
    split_label,
    targets_of,
)
from .matrix_scan import MatrixScan, constant_scale, scale_tolerance
from .source_cells import SourceCells, taken_labels
from .spec_models import DatasetSpec

FEW_CELLS = 12
LARGE_DENSE_BYTES = 4 * 2**30
LEAKING = ("n_cells", "median_umi_per_cell")
DE_LISTS = ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "top_non_zero_de_20", "de_results_wilcoxon")
# What a guide or construct adds to the name of its target.
GUIDES = (r"(?:p-)?sg(.+?)-\d+", r"(.+)_P1P?2?.*", r"(.+?)_p[A-Z]{2,}\d+.*", r"(.+)-\d+")


def trap_issues(file: H5ad, spec: DatasetSpec, cells: SourceCells, scan: MatrixScan) -> list[Issue]:
    """The traps that this file holds under this spec."""
    return [
        *_label_traps(file, spec, cells),
        *_group_traps(file, spec, cells),
        *_gene_traps(file, spec),
        *_matrix_traps(file, spec, scan),
        *_side_traps(file, spec),
        *_signs(file, spec),
    ]


def _issue(
    code: str,
    file: H5ad,
    place: str,
    found: str,
    expected: str,
    severity: Severity | None = None,
    message: str | None = None,
) -> Issue:
    return file_issue(
        code,
        file.path,
        f"{file.name}:/{place}",
        found=found,
        expected=expected,
        severity=severity,
        message=message,
    )


def _label_traps(file: H5ad, spec: DatasetSpec, cells: SourceCells) -> list[Issue]:
    place, issues = f"obs/{spec.labels.column}", []
    sources = [str(name) for name in cells.source.categories]
    meaning = {name: cells.label_map.get(name, "") for name in sources}
    control = [name for name, canonical in meaning.items() if canonical == CONTROL]
    if len(control) > 1:
        expected = "constructs kept apart by label_source where they matter"
        issues.append(_issue("W621", file, place, first_of(control), expected, "info"))
    words = re.compile("|".join(f"(?:{p})" for p in (*map(re.escape, CONTROL_ALIASES), *CONTROL_PATTERNS)))
    undeclared = [
        name
        for name, canonical in meaning.items()
        if canonical not in (CONTROL, UNASSIGNED) and words.fullmatch(name.strip())
    ]
    if undeclared:
        expected = f"the label among labels.control of {spec.id}"
        issues.append(_issue("E642", file, place, first_of(undeclared), expected))
    hidden = [n for n, canonical in meaning.items() if canonical == UNASSIGNED and n in CONTROL_ALIASES]
    if hidden:
        issues.append(_issue("W622", file, place, first_of(hidden), "no guide-less cells among the controls"))
    by_label: dict[str, list[str]] = {}
    for source, canonical in meaning.items():
        if canonical not in ("", CONTROL, UNASSIGNED):
            by_label.setdefault(canonical, []).append(source)
    several = [" and ".join(sorted(names)[:2]) for names in by_label.values() if len(names) > 1]
    if several:
        issues.append(_issue("W630", file, place, first_of(several), "one label per perturbation", "info"))
    return issues


def _group_traps(file: H5ad, spec: DatasetSpec, cells: SourceCells) -> list[Issue]:
    issues = []
    labels = taken_labels(cells.perturbation, cells.keep)
    genes = set(file.genes.tolist())
    if spec.genes.symbol_column is not None:
        genes = {str(name) for name in file.values(spec.genes.symbol_column, axis="var")}
    targets = {t for name in labels.categories for t in targets_of(str(name))}
    guides = [t for t in sorted(targets - genes) if any(_stem(p, t) in genes for p in GUIDES)]
    if guides:
        place = f"obs/{spec.labels.column}"
        issues.append(_issue("W620", file, place, first_of(guides), "the name of the target gene"))
    few = [name for name, n in labels.counts().items() if n < FEW_CELLS and name != CONTROL]
    if few:
        place, expected = f"obs/{spec.labels.column}", f"at least {FEW_CELLS} cells each"
        issues.append(_issue("W631", file, place, first_of(few), expected))
    batch = next((source for source, name in spec.keep_obs.items() if name == "batch"), None)
    if batch is not None:
        issues += _confounded(file, batch, cells)
    single = [str(name) for name in cells.context.categories if re.fullmatch(r"[A-Z]", str(name))]
    if single and spec.contexts.column is not None:
        expected = "control profiles compared with what each context should be"
        issues.append(_issue("W635", file, f"obs/{spec.contexts.column}", first_of(single), expected, "info"))
    return issues


def _stem(pattern: str, name: str) -> str:
    match = re.fullmatch(pattern, name)
    return match[1] if match else ""


def _confounded(file: H5ad, column: str, cells: SourceCells) -> list[Issue]:
    batches = file.labels(column)
    known = cells.keep & (batches.codes >= 0)
    if len(np.unique(batches.codes[known])) < 3:
        return []
    pairs = np.unique(np.stack([cells.perturbation.codes[known], batches.codes[known]]), axis=1)
    codes, n_batches = np.unique(pairs[0], return_counts=True)
    sizes = np.bincount(cells.perturbation.codes[known], minlength=len(cells.perturbation.categories))
    lone = [
        str(cells.perturbation.categories[c])
        for c in codes[n_batches == 1]
        if sizes[c] > 2 and split_label(str(cells.perturbation.categories[c]))
    ]
    if not lone:
        return []
    return [_issue("W624", file, f"obs/{column}", first_of(lone), "cells in several batches")]


def _gene_traps(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    issues = []
    rules = spec.genes
    symbols = [
        str(x) for x in (file.values(rules.symbol_column, axis="var") if rules.symbol_column else file.genes)
    ]
    ids = [str(x) for x in file.values(rules.gene_id_column, axis="var")] if rules.gene_id_column else []
    ids += [str(x) for x in file.genes] if rules.index == "ensembl" else []
    known = set(symbols)
    seen: dict[str, int] = {}
    for name in symbols:
        seen[name] = seen.get(name, 0) + 1
    repeated = sorted(name for name, n in seen.items() if n > 1)
    if repeated:
        issues.append(_issue("W629", file, "var", first_of(repeated), "each symbol once", "info"))
    suffixed = [s for s in symbols if (m := re.fullmatch(r"(.+)-\d", s)) and m[1] in known]
    if suffixed:
        issues.append(_issue("W628", file, "var", first_of(suffixed), "symbols without a suffix"))
    mouse = [i for i in ids or symbols if i.startswith("ENSMUSG")]
    if mouse and any(i.startswith("ENSG") for i in ids or symbols):
        issues.append(_issue("W626", file, "var", first_of(mouse), "genes of one species"))
    versioned = [i for i in ids or symbols if re.fullmatch(r"ENS[A-Z]*G\d+\.\d+", i)]
    if versioned:
        issues.append(_issue("W627", file, "var", first_of(versioned), "gene ids without a version", "info"))
    as_ids = [s for s in symbols if re.fullmatch(r"ENS[A-Z]*G\d{6,}(\.\d+)?", s)]
    if len(as_ids) > len(symbols) / 2:
        issues.append(_issue("E645", file, "var", first_of(as_ids), "gene symbols"))
    return issues


def _matrix_traps(file: H5ad, spec: DatasetSpec, scan: MatrixScan) -> list[Issue]:
    issues = []
    fractional = scan.fractional.count and not (scan.negative.count or scan.nonfinite.count)
    if spec.matrix.kind == "counts" and fractional:
        scale = constant_scale(scan, scale_tolerance(file))
        if scale is not None:
            found = f"rows of expm1({file.location}) that all sum to {scale:.6g}"
            issues.append(_issue("E643", file, file.location, found, "counts"))
        elif _divided(file):
            found = "rows whose values are whole multiples of their smallest one"
            issues.append(_issue("E644", file, file.location, found, "counts"))
    n_bytes = file.matrix.n_stored * file.matrix.dtype.itemsize
    if file.matrix.storage == "dense" and n_bytes > LARGE_DENSE_BYTES:
        found = f"{n_bytes / 1e9:.0f} GB of dense {file.matrix.dtype}"
        issues.append(_issue("W634", file, file.location, found, "a sparse matrix", "info"))
    return issues


def _divided(file: H5ad, n_rows: int = 50) -> bool:
    """True when the first rows hold whole multiples of their smallest positive value, as counts over a factor do."""
    block = next(file.row_blocks(max_bytes=2**20))
    rows = block.matrix
    n_seen = 0
    for start, stop in zip(rows.indptr[:n_rows], rows.indptr[1 : n_rows + 1], strict=False):
        values = rows.data[start:stop].astype(np.float64)
        if len(values) < 2:
            continue
        ratio = values / values.min()
        if np.abs(ratio - np.rint(ratio)).max() > 1e-3 * ratio.max():
            return False
        n_seen += 1
    return n_seen > 0


def _side_traps(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    issues = []
    columns = [name for name in dict.fromkeys((*LEAKING, *spec.leaks)) if name in file.obs_columns]
    if columns:
        issues.append(_issue("W632", file, "obs", first_of(columns), "no model that reads them"))
    lists = [name for name in DE_LISTS if f"uns/{name}" in file.entries]
    if lists:
        issues.append(_issue("W633", file, "uns", first_of(lists), "use in scoring only", "info"))
    return issues


def _signs(file: H5ad, spec: DatasetSpec) -> list[Issue]:
    issues = []
    for trap in spec.traps:
        if trap.sign is None:
            continue
        column = trap.sign.column or spec.labels.column
        if column not in file.obs_columns:
            continue
        names = [str(name) for name in file.labels(column).categories]
        met = [name for name in names if _matcher(trap.sign.label_regex, trap.sign.values)(name)]
        if met:
            issues.append(
                _issue(
                    "W625",
                    file,
                    f"obs/{column}",
                    first_of(met),
                    "other values",
                    trap.severity,
                    trap.text[:-1],
                )
            )
    return issues


def _matcher(regex: str | None, values: tuple[str, ...]) -> Callable[[str], bool]:
    if regex is None:
        return lambda name: name in values
    return lambda name: re.fullmatch(regex, name) is not None
