"""Conversion: the real subset to the published numbers, and what every rule of a spec does to a small file."""

import errno
import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from vcbench.data_specs import H5ad, load_dataset
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.errors import InvalidFile, OutputError, SpecError
from vcbench.data_specs.h5ad_write import CsrWriter
from vcbench.data_specs.hashing import file_sha256
from vcbench.data_specs.schema_check import check_standard
from vcbench.data_specs.spec_models import DatasetSpec
from vcbench.data_specs.specs import parse_spec
from vcbench.data_specs.standard import read_meta

NORMAN = Path(__file__).parents[3] / "../shared/data/norman2019_subset.h5ad"
needs_norman = pytest.mark.skipif(not NORMAN.exists(), reason="the Norman subset is not in ../shared/data")
REWRITTEN = {
    "SAMD1+PTPN12": "PTPN12+SAMD1",
    "SET+KLF1": "KLF1+SET",
    "ZBTB10+PTPN12": "PTPN12+ZBTB10",
}


def spec(**changes):
    table = {
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
        "labels": {"column": "guide", "control": ["NT"], "separator": "_", "fillers": ["ctrl"]},
    }
    return parse_spec(DatasetSpec, {**table, **changes}, origin="test")


def published(path, labels, x, *, var=None, obs=None, x_format=sp.csr_matrix):
    data = ad.AnnData(x_format(np.asarray(x, dtype=np.float32)))
    data.obs_names = [f"cell{i}" for i in range(data.n_obs)]
    data.var_names = [f"G{i}" for i in range(data.n_vars)]
    data.obs["guide"] = labels
    for name, values in (obs or {}).items():
        data.obs[name] = values
    for name, values in (var or {}).items():
        data.var[name] = values
    data.write_h5ad(path)
    return path


