"""What an official entry carries beyond X, labels and gene names."""

from __future__ import annotations

from collections.abc import Iterator

from ...data_specs.h5ad import H5ad
from ...data_specs.issues import Issue, first_of
from .case import Case

# What packing itself writes for some editions.
_KNOWN = ("celltype", "cell_type")


def extra_issues(case: Case) -> Iterator[Issue]:
    """Columns and groups that an official entry does not need; editions of our own keep them."""
    if case.edition.file.containers == ("h5ad",) or not isinstance(case.source, H5ad):
        return
    wanted = {case.pert_col} | ({case.context_col} if case.context_demanded else set())
    # A file of another kind, or one whose columns have other names, has more important problems.
    if case.rows != "cell" or not wanted <= set(case.source.obs_columns):
        return
    used = {case.pert_col, case.context_col, *_KNOWN}
    extra = [f"obs/{name}" for name in case.source.obs_columns if name not in used]
    extra += [f"var/{name}" for name in case.source.var_columns]
    extra += [name for name in case.source.groups if name != "uns"]
    extra += [f"uns/{name}" for name in case.source.uns if name not in ("log1p", "vcbench")]
    if extra:
        yield case.issue("W327", "/", found=first_of(extra), expected="X, labels and gene names")
