"""Ways to break a standard file or a dataset spec, and to ask for the issue that this gives."""

import h5py
import numpy as np
import pytest
from builders import GENES, standard_h5ad
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.gmt import read_gmt
from vcbench.data_specs.schema_check import check_standard
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
    "contexts": {"column": "context"},
    "labels": {"column": "perturbation", "control": ["control"], "separator": "+"},
}

DUPLICATE_GENES = (*GENES[:-1], GENES[0])
OBS = "f.h5ad:/obs/"
CONVERT = "vcbench data convert {file} --spec my_dataset.toml -o fixed.h5ad"
INSPECT = "vcbench inspect {file}"
SPLIT = "vcbench data split DATA.h5ad --scheme gears-simulation --drop-uncovered GENESETS.gmt -o split.csv"
SHOW = "vcbench data show mine"
# name: (code, make the issue, where, part of found, part of expected, fix)


def spec(**changes):
    return parse_spec(DatasetSpec, {**TABLE, **changes}, origin="test")


def checked(path, code):
    issues = [issue for issue in check_standard(path) if issue.code == code]
    assert len(issues) == 1, [issue.render() for issue in check_standard(path)]
    return issues[0]


def refused(path, code, **changes):
    before, out = path.read_bytes(), path.parent / "out.h5ad"
    with pytest.raises(InvalidFile) as caught:
        convert(path, spec(**changes), out=out)
    assert not out.exists() and path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if "part" in p.name] == []
    issues = [issue for issue in caught.value.issues if issue.code == code]
    assert len(issues) == 1, [issue.render() for issue in caught.value.issues]
    return issues[0]


def noted(path, code, **changes):
    done = convert(path, spec(**changes), out=path.parent / "out.h5ad")
    return next(issue for issue in done.issues if issue.code == code)


def edited(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def set_value(position, value):
    def edit(file):
        file["X/data"][position] = value

    return edit


def relabel(column, row, name):
    """Give one row a new category."""

    def edit(file):
        node = file[f"obs/{column}"]
        names = [n.decode() for n in node["categories"][()]]
        codes = node["codes"][()]
        codes[row] = len(names)
        attrs = dict(node["categories"].attrs)
        del node["categories"]
        node.create_dataset("categories", data=[*names, name], dtype=h5py.string_dtype())
        node["categories"].attrs.update(attrs)
        node["codes"][...] = codes

    return edit


def unlabel(column, row):
    def edit(file):
        file[f"obs/{column}/codes"][row] = -1

    return edit


def drop(name):
    def edit(file):
        del file[name]

    return edit


def put(name, value):
    def edit(file):
        attrs = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, data=value)
        file[name].attrs.update(attrs)

    return edit


def good(tmp_path, **options):
    return standard_h5ad(tmp_path / "f.h5ad", **options)


def repeated_cell(file):
    file["obs/_index"][3] = file["obs/_index"][2]


def extra_category(file):
    node = file["obs/perturbation"]
    names = [n.decode() for n in node["categories"][()]]
    attrs = dict(node["categories"].attrs)
    del node["categories"]
    node.create_dataset("categories", data=[*names, "GONE"], dtype=h5py.string_dtype())
    node["categories"].attrs.update(attrs)


def stored_zero(file):
    # Two entries of one row become one value and one zero: sums stay as they were.
    data = file["X/data"]
    data[0], data[1] = data[0] + data[1], 0


def no_controls(tmp_path):
    return good(tmp_path, controls=0)


def means(tmp_path):
    path = good(tmp_path, controls=0, cells=1, perturbations=("G000", "G001"), kind="log1p")
    edited(path, put("uns/vcbench/rows", "mean"))
    return edited(path, lambda file: file["obs/perturbation/codes"].__setitem__(1, 0))


def fractions(tmp_path):
    path = good(tmp_path)
    return edited(path, set_value(7, 1.5))


def empty_cell(tmp_path, rows):
    x = np.random.default_rng(0).poisson(3.0, (68, len(GENES))).astype(np.float32) + 1
    x[rows] = 0
    return good(tmp_path, x=x)


def gmt(tmp_path, content):
    path = tmp_path / "sets.gmt"
    path.write_bytes(content)
    with pytest.raises(InvalidFile) as caught:
        read_gmt(path)
    assert len(caught.value.issues) == 1
    return caught.value.issues[0]
