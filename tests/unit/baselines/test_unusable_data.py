"""Damaged data are refused by train, predict and perfect; nothing is learned from them in silence."""

import anndata as ad
import numpy as np
import pytest
from builders import standard_h5ad
from vcbench.baselines.data import load_control_means, load_training_data
from vcbench.baselines.suite import write_perfect
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.split_file import Split

SPLIT = Split(
    {("K562", p): (part, "") for p, part in [("G000", "train"), ("G001", "train"), ("G002", "test")]}, {}
)


def damaged(tmp_path, label, value):
    path = standard_h5ad(tmp_path / "a.h5ad")
    data = ad.read_h5ad(path)
    row = int(np.flatnonzero(data.obs["perturbation"] == label)[0])
    data.X[row, 3] = value
    data.write_h5ad(path)
    return path


@pytest.mark.parametrize(("value", "code"), [(np.nan, "E614"), (-1.0, "E615"), (0.5, "E616")])
@pytest.mark.parametrize("label", ["control", "G001"])
def test_training_refuses_bad_values(tmp_path, label, value, code):
    with pytest.raises(InvalidFile) as caught:
        load_training_data(damaged(tmp_path, label, value), SPLIT)
    assert [issue.code for issue in caught.value.issues] == [code]


def test_training_reads_no_held_out_cell(tmp_path):
    load_training_data(damaged(tmp_path, "G002", np.nan), SPLIT)


def test_controls_and_perfect_refuse_bad_values(tmp_path):
    with pytest.raises(InvalidFile, match="E614"):
        load_control_means(damaged(tmp_path, "control", np.nan), target_sum=80.0)
    with pytest.raises(InvalidFile, match="E614"):
        write_perfect(damaged(tmp_path, "G002", np.nan), SPLIT, tmp_path / "perfect.h5ad")
    assert not (tmp_path / "perfect.h5ad").exists()


def test_repeated_genes_and_no_genes_are_refused(tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad")
    data = ad.read_h5ad(path)
    names = data.var_names.tolist()
    data.var_names = [names[1], *names[1:]]
    data.write_h5ad(path)
    with pytest.raises(InvalidFile, match="E611"):
        load_training_data(path, SPLIT)
    data[:, :0].copy().write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(InvalidFile, match="E629"):
        load_training_data(tmp_path / "none.h5ad", SPLIT)
