"""GEARS splits: every golden list exactly, and the same draws through a file of published labels."""

import json

import numpy as np
import pytest
from builders import standard_h5ad
from gears_arrays import GOLDEN, needs_golden
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.labels import LabelRecipe
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.gears import KINDS, condition_of, kind_sets, simulation_sets
from vcbench.data_specs.splits.labels_table import LabelTable, read_labels

UPSTREAM = {"validation": "val", "train": "train", "test": "test", None: "none"}
RECIPE = LabelRecipe(control=("ctrl",), separator="+", fillers=("ctrl",))
NAMES = [f"Q{i:02d}" for i in range(12)]
CONDITIONS = [
    *(f"{name}+ctrl" if i % 2 else f"ctrl+{name}" for i, name in enumerate(NAMES)),
    *(f"{a}+{b}" for i, a in enumerate(NAMES) for b in NAMES[i + 1 :: 3]),
]


def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files if name.startswith("splits/")}


def table_of(order):
    return LabelTable(tuple(("K562", RECIPE.canonical(c), c) for c in order))


@needs_golden
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["simulation", *KINDS])
def test_golden_lists(kind, seed):
    arrays = golden()
    order = arrays["splits/order"]
    pool = [c for c in order if c != "ctrl"]
    sets = simulation_sets(pool, seed=seed) if kind == "simulation" else kind_sets(pool, kind, seed=seed)
    found = ["train" if c == "ctrl" else UPSTREAM[sets.part_of(c)] for c in order]
    assert found == arrays[f"splits/{kind}/seed{seed}"]


@needs_golden
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_golden_subgroups_of_both_passes(seed):
    arrays = golden()
    order = arrays["splits/order"]
    sets = simulation_sets([c for c in order if c != "ctrl"], seed=seed)
    group_of = dict.fromkeys(order, "-")
    for part, groups in (("test", sets.test_subgroups), ("val", sets.validation_subgroups)):
        for group, members in groups.items():
            group_of |= dict.fromkeys(members, f"{part}:{group}")
    assert [group_of[c] for c in order] == arrays[f"splits/simulation/subgroup_seed{seed}"]


@needs_golden
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", ["simulation", *KINDS])
def test_golden_lists_through_canonical_labels(kind, seed):
    arrays = golden()
    order = arrays["splits/order"]
    split = draw_split(table_of(order), "gears-" + kind.replace("_", "-"), seed=seed)
    for condition, part in zip(order, arrays[f"splits/{kind}/seed{seed}"], strict=True):
        row = split.rows.get(("K562", RECIPE.canonical(condition)))
        assert UPSTREAM[row[0] if row else None] == part
    if kind == "simulation":
        for condition, group in zip(order, arrays[f"splits/simulation/subgroup_seed{seed}"], strict=True):
            part, own = split.rows["K562", RECIPE.canonical(condition)]
            assert own == ("" if part == "train" else group.split(":")[1])


def test_labels_are_read_in_order_of_first_appearance(tmp_path):
    labels = ["control", "B", "A+B", "A", "B"]
    source = ["ctrl", "B+ctrl", "B+A", "ctrl+A", "ctrl+B"]
    path = standard_h5ad(
        tmp_path / "a.h5ad",
        perturbations=labels[1:],
        cells=1,
        controls=1,
        obs={"label_source": source},
    )
    table = read_labels(path)
    assert table.rows == tuple(("K562", name, text) for name, text in zip(labels, source, strict=True))
    assert table.perturbations == ("A", "A+B", "B")


@pytest.mark.parametrize(
    ("perturbation", "source", "condition"),
    [
        ("control", "non-targeting", "ctrl"),
        ("A", "A", "A+ctrl"),
        ("A", "ctrl+A", "ctrl+A"),
        ("A", "A_p12", "A+ctrl"),
        ("A+B", "B+A", "B+A"),
        ("A+B", "B_A", "B+A"),
    ],
)
def test_condition_strings_from_published_labels(perturbation, source, condition):
    assert condition_of(perturbation, source) == condition


