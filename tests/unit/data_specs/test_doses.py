"""Chemical labels: compound, dose, unit and time in columns, or tuples in the label; the checker agrees."""

import anndata as ad
import h5py
import numpy as np
import pytest
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.errors import InvalidFile, SpecError
from vcbench.data_specs.labels import LabelRecipe, dose_tuples, parse_dose, part_with_dose, targets_of
from vcbench.data_specs.schema_check import check_standard
from vcbench.data_specs.spec_models import DatasetSpec
from vcbench.data_specs.specs import parse_spec

TABLE = {
    "spec_version": 1,
    "id": "drugs",
    "family": "drugs",
    "title": "t",
    "citation": {"text": "c", "year": 2020},
    "license": "MIT",
    "organism": "Homo sapiens",
    "modality": "drug",
    "matrix": {"kind": "counts"},
    "contexts": {"value": "A549"},
}
COMPOUND = {"column": "drug", "control": ["Vehicle"]}
COLUMNS = {**COMPOUND, "dose": {"column": "dose_value", "unit_column": "dose_unit", "time_column": "time"}}


def spec(labels, **changes):
    return parse_spec(DatasetSpec, {**TABLE, "labels": labels, **changes}, origin="test")


def screen(path, **obs):
    n = len(obs["drug"])
    data = ad.AnnData(np.random.default_rng(0).poisson(3.0, (n, 6)).astype(np.float32) + 1)
    for name, values in obs.items():
        data.obs[name] = values
    data.write_h5ad(path)
    return path


DRUGS = ["Vehicle", "Vehicle", "(+)-JQ1", "(+)-JQ1", "A@B", "(+)-JQ1"]
DOSES = [0.0, 0.0, 10.0, 1000.0, 0.1, 10.0]
UNITS = ["nM", "nM", "nM", "nM", "µM", "nM"]


def test_labels_carry_dose_and_time_where_it_varies(tmp_path):
    src = screen(
        tmp_path / "a.h5ad", drug=DRUGS, dose_value=DOSES, dose_unit=UNITS, time=[24, 72, 24, 24, 24, 72]
    )
    done = convert(src, spec(COLUMNS), out=tmp_path / "out.h5ad")
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    jq1 = r"(\+)-JQ1"
    assert list(obs["perturbation"]) == [
        "control",
        "control",
        f"{jq1}@10nM@24h",
        f"{jq1}@1000nM@24h",
        r"A\@B@0.1uM@24h",
        f"{jq1}@10nM@72h",
    ]
    np.testing.assert_array_equal(obs["dose"], [np.nan, np.nan, 10, 1000, 0.1, 10])
    assert list(obs["dose_unit"].astype(object).where(obs["dose_unit"].notna(), None)) == [
        None,
        None,
        "nM",
        "nM",
        "uM",
        "nM",
    ]
    assert list(obs["time_h"]) == [24, 72, 24, 24, 24, 72] and list(obs["label_source"]) == DRUGS
    assert done.label_map["(+)-JQ1@10nM@72h"] == f"{jq1}@10nM@72h" and done.label_map["Vehicle"] == "control"
    assert {issue.code for issue in check_standard(tmp_path / "out.h5ad")} <= {"W616"}


def test_one_time_stays_out_of_the_label_and_text_doses_are_read(tmp_path):
    doses = [str(d) for d in DOSES]
    src = screen(tmp_path / "a.h5ad", drug=DRUGS, dose_value=doses, dose_unit=UNITS, time=[24] * 6)
    convert(src, spec(COLUMNS), out=tmp_path / "out.h5ad")
    names = list(ad.read_h5ad(tmp_path / "out.h5ad").obs["perturbation"])
    assert names[2] == r"(\+)-JQ1@10nM" and names[4] == r"A\@B@0.1uM"


def test_single_precision_doses_keep_their_digits(tmp_path):
    doses = np.array(DOSES, dtype=np.float32)
    src = screen(tmp_path / "a.h5ad", drug=DRUGS, dose_value=doses)
    rules = {**COMPOUND, "dose": {"column": "dose_value", "unit": "uM"}}
    convert(src, spec(rules), out=tmp_path / "out.h5ad")
    assert ad.read_h5ad(tmp_path / "out.h5ad").obs["perturbation"].iloc[4] == r"A\@B@0.1uM"


@pytest.mark.parametrize("dose", [np.nan, 0.0, -1.0])
def test_a_compound_without_a_dose_is_refused(tmp_path, dose):
    src = screen(
        tmp_path / "a.h5ad", drug=DRUGS, dose_value=[*DOSES[:5], dose], dose_unit=UNITS, time=[24] * 6
    )
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(COLUMNS), out=tmp_path / "out.h5ad")
    (issue,) = caught.value.issues
    assert (
        issue.code == "E639" and issue.where == "a.h5ad:/obs/dose_value" and issue.found.startswith("1 cells")
    )


