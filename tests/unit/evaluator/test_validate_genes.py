"""Gene rules: one valid entry, one defect, the exact set of codes and what the text names."""

import numpy as np
import pytest
from builders_entry import (
    ENTRY_GENES,
    defect,
    entry_counts,
    entry_labels,
    future_edition,
    replace_dataset,
    set_index,
    small_edition,
    valid_entry,
    write_entry,
)
from validate_support import codes_of, expect
from vcbench.evaluator.validation import validate


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def check(paths, entry=None, *, edition=None, **options):
    return validate(
        entry or paths.entry, edition=edition or small_edition(), **{**paths.options(), **options}
    )


def test_the_valid_entry_has_no_issue(paths):
    report = check(paths)
    assert report.valid and report.issues == ()


def test_duplicate_genes(paths, tmp_path):
    names = [*ENTRY_GENES[:-1], "G000"]
    bad = defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_index(f, "var", names))
    report = check(paths, bad, genes=None)
    expect(
        report, "E103", where="bad.h5ad:/var/_index", found="1 symbols repeated (first: 'G000')", only=True
    )
    assert codes_of(check(paths, bad)) == {"E103", "E105"}


def test_missing_and_extra_genes(paths, tmp_path):
    names = ["OTHER", *ENTRY_GENES[1:]]
    bad = defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_index(f, "var", names))
    report = check(paths, bad)
    expect(
        report, "E105", found="1 of 30 listed genes are missing (first: 'G000')", expected="gene_names.csv"
    )
    expect(report, "E106", found="1 of 30 genes are not listed (first: 'OTHER')", fix="vcbench inspect")
    assert codes_of(report) == {"E105", "E106"} and not report.valid


def test_gene_order_is_binding_in_2025_and_a_note_where_it_is_free(paths, tmp_path):
    order = np.r_[1, 0, 2:30]
    labels = entry_labels()
    bad = write_entry(
        tmp_path / "bad.h5ad",
        labels,
        entry_counts(len(labels), np.random.default_rng(0))[:, order],
        genes=[ENTRY_GENES[i] for i in order],
    )
    report = check(paths, bad)
    issue = expect(report, "E104", where="bad.h5ad:/var/_index", expected="'G000' there", only=True)
    assert "2 of 30 genes out of place (first: position 0 holds 'G001')" in issue.found
    assert issue.fix == f"vcbench pack {bad} --edition vcc2025 --genes {paths.genes} -o ENTRY.vcc"
    free = check(paths, bad, edition=small_edition(gene_order="free"))
    assert free.valid and expect(free, "E104", only=True).severity == "info"


def test_gene_count_warns_about_the_list_or_the_file(paths):
    with_list = check(paths, edition=small_edition(gene_count=18080))
    assert expect(with_list, "W107", found="30 genes in gene_names.csv", expected="18,080", only=True)
    assert with_list.valid
    expect(
        check(paths, edition=small_edition(gene_count=31), genes=None), "W107", found="30 genes", only=True
    )


def test_nameless_genes(paths, tmp_path):
    names = ["", *ENTRY_GENES[1:]]
    bad = defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_index(f, "var", names))
    expect(check(paths, bad, genes=None), "E109", found="position 0 holds ''", only=True)


def test_no_genes(tmp_path):
    empty = write_entry(tmp_path / "empty.h5ad", entry_labels(), np.zeros((28, 0)), genes=())
    report = validate(empty, edition=small_edition(gene_count=None))
    expect(report, "E108", found="0 genes", only=True)
    assert any(entry.what == "values" for entry in report.not_checked)


@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        (b"", "E107", "nothing"),
        (b"Gene_Symbol\n", "E107", "only a header"),
        (b"\xff\xfe\x00bad", "E101", "codec"),
        (b"G000\nG001\nG000\n", "E102", "'G000'"),
    ],
)
def test_unusable_gene_lists(paths, tmp_path, text, code, found):
    (tmp_path / "list.csv").write_bytes(text)
    report = check(paths, genes=tmp_path / "list.csv")
    issue = expect(report, code, found=found, only=True)
    assert "list.csv" in issue.where and issue.fix == f"vcbench inspect {tmp_path / 'list.csv'}"
    gaps = {entry.what: entry.why for entry in report.not_checked}
    assert gaps["genes against the official list"] == "the list cannot be used"


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_gene_list_paths(paths, tmp_path, what):
    (tmp_path / "folder").mkdir()
    expect(check(paths, genes=tmp_path / what), "E101", where=what, expected="UTF-8 CSV", only=True)


def test_header_of_the_gene_list(paths, tmp_path):
    listed = tmp_path / "with_header.csv"
    listed.write_text("﻿Gene_Name,length\n" + "".join(f"{gene},1\n" for gene in ENTRY_GENES), encoding="utf-8")
    report = check(paths, genes=listed)
    assert report.valid
    expect(report, "W104", found="the header 'Gene_Name' in with_header.csv", only=True)
    edition = future_edition()
    edition = edition.model_copy(
        update={"file": edition.file.model_copy(update={"containers": ("vcc2026",)})}
    )
    assert "W104" not in codes_of(check(paths, edition=edition, genes=listed))


def test_genes_may_be_given_as_a_sequence(paths):
    assert check(paths, genes=list(ENTRY_GENES)).issues == ()
    expect(check(paths, genes=[*ENTRY_GENES, "NEW"]), "E105", found="1 of 31", expected="gene list")


def test_integer_gene_names_are_text(paths, tmp_path):
    bad = defect(
        paths.entry, tmp_path / "bad.h5ad", lambda f: replace_dataset(f, "var/_index", np.arange(30))
    )
    assert codes_of(check(paths, bad)) == {"E105", "E106"}
