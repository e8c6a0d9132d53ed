"""The truth of a scoring run: what may be given, opened as what the pipelines read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..data_specs.errors import UsageError
from ..data_specs.h5ad import H5ad
from ..data_specs.joined_source import JoinedSource
from ..data_specs.memory_source import MemorySource
from ..data_specs.remote import is_path_like
from ..data_specs.sources import Source
from ..data_specs.spec_models import Edition
from .score_options import ScoreOptions

if TYPE_CHECKING:
    from .bundles import Bundle

CONTEXT_COLUMN = "context"
Part = H5ad | MemorySource


def refuse_without_cells(edition: Edition, truths: list[tuple[str | None, Any]]) -> None:
    """Raise `UsageError` where there are no real cells to draw anew: tables and bundles."""
    from .bundles import Bundle, is_bundle

    if holds_tables(edition):
        raise UsageError(f"entries of edition {edition.id} are tables: there are no cells to draw anew.")
    for _, item in truths:
        if isinstance(item, Bundle) or (is_path_like(item) and is_bundle(item)):
            raise UsageError("a truth bundle has no cells to draw anew; give the real h5ad.")


def holds_tables(edition: Edition) -> bool:
    """Whether entries of the edition are tables of differential expression, which are read whole."""
    return "de" in edition.file.rows


def listed_truths(truth: Any) -> list[tuple[str | None, Any]]:
    """(context, truth) of everything that `score` takes as its truth. Raises `UsageError` for none."""
    listed: list[tuple[str | None, Any]]
    if isinstance(truth, Mapping):
        listed = [(str(context), item) for context, item in truth.items()]
    elif isinstance(truth, (list, tuple)):
        listed = [item if isinstance(item, tuple) else (None, item) for item in truth]
    else:
        listed = [(None, truth)]
    if not listed:
        raise UsageError("no truth was given.")
    return listed


def open_source(item: Any, role: str, stack: ExitStack, *, tables: bool = False) -> Any:
    """A file or an AnnData as a source, or a table of effects. Raises `UsageError` for anything else."""
    if tables:
        from .openproblems.tables import open_table

        return open_table(item, name=role)
    if is_path_like(item):
        return stack.enter_context(H5ad(item))
    if all(hasattr(item, slot) for slot in ("X", "obs", "var", "uns")):
        return MemorySource(item, name=role)
    raise UsageError(f"the {role} is a {type(item).__name__}; a path or an AnnData is needed.")


def open_truth(item: Any, role: str, edition: Edition, stack: ExitStack) -> Any:
    """One truth: a bundle, a source or a table, open until the stack closes."""
    from .bundles import Bundle, is_bundle, open_bundle

    if holds_tables(edition):
        return open_source(item, role, stack, tables=True)
    path = item.path if isinstance(item, Bundle) else item
    if is_path_like(path) and is_bundle(path):
        return open_bundle(path, edition=edition)
    return open_source(item, role, stack)


def one_truth(truths: list[tuple[str | None, Part | Bundle]], edition: Edition, options: ScoreOptions) -> Any:
    """What a pipeline takes as its truth: the only one, or several as one. Raises `UsageError` for mixtures."""
    from .bundles import Bundle, join_bundles

    if holds_tables(edition):
        if len(truths) > 1:
            raise UsageError(f"edition {edition.id} takes one truth: a table holds all cell types.")
        return truths[0][1]
    bundles = [(context, item) for context, item in truths if isinstance(item, Bundle)]
    if bundles:
        if len(bundles) < len(truths):
            raise UsageError("truth bundles and real files cannot be mixed; build a bundle of each.")
        return join_bundles(bundles, edition=edition)
    return one_source(
        [(context, item) for context, item in truths if not isinstance(item, Bundle)], edition, options
    )


def one_source(truths: list[tuple[str | None, Part]], edition: Edition, options: ScoreOptions) -> Source:
    """Real cells of one or several files as one source."""
    if len(truths) == 1 and truths[0][0] is None:
        return truths[0][1]
    column = options.context_col or edition.file.context_column or CONTEXT_COLUMN
    return JoinedSource(truths, context_column=column)