@needs_norman
def test_norman_subset_round_numbers(tmp_path):
    before = file_sha256(NORMAN)
    done = convert(NORMAN, load_dataset("norman2019_subset"), out=tmp_path / "n.h5ad")
    assert (done.n_cells, done.n_genes, done.n_dropped, done.n_controls) == (3375, 500, 0, 100)
    assert (done.n_perturbations, done.contexts, done.target_sum) == (33, ("K562",), 106.5)
    assert done.issues == () and file_sha256(NORMAN) == before
    source, result = ad.read_h5ad(NORMAN), ad.read_h5ad(tmp_path / "n.h5ad")
    np.testing.assert_array_equal(result.X.toarray(), source.X.toarray())
    assert list(result.obs_names) == list(source.obs_names)
    assert list(result.var_names) == list(source.var_names)
    np.testing.assert_array_equal(result.obs["depth"], source.obs["total_counts"])
    totals = np.asarray(source.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(result.obs["total_counts"], totals)
    assert done.target_sum == np.median(totals[source.obs["perturbation"] == "control"])
    assert [issue.code for issue in check_standard(tmp_path / "n.h5ad")] == ["W612"]


@needs_norman
def test_norman_subset_label_map(tmp_path):
    done = convert(NORMAN, load_dataset("norman2019_subset"), out=tmp_path / "n.h5ad")
    source = ad.read_h5ad(NORMAN).obs["perturbation"].astype(str)
    assert len(done.label_map) == 34
    assert {a: b for a, b in done.label_map.items() if a != b} == REWRITTEN
    result = ad.read_h5ad(tmp_path / "n.h5ad").obs
    assert list(result["label_source"].astype(str)) == list(source)
    assert list(result["perturbation"].astype(str)) == [REWRITTEN.get(x, x) for x in source]
    with H5ad(tmp_path / "n.h5ad") as file:
        assert json.loads(file.vcbench["label_map"]) == done.label_map
        assert file.vcbench["source"]["sha256"] == file_sha256(NORMAN)


def test_labels_unassigned_cells_and_derived_columns(tmp_path):
    labels = ["NT", "A_B", "B_A", "A_ctrl", "*", "A", "NT"]
    x = [[1, 0, 2], [0, 3, 0], [4, 0, 0], [1, 1, 1], [9, 9, 9], [0, 0, 7], [5, 0, 0]]
    src = published(
        tmp_path / "a.h5ad", labels, x, obs={"lane": [1, 1, 2, 2, 3, 3, 3], "note": list("pqrstuv")}
    )
    done = convert(
        src,
        spec(keep_obs={"lane": "batch", "note": "note"}),
        out=tmp_path / "out.h5ad",
    )
    assert [issue.code for issue in done.issues] == ["W614"] and done.n_dropped == 1
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    assert list(obs["perturbation"]) == ["control", "A+B", "A+B", "A", "A", "control"]
    assert list(obs["label_source"]) == ["NT", "A_B", "B_A", "A_ctrl", "A", "NT"]
    assert list(obs["n_targets"]) == [0, 2, 2, 1, 1, 0]
    assert list(obs["is_control"]) == [True, False, False, False, False, True]
    assert list(obs["total_counts"]) == [3, 3, 4, 3, 7, 5] and obs["total_counts"].dtype == np.float32
    assert list(obs["batch"]) == [1, 1, 2, 2, 3, 3] and list(obs["note"]) == list("pqrsuv")
    assert list(obs["context"].unique()) == ["K562"]
    assert done.target_sum == 4.0  # controls have 3 and 5 counts
    with H5ad(tmp_path / "out.h5ad") as file:
        assert json.loads(file.vcbench["filters"]) == [
            {"filter": "unassigned cells", "before": 7, "after": 6}
        ]


def test_the_target_sum_leaves_out_empty_controls(tmp_path):
    src = published(tmp_path / "a.h5ad", ["NT", "NT", "NT", "A"], [[0, 0], [2, 2], [5, 5], [1, 1]])
    assert convert(src, spec(), out=tmp_path / "out.h5ad").target_sum == 7.0


def test_context_column_with_rename(tmp_path):
    src = published(
        tmp_path / "a.h5ad", ["NT", "A", "NT", "A"], np.ones((4, 2)), obs={"line": ["a", "a", "b", "b"]}
    )
    rules = {"column": "line", "rename": {"a": "A549"}}
    assert convert(src, spec(contexts=rules), out=tmp_path / "out.h5ad").contexts == ("A549", "b")


def test_repeated_symbols_take_their_gene_id(tmp_path):
    var = {"name": ["TBCE", "X1", "TBCE"], "gid": ["ENSG1.4", "ENSG2.1", "ENSG3"]}
    src = published(tmp_path / "a.h5ad", ["NT", "A"], np.eye(2, 3) + 1, var=var)
    rules = {"symbol_column": "name", "gene_id_column": "gid"}
    convert(src, spec(genes=rules), out=tmp_path / "out.h5ad")
    var = ad.read_h5ad(tmp_path / "out.h5ad").var
    assert list(var.index) == ["TBCE_ENSG1", "X1", "TBCE_ENSG3"]
    assert list(var["gene_id"]) == ["ENSG1", "ENSG2", "ENSG3"]
    assert list(var["gene_symbol"]) == ["TBCE", "X1", "TBCE"]
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(genes={"symbol_column": "name"}), out=tmp_path / "other.h5ad")
    assert [issue.code for issue in caught.value.issues] == ["E611"]


def log_source(tmp_path, target_sum=50.0):
    counts = np.random.default_rng(0).poisson(3.0, (8, 12)) + 1.0
    x = np.log1p(counts / counts.sum(axis=1, keepdims=True) * target_sum)
    return published(tmp_path / "log.h5ad", ["NT", "NT", *"AABBCC"], x), x.astype(np.float32)


