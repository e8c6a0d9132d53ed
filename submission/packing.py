"""`pack`: predictions become a valid entry, whole or not at all. Inputs are never changed."""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..data_specs.atomic import check_output, write_text
from ..data_specs.container_write import write_vcc2025, write_vcc2026
from ..data_specs.errors import InvalidFile, OutputError, UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.hashing import file_facts
from ..data_specs.hdf5_guard import guarded
from ..data_specs.issues import Issue
from ..data_specs.memory_source import MemorySource
from ..data_specs.named_files import Files, named_files, open_files
from ..data_specs.remote import input_path
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from ..data_specs.standard import MatrixKind
from ..data_specs.temporary import remove_leftovers, temporary_path
from ..evaluator.entry_meta import entry_meta
from ..evaluator.reference_files import Manifest, find_manifest, read_gene_list, read_perturbation_list
from ..evaluator.validation import validate
from .emission import check_effect_scale
from .emission_rules import Mode
from .emission_scores import emission_scores
from .entry_card import entry_card
from .pack_build import Build, Draft
from .pack_inputs import (
    Part,
    Problems,
    ReadOptions,
    check_list,
    gene_order,
    in_memory,
    prediction_files,
    read_part,
)
from .pack_rows import PACK_BLOCK_BYTES, Progress
from .packed_files import Inputs

MANIFEST_SUFFIX, CARD_SUFFIX = ".manifest.json", ".card.md"
_SPACE_MARGIN = 32 * 2**20
_LONGEST_FACT = 500


@dataclass(frozen=True)
class PackResult:
    """What `pack` made.

    Attributes
    ----------
    entry, manifest, card
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
    card: Path | None = None


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
    controls: Files | None = None,
    contexts: Sequence[str] | None = None,
    n_cells: int | None = None,
    mode: Mode | None = None,
    seed: int = 0,
    effect_scale: float = 1.0,
    score_emission: int | None = None,
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
        Cells or mean effects (`.h5ad`, `.vcc`, AnnData in memory), or a run folder with `prediction.h5ad`. Several
        files, or `{context: file}` and `"CONTEXT=FILE"`, are read as one prediction.
    out
        `.vcc` or `.h5ad`; `out` + `.manifest.json` and `out` + `.card.md` are written beside it.
    genes, perts
        The official lists. Genes are put into list order; a list with `n_cells` says how many cells each target gets.
    controls
        Files (as `pred`) whose control cells are copied into the entry (where the edition wants them) and that
        emission starts from. The prediction's own control cells are used when it has some.
    contexts
        Use only these contexts of the prediction. Where the edition requires contexts, the entry must hold exactly
        these; default: those of the `manifest.json` beside the lists.
    n_cells
        Cells per (context, perturbation) for mean effects; goes before the list's numbers.
    mode
        `tile`, `shift`, `scale`, `counts` or `thin`; the edition's default when None.
    effect_scale
        Multiplies every profile's change from control; outside [0.25, 4] the record says `amplified`.
    score_emission
        Also score what emission alone costs, on this many perturbations of each context; see `emission_scores`.
    pert_col, control, matrix, target_sum
        Of the prediction, where the file does not say so itself.

    Raises
    ------
    InvalidFile
        Problems of the inputs (codes E520 to E539) or of the result; nothing is left behind.
    OutputError
        The output exists, is a folder or an input, or the disk is full.
    UsageError
        Options that contradict each other or the edition.
    """
    chosen = load_edition(edition) if isinstance(edition, str) else edition
    if "de" in chosen.file.rows:
        raise UsageError(
            f"edition {chosen.id} takes tables of differential expression; models write them themselves."
        )
    check_effect_scale(effect_scale)
    if dry_run and score_emission is not None:
        raise UsageError("--score-emission draws and scores cells; leave out --dry-run.")
    problems = Problems(chosen.id)
    inputs = Inputs(
        prediction=() if in_memory(pred) else tuple(prediction_files(pred, problems)),
        controls=() if controls is None else tuple(named_files(controls, "--controls")),
        genes=None if genes is None else input_path(genes),
        perts=None if perts is None else input_path(perts),
    )
    target = _checked_target(Path(out), chosen, inputs.paths(), force)
    asked, manifest = _required_contexts(chosen, inputs, contexts, problems)
    options = PackOptions(
        n_cells=n_cells,
        mode=mode,
        seed=seed,
        effect_scale=effect_scale,
        contexts=asked,
        read=ReadOptions(pert_col, control, matrix, target_sum, asked),
    )
    folder = target.absolute().parent
    remove_leftovers(folder)
    with ExitStack() as stack:
        facts = stack.enter_context(_background(inputs.facts, threads or _cpus()))
        source = open_files(stack, inputs.prediction, folder) if inputs.prediction else MemorySource(pred)
        control_source = open_files(stack, inputs.controls, folder) if inputs.controls else None
        build = _build(source, control_source, chosen, options, inputs, problems)
        build.progress = progress
        draft = build.plan()
        record = _record(chosen, options, build.part, draft)
        if dry_run:
            record["inputs"] = facts.result()
            return PackResult(None, None, record, (), _again(chosen, inputs, options, target))
        work = stack.enter_context(temporary_path(folder, ".pack"))
        _check_space(folder, draft, target)
        try:
            work.mkdir()
            if score_emission is not None:
                record["emission_scores"] = emission_scores(
                    build, draft, score_emission, work, threads=threads or _cpus()
                )
            return _written(build, draft, record, inputs, facts, manifest, target, work, threads or _cpus())
        except OutputError as error:
            raise OutputError(str(error).replace(f"{work}{os.sep}", f"{folder}{os.sep}")) from error
        except OSError as error:
            raise _disk_error(target, error) from error


