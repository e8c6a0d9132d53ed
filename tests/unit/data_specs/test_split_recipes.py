"""Published splits by name: what is stored, how labels and sizes are compared, and what a user is told."""

import json
import os
from pathlib import Path

import pytest
from builders import standard_h5ad
from click.testing import CliRunner
from vcbench.data_specs.cli import data
from vcbench.data_specs.errors import InvalidFile, SpecError, UnknownName, UsageError
from vcbench.data_specs.issues import issue_kind
from vcbench.data_specs.labels import LabelRecipe
from vcbench.data_specs.split_file import labels_sha256, read_split
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.labels_table import LabelTable
from vcbench.data_specs.splits.recipes import draw_recipe, load_recipe, recipe_ids

GEARS = LabelRecipe(control=("ctrl",), separator="+", fillers=("ctrl",))
NAMES = [f"Q{i:02d}" for i in range(16)]
SINGLES = [f"{name}+ctrl" for name in NAMES] + [f"ctrl+{name}" for name in NAMES[::3]]
DOUBLES = [f"{b}+{a}" for i, a in enumerate(NAMES) for b in NAMES[i + 1 :: 4]]
CONDITIONS = SINGLES + DOUBLES
DROPPED = "Q07"
DRAWN = [c for c in CONDITIONS if DROPPED not in c]
# The published condition strings of GEARS' copy of Norman 2019, one a line: a fact of that file, not kept here.
NORMAN = os.environ.get("VCBENCH_NORMAN_CONDITIONS")


def table_of(conditions, dataset="toy2020"):
    rows = (("K562", "control", "ctrl"), *(("K562", GEARS.canonical(c), c) for c in conditions))
    return LabelTable(rows, dataset)


def recipe_toml(path, **changes):
    sizes = draw_split(table_of(DRAWN), "gears-simulation", seed=1).record["conditions"]
    facts = {
        "n": len(DRAWN),
        "sha256": labels_sha256(DRAWN),
        "test": sizes["n"]["test"],
        "groups": sizes["subgroups"]["test"],
        "draw": "published",
        **changes,
    }
    groups = ", ".join(f"{name} = {n}" for name, n in facts["groups"].items())
    sha = f'sha256 = "{facts["sha256"]}"' if facts["sha256"] else ""
    path.write_text(f"""
title = "toy"
source = "nowhere"
scheme = "gears-simulation"
draw = "{facts["draw"]}"
datasets = ["toy2020"]
seeds = [1, 2]
options = {{ drop_targets = ["{DROPPED}"] }}
[labels]
n = {facts["n"]}
{sha}
perturbations_sha256 = "{labels_sha256(GEARS.canonical(c) for c in DRAWN)}"
[[expected]]
seed = 1
test = {facts["test"]}
test_subgroups = {{ {groups} }}
""")
    return load_recipe(str(path))


@pytest.mark.parametrize("name", recipe_ids())
def test_shipped_recipes_are_consistent(name):
    recipe = load_recipe(name)
    assert recipe.title and recipe.source and recipe.id == name
    for sizes in recipe.expected:
        parts = [sizes.train, sizes.validation, sizes.test]
        if recipe.labels and None not in parts:
            assert sum(parts) == recipe.labels.n
        if sizes.test is not None and sizes.test_subgroups:
            assert sum(sizes.test_subgroups.values()) == sizes.test