def test_log1p_target_sum_is_measured_and_recorded(tmp_path):
    src, x = log_source(tmp_path)
    done = convert(src, spec(matrix={"kind": "log1p"}), out=tmp_path / "out.h5ad")
    assert done.target_sum == pytest.approx(50.0, rel=1e-5) and done.target_sum_from == "measured"
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(result.X.toarray(), x)
    assert "total_counts" not in result.obs
    with H5ad(tmp_path / "out.h5ad") as file:
        meta = read_meta(file)
        assert meta.matrix.kind == "log1p" and meta.matrix.target_sum == done.target_sum
        assert file.vcbench["conversion"]["target_sum_from"] == "measured"
    assert {issue.code for issue in check_standard(tmp_path / "out.h5ad")} == {"W612"}


def test_log1p_declared_target_sum_must_agree(tmp_path):
    src, _ = log_source(tmp_path)
    agreed = convert(src, spec(matrix={"kind": "log1p", "target_sum": 50.0}), out=tmp_path / "out.h5ad")
    assert (agreed.target_sum, agreed.target_sum_from) == (50.0, "declared")
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(matrix={"kind": "log1p", "target_sum": 1e4}), out=tmp_path / "other.h5ad")
    assert [issue.code for issue in caught.value.issues] == ["E618"]


@pytest.mark.parametrize("x_format", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("block_bytes", [1, 2**26])
def test_storage_and_block_size_do_not_change_the_result(tmp_path, x_format, block_bytes):
    x = np.random.default_rng(1).poisson(1.0, (9, 7))
    labels = ["NT", "A", "*", "B", "A_B", "NT", "A", "B", "A_B"]
    reference = published(tmp_path / "ref.h5ad", labels, x)
    convert(reference, spec(), out=tmp_path / "ref_out.h5ad")
    src = published(tmp_path / "a.h5ad", labels, x, x_format=x_format)
    convert(src, spec(), out=tmp_path / "out.h5ad", block_bytes=block_bytes)
    left, right = ad.read_h5ad(tmp_path / "ref_out.h5ad"), ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(left.X.toarray(), right.X.toarray())
    assert left.obs.equals(right.obs)


def test_conversion_is_deterministic_to_the_byte(tmp_path):
    src = published(tmp_path / "a.h5ad", ["NT", "A", "B"], np.ones((3, 4)))
    for name in ("one.h5ad", "two.h5ad"):
        convert(src, spec(), out=tmp_path / name)
    assert (tmp_path / "one.h5ad").read_bytes() == (tmp_path / "two.h5ad").read_bytes()


def test_outputs_are_never_inputs_and_never_replaced_silently(tmp_path):
    src = published(tmp_path / "a.h5ad", ["NT", "A"], np.ones((2, 4)))
    with pytest.raises(OutputError, match="also an input"):
        convert(src, spec(), out=src, force=True)
    convert(src, spec(), out=tmp_path / "out.h5ad")
    with pytest.raises(OutputError, match="--force"):
        convert(src, spec(), out=tmp_path / "out.h5ad")
    with pytest.raises(OutputError, match="directory"):
        convert(src, spec(), out=tmp_path)
    assert convert(src, spec(), out=tmp_path / "out.h5ad", force=True).n_cells == 2


def test_all_problems_of_a_source_at_once(tmp_path):
    x = np.ones((3, 4))
    x[0, 1], x[1, 2], x[2, 0] = -1, 0.5, np.nan
    src = published(tmp_path / "a.h5ad", ["A", "B", "*"], x)
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(n_genes={"value": 9, "verified": "docs"}), out=tmp_path / "out.h5ad")
    # The NaN stands in an unassigned cell, which is not converted.
    assert [issue.code for issue in caught.value.issues] == ["E615", "E616", "E619", "E635", "W614"]


LAYER = {"kind": "counts", "location": "layers/counts"}


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    src = standard_h5ad(tmp_path / "a.h5ad", genes=GENES)
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(matrix=LAYER), out=tmp_path / "out.h5ad")
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [("E005", "a.h5ad:/layers/counts")]
    with pytest.raises(SpecError, match=r"matrix\.location"):
        spec(matrix={"kind": "counts", "location": "obsm/X"})


