"""Rules about the values of X: one valid entry, one defect, the exact set of codes and what the text names."""

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from builders import standard_h5ad
from builders_entry import (
    CELLS,
    CONTROLS,
    defect,
    entry_counts,
    entry_labels,
    future_edition,
    replace_dataset,
    small_edition,
    valid_entry,
    write_entry,
)
from validate_support import codes_of, expect
from vcbench.data_specs.errors import UsageError
from vcbench.data_specs.h5ad_write import write_h5ad_dense
from vcbench.data_specs.standard import MatrixMeta, StandardMeta
from vcbench.evaluator.validation import validate

LABELS = entry_labels()
N = len(LABELS)


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def check(paths, entry=None, *, edition=None, **options):
    return validate(
        entry or paths.entry, edition=edition or small_edition(), **{**paths.options(), **options}
    )


def counts():
    return entry_counts(N, np.random.default_rng(0)).astype(np.float64)


def log_values(target_sum=100.0):
    x = counts()
    return np.log1p(x / x.sum(axis=1, keepdims=True) * target_sum)


def entry(tmp_path, x, **options):
    return write_entry(tmp_path / "bad.h5ad", options.pop("labels", LABELS), x, **options)


def set_value(row_entry, value):
    def change(file):
        file["X/data"][row_entry] = value

    return change


@pytest.mark.parametrize(
    ("value", "code", "noun"),
    [(np.nan, "E301", "NaN values"), (np.inf, "E302", "infinite values"), (-3.0, "E303", "negative values")],
)
def test_values_that_are_never_allowed(paths, tmp_path, value, code, noun):
    bad = defect(paths.entry, tmp_path / "bad.h5ad", set_value(0, value))
    report = check(paths, bad)
    with h5py.File(bad) as file:
        gene = int(file["X/indices"][0])
    issue = expect(
        report, code, where="bad.h5ad:/X/data", found=f"1 {noun} (first: {value:g} in row 0 '0'", only=True
    )
    assert f"gene 'G{gene:03d}'" in issue.found and issue.severity == "error"


def test_negative_values_of_a_mean_profile_warn(tmp_path):
    x = np.random.default_rng(0).uniform(0.1, 1, (3, 30))
    x[1, 4] = -0.2
    meta = StandardMeta("t", MatrixMeta("log1p", 80.0), rows="mean")
    path = tmp_path / "means.h5ad"
    obs = {"perturbation": ["G000", "G001", "G000+G001"], "context": ["K562"] * 3}
    write_h5ad_dense(path, x, genes=[f"G{i:03d}" for i in range(30)], obs=obs, uns=meta.to_uns())
    report = validate(path, edition="core")
    assert report.valid and report.facts["rows"] == "mean"
    assert expect(report, "E303", where=":/X", found="1 negative values", only=True).severity == "warning"


def test_fractions_where_counts_are_needed(paths, tmp_path):
    file = standard_h5ad(tmp_path / "core.h5ad")
    bad = defect(file, tmp_path / "bad.h5ad", set_value(5, 1.5))
    issue = expect(
        validate(bad, edition="core"), "E304", found="1 fractional values (first: 1.5 in row", only=True
    )
    assert issue.expected == "whole numbers" and issue.fix == "vcbench explain E304"
    close = defect(
        file, tmp_path / "close.h5ad", lambda f: replace_dataset(f, "X/data", f["X/data"][()] + 5e-7)
    )
    assert validate(close, edition="core").issues == ()


def test_counts_where_log_values_are_declared(paths):
    report = check(paths, matrix="log1p")
    expect(
        report,
        "E305",
        found="whole numbers up to",
        expected="ln(1 + scaled counts)",
        fix="--matrix counts",
        only=True,
    )


