"""Label and context rules: one valid entry, one defect, the exact set of codes and what the text names."""

import h5py
import numpy as np
import pytest
from builders import standard_h5ad
from builders_entry import (
    CELLS,
    CONTROLS,
    TARGETS,
    defect,
    entry_labels,
    future_edition,
    replace_dataset,
    set_index,
    set_labels,
    small_edition,
    valid_entry,
    write_entry,
)
from validate_support import codes_of, expect
from vcbench.evaluator.validation import validate

LABELS = entry_labels()


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def check(paths, entry=None, *, edition=None, **options):
    return validate(
        entry or paths.entry, edition=edition or small_edition(), **{**paths.options(), **options}
    )


def relabelled(paths, tmp_path, labels):
    return defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_labels(f, "target_gene", labels))


def test_missing_perturbation_column(paths):
    report = check(paths, pert_col="gene")
    issue = expect(report, "E201", where="pred.h5ad:/obs", found="target_gene", expected="'gene'", only=True)
    assert issue.fix == f"vcbench validate {paths.entry} --edition vcc2025 --pert-col target_gene"
    assert any("labels, control" in entry.what for entry in report.not_checked)


def test_another_column_and_control_label(tmp_path, paths):
    labels = ["NEG" if name == "non-targeting" else name for name in LABELS]
    other = write_entry(tmp_path / "other.h5ad", labels, column="gene")
    assert check(paths, other, pert_col="gene", control="NEG").issues == ()


def test_rows_without_a_label(paths, tmp_path):
    report = check(paths, relabelled(paths, tmp_path, [*LABELS[:-2], None, "nan"]))
    expect(
        report,
        "E203",
        where="bad.h5ad:/obs/target_gene",
        found="2 of 28 rows without a label (first: row 26 '26')",
    )
    assert codes_of(report) == {"E203", "E410"}
    assert report.facts["n_unlabelled"] == 2


def test_guide_suffixes_explain_missing_and_unexpected_names(paths, tmp_path):
    labels = [f"{name}-1" if name == "G001" else name for name in LABELS]
    report = check(paths, relabelled(paths, tmp_path, labels))
    expect(
        report,
        "E207",
        found="1 of 4 labels end in a guide number (first: 'G001-1')",
        expected="'G001'",
        only=True,
    )


def test_guide_suffixes_inside_combinations_of_core(tmp_path):
    file = standard_h5ad(tmp_path / "core.h5ad", perturbations=("G000-2+G001", "G001"))
    expect(validate(file, edition="core"), "E207", expected="'G000+G001'", only=True)


@pytest.mark.parametrize("alias", ["ctrl", "NT", "Non_Targeting", "DMSO"])
def test_another_name_for_control(paths, tmp_path, alias):
    labels = [alias if name == "non-targeting" else name for name in LABELS]
    report = check(paths, relabelled(paths, tmp_path, labels))
    issue = expect(report, "E208", found=repr(alias), expected="'non-targeting', or --control", only=True)
    assert issue.fix.endswith(f"--edition vcc2025 --control {alias}")


def test_no_control_cells(paths, tmp_path):
    report = check(paths, write_entry(tmp_path / "bad.h5ad", entry_labels(control=None)))
    expect(
        report,
        "E209",
        found="no row labelled 'non-targeting' among 3 labels",
        fix="--controls CONTROLS.h5ad",
        only=True,
    )


def test_forbidden_control_cells(paths, tmp_path):
    for label in ("non-targeting", "ctrl"):
        names = [label if name == "non-targeting" else name for name in LABELS]
        entry = write_entry(tmp_path / f"{label}.h5ad", names, obs={"context": ["A"] * len(names)})
        report = check(paths, entry, edition=future_edition(), contexts=["A"])
        expect(
            report, "E210", found=f"{CONTROLS} rows labelled {label!r}", expected="no control rows", only=True
        )


@pytest.mark.parametrize(
    ("wrong", "right"), [("G001+G000", "G000+G001"), ("G000+ctrl", "G000"), ("G000+G000", "G000")]
)
def test_labels_that_are_not_canonical(tmp_path, wrong, right):
    file = standard_h5ad(tmp_path / "core.h5ad", perturbations=("G002", wrong))
    expect(
        validate(file, edition="core"),
        "E211",
        where="core.h5ad:/obs/perturbation",
        found=f"1 of 3 labels (first: {wrong!r})",
        expected=repr(right),
        only=True,
    )


def test_no_rows(paths, tmp_path):
    report = check(paths, write_entry(tmp_path / "empty.h5ad", [], np.zeros((0, 30))))
    expect(report, "E213", found="0 rows", only=True)


def test_repeated_obs_names_warn(paths, tmp_path):
    names = ["cell-0", "cell-0", *[f"cell-{i}" for i in range(2, 28)]]
    bad = defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_index(f, "obs", names))
    report = check(paths, bad)
    assert report.valid
    expect(report, "W214", where="/obs/_index", found="1 of 27 names repeated (first: 'cell-0')", only=True)