@pytest.mark.parametrize("layer_format", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("block_bytes", [1, 2**26])
def test_counts_come_from_a_layer(tmp_path, layer_format, block_bytes):
    x = np.random.default_rng(0).poisson(1.0, (6, 5)).astype(np.float32)
    src = published(tmp_path / "a.h5ad", ["NT", "NT", *"AABB"], np.log1p(x))
    data = ad.read_h5ad(src)
    data.layers["counts"] = layer_format(x)
    data.write_h5ad(src)
    done = convert(src, spec(matrix=LAYER), out=tmp_path / "out.h5ad", block_bytes=block_bytes)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "out.h5ad").X.toarray(), x)
    assert done.target_sum == np.median(x[:2].sum(axis=1))
    with h5py.File(src, "r+") as file:
        del file["X"]
    assert convert(src, spec(matrix=LAYER), out=tmp_path / "out.h5ad", force=True).n_cells == 6


def test_a_damaged_value_in_a_layer_is_named_there(tmp_path):
    x = np.ones((3, 4), np.float32)
    src = published(tmp_path / "a.h5ad", ["NT", "A", "B"], x)
    data = ad.read_h5ad(src)
    data.layers["counts"] = sp.csr_matrix(x * 0.5)
    data.write_h5ad(src)
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(matrix=LAYER), out=tmp_path / "out.h5ad")
    assert [(i.code, i.where) for i in caught.value.issues] == [("E616", "a.h5ad:/layers/counts")]


def test_kept_columns_get_a_prefix_where_the_standard_has_the_name(tmp_path):
    obs = {"context": ["x", "y"], "depth": [1, 2], "source_depth": [3, 4]}
    src = published(tmp_path / "a.h5ad", ["NT", "A"], np.ones((2, 4)), obs=obs, var={"gene_id": list("pqrs")})
    convert(
        src,
        spec(obs_columns=["guide", *obs, "absent"], var_columns=["gene_id"]),
        out=tmp_path / "out.h5ad",
    )
    result = ad.read_h5ad(tmp_path / "out.h5ad")
    assert list(result.obs["source_context"]) == ["x", "y"] and list(result.obs["context"]) == ["K562"] * 2
    assert list(result.obs["source_depth"]) == [1, 2] and list(result.obs["source_source_depth"]) == [3, 4]
    assert "guide" not in result.obs and list(result.var["gene_id"]) == list("pqrs")
    columns = json.loads(result.uns["vcbench"]["columns"])
    assert columns == {
        "source_context": "context",
        "source_depth": "depth",
        "source_source_depth": "source_depth",
    }


def test_ensembl_index_gives_the_gene_ids(tmp_path):
    src = published(tmp_path / "a.h5ad", ["NT", "A"], np.eye(2, 4) + 1, var={"name": ["X", "Y", "X", "Z"]})
    convert(src, spec(genes={"index": "ensembl", "symbol_column": "name"}), out=tmp_path / "out.h5ad")
    var = ad.read_h5ad(tmp_path / "out.h5ad").var
    assert list(var.index) == ["X_G0", "Y", "X_G2", "Z"] and list(var["gene_id"]) == ["G0", "G1", "G2", "G3"]
    with pytest.raises(SpecError, match="symbol_column"):
        spec(genes={"index": "ensembl"})


def test_kept_columns_cannot_replace_standard_ones(tmp_path):
    src = published(tmp_path / "a.h5ad", ["NT", "A"], np.ones((2, 4)), obs={"line": ["x", "y"]})
    with pytest.raises(SpecError, match="'context'"):
        convert(src, spec(keep_obs={"line": "context"}), out=tmp_path / "out.h5ad")


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, after):
    src = published(tmp_path / "a.h5ad", ["NT", "A", "B", "B", "A"], np.ones((5, 4)))
    append, calls = CsrWriter.append, []

    def failing(self, block):
        calls.append(block)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, block)

    monkeypatch.setattr(CsrWriter, "append", failing)
    with pytest.raises(OutputError, match="disk is full"):
        convert(src, spec(), out=tmp_path / "out.h5ad", block_bytes=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]