def test_log_values_pass_and_have_a_limit(paths, tmp_path):
    good = check(paths, entry(tmp_path, log_values()))
    assert good.issues == () and good.facts["matrix"]["kind"] == "log1p"
    x = log_values()
    x[3, 4] = 15.0
    issue = expect(
        check(paths, entry(tmp_path, x)),
        "E306",
        found="1 values too large (first: 15 in row 3 '3'",
        only=True,
    )
    assert issue.expected == "below 15" and "'G004'" in issue.found
    x[3, 4] = np.nextafter(np.float32(15), np.float32(0))
    assert check(paths, entry(tmp_path, x)).issues == ()


def test_undeclared_kind_in_core(tmp_path):
    file = standard_h5ad(tmp_path / "core.h5ad")

    def forget(handle):
        del handle["uns/vcbench"]

    bare = defect(file, tmp_path / "bare.h5ad", forget)
    report = validate(bare, edition="core")
    expect(report, "E308", where="bare.h5ad:/uns/vcbench/matrix", expected="counts or log1p", only=True)
    assert report.facts["matrix"] | {"detection": ""} == {
        "kind": None, "how": "unknown", "detail": "not declared", "detected": "counts", "detection": "",
    }  # fmt: skip
    assert validate(bare, edition="core", matrix="counts").issues == ()


def test_log_values_need_a_target_sum_in_core(tmp_path):
    file = standard_h5ad(tmp_path / "log.h5ad", kind="log1p")

    def forget(handle):
        del handle["uns/vcbench/matrix/target_sum"]

    report = validate(defect(file, tmp_path / "bad.h5ad", forget), edition="core")
    issue = expect(report, "E310", where="/uns/vcbench/matrix/target_sum", found="no target sum", only=True)
    assert issue.severity == "error"

    def forget_all(handle):
        del handle["uns/vcbench"]

    bare = defect(file, tmp_path / "bare.h5ad", forget_all)
    assert expect(validate(bare, edition="core", matrix="log1p"), "E310", only=True).severity == "warning"


def test_contradicting_declarations(tmp_path, paths):
    file = standard_h5ad(tmp_path / "core.h5ad")
    report = validate(file, edition="core", matrix="log1p")
    expect(report, "E319", found="counts in the file", expected="log1p (--matrix)")
    assert codes_of(report) == {"E319", "E305"}
    with pytest.raises(UsageError, match="contradicts"):
        check(paths, edition=future_edition(), matrix="log1p")


def test_cell_totals_have_a_limit(tmp_path, paths):
    x = counts()[CONTROLS:]
    x[2, 5] = 5_000
    file = entry(tmp_path, x, labels=entry_labels(control=None), obs={"context": ["A"] * len(x)})
    total = x[2].sum()
    edition = future_edition(max_cell_total=total - 1)
    report = check(paths, file, edition=edition, contexts=["A"])
    issue = expect(report, "E311", found=f"1 cells above (largest: {total:,.0f} in row 2 '2')", only=True)
    assert issue.expected == f"cell totals of at most {total - 1:,.0f}"
    assert check(paths, file, edition=future_edition(max_cell_total=total), contexts=["A"]).issues == ()


def test_empty_rows_warn_and_empty_groups_fail(paths, tmp_path):
    x = counts()
    x[CONTROLS + 1] = 0
    report = check(paths, entry(tmp_path, x))
    assert report.valid
    expect(report, "W312", found=f"1 of {N} rows hold only zeros (first: row 11 '11')", only=True)
    x[CONTROLS : CONTROLS + CELLS] = 0
    expect(
        check(paths, entry(tmp_path, x)),
        "E313",
        found="1 of 4 groups hold only zeros (first: 'G000')",
        only=True,
    )


def test_stored_zeros_warn(paths, tmp_path):
    bad = defect(paths.entry, tmp_path / "bad.h5ad", set_value(slice(1, 4), 0.0))
    report = check(paths, bad)
    assert report.valid and report.facts["n_stored_zeros"] == 3
    expect(report, "W314", where="/X/data", found="3 stored zeros", fix="vcbench pack", only=True)