def test_plain_singles_are_completed_and_the_record_says_so():
    plain = LabelTable((("K562", "A", "A"), ("K562", "B", "B"), ("K562", "C", "C+ctrl"), ("K562", "D", "D")))
    record = draw_split(plain, "gears-simulation", seed=1).record
    assert record["completed"].startswith("3 published labels")
    assert record["drawn_on"] == "4 published condition strings"
    assert "completed" not in draw_split(table_of(CONDITIONS), "gears-simulation", seed=1).record


def test_simulation_does_not_depend_on_the_order_but_other_kinds_do():
    forward, backward = simulation_sets(CONDITIONS, seed=4), simulation_sets(CONDITIONS[::-1], seed=4)
    assert set(forward.test) == set(backward.test) and set(forward.validation) == set(backward.validation)
    draws = [kind_sets(pool, "no_test", seed=4) for pool in (CONDITIONS, CONDITIONS[::-1])]
    assert set(draws[0].validation) != set(draws[1].validation)
    native = [kind_sets(pool, "no_test", seed=4, compat=False) for pool in (CONDITIONS, CONDITIONS[::-1])]
    assert native[0] == native[1]


def test_both_published_orders_of_a_single_stay_together_test_first():
    rows = [*((("K562", RECIPE.canonical(c), c)) for c in CONDITIONS), ("K562", "Q00", "Q00+ctrl")]
    for seed in range(6):
        split = draw_split(LabelTable(tuple(rows)), "gears-combo-seen2", seed=seed)
        conditions = [c for c in CONDITIONS if c != "ctrl"] + ["Q00+ctrl"]
        sets = kind_sets(conditions, "combo_seen2", seed=seed)
        assert {name for _, name in split.keys("test")} == {RECIPE.canonical(c) for c in sets.test}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_native_draws_have_no_empty_part(kind, seed):
    sets = kind_sets(CONDITIONS, kind, seed=seed, compat=False)
    assert sets.train and sets.validation and (sets.test or kind == "no_test")
    assert not set(sets.train) & (set(sets.validation) | set(sets.test))
    if kind == "combo_seen2":
        assert len(sets.test) == len([c for c in CONDITIONS if "ctrl" not in c]) // 10


def test_native_draws_say_what_is_missing():
    with pytest.raises(UsageError, match="no condition is left that could be held out"):
        kind_sets([f"{name}+ctrl" for name in NAMES], "combo_seen2", seed=1, compat=False)


def test_uncovered_targets_are_dropped_like_upstream_does(tmp_path):
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("T1\td\t" + "\t".join(name for name in NAMES if name != "Q03") + "\n")
    split = draw_split(table_of([*CONDITIONS, "ctrl"]), "gears-simulation", seed=2, drop_uncovered=gmt)
    gone = [c for c in CONDITIONS if "Q03" in c]
    expected = simulation_sets([c for c in CONDITIONS if c not in gone], seed=2)
    assert {name for _, name in split.keys("test")} == {RECIPE.canonical(c) for c in expected.test}
    assert split.record["drop_uncovered"]["dropped"] == sorted(gone)
    assert split.record["drop_uncovered"]["targets"] == ["Q03"]
    assert split.record["excluded"] == [["K562", name] for name in sorted(RECIPE.canonical(c) for c in gone)]


def test_three_targets_are_refused():
    with pytest.raises(UsageError, match=r"A\+B\+C"):
        draw_split(LabelTable((("K562", "A+B+C", "A+B+C"),)), "gears-simulation", seed=1)


def test_the_record_is_complete():
    table = table_of([*CONDITIONS, "ctrl"])
    record = draw_split(table, "gears-simulation", seed=3, gene_fraction=0.5).record
    assert record["seed"] == 3 and record["scheme"] == "gears-simulation"
    assert record["parameters"] == {"gene_fraction": 0.5, "combo_fraction": 0.75}
    assert record["numpy"] == np.__version__ and record["vcbench"]
    assert record["labels_sha256"] == table.sha256
    assert sum(record["n"].values()) == len(CONDITIONS)
    assert json.loads(json.dumps(record)) == record
