"""`pack`: predictions become a valid entry, whole or not at all. Inputs are never changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data_specs.atomic import check_output, write_text
from ..data_specs.containers import open_entry, write_vcc2025
from ..data_specs.errors import InvalidFile, OutputError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.issues import Issue
from ..data_specs.memory_source import MemorySource
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from ..data_specs.standard import MatrixKind
from ..data_specs.temporary import remove_leftovers, temporary_path
from ..evaluator.reference_files import read_gene_list, read_perturbation_list
from ..evaluator.validation import validate
from .emission import check_effect_scale
from .emission_rules import Mode
from .pack_build import Build, Draft
from .pack_inputs import Problems, ReadOptions, check_list, gene_order, prediction_path, read_part
from .pack_rows import Progress

MANIFEST_SUFFIX = ".manifest.json"
_SPACE_MARGIN = 32 * 2**20
_CHUNK = 2**20


@dataclass(frozen=True)
class PackResult:
    """What `pack` made.

    Attributes
    ----------
    entry, manifest
        The written files; None after a dry run.
    record
        The content of the manifest: inputs with hashes, mode, seed, versions, emission reports, validation.
    warnings
        What validation found short of errors.
    next_command
        What to run now.
    """

    entry: Path | None
    manifest: Path | None
    record: dict[str, Any]
    warnings: tuple[Issue, ...] = ()
    next_command: str = ""


@dataclass(frozen=True)
class PackOptions:
    """Everything that shapes an entry besides its inputs. Fields as the arguments of `pack`."""

    n_cells: int | None = None
    mode: Mode | None = None
    seed: int = 0
    effect_scale: float = 1.0
    contexts: tuple[str, ...] = ()
    read: ReadOptions = field(default_factory=ReadOptions)


def pack(
    pred: Any,
    edition: str | Edition,
    *,
    out: str | os.PathLike[str],
    genes: str | os.PathLike[str] | None = None,
    perts: str | os.PathLike[str] | None = None,
    controls: str | os.PathLike[str] | None = None,
    contexts: Sequence[str] | None = None,
    n_cells: int | None = None,
    mode: Mode | None = None,
    seed: int = 0,
    effect_scale: float = 1.0,
    pert_col: str | None = None,
    control: str | None = None,
    matrix: MatrixKind | None = None,
    target_sum: float | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PackResult:
    """Write predictions as an entry of an edition, validated before it appears.

    Parameters
    ----------
    pred
        Cells or mean effects (`.h5ad`, `.vcc`, AnnData in memory), or a run folder with `prediction.h5ad`.
    out
        `.vcc` or `.h5ad`; `out` + `.manifest.json` is written beside it.
    genes, perts
        The official lists. Genes are put into list order; a list with `n_cells` says how many cells each target gets.
    controls
        A file whose control cells are copied into the entry (where the edition wants them) and that emission starts
        from. The prediction's own control cells are used when it has some.
    contexts
        Use only these contexts of the prediction.
    n_cells
        Cells per (context, perturbation) for mean effects; goes before the list's numbers.
    mode
        `tile`, `shift`, `scale`, `counts` or `thin`; the edition's default when None.
    effect_scale
        Multiplies every profile's change from control; outside [0.25, 4] the record says `amplified`.
    pert_col, control, matrix, target_sum
        Of the prediction, where the file does not say so itself.

    Raises
    ------
    InvalidFile
        Problems of the inputs (codes E520 to E536) or of the result; nothing is left behind.
    OutputError
        The output exists, is a folder or an input, or the disk is full.
    UsageError
        Options that contradict each other or the edition.
    """
    chosen = load_edition(edition) if isinstance(edition, str) else edition
    check_effect_scale(effect_scale)
    problems = Problems(chosen.id)
    in_memory = hasattr(pred, "obs") and hasattr(pred, "X")
    path = None if in_memory else prediction_path(pred, problems)
    inputs = {"prediction": path, "genes": genes, "perturbations": perts, "controls": controls}
    files = {role: Path(p) for role, p in inputs.items() if p is not None}
    target = _checked_target(Path(out), chosen, list(files.values()), force)
    options = PackOptions(
        n_cells=n_cells,
        mode=mode,
        seed=seed,
        effect_scale=effect_scale,
        contexts=tuple(contexts or ()),
        read=ReadOptions(pert_col, control, matrix, target_sum, tuple(contexts or ())),
    )
    folder = target.absolute().parent
    remove_leftovers(folder)
    with ExitStack() as stack:
        source = MemorySource(pred) if path is None else _opened(stack, path, folder)
        control_source = _opened(stack, files["controls"], folder) if "controls" in files else None
        build = _build(source, control_source, chosen, options, files, problems)
        build.progress = progress
        draft = build.plan()
        record = _record(chosen, options, files, draft)
        if dry_run:
            return PackResult(None, None, record, (), _again(path, chosen, files, target))
        work = stack.enter_context(temporary_path(folder, ".pack"))
        _check_space(folder, draft, target)
        try:
            work.mkdir()
            return _written(build, draft, record, chosen, files, target, work, threads)
        except OutputError as error:
            raise OutputError(str(error).replace(f"{work}{os.sep}", f"{folder}{os.sep}")) from error
        except OSError as error:
            raise _disk_error(target, error) from error


def _checked_target(out: Path, edition: Edition, inputs: list[Path], force: bool) -> Path:
    target = check_output(out, inputs=inputs, force=force)
    check_output(_manifest_of(target), inputs=inputs, force=force)
    container = "vcc2025" if target.suffix.lower() == ".vcc" else "h5ad"
    if target.suffix.lower() not in (".vcc", ".h5ad"):
        raise UsageError(f"{out}: an entry is named .vcc or .h5ad.")
    if container not in edition.file.containers:
        takes = ", ".join(edition.file.containers)
        raise UsageError(f"{out}: edition {edition.id} takes {takes}, and this would be {container}.")
    return target


def _manifest_of(entry: Path) -> Path:
    return entry.with_name(entry.name + MANIFEST_SUFFIX)


def _opened(stack: ExitStack, path: Path, tmp: Path) -> Source:
    entry = stack.enter_context(open_entry(path, tmp=tmp))
    source = stack.enter_context(H5ad(entry.h5ad))
    source.path = path
    return source


def _build(
    source: Source,
    control_source: Source | None,
    edition: Edition,
    options: PackOptions,
    files: dict[str, Path],
    problems: Problems,
) -> Build:
    """Everything read and checked; raises `InvalidFile` with all problems at once."""
    listed = read_gene_list(files["genes"]).genes if "genes" in files else None
    columns = tuple(dict.fromkeys((edition.file.perturbation_column, "target_gene", "perturbation")))
    expected = None
    if "perturbations" in files:
        expected = read_perturbation_list(
            files["perturbations"], columns=columns, control=edition.file.control_label
        )
    part = read_part(source, edition, options.read, problems)
    order = gene_order(source, listed, problems)
    if part is not None and expected is not None:
        check_list(part, expected.expected(None), problems)
    genes = [str(g) for g in source.genes] if listed is None else list(listed)
    control_part = control_order = None
    if control_source is not None:
        only = ReadOptions(contexts=())
        control_part = read_part(control_source, edition, only, problems, controls_only=True)
        control_order = gene_order(control_source, genes, problems)
    problems.stop()
    if part is None:
        raise InvalidFile(problems.issues)
    return Build(edition, options, part, order, genes, expected, control_part, control_order, problems)


def _check_space(folder: Path, draft: Draft, target: Path) -> None:
    needed = draft.estimated_bytes * (2 if target.suffix.lower() == ".vcc" or draft.two_steps else 1)
    free = shutil.disk_usage(folder).free
    if free < needed + _SPACE_MARGIN:
        text = f"about {needed / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} MiB are free"
        raise OutputError(f"{target}: the disk is too full: {text}. Nothing was written.")


def _written(
    build: Build,
    draft: Draft,
    record: dict[str, Any],
    edition: Edition,
    files: dict[str, Path],
    target: Path,
    work: Path,
    threads: int | None,
) -> PackResult:
    inner = work / f"{target.stem}.h5ad"
    record["result"] = build.write(draft, inner, work)
    record["emission"] = [report.to_json() for report in draft.reports()]
    report = validate(inner, edition=edition, genes=files.get("genes"), perts=files.get("perturbations"))
    issues = tuple(_renamed(issue, inner, target) for issue in report.issues)
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        raise InvalidFile([*errors, *(issue for issue in issues if issue.severity != "error")])
    record["validation"] = {"valid": True, "issues": [issue.to_json() for issue in issues]}
    ready = inner
    if target.suffix.lower() == ".vcc":
        ready = work / target.name
        record["container"] = write_vcc2025(inner, ready, threads=threads or _cpus())
        inner.unlink()
    record["entry"] = {"name": target.name, **_file_facts(ready)}
    manifest = work / "manifest.json"
    write_text(manifest, json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n")
    ready.replace(target)
    manifest.replace(_manifest_of(target))
    following = f"vcbench score {shlex.quote(str(target))} --truth REAL.h5ad --edition {edition.id} -o scores"
    return PackResult(target, _manifest_of(target), record, issues, following)


def _renamed(issue: Issue, inner: Path, target: Path) -> Issue:
    """The issue as if the entry stood at its place already."""
    fix = issue.fix.replace(shlex.quote(str(inner)), shlex.quote(str(target)))
    where = issue.where.replace(str(inner), str(target)).replace(inner.name, target.name)
    return replace(issue, fix=fix.replace(str(inner), str(target)), where=where)


def _record(edition: Edition, options: PackOptions, files: dict[str, Path], draft: Draft) -> dict[str, Any]:
    import h5py
    import numpy
    import scipy
    import zstandard

    zstd = ".".join(str(n) for n in zstandard.ZSTD_VERSION)
    return {
        "manifest_version": 1,
        "edition": edition.id,
        "inputs": {role: {"path": str(path), **_file_facts(path)} for role, path in files.items()},
        "seed": options.seed,
        "effect_scale": options.effect_scale,
        **draft.record,
        "versions": {
            "vcbench": version("vcbench"),
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "scipy": scipy.__version__,
            "h5py": h5py.__version__,
            "zstandard": zstandard.__version__,
            "zstd": zstd,
        },
    }


def _file_facts(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(_CHUNK):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _again(path: Path | None, edition: Edition, files: dict[str, Path], target: Path) -> str:
    words = ["vcbench", "pack", str(path or "PRED.h5ad"), "--edition", edition.id]
    for role, option in (("genes", "--genes"), ("perturbations", "--perts"), ("controls", "--controls")):
        if role in files:
            words += [option, str(files[role])]
    return shlex.join([*words, "-o", str(target)])


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _disk_error(target: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"{target}: the disk is full; nothing was kept. Free space or choose another --out."
        )
    return OutputError(f"{target}: cannot be written ({error}).")