def test_repeated_coordinates_warn_and_are_summed(paths, tmp_path):
    def repeat(file):
        file["X/indices"][1] = file["X/indices"][0]

    report = check(paths, defect(paths.entry, tmp_path / "bad.h5ad", repeat))
    assert report.valid and report.facts["n_duplicate_entries"] == 1
    expect(report, "W315", where="/X/indices", found="1 entries repeat a (row, gene)", only=True)


@pytest.mark.parametrize(
    ("dtype", "severity"),
    [
        ("f2", "warning"),
        ("?", "warning"),
        ("f8", "info"),
        ("i4", "info"),
        ("u1", "info"),
        ("u8", "info"),
        (">f4", None),
    ],
)
@pytest.mark.parametrize("storage", ["csr", "dense"])
def test_dtypes(paths, tmp_path, dtype, severity, storage):
    x = np.minimum(counts(), 200)
    if dtype == "?":
        x = (x > 2).astype(float)
    path = tmp_path / "typed.h5ad"
    if storage == "dense":
        write_h5ad_dense(path, x, genes=[f"G{i:03d}" for i in range(30)], obs={"target_gene": LABELS})
        key = "X"
    else:
        write_entry(path, LABELS, x)
        key = "X/data"
    typed = defect(path, tmp_path / "bad.h5ad", lambda f: replace_dataset(f, key, f[key][()].astype(dtype)))
    report = check(paths, typed)
    assert report.facts["median_depth"] == np.median(x.sum(axis=1))
    if severity is None:
        assert report.issues == ()
    else:
        assert (
            expect(report, "W316", found=str(np.dtype(dtype)), expected="float32", only=True).severity
            == severity
        )
    assert report.valid


def test_core_takes_any_real_dtype_without_a_note(tmp_path):
    file = standard_h5ad(tmp_path / "core.h5ad")
    typed = defect(
        file, tmp_path / "t.h5ad", lambda f: replace_dataset(f, "X/data", f["X/data"][()].astype("i8"))
    )
    assert validate(typed, edition="core").issues == ()


def test_two_scales_in_one_matrix(paths, tmp_path):
    x = log_values()
    x[:CONTROLS] = counts()[:CONTROLS]
    report = check(paths, entry(tmp_path, x))
    issue = expect(report, "E320", found=f"{CONTROLS} rows of whole numbers (first: row 0 '0')", only=True)
    assert f"{N - CONTROLS} rows with fractions" in issue.found


def test_linear_normalised_values_are_suspected(paths, tmp_path):
    x = counts()
    x = x / x.sum(axis=1, keepdims=True) * 20
    assert x.max() < 15
    report = check(paths, entry(tmp_path, x))
    assert report.valid
    expect(report, "W307", found="every row sums to 20, expm1 of the rows to", only=True)


def test_target_sum_that_the_values_do_not_have(tmp_path):
    def declare(value):
        return lambda f: f["uns/vcbench/matrix/target_sum"].__setitem__((), value)

    file = standard_h5ad(tmp_path / "log.h5ad", kind="log1p", target_sum=80.0)
    for value in (10_000.0, 40.0):
        report = validate(defect(file, tmp_path / "bad.h5ad", declare(value)), edition="core")
        assert report.valid
        expect(report, "W309", found="sums to 80 (median)", expected=f"about {value:.6g}", only=True)


def test_detection_follows_the_2025_rule(paths, tmp_path):
    x = counts()
    x[0, 0] += np.float32(0.0009)
    x = np.where(x > 0, x, 0)
    report = check(paths, entry(tmp_path, x))
    assert report.facts["matrix"]["kind"] == report.facts["matrix"]["detected"] == "counts"
    expect(report, "E304", found="1 fractional values", only=True)
    x[0, 0] += 0.5
    report = check(paths, entry(tmp_path, x))
    assert report.facts["matrix"]["detected"] == "log1p"
    assert "1 of" in report.facts["matrix"]["detection"]


