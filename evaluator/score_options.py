"""The options of a scoring run that every pipeline understands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..data_specs.h5ad import DEFAULT_BLOCK_BYTES
from ..data_specs.standard import MatrixKind

if TYPE_CHECKING:
    from ..data_specs.split_file import Split
    from .executors import Executor
    from .shared import Shared

T = TypeVar("T")
Subset = Literal["train", "validation", "test", "all"]
SUBSETS: tuple[Subset, ...] = ("train", "validation", "test", "all")


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What the caller chose. A pipeline is `score_X(pred, truth, *, edition, profile, options, progress)`.

    `pred` and `truth` are opened sources (`H5ad` or `MemorySource`, never closed by the pipeline), `profile` a
    `spec_models.Profile` whose metrics are resolved names, `progress(done, total, text)` may be called freely.

    Attributes
    ----------
    split
        Restricts the evaluated rows to those of `subset` that the truth has; None: all rows of the truth.
    subset
        The part of the split, or `all`. Without a split it has no meaning.
    pert_col, control, context_col
        Override the edition's column names and control label, in both files; None keeps the edition's.
    matrix
        Kind of X in the files that do not declare it themselves (and, where an edition detects, instead of that).
    seed
        Root seed of every random draw.
    threads
        Threads of parallel kernels; None: the CPUs this process may use. Results do not depend on it.
    block_bytes
        Target size of one block of rows. Results do not depend on it.
    memory
        Memory budget in bytes for the values held at a time; None: about 4 GiB of them. Results do not depend on it.
    device
        Where rank sums are taken: `cpu` (numba), `cuda`, `cuda:N`, `auto` or `torch-cpu`. Results do not depend on it.
    references
        What an overall score needs beyond the truth, by name (for example the baseline's aggregate file).
    no_target_genes
        Declares that no perturbation (outside `target_map`) has a target gene to leave out.
    target_map
        Perturbation label to its target gene, or to None where it has none; other labels stand for themselves.
    shared
        Measurements of the truth that earlier entries of the same run left; None: nothing is kept.
    executor
        Whose workers measure cells of files (edition vcc2026); None: this process. Results do not depend on it.
    """

    split: Split | None = None
    subset: Subset = "test"
    pert_col: str | None = None
    control: str | None = None
    context_col: str | None = None
    matrix: MatrixKind | None = None
    seed: int = 0
    threads: int | None = None
    block_bytes: int = DEFAULT_BLOCK_BYTES
    memory: int | None = None
    device: str = "cpu"
    references: Mapping[str, Any] = field(default_factory=dict)
    no_target_genes: bool = False
    target_map: Mapping[str, str | None] | None = None
    shared: Shared | None = None
    executor: Executor | None = None

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """A measurement of the truth under this key: computed here, or taken from an earlier entry of the run."""
        return compute() if self.shared is None else self.shared.get(key, compute)
