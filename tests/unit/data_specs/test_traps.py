"""The traps of published files: each code from one file with one defect."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from miniatures import base_spec, miniature
from vcbench.data_specs import traps
from vcbench.data_specs.published_check import check_published
from vcbench.data_specs.spec_models import DatasetSpec
from vcbench.data_specs.specs import parse_spec

TABLE = {
    "spec_version": 1,
    "id": "mine",
    "family": "mine",
    "title": "t",
    "citation": {"text": "c", "year": 2020},
    "license": "MIT",
    "organism": "Homo sapiens",
    "modality": "CRISPRi",
    "matrix": {"kind": "counts"},
    "contexts": {"value": "K562"},
    "labels": {"column": "gene", "control": ["NT"], "separator": "+"},
    "keep_obs": {},
}
GENES = tuple(f"GENE{i}" for i in range(10))
LABELS = ["NT"] * 24 + ["GENE0"] * 12 + ["GENE1"] * 12
COUNTS = np.random.default_rng(0).poisson(4.0, (48, 10)).astype(np.float32) + 1


def published(tmp_path, *, labels=LABELS, x=None, genes=GENES, obs=None, var=None, uns=None, dense=False):
    values = COUNTS[: len(labels)] if x is None else x
    data = ad.AnnData(values if dense else sp.csr_matrix(values))
    data.var_names = list(genes)
    data.obs["gene"] = list(labels)
    for name, column in (obs or {}).items():
        data.obs[name] = column
    for name, column in (var or {}).items():
        data.var[name] = column
    data.uns.update(uns or {})
    data.write_h5ad(tmp_path / "f.h5ad")
    return tmp_path / "f.h5ad"


def issues_of(file, **changes):
    return check_published(file, parse_spec(DatasetSpec, {**TABLE, **changes}, origin="test"))


def one(issues, code):
    (issue,) = [issue for issue in issues if issue.code == code]
    return issue


def relabelled(name, n=12):
    return [*LABELS[: -n if n else None], *[name] * n]


def test_a_clean_file_has_no_issue(tmp_path):
    assert issues_of(published(tmp_path)) == []


@pytest.mark.parametrize(
    ("code", "severity", "found", "build", "changes"),
    [
        ("E642", "error", "'non-targeting'", {"labels": relabelled("non-targeting")}, {}),
        ("W620", "warning", "'GENE1-1'", {"labels": relabelled("GENE1-1")}, {}),
        ("W620", "warning", "'GENE1_pDS123'", {"labels": relabelled("GENE1_pDS123")}, {}),
        (
            "W630",
            "info",
            "'GENE0+GENE1 and GENE1+GENE0'",
            {"labels": ["NT"] * 24 + ["GENE0+GENE1"] * 12 + ["GENE1+GENE0"] * 12},
            {},
        ),
        ("W631", "warning", "'GENE1'", {"labels": [*LABELS[:36], *["GENE1"] * 5]}, {}),
        ("W614", "warning", "12 of 48", {"labels": relabelled("*")}, {}),
        ("W612", "warning", "'ABSENT'", {"labels": relabelled("ABSENT")}, {}),
        (
            "W621",
            "info",
            "2 ('NT', 'safe')",
            {"labels": ["safe"] * 4 + LABELS[4:]},
            {"labels": {"column": "gene", "control": ["NT", "safe"]}},
        ),
        (
            "W622",
            "warning",
            "'control'",
            {"labels": relabelled("control")},
            {"labels": {"column": "gene", "control": ["NT"], "unassigned": ["control"]}},
        ),
        (
            "W624",
            "warning",
            "'GENE1'",
            {"obs": {"lane": ["1", "2"] * 18 + ["3"] * 12}},
            {"keep_obs": {"lane": "batch"}},
        ),
        (
            "W626",
            "warning",
            "'ENSMUSG00000000001'",
            {"var": {"id": [*(f"ENSG{i:011d}" for i in range(9)), "ENSMUSG00000000001"]}},
            {"genes": {"gene_id_column": "id"}},
        ),
        (
            "W627",
            "info",
            "'ENSG00000000000.3'",
            {"var": {"id": [f"ENSG{i:011d}.3" for i in range(10)]}},
            {"genes": {"gene_id_column": "id"}},
        ),
        ("W628", "warning", "'GENE0-1'", {"genes": [*GENES[:-1], "GENE0-1"]}, {}),
        (
            "W629",
            "info",
            "'GENE0'",
            {"genes": [*GENES[:-1], "GENE0"], "var": {"id": [f"ENSG{i:011d}" for i in range(10)]}},
            {"genes": {"gene_id_column": "id"}},
        ),
        ("E645", "error", "10 ('ENSG00000000000'", {"genes": [f"ENSG{i:011d}" for i in range(10)]}, {}),
        ("W632", "warning", "'n_cells'", {"obs": {"n_cells": [5] * 48}}, {}),
        (
            "W633",
            "info",
            "'top_non_dropout_de_20'",
            {"uns": {"top_non_dropout_de_20": {"a": np.array(["GENE0"], dtype=object)}}},
            {},
        ),
        (
            "W635",
            "info",
            "2 ('A', 'B')",
            {"obs": {"context": ["A", "B"] * 24}},
            {"contexts": {"column": "context"}},
        ),
        ("W619", "info", "'cell_line'", {}, {"obs_columns": ["gene", "cell_line"]}),
        ("W617", "warning", "bytes", {}, {"files": [{"role": "main", "name": "f.h5ad", "bytes": 5}]}),
        ("W618", "info", "no published checksum", {}, {"files": [{"role": "main", "name": "f.h5ad"}]}),
        (
            "W615",
            "warning",
            "sha256",
            {},
            {"files": [{"role": "main", "name": "f.h5ad", "sha256": "0" * 64}]},
        ),
        (
            "W625",
            "warning",
            "'A549'",
            {"obs": {"cell_type": ["A549"] * 48}},
            {
                "traps": [
                    {"id": "x", "text": "It is K562.", "sign": {"column": "cell_type", "values": ["A549"]}}
                ]
            },
        ),
        (
            "W625",
            "error",
            "'chr1.10050_top_two'",
            {"labels": relabelled("chr1.10050_top_two")},
            {
                "traps": [
                    {
                        "id": "x",
                        "severity": "error",
                        "text": "Wrong object.",
                        "sign": {"label_regex": r"chr\d+\..*"},
                    }
                ]
            },
        ),
        (
            "E643",
            "error",
            "all sum to 50",
            {"x": np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 50)},
            {},
        ),
        ("E644", "error", "whole multiples", {"x": np.where(np.arange(10) == 0, 1, COUNTS) / 7}, {}),
        ("E635", "error", "48 cells", {}, {"n_cells": {"value": 47, "verified": "docs"}}),
        ("E635", "warning", "48 cells", {}, {"n_cells": {"value": 47, "verified": "recall"}}),
    ],
)
def test_one_defect_gives_its_issue(tmp_path, code, severity, found, build, changes):
    issue = one(issues_of(published(tmp_path, **build), **changes), code)
    assert issue.severity == severity and found in issue.found and issue.where.startswith("f.h5ad")


def test_kntc1_is_a_gene_and_no_control(tmp_path):
    file = published(tmp_path, labels=relabelled("KNTC1"), genes=[*GENES[:-1], "KNTC1"])
    assert issues_of(file, labels={"column": "gene", "control": ["NT", "NTC"]}) == []


def test_a_large_dense_matrix_is_told(tmp_path, monkeypatch):
    file = published(tmp_path, dense=True)
    assert issues_of(file) == []
    monkeypatch.setattr(traps, "LARGE_DENSE_BYTES", 100)
    assert one(issues_of(file), "W634").severity == "info"


def test_the_wrong_cell_line_of_a_mirror_is_named(tmp_path):
    file = miniature(tmp_path / "f.h5ad", "norman2019_gears")
    issues = check_published(file, base_spec(tmp_path / "own.toml", "norman2019_gears", file))
    assert "K562" in one(issues, "W625").message and one(issues, "W633").severity == "info"


def test_damaged_and_missing_files_are_issues(tmp_path):
    (tmp_path / "x.h5ad").write_text("no hdf5")
    assert [i.code for i in issues_of(tmp_path / "x.h5ad")] == ["E003"]
    file = published(tmp_path)
    assert [i.code for i in issues_of(file, depth_column="depth")] == ["E626"]
