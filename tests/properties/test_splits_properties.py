"""Splits partition the labels, keep control in train and depend on the labels and the seed alone."""

from hypothesis import given, settings
from hypothesis import strategies as st
from vcbench.data_specs.labels import join_targets
from vcbench.data_specs.splits import draw_split
from vcbench.data_specs.splits.gears import simulation_sets
from vcbench.data_specs.splits.labels_table import LabelTable
from vcbench.data_specs.splits.subgroups import subgroup, train_targets

GENES = [f"G{i}" for i in range(12)]
PAIRS = [join_targets((a, b)) for i, a in enumerate(GENES) for b in GENES[:i]]
quick = settings(max_examples=40, deadline=None)


@st.composite
def label_keys(draw):
    singles = draw(st.lists(st.sampled_from(GENES), min_size=4, max_size=12, unique=True))
    doubles = draw(st.lists(st.sampled_from(PAIRS), max_size=15, unique=True))
    contexts = draw(st.sampled_from([["K562"], ["K562", "RPE1"]]))
    keys = [(c, "control") for c in contexts]
    keys += [(c, p) for c in contexts for p in (*singles, *doubles)]
    return draw(st.permutations(keys))


@quick
@given(
    keys=label_keys(),
    seed=st.integers(0, 1000),
    scheme=st.sampled_from(["gears-simulation", "folds", "random", "gears-combo-seen1", "gears-no-test"]),
)
def test_splits_partition_the_keys(keys, seed, scheme):
    options = {"folds": 3} if scheme == "folds" else {}
    split = draw_split(LabelTable.from_keys(keys), scheme, seed=seed, **options)
    excluded = {tuple(key) for key in split.record["excluded"]}
    assert set(split.rows) | excluded == set(keys) and not set(split.rows) & excluded
    parts = [split.keys(part) for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(split.rows)
    assert all(split.rows[key] == ("train", "") for key in keys if key[1] == "control")
    if scheme != "gears-combo-seen1":
        assert not excluded


@quick
@given(
    keys=label_keys(),
    seed=st.integers(0, 1000),
    scheme=st.sampled_from(["gears-simulation", "folds", "random"]),
)
def test_label_order_does_not_matter(keys, seed, scheme):
    options = {"folds": 3} if scheme == "folds" else {}
    left = draw_split(LabelTable.from_keys(keys), scheme, seed=seed, **options)
    right = draw_split(LabelTable.from_keys(sorted(keys, reverse=True)), scheme, seed=seed, **options)
    assert dict(left.rows) == dict(right.rows) and left.record == right.record


@quick
@given(keys=label_keys(), seed=st.integers(0, 1000))
def test_folds_cover_every_perturbation_once(keys, seed):
    table = LabelTable.from_keys(keys)
    tested = [
        name
        for fold in range(3)
        for name in {p for _, p in draw_split(table, "folds", seed=seed, folds=3, fold=fold).keys("test")}
    ]
    assert sorted(tested) == list(table.perturbations)


@quick
@given(keys=label_keys(), seed=st.integers(0, 1000))
def test_subgroups_follow_the_training_targets(keys, seed):
    split = draw_split(LabelTable.from_keys(keys), "random", seed=seed)
    train = split.keys("train")
    for key, (part, group) in split.rows.items():
        assert group == ("" if part == "train" else subgroup(key[1], train_targets(train)))


@quick
@given(keys=label_keys(), seed=st.integers(0, 1000))
def test_simulation_passes_are_partitions_with_the_right_sizes(keys, seed):
    conditions = sorted({p if "+" in p else f"{p}+ctrl" for _, p in keys if p != "control"})
    sets = simulation_sets(conditions, seed=seed)
    assert sorted([*sets.train, *sets.validation, *sets.test]) == conditions
    genes = {g for c in conditions for g in c.split("+")} - {"ctrl"}
    trained = {g for c in (*sets.train, *sets.validation) for g in c.split("+")} - {"ctrl"}
    assert len(trained) <= int(0.75 * len(genes))
    assert not trained & {c.removesuffix("+ctrl") for c in sets.test_subgroups["unseen_single"]}