def test_unused_categories_warn(paths, tmp_path):
    def add(file):
        values = [*file["obs/target_gene/categories"].asstr()[()], "UNUSED"]
        replace_dataset(
            file["obs/target_gene"],
            "categories",
            np.array(values, dtype=object),
            dtype=h5py.string_dtype(),
        )

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", add))
    assert report.valid
    expect(report, "W215", found="(first: 'UNUSED')", only=True)
    assert report.facts["n_perturbations"] == 3


def test_missing_context_column(paths, tmp_path):
    entry = write_entry(tmp_path / "e.h5ad", entry_labels(control=None), obs={"cell_line": ["A"] * 18})
    report = check(paths, entry, edition=future_edition(), contexts=["A"])
    issue = expect(report, "E202", where="e.h5ad:/obs", found="cell_line", expected="'context'", only=True)
    assert issue.fix.endswith("--context-col cell_line")


def future_entry(path, contexts, labels=None):
    labels = labels or entry_labels(control=None)
    return write_entry(path, labels * len(contexts), obs={"context": [c for c in contexts for _ in labels]})


def test_contexts_of_an_entry(paths, tmp_path):
    good = future_entry(tmp_path / "good.h5ad", ["A", "B"])
    edition = future_edition()
    assert check(paths, good, edition=edition, contexts=["A", "B"]).issues == ()
    missing = check(paths, good, edition=edition, contexts=["A", "B", "C"])
    expect(missing, "E206", found="1 of 3 contexts without a row (first: 'C')", expected="A, B, C", only=True)
    unknown = check(paths, good, edition=edition, contexts=["A"])
    expect(unknown, "E205", where="/obs/context", found="1 of 2 unknown contexts (first: 'B')", only=True)


def test_rows_without_a_context(paths, tmp_path):
    entry = write_entry(tmp_path / "e.h5ad", entry_labels(control=None), obs={"context": ["A"] * 17 + [None]})
    report = check(
        paths, entry, edition=future_edition(cells_per_perturbation=None), contexts=["A"], perts=list(TARGETS)
    )
    expect(report, "E204", found="1 of 18 rows without a context (first: row 17 '17')", only=True)


def test_manifest_names_the_contexts(paths, tmp_path):
    entry = future_entry(tmp_path / "e.h5ad", ["A", "B"])
    edition = future_edition()
    expect(check(paths, entry, edition=edition), "E411", expected="--contexts A,B,C", only=True)
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"contexts": ["A", "B"], "panel_id": "p", "partition": "val"}')
    assert check(paths, entry, edition=edition).issues == ()
    manifest.write_text('{"contexts": ["A", "D"]}')
    assert codes_of(check(paths, entry, edition=edition)) == {"E205", "E206"}
    assert check(paths, entry, edition=edition, contexts=["A", "B"]).issues == ()
    for text in ("[]", "{", '{"contexts": []}', " " * 300_000):
        manifest.write_text(text)
        report = check(paths, entry, edition=edition)
        assert codes_of(report) == {"W410", "E411"}
        assert "manifest.json" in expect(report, "W410", expected="a JSON object with contexts").where


def test_a_column_that_cannot_be_read(paths, tmp_path):
    def break_codes(file):
        file["obs/target_gene/codes"][3] = 99

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", break_codes))
    expect(report, "E012", where="bad.h5ad:/obs/target_gene", found="code 99 for 4 categories", only=True)

    def float_codes(file):
        replace_dataset(file["obs/target_gene"], "codes", np.zeros(28))

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", float_codes))
    expect(report, "E012", found="codes of dtype float64", only=True)

    def unknown(file):
        del file["obs/target_gene"]
        file.create_group("obs/target_gene").attrs["encoding-type"] = "wonder"

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", unknown))
    expect(report, "E012", found="'wonder'", only=True)


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("codes", None, "no arrays"),
        ("codes", np.zeros((28, 2), int), "no arrays"),
        ("categories", np.float64(1), "0 dimensions"),
        ("categories", np.zeros((2, 2)), "2 dimensions"),
        ("categories", None, "None"),
    ],
)
def test_codes_and_categories_that_are_no_lists(key, value, found, paths, tmp_path):
    def change(file):
        node = file["obs/target_gene"]
        del node[key]
        if value is None:
            node.create_group(key)
        else:
            node.create_dataset(key, data=value)

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", change))
    assert not report.valid and expect(report, "E012", found=found)


def test_a_mask_of_another_length(paths, tmp_path):
    def change(file):
        del file["obs/target_gene"]
        group = file.create_group("obs/target_gene")
        group.attrs["encoding-type"] = "nullable-string-array"
        group.create_dataset("values", data=np.array([b"G000"] * 28))
        group.create_dataset("mask", data=np.zeros(27, bool))

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", change))
    assert expect(report, "E012", found="a mask of another shape")


def test_links_that_lead_nowhere_are_passed_over(paths, tmp_path):
    def change(file):
        del file["uns"]
        file["uns"] = h5py.SoftLink("/nowhere")
        file["more"] = h5py.ExternalLink("none.h5", "/")

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", change))
    assert report.valid


def test_cells_per_group_are_facts(paths):
    facts = check(paths).facts
    assert facts["cells_per_group"] == {"min": CELLS, "median": float(CELLS), "max": CELLS}
    assert (facts["n_perturbations"], facts["n_control_cells"], facts["n_obs"]) == (3, CONTROLS, 28)
