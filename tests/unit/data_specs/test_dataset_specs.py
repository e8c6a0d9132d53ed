"""Dataset specs: every shipped one loads, and a broken one is refused with all its problems."""

import pytest
from vcbench.data_specs import dataset_ids, load_dataset
from vcbench.data_specs.cards import dataset_card
from vcbench.data_specs.conversion import recipe_of
from vcbench.data_specs.errors import SpecError, UnknownName

BROKEN = """
spec_version = 1
id = "mine"
family = "mine"
title = "t"
license = "MIT"
organism = "Homo sapiens"
modality = "CRISPRx"
colour = "blue"
citation = { text = "c" }
matrix = { kind = "counts" }
contexts = { column = "line", value = "K562" }
labels = { column = "p", control = ["c"], seperator = "_" }
"""


@pytest.mark.parametrize("name", dataset_ids())
def test_shipped_specs_load_and_have_a_card(name):
    spec = load_dataset(name)
    card = dataset_card(spec)
    assert spec.id == name and spec.citation.text in card and spec.license in card
    assert all(trap.text in card for trap in spec.traps)
    if spec.derived_from:
        assert spec.derived_from in dataset_ids()


def test_a_broken_spec_lists_every_problem(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(BROKEN)
    with pytest.raises(SpecError) as caught:
        load_dataset(str(path))
    text = str(caught.value)
    for key in ("colour", "modality", "citation.year", "contexts", "labels.seperator"):
        assert f"  {key}:" in text
    assert "5 problem(s)" in text


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(UnknownName, match="norman2019_subset"):
        load_dataset("norman2019_subste")


@pytest.mark.parametrize(
    ("name", "published", "canonical"),
    [
        ("norman2019_scperturb", "CEBPA_JUN", "CEBPA+JUN"),
        ("norman2019_gears", "ctrl+KLF1", "KLF1"),
        ("norman2019_gears", "KLF1+ctrl", "KLF1"),
        ("norman2019_gears", "ctrl", "control"),
        ("norman2019_subset", "SET+KLF1", "KLF1+SET"),
        ("vcc2025_h1_train", "non-targeting", "control"),
        ("vcc2026_controls", "non-targeting", "control"),
        ("vcc2025_h1_train", "HLA-A", "HLA-A"),
    ],
)
def test_published_labels_become_canonical(name, published, canonical):
    recipe = recipe_of(load_dataset(name))
    assert recipe.canonical(published) == canonical and not recipe.reserved(published)
