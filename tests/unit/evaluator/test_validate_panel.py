"""Panel rules: the perturbation list, cells per perturbation, size limits."""

import pytest
from builders import standard_h5ad
from builders_entry import (
    CELLS,
    TARGETS,
    entry_labels,
    future_edition,
    small_edition,
    valid_entry,
    write_entry,
)
from validate_support import codes_of, expect
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.standard import MatrixMeta, StandardMeta
from vcbench.evaluator.reference_files import read_perturbation_list
from vcbench.evaluator.validation import validate


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def check(paths, entry=None, *, edition=None, **options):
    return validate(
        entry or paths.entry, edition=edition or small_edition(), **{**paths.options(), **options}
    )


def perts(tmp_path, text):
    (tmp_path / "perts.csv").write_text(text)
    return tmp_path / "perts.csv"


def test_missing_perturbation(paths, tmp_path):
    report = check(paths, perts=perts(tmp_path, "target_gene\nG000\nG001\nG002\nG009\n"))
    issue = expect(
        report,
        "E401",
        where="pred.h5ad:/obs/target_gene",
        found="1 of 4 listed perturbations have no row (first: 'G009')",
        expected="perts.csv",
        only=True,
    )
    assert issue.fix == f"vcbench predict RUN --perturbations {tmp_path / 'perts.csv'} -o PRED.h5ad"


def test_unexpected_perturbation(paths):
    report = check(paths, perts=["G000", "G001"])
    expect(report, "E402", found="1 perturbations are not listed (first: 'G002')", only=True)


def test_unusable_perturbation_lists(paths, tmp_path):
    for text, code, found in (
        ("gene,n\nG000,1\n", "E404", "gene, n"),
        ("", "E404", "nothing"),
        ("target_gene\nnon-targeting\n\nNaN\n", "E405", "no usable row"),
        ("target_gene\nG000\nG000\n", "E406", "'G000'"),
        ("target_gene,context\nG000,A\nG000,A\n", "E406", "'A: G000'"),
    ):
        report = check(paths, perts=perts(tmp_path, text))
        expect(report, code, where="perts.csv", found=found, only=True)
        gaps = {entry.what: entry.why for entry in report.not_checked}
        assert gaps["perturbations and cells against the official list"] == "the list cannot be used"
    expect(
        check(paths, perts=tmp_path / "none.csv"), "E403", where="none.csv", found="No such file", only=True
    )


def test_a_list_may_be_demanded(paths):
    report = check(paths, edition=small_edition(perturbation_list="required"), perts=None)
    expect(report, "E407", expected="--perts CSV", only=True)


def test_cell_counts_warn_in_2025(paths, tmp_path):
    report = check(paths, perts=perts(tmp_path, "target_gene,n_cells\nG000,6\nG001,7\nG002,\n"))
    assert report.valid
    issue = expect(report, "E410", expected="7 cells", only=True)
    assert issue.severity == "warning" and "(first: 'G001: 6 cells')" in issue.found


def test_cell_counts_are_errors_where_the_edition_demands_them(tmp_path, paths):
    labels = entry_labels(control=None)
    entry = write_entry(tmp_path / "e.h5ad", [*labels, "G000"], obs={"context": ["A"] * 19})
    report = check(paths, entry, edition=future_edition(), contexts=["A"], perts=list(TARGETS))
    issue = expect(report, "E410", found="(first: 'A: G000: 7 cells')", expected="6 cells", only=True)
    assert issue.severity == "error"


def test_lists_with_contexts(paths, tmp_path):
    labels = entry_labels(control=None)
    entry = write_entry(tmp_path / "e.h5ad", labels * 2, obs={"context": ["A"] * 18 + ["B"] * 18})
    rows = "".join(f"{name},{context}\n" for context in "AB" for name in TARGETS)
    good = perts(tmp_path, "target_gene,context\n" + rows)
    assert check(paths, entry, edition=future_edition(), contexts=["A", "B"], perts=good).issues == ()
    bad = perts(tmp_path, "target_gene,context\n" + rows.replace("G002,B", "G005,B"))
    report = check(paths, entry, edition=future_edition(), contexts=["A", "B"], perts=bad)
    assert codes_of(report) == {"E401", "E402"}
    expect(report, "E401", found="1 of 6 listed perturbations have no row (first: 'B: G005')")
    expect(report, "E402", found="(first: 'B: G002')")


def test_size_limits(paths, tmp_path):
    expect(
        check(paths, edition=small_edition(max_cells=27)),
        "E408",
        found="28 cells",
        expected="at most 27",
        only=True,
    )
    n_stored = check(paths).facts["n_stored"]
    sparse = check(paths, edition=small_edition(max_stored=n_stored - 1))
    expect(sparse, "E409", found=f"{n_stored:,} stored entries", only=True)
    assert check(paths, edition=small_edition(max_stored=n_stored)).issues == ()


def test_the_limit_of_dense_files_counts_values_other_than_zero(paths, tmp_path):
    from vcbench.data_specs.h5ad import H5ad

    with H5ad(paths.entry) as file:
        x = next(file.row_blocks()).matrix.toarray()
    dense = tmp_path / "dense.h5ad"
    write_h5ad_dense(dense, x, genes=[f"G{i:03d}" for i in range(30)], obs={"target_gene": entry_labels()})
    n_values = int((x != 0).sum())
    assert n_values < x.size
    assert check(paths, dense, edition=small_edition(max_stored=n_values)).issues == ()
    expect(
        check(paths, dense, edition=small_edition(max_stored=n_values - 1)),
        "E409",
        found=f"{n_values:,}",
        only=True,
    )


def test_refused_profiles_are_not_missing_in_core(tmp_path):
    meta = StandardMeta(
        "t",
        MatrixMeta("log1p", 80.0),
        rows="mean",
        extra={"refused": '[{"context": "K562", "perturbation": "G009", "reason": "no features"}]'},
    )
    import numpy as np

    path = tmp_path / "means.h5ad"
    x = np.random.default_rng(0).uniform(0, 1, (2, 30))
    obs = {"perturbation": ["G000", "G001"], "context": ["K562"] * 2}
    genes = [f"G{i:03d}" for i in range(30)]
    write_h5ad_dense(path, x, genes=genes, obs=obs, uns=meta.to_uns())
    asked = perts(tmp_path, "context,perturbation\nK562,G000\nK562,G001\nK562,G009\n")
    report = validate(path, edition="core", perts=asked)
    assert report.issues == () and report.facts["n_refused"] == 1
    asked = perts(tmp_path, "context,perturbation\nK562,G000\nK562,G001\nK562,G009\nK562,G010\n")
    expect(validate(path, edition="core", perts=asked), "E401", found="(first: 'K562: G010')", only=True)


def test_expected_cells_are_read_leniently(tmp_path):
    text = "target_gene,n_cells\n" + "".join(
        f"T{i},{cell}\n" for i, cell in enumerate(["5", "5.9", "", "x", "inf", "0", "-2", "1e2"])
    )
    listed = read_perturbation_list(perts(tmp_path, text), columns=("target_gene",), control="non-targeting")
    assert [row.n_cells for row in listed.rows] == [5, 5, None, None, None, None, None, 100]


def test_core_files_against_a_list(tmp_path):
    file = standard_h5ad(tmp_path / "core.h5ad", perturbations=("G000", "G001"), cells=CELLS)
    assert validate(file, edition="core", perts=["G000", "G001"]).issues == ()
    expect(validate(file, edition="core", perts=["G000", "G003"]), "E401", found="'G003'")
