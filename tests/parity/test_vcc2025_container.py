"""The 2025 container against cell-eval 0.8.2: what we pack is scored by `run`, what `prep` writes is read by us."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess

import anndata as ad
import h5py
import numpy as np
import pytest
from builders import standard_h5ad
from packing_files import TARGETS, pack_files
from parity.official import tool_python
from vcbench.data_specs.containers import open_entry
from vcbench.evaluator.scoring import score
from vcbench.evaluator.validation import validate
from vcbench.submission.emission_rules import MODES
from vcbench.submission.inspection import inspect_file
from vcbench.submission.packing import pack

pytestmark = pytest.mark.parity
SCORED = ("cells", *MODES)
CALL = """
import json, sys
from cell_eval.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["cell-eval", *words]
    main()
"""
PANEL = tuple(f"G{i:03d}" for i in range(60))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return pack_files(tmp_path_factory.mktemp("inputs"), genes=PANEL)


@pytest.fixture(scope="module")
def official_input(files, tmp_path_factory):
    """The same counts with the challenge's own columns, genes in another order than the list, as prep reads them."""
    data = ad.read_h5ad(files.cells)
    data.obs = data.obs[["perturbation"]].rename(columns={"perturbation": "target_gene"})
    data.obs["target_gene"] = data.obs["target_gene"].cat.rename_categories({"control": "non-targeting"})
    data.uns = {}
    path = tmp_path_factory.mktemp("official") / "counts.h5ad"
    data.write_h5ad(path)
    return path


def unpacked_by_programs(entry, folder):
    folder.mkdir()
    subprocess.run(["tar", "-xf", str(entry), "-C", str(folder)], check=True)
    assert sorted(p.name for p in folder.iterdir()) == ["pred.h5ad.zst", "watermark.txt"]
    assert (folder / "watermark.txt").read_bytes() == b"vcc-prep"
    subprocess.run(["zstd", "-q", "-d", str(folder / "pred.h5ad.zst")], check=True)
    return folder / "pred.h5ad"