def test_the_same_labels_give_the_published_split(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml")
    # The file still has the conditions that the published draw leaves out.
    done = draw_recipe(table_of(CONDITIONS), recipe)
    assert done.labels == "same" and not done.issues
    assert done.splits.rows == draw_split(table_of(DRAWN), "gears-simulation", seed=1).rows
    assert done.splits.record["recipe"] == {
        "recipe": "toy",
        "draw": "published",
        "labels": "same",
        "issues": [],
    }
    assert done.splits.record["drop_targets"]["targets"] == [DROPPED]
    assert ["K562", DROPPED] in done.splits.record["excluded"]
    assert draw_recipe(table_of(CONDITIONS[::-1]), recipe).splits.rows == done.splits.rows


def test_the_same_labels_with_other_sizes_are_an_error(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml", test=1, groups={"combo_seen0": 1})
    with pytest.raises(InvalidFile) as caught:
        draw_recipe(table_of(CONDITIONS), recipe)
    (issue,) = caught.value.issues
    assert issue.code == "E605" and issue.expected == "1 test, 1 combo_seen0"
    # Seed 2 has no published sizes.
    assert draw_recipe(table_of(CONDITIONS), recipe, seed=2).issues == ()


def test_sizes_of_a_recipe_without_a_hash_only_warn(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml", sha256=None, test=1)
    done = draw_recipe(table_of(CONDITIONS), recipe)
    assert done.labels == "unknown"
    assert [(issue.code, issue.severity) for issue in done.issues] == [("E605", "warning")]


def test_other_labels_are_told(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml")
    done = draw_recipe(table_of(CONDITIONS[:-1]), recipe, source="dir/f.h5ad")
    assert done.labels == "different"
    (issue,) = done.issues
    assert issue.code == "W601" and f"{len(DRAWN) - 1} labels" in issue.found and "f.h5ad" in issue.where
    assert done.splits.record["recipe"]["issues"][0]["code"] == "W601"
    renamed = draw_recipe(table_of([c.replace("Q00", "X00") for c in CONDITIONS]), recipe)
    assert [issue.code for issue in renamed.issues] == ["W601"]


def test_the_same_perturbations_in_other_strings_are_told(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml")
    done = draw_recipe(table_of([GEARS.canonical(c) for c in CONDITIONS]), recipe)
    assert done.labels == "reordered" and [issue.code for issue in done.issues] == ["W602"]


def test_another_dataset_of_the_same_number_of_labels_is_told(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml", sha256=None)
    assert draw_recipe(table_of(CONDITIONS, "other2021"), recipe).labels == "different"


def test_recipes_refuse_other_seeds_and_fixed_options(tmp_path):
    recipe = recipe_toml(tmp_path / "toy.toml")
    with pytest.raises(UsageError, match="has the seeds 1, 2, not 3"):
        draw_recipe(table_of(CONDITIONS), recipe, seed=3)
    with pytest.raises(UsageError, match="fixes --gene-fraction"):
        draw_recipe(table_of(CONDITIONS), recipe, gene_fraction=0.5)
    with pytest.raises(UnknownName, match="gears-norman"):
        load_recipe("gears-normal")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (('scheme = "gears-simulation"', 'scheme = "coin"'), "no split scheme 'coin'"),
        (("drop_targets =", "coins ="), "no option 'coins'"),
        (("seeds = [1, 2]", "seeds = [2]"), "a seed that `seeds` does not list"),
        (('title = "toy"', 'title = "toy"\nopen = ["drop_targets"]'), "both fixed and open"),
    ],
)
def test_recipes_that_contradict_themselves(tmp_path, change, text):
    recipe_toml(tmp_path / "toy.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text((tmp_path / "toy.toml").read_text().replace(*change))
    with pytest.raises(SpecError, match=text):
        load_recipe(str(broken))


SINGLE_NAMES = [f"S{i:03d}" for i in range(81)]


def test_published_sizes_of_adamson_hold_for_any_labels_of_that_number():
    table = LabelTable.from_keys(
        [("K562", name) for name in ("control", *SINGLE_NAMES)], dataset_id="adamson2016_gears"
    )
    done = draw_recipe(table, load_recipe("gears-adamson"))
    assert done.labels == "unknown" and not done.issues
    assert done.splits.record["n"] == {"train": 54, "validation": 6, "test": 21}


@pytest.mark.parametrize(
    ("recipe", "n", "sizes"),
    [("gears-replogle-k562", 1087, (733, 82, 272)), ("gears-replogle-rpe1", 1534, (1035, 115, 384))],
)
def test_published_sizes_of_replogle(recipe, n, sizes):
    keys = [("X", "control"), *(("X", f"S{i:04d}") for i in range(n))]
    done = draw_recipe(LabelTable.from_keys(keys, dataset_id="replogle2022_gears"), load_recipe(recipe))
    assert tuple(done.splits.record["n"].values()) == sizes and not done.issues


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_half_of_the_doubles_train(seed):
    pairs = [f"{a}+{b}" for i, a in enumerate(SINGLE_NAMES[:20]) for b in SINGLE_NAMES[i + 1 : 20]][:124]
    singles = [f"S{i:03d}" for i in range(100)]
    table = LabelTable.from_keys(
        [("K562", p) for p in ("control", *singles, *pairs)], dataset_id="norman2019_x"
    )
    done = draw_recipe(table, load_recipe("ahlmann-eltze-doubles"), seed=seed)
    assert done.splits.record["n"] == {"train": 162, "validation": 31, "test": 31} and not done.issues
    assert {name for _, name in done.splits.keys("train")} >= set(singles)


@pytest.mark.skipif(
    not NORMAN, reason="set VCBENCH_NORMAN_CONDITIONS to a file of Norman's published conditions"
)
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_norman_splits_have_the_published_sizes(seed):
    conditions = [c for c in Path(NORMAN or "").read_text().split("\n") if c not in ("", "ctrl")]
    done = draw_recipe(table_of(conditions, "norman2019_gears"), load_recipe("gears-norman"), seed=seed)
    assert done.labels == "same" and not done.issues
    if seed == 1:
        assert done.splits.record["conditions"]["subgroups"]["test"] == {
            "combo_seen0": 9,
            "combo_seen1": 43,
            "combo_seen2": 19,
            "unseen_single": 36,
        }


def test_command_draws_a_recipe_and_tells_about_other_labels(tmp_path):
    file = standard_h5ad(tmp_path / "a.h5ad", perturbations=[f"G{i:03d}" for i in range(12)])
    out = tmp_path / "split.csv"
    command = ["split", str(file), "--recipe", "gears-norman", "-o", str(out), "--format", "json"]
    done = CliRunner().invoke(data, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["labels"] == "different" and [issue["code"] for issue in told["issues"]] == ["W601"]
    assert read_split(out).record["recipe"]["recipe"] == "gears-norman"
    for wrong in (["split", str(file), "-o", "x.csv"], [*command, "--scheme", "folds"]):
        assert isinstance(CliRunner().invoke(data, wrong).exception, UsageError)


@pytest.mark.parametrize("code", ["E605", "W601", "W602"])
def test_codes_are_explained(code):
    assert issue_kind(code).explanation