def test_all_perturbations_identical(paths, tmp_path):
    x = counts()
    x[CONTROLS + CELLS : CONTROLS + 2 * CELLS] = x[CONTROLS : CONTROLS + CELLS][::-1]
    x[CONTROLS + 2 * CELLS :] = x[CONTROLS : CONTROLS + CELLS]
    report = check(paths, entry(tmp_path, x))
    assert report.valid
    expect(report, "W317", found="3 perturbations with one mean profile", only=True)
    x[-1, 3] += 1
    assert check(paths, entry(tmp_path, x)).issues == ()


def test_tiled_cells(paths, tmp_path):
    x = counts()
    x[CONTROLS : CONTROLS + CELLS] = x[CONTROLS]
    file = entry(tmp_path, x)
    tiled = small_edition().model_copy(update={"emission": "counts"})
    report = check(paths, file, edition=tiled)
    issue = expect(
        report, "W318", found="1 of 4 groups without any spread (first: 'G000: 6 equal cells')", only=True
    )
    assert issue.severity == "warning" and report.facts["n_repeated_rows"] == CELLS - 1
    assert expect(check(paths, file), "W318", only=True).severity == "info"


def test_counts_that_float32_cannot_hold(paths, tmp_path):
    x = counts()
    x[0, 0] = 2**24 + 1
    report = check(paths, entry(tmp_path, x, dtype=np.float64))
    expect(report, "W321", found="first: 1.67772e+07 in row 0")
    assert codes_of(report) == {"W321", "W316"}


def test_several_defects_are_reported_together(paths, tmp_path):
    x = counts()
    x[0, 0], x[1, 1], x[2, 2], x[5] = np.nan, -1, np.inf, 0
    report = check(paths, entry(tmp_path, x, labels=["ctrl" if v == "non-targeting" else v for v in LABELS]))
    assert codes_of(report) == {"E208", "E301", "E302", "E303", "W312"}
    severities = [issue.severity for issue in report.issues]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


@pytest.mark.parametrize("block_bytes", [1, 300, 2**26])
@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_reports_do_not_depend_on_storage_or_block_size(tmp_path, block_bytes, storage):
    import anndata as ad
    import pandas as pd

    x = log_values().astype(np.float32)
    x[3, 3], x[20, 7], x[7] = np.nan, -0.5, 0
    obs = pd.DataFrame({"target_gene": pd.Categorical(LABELS)}, index=[f"c{i}" for i in range(N)])
    var = pd.DataFrame(index=[f"G{i:03d}" for i in range(30)])
    made = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
    paths = {}
    for name, make in made.items():
        paths[name] = tmp_path / f"{name}.h5ad"
        ad.AnnData(make(x), obs=obs, var=var).write_h5ad(paths[name])
    reports = [
        validate(paths["csr"], edition=small_edition()),
        validate(paths[storage], edition=small_edition(), block_bytes=block_bytes),
    ]
    texts = [[(i.code, i.found, i.expected) for i in report.issues] for report in reports]
    assert texts[0] == texts[1] and {code for code, *_ in texts[0]} == {"E301", "E303", "W312"}
    volatile = ("source", "storage", "n_stored")
    facts = [{k: v for k, v in report.facts.items() if k not in volatile} for report in reports]
    assert facts[0] == facts[1]
    memory = validate(
        ad.AnnData(made[storage](x), obs=obs, var=var), edition=small_edition(), block_bytes=block_bytes
    )
    assert [(i.code, i.found, i.expected) for i in memory.issues] == texts[0]


def test_facts_equal_numpy(paths, tmp_path):
    x = counts()
    x[4] = x[3]
    facts = check(paths, entry(tmp_path, x)).facts
    assert facts["median_depth"] == np.median(x.sum(axis=1))
    assert facts["median_detected_genes"] == np.median((x > 0).sum(axis=1))
    assert facts["n_nonzero"] == np.count_nonzero(x) and facts["maximum"] == x.max()
    assert facts["n_repeated_rows"] == 1
    logged = check(paths, entry(tmp_path, log_values(100.0))).facts
    assert logged["median_depth"] == pytest.approx(100, rel=1e-5)