@pytest.fixture(scope="module")
def official(files, official_input, tmp_path_factory):
    """One process of the official tool: `prep` of the counts, `run` on every entry that we packed."""
    python = tool_python("VCBENCH_PARITY_PYTHON", "cell_eval")
    for program in ("tar", "zstd"):
        if shutil.which(program) is None:
            pytest.skip(f"the program {program} is not installed")
    folder = tmp_path_factory.mktemp("scored")
    truth_cells = standard_h5ad(
        folder / "truth.h5ad", perturbations=TARGETS, controls=60, seed=5, genes=PANEL
    )
    pack(truth_cells, "vcc2025", out=folder / "truth.vcc", genes=files.genes)
    truth = unpacked_by_programs(folder / "truth.vcc", folder / "truth")
    calls = [["prep", "-i", official_input, "-g", files.genes, "-o", folder / "official.vcc"]]
    for name in SCORED:
        entry, means = folder / f"{name}.vcc", name != "cells"
        pack(
            files.means if means else files.cells,
            "vcc2025",
            out=entry,
            genes=files.genes,
            perts=files.perts,
            controls=files.cells if means else None,
            mode=name if means else None,
        )
        pred = unpacked_by_programs(entry, folder / name)
        calls.append(["run", "-ap", pred, "-ar", truth, "--profile", "vcc", "-o", folder / f"{name}-scores"])
    words = json.dumps([[str(word) for word in call] for call in calls])
    done = subprocess.run([python, "-c", CALL, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def prepared(official):
    return official / "official.vcc"


@pytest.mark.parametrize("name", SCORED)
def test_packed_entry_is_scored_by_the_official_tool(name, official):
    with (official / f"{name}-scores" / "agg_results.csv").open(newline="") as handle:
        mean = next(row for row in csv.DictReader(handle) if row["statistic"] == "mean")
    assert {"overlap_at_N", "mae", "discrimination_score_l1"} <= set(mean)
    assert 0 < float(mean["mae"]) < 1


@pytest.mark.parametrize("name", SCORED)
def test_packed_entry_scores_the_same_here(name, official):
    with (official / f"{name}-scores" / "agg_results.csv").open(newline="") as handle:
        mean = next(row for row in csv.DictReader(handle) if row["statistic"] == "mean")
    ours = score(official / f"{name}.vcc", official / "truth" / "pred.h5ad", edition="vcc2025").card.metrics
    for metric in ("mae", "discrimination_score_l1"):
        assert ours[metric].value == pytest.approx(float(mean[metric]), abs=1e-6)


def test_official_entry_is_scored_here(official, prepared):
    scored = score(
        prepared, official / "truth" / "pred.h5ad", edition="vcc2025", references={"baseline": "published"}
    )
    same = official / "cells.vcc"
    ours = score(
        same, official / "truth" / "pred.h5ad", edition="vcc2025", references={"baseline": "published"}
    )
    assert scored.card.score is not None and scored.card.score == pytest.approx(ours.card.score, abs=1e-3)
    for name, value in scored.card.metrics.items():
        assert value.value == pytest.approx(ours.card.metrics[name].value, abs=1e-6)


def test_official_entry_is_read_and_valid(prepared, files):
    with open_entry(prepared) as entry:
        assert (entry.container, entry.notes) == ("vcc2025", ())
    found = inspect_file(prepared)
    assert (found.n_obs, found.n_vars, found.container) == (108, 60, "vcc2025")
    assert found.labels == {"non-targeting": 60} | dict.fromkeys(TARGETS, 12)
    report = validate(prepared, edition="vcc2025", genes=files.genes, perts=files.perts)
    assert report.valid, [issue.render() for issue in report.issues]


def test_our_entry_equals_the_official_one(prepared, official_input, files, tmp_path):
    ours = tmp_path / "ours.vcc"
    pack(official_input, "vcc2025", out=ours, genes=files.genes)
    left = unpacked_by_programs(ours, tmp_path / "left")
    right = unpacked_by_programs(prepared, tmp_path / "right")
    a, b = ad.read_h5ad(left), ad.read_h5ad(right)
    assert list(a.var_names) == list(b.var_names) == list(files.gene_order)
    assert list(a.obs_names) == list(b.obs_names) == [str(i) for i in range(108)]
    assert list(a.obs.columns) == list(b.obs.columns) == ["target_gene"]
    assert list(a.var.columns) == list(b.var.columns) == []
    assert (a.obs["target_gene"].astype(str) == b.obs["target_gene"].astype(str)).all()
    assert a.X.dtype == b.X.dtype == np.float32
    np.testing.assert_allclose(a.X.toarray(), b.X.toarray(), rtol=3e-7, atol=0)
    with h5py.File(left) as f, h5py.File(right) as g:
        assert set(f) == set(g)
        for key in ("encoding-type", "encoding-version"):
            assert f["X"].attrs[key] == g["X"].attrs[key]
            assert f["obs/target_gene"].attrs[key] == g["obs/target_gene"].attrs[key]
        assert list(f["X"].attrs["shape"]) == list(g["X"].attrs["shape"])
        assert {k: f["X"][k].dtype for k in f["X"]} == {k: g["X"][k].dtype for k in g["X"]}
        assert f["X/data"].compression is None
        assert list(f["uns"]) == list(g["uns"]) == ["log1p"]
        assert (
            f["uns/log1p/base"].attrs["encoding-type"] == g["uns/log1p/base"].attrs["encoding-type"] == "null"
        )


def test_tar_headers_are_like_the_official_ones(prepared, files, tmp_path):
    ours = tmp_path / "ours.vcc"
    pack(files.cells, "vcc2025", out=ours, genes=files.genes)
    heads = [path.read_bytes()[:512] for path in (ours, prepared)]
    for head in heads:
        assert head[:14] == b"pred.h5ad.zst\0"
        assert head[100:108] == b"0000644\0"
        assert head[257:265] == b"ustar  \0"
    assert heads[0][108:116] == b"0000000\0"
    assert ours.stat().st_size % 10240 == prepared.stat().st_size % 10240 == 0