def _required_contexts(
    edition: Edition, inputs: Inputs, contexts: Sequence[str] | None, problems: Problems
) -> tuple[tuple[str, ...], Manifest | None]:
    """The contexts asked for or, where the edition requires them, those of the manifest; and the manifest."""
    if not edition.file.context_required:
        return tuple(contexts or ()), None
    manifest: Manifest | None = None
    try:
        manifest = find_manifest((inputs.genes, inputs.perts))
    except InvalidFile as error:
        problems.issues += [] if contexts else error.issues
    required = tuple(contexts or (manifest.contexts if manifest else edition.panel.contexts) or ())
    where = inputs.prediction[0][1] if inputs.prediction else Path("AnnData")
    if not required:
        expected = "--contexts A,B,C or a manifest.json"
        problems.add("E411", where, "/obs", "no list of contexts", expected)
    if edition.panel.perturbation_list == "required" and inputs.perts is None:
        problems.add("E407", where, "/obs", "no perturbation list", "--perts CSV")
    problems.stop()
    return required, manifest


def _checked_target(out: Path, edition: Edition, inputs: list[Path], force: bool) -> Path:
    target = check_output(out, inputs=inputs, force=force)
    for beside in (_manifest_of(target), _card_of(target)):
        check_output(beside, inputs=inputs, force=force)
    vcc = next((name for name in edition.file.containers if name != "h5ad"), "a .vcc")
    container = vcc if target.suffix.lower() == ".vcc" else "h5ad"
    if target.suffix.lower() not in (".vcc", ".h5ad"):
        raise UsageError(f"{out}: an entry is named .vcc or .h5ad.")
    if container not in edition.file.containers:
        takes = ", ".join(edition.file.containers)
        raise UsageError(f"{out}: edition {edition.id} takes {takes}, and this would be {container}.")
    return target


def _manifest_of(entry: Path) -> Path:
    return entry.with_name(entry.name + MANIFEST_SUFFIX)


def _card_of(entry: Path) -> Path:
    return entry.with_name(entry.name + CARD_SUFFIX)


