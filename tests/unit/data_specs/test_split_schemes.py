"""Folds, random fractions, leave one context or double out, subgroups, and where splits are written."""

import pytest
from vcbench.data_specs.errors import OutputError, UnknownName, UsageError
from vcbench.data_specs.split_file import labels_sha256, read_split
from vcbench.data_specs.splits import SCHEMES, draw_split
from vcbench.data_specs.splits.doubles import additive_doubles
from vcbench.data_specs.splits.labels_table import LabelTable
from vcbench.data_specs.splits.output import write_splits
from vcbench.data_specs.splits.subgroups import subgroup, train_targets

SINGLES = list("ABCDEFGH")
DOUBLES = ["A+B", "A+C", "D+E", "F+X", "Y+Z"]
KEYS = [(c, p) for c in ("K562", "RPE1") for p in ["control", *SINGLES, *DOUBLES]]
TABLE = LabelTable.from_keys(KEYS, dataset_id="toy")


def names(split, part):
    return {name for _, name in split.keys(part)}


def test_every_perturbation_is_tested_in_exactly_one_fold():
    tested = [names(draw_split(TABLE, "folds", seed=5, folds=4, fold=i), "test") for i in range(4)]
    assert sorted(name for part in tested for name in part) == sorted([*SINGLES, *DOUBLES])
    assert sorted(len(part) for part in tested) == [3, 3, 3, 4]


def test_folds_split_perturbations_alike_in_all_contexts():
    split = draw_split(TABLE, "folds", seed=1)
    for name in (*SINGLES, *DOUBLES):
        assert len({split.rows[context, name][0] for context in ("K562", "RPE1")}) == 1
    assert len(names(split, "validation")) == 1 and split.record["parameters"]["folds"] == 5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"folds": 1}, "2 to 13"),
        ({"folds": 99}, "2 to 13"),
        ({"fold": 5}, "0 to 4"),
        ({"fold": -1}, "0 to 4"),
    ],
)
def test_folds_refuse_what_does_not_exist(options, text):
    with pytest.raises(UsageError, match=text):
        draw_split(TABLE, "folds", **options)


def test_random_fractions():
    split = draw_split(TABLE, "random", seed=0, fractions=(0.5, 0.2, 0.3))
    assert [len(names(split, part) - {"control"}) for part in ("train", "validation", "test")] == [6, 3, 4]
    with pytest.raises(UsageError, match="sum to 1"):
        draw_split(TABLE, "random", fractions=(0.5, 0.2, 0.2))


def test_leave_one_context_out():
    split = draw_split(TABLE, "leave-one-context-out", context="RPE1")
    assert set(split.keys("test")) == {("RPE1", p) for p in (*SINGLES, *DOUBLES)}
    assert set(split.keys("train")) == {
        *(("K562", p) for p in ("control", *SINGLES, *DOUBLES)),
        ("RPE1", "control"),
    }
    assert split.subgroup(("RPE1", "A")) == "seen_single"
    assert split.subgroup(("RPE1", "A+B")) == "combo_seen2"
    every = draw_split(TABLE, "leave-one-context-out", validation_fraction=0.2)
    assert set(every) == {"K562", "RPE1"}
    assert {context for context, _ in every["K562"].keys("validation")} == {"RPE1"}
    with pytest.raises(UnknownName, match="RPE1"):
        draw_split(TABLE, "leave-one-context-out", context="RPE2")
    with pytest.raises(UsageError, match="needs two"):
        draw_split(LabelTable.from_keys(KEYS[:3]), "leave-one-context-out", context="K562")


def test_leave_one_double_out_takes_doubles_with_both_singles():
    assert additive_doubles(TABLE) == ["A+B", "A+C", "D+E"]
    splits = draw_split(TABLE, "leave-one-double-out")
    assert list(splits) == ["A+B", "A+C", "D+E"]
    for double, split in splits.items():
        assert set(split.keys("test")) == {("K562", double), ("RPE1", double)}
        assert split.subgroup(("K562", double)) == "combo_seen2" and not split.keys("validation")
        assert len(split.keys("train")) == len(KEYS) - 2
    with pytest.raises(UnknownName, match="double with both singles"):
        draw_split(TABLE, "leave-one-double-out", double="F+X")
    with pytest.raises(UsageError, match="no double"):
        draw_split(LabelTable.from_keys([("K562", "A"), ("K562", "A+B")]), "leave-one-double-out")


def test_a_single_measured_elsewhere_does_not_count():
    keys = [("K562", "A"), ("RPE1", "B"), ("K562", "A+B"), ("RPE1", "A+B")]
    assert additive_doubles(LabelTable.from_keys(keys)) == []


def test_validation_of_doubles_never_takes_a_single():
    split = draw_split(TABLE, "leave-one-double-out", double="A+B", validation_fraction=0.5)
    assert names(split, "validation") and all("+" in name for name in names(split, "validation"))


@pytest.mark.parametrize(
    ("perturbation", "expected"),
    [
        ("control", ""),
        ("A", "seen_single"),
        ("C", "seen_single"),
        ("Z", "unseen_single"),
        ("Y+Z", "combo_seen0"),
        ("A+Z", "combo_seen1"),
        ("A+C", "combo_seen2"),
        ("A+B+Z", "combo3_seen2"),
    ],
)
def test_subgroups_by_hand(perturbation, expected):
    train = [("K562", "control"), ("K562", "A"), ("RPE1", "B+C")]
    assert train_targets(train) == {"A", "B", "C"}
    assert subgroup(perturbation, train_targets(train)) == expected


