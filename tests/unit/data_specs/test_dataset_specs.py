"""Dataset specs: every shipped one loads, and a broken one is refused with all its problems."""

import pytest
from vcbench.data_specs import card_ids, dataset_ids, load_card, load_dataset
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


@pytest.mark.parametrize("name", card_ids())
def test_shipped_specs_load_and_have_a_card(name):
    spec = load_card(name)
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
        ("adamson2016_upr", "HSPA5_pDS123", "HSPA5"),
        ("adamson2016_upr", "62(mod)_pBA581", "control"),
        ("adamson2016_upr", "*", "unassigned"),
        ("adamson2016_epistasis", "ATF6_PERK_pMJ150", "ATF6+PERK"),
        ("dixit2016_scperturb_v1", "control", "unassigned"),
        ("dixit2016_scperturb_v1", "p-INTERGENIC393453", "control"),
        ("dixit2016_scperturb_v1", "p-sgELF1-2_p-sgE2F4-6", "E2F4+ELF1"),
        ("dixit2016_scperturb", "control", "control"),
        ("dixit2016_scperturb", "None", "unassigned"),
        ("kang2018_liana", "stim", "IFNB1"),
        ("tahoe100m", "[('DMSO_TF', 0.0, 'uM')]", "control"),
        ("replogle2022_rpe1", "non-targeting", "control"),
        ("vcc2025_h1_train", "non-targeting", "control"),
        ("vcc2026_controls", "non-targeting", "control"),
        ("vcc2025_h1_train", "HLA-A", "HLA-A"),
    ],
)
def test_published_labels_become_canonical(name, published, canonical):
    recipe = recipe_of(load_dataset(name))
    assert recipe.canonical(published) == canonical and not recipe.reserved(published)


FAMILY = """
spec_version = 1
title = "t"
license = "MIT"
organism = "Homo sapiens"
modality = "CRISPRi"
citation = { text = "c", year = 2020 }
contexts = { value = "K562" }
n_cells = { value = 5, verified = "docs" }
traps = [{ id = "one", text = "1" }]

[matrix]
kind = "counts"

[labels]
column = "gene"
control = ["NT"]

[variants.author]

[variants.copy]
traps = [{ id = "two", text = "2" }]
derived_from = "screen_author"
matrix = { kind = "log1p", target_sum = 1e4 }
labels = { control = ["ctrl"] }
"""


def test_variants_share_facts_and_a_base_is_extended(tmp_path):
    (tmp_path / "screen.toml").write_text(FAMILY)
    copy = load_dataset(f"{tmp_path}/screen.toml#copy")
    assert (copy.id, copy.family, copy.labels.column, copy.labels.control) == (
        "screen_copy",
        "screen",
        "gene",
        ("ctrl",),
    )
    assert [trap.id for trap in copy.traps] == ["one", "two"] and copy.matrix.target_sum == 1e4
    own = tmp_path / "own.toml"
    own.write_text(
        'base = "screen.toml#copy"\nunset = ["n_cells", "matrix.target_sum"]\n'
        'n_genes = { value = 3, verified = "file" }\n'
    )
    spec = load_dataset(str(own))
    assert (spec.id, spec.n_cells, spec.n_genes.value, spec.matrix.target_sum) == ("own", None, 3, None)
    with pytest.raises(SpecError, match="screen_author"):
        load_dataset(f"{tmp_path}/screen.toml")


def test_a_base_may_be_shipped_and_problems_of_a_base_are_named(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        'base = "norman2019_scperturb"\nid = "mine_small"\nn_cells = { value = 7, verified = "file" }\n'
    )
    spec = load_dataset(str(own))
    assert (spec.id, spec.family, spec.n_cells.value, spec.n_genes.value) == (
        "mine_small",
        "norman2019",
        7,
        33694,
    )
    loop = tmp_path / "loop.toml"
    loop.write_text('base = "loop.toml"\n')
    with pytest.raises(SpecError, match="extends itself"):
        load_dataset(str(loop))
    bad = tmp_path / "bad.toml"
    bad.write_text('base = "norman2019_scperturb"\nunset = ["colour"]\n')
    with pytest.raises(SpecError, match="'colour'"):
        load_dataset(str(bad))
    bad.write_text('base = "nothing"\n')
    with pytest.raises(UnknownName, match="nothing"):
        load_dataset(str(bad))


FAMILIES = {
    "adamson2016",
    "dixit2016",
    "jiang2025",
    "kang2018",
    "mcfaline2024",
    "nadig2025",
    "norman2019",
    "op3_neurips2023",
    "replogle2022",
    "sciplex3",
    "tahoe100m",
    "vcc2025_h1",
    "vcc2026",
}


def test_every_benchmark_dataset_has_a_card():
    assert {load_card(name).family for name in card_ids()} >= FAMILIES
    assert set(card_ids()) - set(dataset_ids()) == {
        "jiang2025",
        "mcfaline2024",
        "norman2019_geo",
        "op3_neurips2023_de",
    }
    with pytest.raises(SpecError, match="a card only"):
        load_dataset("jiang2025")


@pytest.mark.parametrize("name", dataset_ids())
def test_layouts_name_the_columns_they_read(name):
    spec = load_dataset(name)
    read = {spec.labels.column, spec.contexts.column, spec.depth_column, *spec.keep_obs} - {None}
    assert read <= set(spec.obs_columns)
    assert {spec.genes.symbol_column, spec.genes.gene_id_column} - {None} <= set(spec.var_columns)
    assert set(spec.fingerprint.values) <= set(spec.obs_columns)