def test_a_missing_dose_column_is_named(tmp_path):
    src = screen(tmp_path / "a.h5ad", drug=DRUGS, dose_value=DOSES)
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(COLUMNS), out=tmp_path / "out.h5ad")
    assert [issue.expected for issue in caught.value.issues] == ["dose_unit", "time"]


TUPLES = {"column": "drug", "control": ["DMSO_TF"], "form": "tuples"}


def test_tuples_are_parsed(tmp_path):
    drugs = [
        "[('DMSO_TF', 0.0, 'uM')]",
        "[('Trametinib', 0.05, 'uM')]",
        "[('B', 5.0, 'uM'), ('A', 0.5, 'uM')]",
    ]
    src = screen(tmp_path / "a.h5ad", drug=drugs * 2)
    convert(src, spec(TUPLES), out=tmp_path / "out.h5ad")
    obs = ad.read_h5ad(tmp_path / "out.h5ad").obs
    assert list(obs["perturbation"])[:3] == ["control", "Trametinib@0.05uM", "A@0.5uM+B@5uM"]
    np.testing.assert_array_equal(obs["dose"][:3], [np.nan, 0.05, np.nan])
    assert list(obs["n_targets"])[:3] == [0, 1, 2]
    assert check_standard(tmp_path / "out.h5ad") == []


def test_text_that_is_no_list_of_tuples_is_refused(tmp_path):
    src = screen(tmp_path / "a.h5ad", drug=["[('DMSO_TF', 0.0, 'uM')]", "Trametinib", "[('A', 'x', 'uM')]"])
    with pytest.raises(InvalidFile) as caught:
        convert(src, spec(TUPLES), out=tmp_path / "out.h5ad")
    (issue,) = caught.value.issues
    assert issue.code == "E640" and issue.found.startswith("2 ('Trametinib', ")


def test_dose_texts_read_back():
    for dose, unit, hours in ((0.1, "uM", None), (10000.0, "nM", 72.0), (1e-9, "M", 0.5)):
        assert parse_dose(part_with_dose("X", dose, unit, hours)) == ("X", dose, unit, hours)
    assert dose_tuples("[]") is None and dose_tuples("__import__('os')") is None


def test_aliases_apply_to_labels_that_are_not_split():
    recipe = LabelRecipe(control=("ctrl",), separator=None, fillers=(), aliases={"stim": "IFNB"})
    assert [recipe.canonical(x) for x in ("ctrl", "stim", "other")] == ["control", "IFNB", "other"]


def test_targets_within_guides():
    recipe = LabelRecipe(
        control=(),
        control_patterns=(r"p-INTERGENIC\d+",),
        separator="_",
        fillers=(),
        target_regex=r"p-sg(.+?)-\d+",
        filler_patterns=(r"pMJ\d+",),
    )
    found = [
        recipe.canonical(x) for x in ("p-sgELF1-2_p-sgE2F4-6", "p-sgELF1-2_p-sgELF1-4", "p-INTERGENIC12")
    ]
    assert found == ["E2F4+ELF1", "ELF1", "control"]
    assert recipe.canonical("p-sgELF1-2_p-INTERGENIC12_pMJ145") == "ELF1"


def test_an_escaped_plus_survives_a_second_conversion():
    recipe = LabelRecipe(control=("control",), separator="+", fillers=())
    assert recipe.canonical(r"(\+)-JQ1@10nM") == r"(\+)-JQ1@10nM"
    assert targets_of(recipe.canonical(r"B@1uM+(\+)-JQ1@10nM")) == ("(+)-JQ1", "B")


def test_the_checker_compares_label_dose_unit_and_time(tmp_path):
    src = screen(tmp_path / "a.h5ad", drug=DRUGS, dose_value=DOSES, dose_unit=UNITS, time=[24] * 6)
    convert(src, spec(COLUMNS), out=tmp_path / "out.h5ad")
    with h5py.File(tmp_path / "out.h5ad", "r+") as file:
        file["obs/dose"][3] = 10.0
    assert [i.code for i in check_standard(tmp_path / "out.h5ad") if i.severity == "error"] == ["E634"]


def test_a_unit_comes_from_one_place():
    with pytest.raises(SpecError, match="exactly one of"):
        spec({**COMPOUND, "dose": {"column": "d", "unit": "nM", "unit_column": "u"}})