def test_the_label_hash_is_of_sorted_canonical_labels():
    assert draw_split(TABLE, "folds").record["labels_sha256"] == labels_sha256(
        ["control", *reversed(SINGLES), *DOUBLES]
    )


def test_splits_are_written_and_read_back(tmp_path):
    split = draw_split(TABLE, "folds", seed=2)
    written = write_splits(split, tmp_path / "f.csv", source=tmp_path / "x.h5ad")
    assert written == [(tmp_path / "f.csv", split)]
    back = read_split(tmp_path / "f.csv")
    assert dict(back.rows) == dict(split.rows) and back.record == split.record
    with pytest.raises(OutputError, match="--force"):
        write_splits(split, tmp_path / "f.csv", source=tmp_path / "x.h5ad")
    with pytest.raises(OutputError, match="also an input"):
        write_splits(split, tmp_path / "f.csv", source=tmp_path / "f.csv", force=True)
    with pytest.raises(OutputError, match=r"\.csv"):
        write_splits(split, tmp_path / "f.json", source=tmp_path / "x.h5ad")


def test_several_splits_become_a_folder(tmp_path):
    keys = [("K562", p) for p in ("control", "A", "B.1", "A+B.1", "H/X", "A+H/X")]
    drawn = draw_split(LabelTable.from_keys(keys), "leave-one-double-out")
    written = write_splits(drawn, tmp_path / "out", source=tmp_path / "x.h5ad")
    assert [path.name for path, _ in written] == ["A+B.1.csv", "A+H%2FX.csv"]
    for path, split in written:
        assert dict(read_split(path).rows) == dict(split.rows)
        assert read_split(path).record == split.record
    with pytest.raises(OutputError, match="--force"):
        write_splits(drawn, tmp_path / "out", source=tmp_path / "x.h5ad")


def test_unknown_schemes_and_foreign_options_are_refused():
    with pytest.raises(UnknownName, match="gears-simulation"):
        draw_split(TABLE, "gears-simulatoin")
    with pytest.raises(UsageError, match="does not take --context; it takes --seed"):
        draw_split(TABLE, "folds", context="K562", double=None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_loads(scheme):
    assert callable(SCHEMES[scheme].load()) and "seed" in SCHEMES[scheme].options()


@pytest.mark.parametrize("option", ["gene_fraction", "combo_fraction"])
@pytest.mark.parametrize("share", [5.0, -0.1, float("nan")])
def test_shares_beyond_one_are_refused(option, share):
    with pytest.raises(UsageError, match="is no share"):
        draw_split(TABLE, "gears-simulation", **{option: share})


def test_few_shot_context_trains_a_share_of_it():
    split = draw_split(TABLE, "few-shot-context", context="RPE1", seed=3, validation_fraction=0.2)
    own = {part: {n for c, n in split.keys(part) if c == "RPE1"} for part in ("train", "validation", "test")}
    assert {part: len(names) for part, names in own.items()} == {"train": 5, "validation": 2, "test": 7}
    assert {c for part in ("validation", "test") for c, _ in split.keys(part)} == {"RPE1"}
    assert draw_split(TABLE, "few-shot-context", context="RPE1", seed=3, validation_fraction=0.2) == split
    every = draw_split(TABLE, "few-shot-context")
    assert set(every) == {"K562", "RPE1"}
    with pytest.raises(UnknownName, match="RPE1"):
        draw_split(TABLE, "few-shot-context", context="RPE2")
    with pytest.raises(UsageError, match="needs a second one"):
        draw_split(LabelTable.from_keys(KEYS[:4]), "few-shot-context")


@pytest.mark.parametrize("seed", range(4))
def test_transfer_holds_out_shared_perturbations_in_one_context(seed):
    split = draw_split(TABLE, "transfer", seed=seed, test_fraction=0.3)
    held = [key for part in ("validation", "test") for key in split.keys(part)]
    names_held = [name for _, name in held]
    assert len(set(names_held)) == len(names_held) == 6
    for context in ("K562", "RPE1"):
        assert sum(c == context for c, _ in held) == 3
    trained = {name for _, name in split.keys("train")}
    assert set(names_held) <= trained
    assert split.keys("validation") and split.keys("test")


def test_transfer_refuses_what_cannot_be():
    with pytest.raises(UsageError, match="occurs in two contexts"):
        draw_split(LabelTable.from_keys(KEYS[:6]), "transfer")
    with pytest.raises(UsageError, match="--test-fraction"):
        draw_split(TABLE, "transfer", test_fraction=1.5)


def test_held_out_combinations_train_all_singles():
    split = draw_split(TABLE, "held-out-combinations", seed=2, test_fraction=0.6)
    assert names(split, "train") - {"control"} >= set(SINGLES)
    held = names(split, "test") | names(split, "validation")
    assert len(held) == 3 and held < set(DOUBLES) and names(split, "validation")
    with pytest.raises(UsageError, match="needs three"):
        draw_split(LabelTable.from_keys(KEYS[:10]), "held-out-combinations")
