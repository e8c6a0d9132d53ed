"""Every published layout's miniature is given back without loss, and converts to the same standard file again."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from builders import standard_h5ad
from miniatures import base_spec, miniature
from vcbench.data_specs import dataset_ids, load_dataset
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.errors import InvalidFile, OutputError
from vcbench.data_specs.export_published import export_published
from vcbench.evaluator.cli import cli

LAYOUTS = [name for name in dataset_ids() if not name.startswith("layout_")]


def dense(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def same_frame(left, right, columns):
    for column in columns:
        one, two = left[column], right[column]
        if pd.api.types.is_numeric_dtype(one):
            np.testing.assert_array_equal(one.to_numpy(), two.to_numpy(), err_msg=column)
        else:
            texts = ([None if pd.isna(v) else str(v) for v in values] for values in (one, two))
            assert next(texts) == next(texts), column


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_file_comes_back_and_converts_to_the_same(tmp_path, name):
    file = miniature(tmp_path / "published.h5ad", name)
    spec = base_spec(tmp_path / "own.toml", name, file)
    convert(file, spec, out=tmp_path / "standard.h5ad")
    done = export_published(tmp_path / "standard.h5ad", spec, out=tmp_path / "back.h5ad")
    source, back = ad.read_h5ad(file), ad.read_h5ad(tmp_path / "back.h5ad")
    source = source[back.obs_names]
    assert done.n_cells == back.n_obs == source.n_obs and done.n_genes == back.n_vars
    declared = [
        *spec.obs_columns,
        spec.labels.column,
        *([spec.contexts.column] if spec.contexts.column else []),
        *([spec.depth_column] if spec.depth_column else []),
    ]
    same_frame(source.obs, back.obs, dict.fromkeys(declared))
    same_frame(source.var, back.var, spec.var_columns)
    if spec.genes.index == "ensembl" or spec.genes.symbol_column is None:
        assert list(source.var_names) == list(back.var_names)
    if spec.matrix.location == "X":
        np.testing.assert_array_equal(dense(back.X), dense(source.X))
    else:
        np.testing.assert_array_equal(dense(back.layers["counts"]), dense(source.layers["counts"]))
        meta = ad.read_h5ad(tmp_path / "standard.h5ad").uns["vcbench"]["matrix"]
        counts = dense(back.layers["counts"]).astype(float)
        scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * float(meta["target_sum"]))
        np.testing.assert_allclose(dense(back.X), scaled, rtol=1e-6)

    # The spec counts the unassigned cells that conversion left out.
    text = (
        (tmp_path / "own.toml")
        .read_text()
        .replace(f"value = {len(ad.read_h5ad(file))}", f"value = {back.n_obs}")
    )
    (tmp_path / "own.toml").write_text(text)
    load_dataset.cache_clear()
    convert(tmp_path / "back.h5ad", load_dataset(str(tmp_path / "own.toml")), out=tmp_path / "again.h5ad")
    first, again = ad.read_h5ad(tmp_path / "standard.h5ad"), ad.read_h5ad(tmp_path / "again.h5ad")
    pd.testing.assert_frame_equal(first.obs, again.obs, check_like=True)
    pd.testing.assert_frame_equal(first.var, again.var, check_like=True)
    np.testing.assert_array_equal(dense(first.X), dense(again.X))
    assert first.uns["vcbench"]["matrix"] == again.uns["vcbench"]["matrix"]


def test_only_what_was_converted_is_given_back(tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InvalidFile) as error:
        export_published(path, "norman2019_gears", out=tmp_path / "b.h5ad")
    assert [issue.code for issue in error.value.issues] == ["E648"]
    with pytest.raises(OutputError):
        export_published(path, "norman2019_gears", out=path, force=True)
    assert not (tmp_path / "b.h5ad").exists()


def test_command(tmp_path, capsys):
    name = "norman2019_pertpy"
    file = miniature(tmp_path / "published.h5ad", name)
    convert(file, base_spec(tmp_path / "own.toml", name, file), out=tmp_path / "a.h5ad")
    args = ["data", "export", str(tmp_path / "a.h5ad"), "-o", str(tmp_path / "b.h5ad")]
    spec = ["--spec", str(tmp_path / "own.toml")]
    assert run(cli, [*args, "--to", "gears", *spec]) == 2 and "--to published" in capsys.readouterr().err
    assert run(cli, [*args, "--to", "published", *spec, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == f"mini_{name}"
    assert run(cli, [*args, "--to", "published", *spec]) == 1
