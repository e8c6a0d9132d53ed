"""What a run would cost, from the headers of its files alone: values, passes, memory, time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from ..data_specs.containers import is_container
from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.remote import input_path
from ..data_specs.spec_models import Edition
from ..data_specs.specs import load_edition
from .bundles import is_bundle, open_bundle
from .memory import DEFAULT_COLUMN_BYTES, RESERVE_BYTES, SMALLEST_COLUMN_BYTES
from .truth_files import listed_truths

PathLike = str | os.PathLike[str]
# Interpreter, libraries and compiled kernels.
_BASE_BYTES = 300 * 2**20
# Arrays of groups x genes, float64, that stand beside the values: sums, noise, tests of both sides.
_GROUP_ARRAYS = {"vcc2026": 14, "celleval": 10, "core": 4}
# Bytes of a stored value while genes are ranked (value or rank, and group); editions without ranks hold none.
_VALUE_BYTES = {"vcc2026": 6, "celleval": 6, "core": 0}
# Bytes of the noted (cell, count) pairs and their sorting, per cell.
_CELL_BYTES = {"vcc2026": 130 * 36, "celleval": 0, "core": 0}
# Nanoseconds of one thread per stored value of a side, reading included (2 cores of an AMD EPYC).
_VALUE_NS = {"vcc2026": 110.0, "celleval": 60.0, "core": 40.0}
_BASE_SECONDS = 4.0
# A pass for checks, one for sums, one for the noise of bulks and the first block of genes.
_PASSES = {"vcc2026": 3, "celleval": 2, "core": 2}


@dataclass(frozen=True)
class InputCost:
    """One file: its size and what is read of it. A bundle has no stored values to read but its control cells."""

    name: str
    role: str
    n_obs: int
    n_genes: int
    n_stored: int
    n_groups: int
    passes: int


@dataclass(frozen=True)
class Estimate:
    """The cost of one run.

    `memory_bytes` is the expected peak, `gene_blocks` in how many blocks genes are ranked under the budget, `seconds`
    wall time with `threads` threads on the reference machine, compiled kernels cached.
    """

    edition: str
    inputs: tuple[InputCost, ...]
    gene_blocks: int
    memory_bytes: int
    seconds: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        """The estimate as plain values."""
        return asdict(self)


def estimate_score(
    pred: PathLike,
    truth: Any,
    *,
    edition: str | Edition,
    pert_col: str | None = None,
    threads: int | None = None,
    memory: int | None = None,
) -> Estimate:
    """The cost of `score` with these arguments; values are not read, and a `.vcc` is not unpacked.

    Raises
    ------
    InvalidFile
        A file cannot be opened.
    UsageError
        The prediction is a `.vcc`: what it holds is known only when it is unpacked.
    """
    rules = load_edition(edition) if isinstance(edition, str) else edition
    if "de" in rules.file.rows:
        raise UsageError(
            f"edition {rules.id}: tables are read whole and scored in seconds; nothing to estimate."
        )
    truths = [item for _, item in listed_truths(truth)]
    with ExitStack() as stack:
        sides = [
            ("prediction", _opened(pred, stack)),
            *(("truth", _opened(item, stack, rules)) for item in truths),
        ]
        return _estimate(sides, rules, pert_col=pert_col, threads=threads, memory=memory, repeats=1.0)


def estimate_truth(
    real: PathLike,
    *,
    edition: str | Edition,
    pert_col: str | None = None,
    n_splits: int = 5,
    anchor: bool = True,
    threads: int | None = None,
    memory: int | None = None,
) -> Estimate:
    """The cost of `truth build`: the real cells once, and two halves of them for every split.

    Raises `InvalidFile` when the file cannot be opened.
    """
    rules = load_edition(edition) if isinstance(edition, str) else edition
    halves = (n_splits if anchor else 0) if rules.scoring.pipeline == "vcc2026" else 1
    with ExitStack() as stack:
        sides = [("truth", _opened(real, stack))]
        # A split reads all values and ranks every one of them in one of its halves.
        return _estimate(
            sides, rules, pert_col=pert_col, threads=threads, memory=memory, repeats=1.5 + 1.3 * halves
        )


def _opened(item: Any, stack: ExitStack, edition: Edition | None = None) -> Any:
    path = input_path(item)
    if edition is not None and is_bundle(path):
        return open_bundle(path, edition=edition, check_hashes=False)
    if is_container(path):
        raise UsageError(
            f"{path}: --dry-run reads headers, and a .vcc shows its own only when it is unpacked."
        )
    return stack.enter_context(H5ad(path))


def _estimate(
    sides: list[tuple[str, Any]],
    rules: Edition,
    *,
    pert_col: str | None,
    threads: int | None,
    memory: int | None,
    repeats: float,
) -> Estimate:
    kind = rules.scoring.pipeline
    column = pert_col or rules.file.perturbation_column
    inputs = [_cost(role, item, column, _PASSES[kind]) for role, item in sides]
    largest = max(cost.n_stored for cost in inputs)
    control = next(
        (cost.n_stored for cost, (_, item) in zip(inputs, sides, strict=True) if _is_bundle(item)), 0
    )
    arrays = max(cost.n_groups for cost in inputs) * max(cost.n_genes for cost in inputs) * 8
    fixed = _BASE_BYTES + arrays * _GROUP_ARRAYS[kind]
    fixed += max(cost.n_obs for cost in inputs) * _CELL_BYTES[kind] + control * 8
    values = (largest + control) * _VALUE_BYTES[kind]
    budget = (
        DEFAULT_COLUMN_BYTES if memory is None else max(memory - fixed - RESERVE_BYTES, SMALLEST_COLUMN_BYTES)
    )
    n_blocks = max(1, -(-values // budget))
    used = threads or len(_cpus())
    read = sum(cost.n_stored for cost in inputs) * (1.0 + 0.15 * (n_blocks - 1))
    seconds = _BASE_SECONDS + repeats * read * _VALUE_NS[kind] * 1e-9 / min(used, 16)
    peak = fixed + min(values, budget) + (RESERVE_BYTES if values else 0) // 2
    return Estimate(rules.id, tuple(inputs), int(n_blocks), int(peak), round(seconds, 1), used)


def _cost(role: str, item: Any, column: str, passes: int) -> InputCost:
    if _is_bundle(item):
        entries = item.manifest["contexts"]
        n_groups = max(len(entry["perturbations"]) for entry in entries) + 1
        stored = sum(_control_values(item, entry) for entry in entries)
        n_genes = len(item.manifest["genes"])
        return InputCost(item.name, role, 0, n_genes, stored, n_groups, 2 if stored else 0)
    labels = len(item.labels(column).categories) if column in item.obs_columns else 1
    return InputCost(item.name, role, item.n_obs, item.n_vars, item.matrix.n_stored, labels, passes)


def _control_values(bundle: Any, entry: Mapping[str, Any]) -> int:
    member = f"{entry.get('folder', '')}/control_indices.npy"
    return len(bundle.array(member)) if bundle.has(member) else 0


def _is_bundle(item: Any) -> bool:
    return not isinstance(item, H5ad)


def _cpus() -> set[int] | range:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)
