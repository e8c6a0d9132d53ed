"""Joined truths keep the category order of each file, so that random halves are those of the file alone."""

from __future__ import annotations

import numpy as np
import pytest
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.joined_source import JoinedSource
from vcbench.data_specs.memory_source import MemorySource
from vcbench.evaluator.score_options import ScoreOptions
from vcbench.evaluator.vcc2026.anchors import group_order, split_halves
from vcbench.evaluator.vcc2026.panel import Columns, read_truth
from vcc2026_panels import CONTROL, random_panel

ORDERS = {"A": ["Z9", "G3", CONTROL, "G0", "G6"], "B": ["G6", "G0", "Z9", "G3", CONTROL]}
COLUMNS = Columns("target", CONTROL, "context")


def write_context(folder, context, *, ordered=True):
    adata = random_panel(ord(context), n_genes=20)["real"]
    adata.obs["context"] = context
    if ordered:
        adata.obs["target"] = adata.obs["target"].astype("category").cat.set_categories(ORDERS[context])
    path = folder / f"{context}.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture
def parts(tmp_path):
    paths = [write_context(tmp_path, context) for context in ORDERS]
    with H5ad(paths[0]) as first, H5ad(paths[1]) as second:
        yield {"A": first, "B": second}


def orders(truths):
    return {t.context: group_order(t, "target", CONTROL) for t in truths}


@pytest.mark.parametrize("named", [True, False])
def test_every_context_keeps_its_files_order(parts, named):
    joined = JoinedSource([(c if named else None, s) for c, s in parts.items()], context_column="context")
    assert joined.context_categories("A", "target") == tuple(ORDERS["A"])
    assert joined.context_categories("B", "target") == tuple(ORDERS["B"])
    assert joined.stored_categories("target") == tuple(ORDERS["A"])
    together = read_truth(joined, COLUMNS, ScoreOptions())
    for truth in together:
        (alone,) = read_truth(parts[truth.context], COLUMNS, ScoreOptions())
        order = group_order(truth, "target", CONTROL)
        assert order == group_order(alone, "target", CONTROL)
        halves = split_halves(truth.cells.groups, order, 7)
        kept = truth.cells.groups >= 0
        for joint, own in zip(halves, split_halves(alone.cells.groups, order, 7), strict=True):
            # The generator permutes positions, so equal draws pick the same cells of the file.
            np.testing.assert_array_equal(joint[kept], own)
    assert orders(together)["A"] != orders(together)["B"]


def test_one_file_of_several_contexts_has_one_order(tmp_path):
    import anndata as ad

    both = ad.concat([ad.read_h5ad(write_context(tmp_path, c, ordered=False)) for c in "AB"])
    both.obs_names_make_unique()
    both.obs["target"] = both.obs["target"].astype("category").cat.set_categories(ORDERS["B"])
    both.write_h5ad(tmp_path / "both.h5ad")
    with H5ad(tmp_path / "both.h5ad") as source:
        found = orders(read_truth(source, COLUMNS, ScoreOptions()))
    labels = [*sorted(set(ORDERS["B"]) - {CONTROL}), CONTROL]
    assert {c: [labels[code] for code in order] for c, order in found.items()} == dict.fromkeys(
        "AB", ORDERS["B"]
    )


def test_plain_text_columns_have_no_stored_order(parts):
    plain = random_panel(1, n_genes=20)["real"]
    plain.obs["context"] = "C"
    joined = JoinedSource([*parts.items(), ("C", MemorySource(plain))], context_column="context")
    assert joined.context_categories("C", "target") is None and joined.stored_categories("target") is None
    assert joined.context_categories("A", "target") == tuple(ORDERS["A"])