def _build(
    source: Source,
    control_source: Source | None,
    edition: Edition,
    options: PackOptions,
    inputs: Inputs,
    problems: Problems,
) -> Build:
    """Everything read and checked; raises `InvalidFile` with all problems at once."""
    listed = read_gene_list(inputs.genes).genes if inputs.genes is not None else None
    columns = tuple(dict.fromkeys((edition.file.perturbation_column, "target_gene", "perturbation")))
    expected = None
    if inputs.perts is not None:
        expected = read_perturbation_list(inputs.perts, columns=columns, control=edition.file.control_label)
    part = read_part(source, edition, options.read, problems)
    order = gene_order(source, listed, problems)
    if part is not None and expected is not None:
        check_list(part, expected, edition, problems)
    genes = [str(g) for g in source.genes] if listed is None else list(listed)
    control_part = control_order = None
    if control_source is not None:
        only = ReadOptions(contexts=())
        control_part = read_part(control_source, edition, only, problems, controls_only=True)
        control_order = gene_order(control_source, genes, problems)
    problems.stop()
    if part is None:
        raise InvalidFile(problems.issues)
    contexts = options.contexts if edition.file.context_required else None
    return Build(
        edition, options, part, order, genes, expected, control_part, control_order, problems, contexts
    )


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
    inputs: Inputs,
    facts: Future[dict[str, Any]],
    manifest: Manifest | None,
    target: Path,
    work: Path,
    threads: int,
) -> PackResult:
    inner, edition = work / f"{target.stem}.h5ad", build.edition
    boxed = target.suffix.lower() == ".vcc"
    record["result"], scanned = build.write(draft, inner, work, threads=threads, durable=not boxed)
    record["emission"] = [report.to_json() for report in draft.reports()]
    ready, stop = (work / target.name if boxed else inner), threading.Event()

    def write() -> dict[str, Any] | None:
        return _write_container(build, inner, ready, manifest, threads, stop) if boxed else None

    # The container is compressed while the file that goes into it is validated.
    with guarded(on=False), _background(write, threads, stop) as container:
        report = validate(
            inner,
            edition=edition,
            genes=inputs.genes,
            perts=inputs.perts,
            contexts=build.contexts,
            block_bytes=PACK_BLOCK_BYTES,
            scanned=scanned,
        )
        issues = tuple(_renamed(issue, inner, target) for issue in report.issues)
        errors = [issue for issue in issues if issue.severity == "error"]
        if errors:
            raise InvalidFile([*errors, *(issue for issue in issues if issue.severity != "error")])
        record["validation"] = {"valid": True, "issues": [issue.to_json() for issue in issues]}
        if boxed:
            record["container"] = container.result()
    with _background(lambda: file_facts(ready), threads) as entry:
        if boxed:
            # Giving back the pages of a large file takes as long as hashing the entry.
            inner.unlink()
        record["inputs"] = facts.result()
        record["entry"] = {"name": target.name, **entry.result()}
    following = _following(edition, target)
    beside, card = work / "manifest.json", work / "card.md"
    write_text(beside, json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n")
    write_text(card, entry_card(record, following))
    # The entry comes last: whoever sees it sees its manifest and card too.
    beside.replace(_manifest_of(target))
    card.replace(_card_of(target))
    ready.replace(target)
    return PackResult(target, _manifest_of(target), record, issues, following, _card_of(target))


def _following(edition: Edition, target: Path) -> str:
    """What to run now: the official client's upload where it takes the entry, else scoring here."""
    entry = shlex.quote(str(target))
    if "vcc2026" in edition.file.containers:
        return f"vcc submit {entry}"
    return f"vcbench score {entry} --truth REAL.h5ad --edition {edition.id} -o scores"


@contextmanager
def _background(
    work: Callable[[], Any], threads: int, stop: threading.Event | None = None
) -> Iterator[Future[Any]]:
    """The result of `work`, done in a thread of its own, or with one thread only when it is asked for.

    When the block is left early, `stop` is set and what `work` raises then is dropped: the block's own end counts.
    """
    if threads == 1:
        yield _OnDemand(work)
        return
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(work)
        finally:
            if stop is not None:
                stop.set()


class _OnDemand(Future[Any]):
    def __init__(self, work: Callable[[], Any]):
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


def _write_container(
    build: Build, inner: Path, out: Path, manifest: Manifest | None, threads: int, stop: threading.Event
) -> dict[str, Any]:
    if "vcc2026" not in build.edition.file.containers:
        return write_vcc2025(inner, out, threads=threads, stop=stop)
    with H5ad(inner) as file:
        labels = file.labels(build.edition.file.perturbation_column)
        meta = entry_meta(file, labels, build.contexts or (), manifest)
    return write_vcc2026(inner, out, meta=meta, threads=threads, stop=stop)


def _renamed(issue: Issue, inner: Path, target: Path) -> Issue:
    """The issue as if the entry stood at its place already."""
    fix = issue.fix.replace(shlex.quote(str(inner)), shlex.quote(str(target)))
    where = issue.where.replace(str(inner), str(target)).replace(inner.name, target.name)
    return replace(issue, fix=fix.replace(str(inner), str(target)), where=where)


def _model_facts(part: Part) -> dict[str, Any]:
    """What the prediction's own record says about the model, its data, split and seeds."""
    if part.meta is None:
        return {}
    facts = {"dataset_id": part.meta.dataset_id, **part.meta.extra}
    return {
        key: value
        for key, value in facts.items()
        if isinstance(value, (str, int, float, bool)) and len(str(value)) <= _LONGEST_FACT
    }


def _record(edition: Edition, options: PackOptions, part: Part, draft: Draft) -> dict[str, Any]:
    import h5py
    import numpy
    import scipy
    import zstandard

    zstd = ".".join(str(n) for n in zstandard.ZSTD_VERSION)
    return {
        "manifest_version": 1,
        "edition": edition.id,
        **({"model": model} if (model := _model_facts(part)) else {}),
        **({"contexts": list(options.contexts)} if options.contexts else {}),
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


def _again(edition: Edition, inputs: Inputs, options: PackOptions, target: Path) -> str:
    contexts = ["--contexts", ",".join(options.contexts)] if options.contexts else []
    return shlex.join([*inputs.words(edition), *contexts, "-o", str(target)])


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _disk_error(target: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            f"{target}: the disk is full; nothing was kept. Free space or choose another --out."
        )
    return OutputError(f"{target}: cannot be written ({error}).")
