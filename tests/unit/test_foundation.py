"""The reader and writer everything rests on: every storage gives the same rows, and anndata agrees."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from vcbench.data_specs import H5ad, InvalidFile
from vcbench.evaluator.bulk import group_moments


def rows_of(path, **options):
    with H5ad(path) as file:
        return sp.vstack([block.matrix for block in file.row_blocks(**options)]).toarray()


@pytest.fixture
def stored(tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    data = ad.read_h5ad(path)
    files = {"csr": path}
    for name, x in {
        "csc": sp.csc_matrix(data.X),
        "dense": data.X.toarray(),
        "int": sp.csr_matrix(data.X.astype(np.int64)),
    }.items():
        files[name] = tmp_path / f"{name}.h5ad"
        ad.AnnData(x, obs=data.obs, var=data.var).write_h5ad(files[name])
    return data, files


@pytest.mark.parametrize("storage", ["csr", "csc", "dense", "int"])
@pytest.mark.parametrize("max_bytes", [1, 3000, 2**26])
def test_rows_equal_anndata(stored, storage, max_bytes):
    data, files = stored
    np.testing.assert_array_equal(rows_of(files[storage], max_bytes=max_bytes), data.X.toarray())


def test_written_file_is_read_by_anndata(stored):
    data, files = stored
    with H5ad(files["csr"]) as file:
        assert list(file.genes) == list(GENES) == list(data.var_names)
        assert list(file.labels("perturbation").values()) == list(data.obs["perturbation"].astype(str))
        assert file.vcbench["matrix"]["kind"] == "counts"
    assert data.uns["vcbench"]["schema_version"] == 1


def test_moments_equal_numpy_for_any_storage_and_block(stored):
    from vcbench.data_specs.normalize import to_log1p
    from vcbench.data_specs.standard import MatrixMeta

    data, files = stored
    matrix = MatrixMeta("counts", 80.0)
    dense = to_log1p(sp.csr_array(data.X), matrix).toarray()
    results = []
    for path in files.values():
        for block_bytes in (1, 10_000, 2**26):
            with H5ad(path) as file:
                labels = file.labels("perturbation")
                results.append(
                    group_moments(file, labels.codes, len(labels.categories), matrix, block_bytes=block_bytes)
                )
    for result in results:
        assert np.array_equal(result.mean, results[0].mean) and np.array_equal(
            result.variance, results[0].variance
        )
    for i, name in enumerate(labels.categories):
        rows = dense[data.obs["perturbation"] == name]
        np.testing.assert_allclose(results[0].mean[i], rows.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(results[0].variance[i], rows.var(axis=0, ddof=1), atol=1e-11)


def test_opening_problems_are_coded(tmp_path):
    (tmp_path / "text.h5ad").write_text("gene,count\n")
    good = standard_h5ad(tmp_path / "good.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(good[: len(good) // 2])
    codes = {}
    for name in ("missing.h5ad", "text.h5ad", "cut.h5ad", "."):
        with pytest.raises(InvalidFile) as caught:
            H5ad(tmp_path / name)
        codes[name] = caught.value.issues[0].code
    assert codes == {"missing.h5ad": "E001", "text.h5ad": "E003", "cut.h5ad": "E004", ".": "E002"}
