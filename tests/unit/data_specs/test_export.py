"""Export: a standard file back in published layouts, equal columns and X, coded refusals, GEARS' rankings."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from miniatures import base_spec, miniature
from scipy.stats import ttest_ind
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.errors import InvalidFile, OutputError, UnknownName, UsageError
from vcbench.data_specs.export import export, load_layout
from vcbench.evaluator.cli import cli


@pytest.fixture
def standard(tmp_path):
    def made(name):
        file = miniature(tmp_path / f"{name}.h5ad", name)
        spec = base_spec(tmp_path / f"{name}.toml", name, file)
        convert(file, spec, out=tmp_path / f"{name}.standard.h5ad")
        return file, spec, tmp_path / f"{name}.standard.h5ad"

    return made


def edited(path, out, change):
    data = ad.read_h5ad(path)
    change(data)
    data.write_h5ad(out)
    return out


def codes(file, layout, out):
    with pytest.raises(InvalidFile) as error:
        export(file, layout, out=out)
    assert not out.exists()
    return [issue.code for issue in error.value.issues if issue.severity == "error"]


@pytest.mark.parametrize("name", ["norman2019_gears", "norman2019_scperturb"])
def test_gears_layout_has_what_its_loader_reads(standard, tmp_path, name):
    file, spec, path = standard(name)
    out = tmp_path / "perturb_processed.h5ad"
    done = export(path, "gears", out=out, block_bytes=2000)
    data, source = ad.read_h5ad(out), ad.read_h5ad(path)
    assert isinstance(data.X, sp.csr_matrix) and data.X.dtype == np.float32
    assert (data.var["gene_name"].to_numpy() == source.var_names).all()
    counts = source.X.toarray().astype(float)
    log = np.log1p(counts / counts.sum(axis=1, keepdims=True) * done.target_sum)
    np.testing.assert_allclose(data.X.toarray(), log, rtol=1e-6)
    np.testing.assert_array_equal(data.layers["counts"].toarray(), counts)
    condition = data.obs["condition"].astype(str)
    if name == "norman2019_gears":
        published = ad.read_h5ad(file)
        for column in spec.obs_columns:
            assert (data.obs[column].astype(str) == published.obs[column].astype(str)).all(), column
    else:
        assert set(condition) == {"ctrl", "MYC+ctrl", "MYC+TP53", "KLF4+SOX2"}
        assert set(data.obs["cell_type"]) == {"K562"}
    dose = np.where(condition.str.count(r"\+") == 1, "1+1", "1")
    joined = data.obs["cell_type"].astype(str) + "_" + condition + "_" + dose
    assert (data.obs["condition_name"].astype(str) == joined).all()
    assert (data.obs["control"] == np.where(dose == "1", 1, 0)).all()


def test_gears_rankings_are_welch_tests(standard, tmp_path):
    _, _, path = standard("norman2019_gears")
    out = tmp_path / "gears.h5ad"
    export(path, "gears", out=out, block_bytes=1500)
    data = ad.read_h5ad(out)
    x = data.X.toarray().astype(float)
    names = data.obs["condition_name"].astype(str)
    control = x[data.obs["condition"] == "ctrl"]
    ranked = data.uns["rank_genes_groups_cov_all"]
    assert set(ranked) == set(names[data.obs["condition"] != "ctrl"])
    for name, genes in ranked.items():
        mine = x[names == name]
        t = np.nan_to_num(ttest_ind(mine, control, equal_var=False).statistic)
        sizes = np.abs(pd.Series(t, index=data.var_names))[genes].to_numpy()
        assert sorted(genes) == sorted(data.var_names) and (np.diff(sizes) <= 1e-9).all()
        nonzero = mine.mean(axis=0) != 0
        kept = nonzero | (control.mean(axis=0) == 0)
        np.testing.assert_array_equal(data.uns["non_zeros_gene_idx"][name], np.flatnonzero(nonzero))
        np.testing.assert_array_equal(data.uns["non_dropout_gene_idx"][name], np.flatnonzero(kept))
        top = [g for g in genes if kept[data.var_names.get_loc(g)]][:20]
        assert list(data.uns["top_non_dropout_de_20"][name]) == top
    export(path, "gears", out=tmp_path / "plain.h5ad", rankings=False)
    assert "rank_genes_groups_cov_all" not in ad.read_h5ad(tmp_path / "plain.h5ad").uns


def test_block_size_changes_no_byte(standard, tmp_path):
    _, _, path = standard("norman2019_scperturb")
    for n, layout in enumerate(["gears", "celleval"]):
        one, two = tmp_path / f"{n}a.h5ad", tmp_path / f"{n}b.h5ad"
        export(path, layout, out=one)
        export(path, layout, out=two, block_bytes=1)
        assert one.read_bytes() == two.read_bytes()


def test_other_layouts_write_their_labels(standard, tmp_path):
    _, _, path = standard("replogle2022_k562_essential")
    expected = {
        "scperturb": ("perturbation", {"control", "MYC", "TP53", "SOX2"}),
        "celleval": ("target_gene", {"non-targeting", "MYC", "TP53", "SOX2"}),
        "vcc2025": ("target_gene", {"non-targeting", "MYC", "TP53", "SOX2"}),
        "vcc2026": ("target_gene", {"MYC", "TP53", "SOX2"}),
    }
    source = ad.read_h5ad(path)
    for layout, (column, labels) in expected.items():
        done = export(path, layout, out=tmp_path / f"{layout}.h5ad")
        data = ad.read_h5ad(tmp_path / f"{layout}.h5ad")
        assert set(data.obs[column]) == labels, layout
        assert (data.obs_names == source.obs_names[source.obs_names.isin(data.obs_names)]).all()
        if load_layout(layout).matrix != "log1p":
            np.testing.assert_array_equal(data.X.toarray(), source[data.obs_names].X.toarray())
        assert done.n_dropped == (int(source.obs["is_control"].sum()) if layout == "vcc2026" else 0)


def test_refusals_are_coded_and_leave_nothing(standard, tmp_path):
    _, _, path = standard("norman2019_scperturb")
    out = tmp_path / "out.h5ad"
    assert codes(path, "vcc2025", out) == ["E646"]

    def scale_away(data):
        del data.uns["vcbench"]["matrix"]["target_sum"]

    assert "E628" in codes(edited(path, tmp_path / "a.h5ad", scale_away), "gears", out)
    _, _, controls = standard("vcc2026_controls")
    assert codes(controls, "vcc2026", out) == ["E649"]
    _, _, log = standard("norman2019_scfoundation")
    assert set(codes(log, "vcc2025", out)) == {"E646", "E647"}

    def fraction(data):
        data.X.data[0] = 0.5

    assert "E616" in codes(edited(path, tmp_path / "b.h5ad", fraction), "gears", out)
    with pytest.raises(OutputError):
        export(path, "gears", out=path, force=True)
    with pytest.raises(UnknownName):
        export(path, "gear", out=out)


def test_mean_profiles_are_refused(standard, tmp_path):
    _, _, path = standard("norman2019_scperturb")

    def means(data):
        data.uns["vcbench"]["rows"] = "mean"

    with pytest.raises((UsageError, InvalidFile)):
        export(edited(path, tmp_path / "m.h5ad", means), "gears", out=tmp_path / "o.h5ad")


def test_the_command_exports(standard, tmp_path, capsys):
    _, _, path = standard("norman2019_gears")
    out = tmp_path / "o.h5ad"
    cli.main(["data", "export", str(path), "--to", "gears", "-o", str(out)], standalone_mode=False)
    assert out.exists() and "restored" in capsys.readouterr().out
