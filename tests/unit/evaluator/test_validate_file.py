"""Files that cannot be read, lie about their shape, or carry a broken record: coded issues, never an exception."""

import hashlib
import os

import h5py
import numpy as np
import pytest
from builders import standard_h5ad
from builders_entry import defect, entry_labels, replace_dataset, small_edition, valid_entry, write_entry
from validate_support import codes_of, expect
from vcbench.data_specs.container_write import write_vcc2025
from vcbench.data_specs.errors import OutputError, UnknownName
from vcbench.evaluator.validation import validate


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def check(source, **options):
    """The report; the input must be the same file afterwards."""
    before = digest(source)
    report = validate(source, edition=options.pop("edition", small_edition()), **options)
    assert digest(source) == before
    return report


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def test_missing_path(tmp_path):
    report = check(tmp_path / "none.h5ad")
    issue = expect(report, "E001", where="none.h5ad", found="no such file", only=True)
    assert issue.fix == f"vcbench inspect {tmp_path / 'none.h5ad'}"
    assert report.facts["container"] == "h5ad" and not report.valid
    assert any(entry.why == "the file could not be opened" for entry in report.not_checked)


def test_paths_that_are_no_regular_file(tmp_path):
    expect(check(tmp_path), "E002", found="a directory", only=True)
    os.mkfifo(tmp_path / "pipe.h5ad")
    expect(check(tmp_path / "pipe.h5ad"), "E002", found="a pipe, socket or device", only=True)
    os.mkfifo(tmp_path / "pipe.vcc")
    expect(check(tmp_path / "pipe.vcc"), "E002", only=True)
    os.mkfifo(tmp_path / "list.csv")
    entry = write_entry(tmp_path / "e.h5ad", entry_labels())
    expect(check(entry, genes=tmp_path / "list.csv"), "E101", found="not a regular file", only=True)
    (tmp_path / "loop.h5ad").symlink_to(tmp_path / "loop.h5ad")
    expect(check(tmp_path / "loop.h5ad"), "E001", only=True)
    expect(check(tmp_path / "e.h5ad" / "inside.h5ad"), "E001", only=True)


def test_paths_with_spaces_are_quoted_in_commands(tmp_path):
    issue = expect(check(tmp_path / "my file.h5ad"), "E001", only=True)
    assert issue.fix == f"vcbench inspect '{tmp_path / 'my file.h5ad'}'"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(paths):
    paths.entry.chmod(0)
    expect(validate(paths.entry, edition="core"), "E004", found="Permission denied", only=True)


@pytest.mark.parametrize("text", [b"", b"gene,count\nA,1\n", b"\x80\x04pickle", b"PK\x03\x04zip"])
def test_files_that_are_not_hdf5(tmp_path, text):
    path = tmp_path / "text.h5ad"
    path.write_bytes(text)
    expect(check(path), "E003", found="a file that starts with" if text else "an empty file", only=True)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_truncated_files(paths, tmp_path, share):
    whole = paths.entry.read_bytes()
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(whole[: int(len(whole) * share)])
    expect(check(cut), "E004", where="cut.h5ad", expected="a complete HDF5 file", only=True)


@pytest.mark.parametrize("filters", [{"compression": "gzip"}, {"fletcher32": True}])
def test_a_damaged_chunk(paths, tmp_path, filters):
    def compress(file):
        values = file["X/data"][()]
        replace_dataset(file, "X/data", values, chunks=(200,), **filters)

    bad = defect(paths.entry, tmp_path / "bad.h5ad", compress)
    with h5py.File(bad) as file:
        chunk = file["X/data"].id.get_chunk_info(1)
    raw = bytearray(bad.read_bytes())
    at = chunk.byte_offset
    raw[at + 8 : at + 40] = bytes(255 - byte for byte in raw[at + 8 : at + 40])
    bad.write_bytes(raw)
    report = check(bad, **paths.options())
    expect(report, "E004", where="bad.h5ad", only=True)
    assert report.facts["n_obs"] == 28
    assert any(e.what == "values" and "could not be read" in e.why for e in report.not_checked)


def without(key):
    def change(file):
        del file[key]

    return change


def put(key, values, **options):
    return lambda file: replace_dataset(file, key, values, **options)


def set_attribute(key, name, value):
    def change(file):
        file[key].attrs[name] = value

    return change


def set_item(key, at, value):
    def change(file):
        file[key][at] = value

    return change


def text_matrix(file):
    del file["X"]
    file.create_dataset("X", data=np.full((28, 30), "x", dtype=object), dtype=h5py.string_dtype())


def compound_obs(file):
    del file["obs"]
    file.create_dataset("obs", data=np.zeros(28, dtype=[("index", "S4"), ("target_gene", "S4")]))


STRUCTURE = [
    (without("X"), "E005", "/X", "nothing"),
    (without("obs"), "E005", "/obs", "nothing"),
    (without("obs/_index"), "E006", "/obs", "no data frame group"),
    (compound_obs, "E006", "/obs", "no data frame group"),
    (text_matrix, "E007", "/X", "2-d object"),
    (put("X/data", np.array([b"a"] * 5)), "E007", "/X/data", "|S1"),
    (put("X/data", np.zeros(5, dtype=complex)), "E007", "/X/data", "complex128"),
    (put("X/indptr", np.zeros(29)), "E007", "/X/indptr", "float64"),
    (without("X/indices"), "E007", "/X/indices", "no one-dimensional indices"),
    (set_attribute("X", "encoding-type", "coo_matrix"), "E007", "/X", "'coo_matrix'"),
    (set_attribute("X", "shape", np.array([28])), "E008", "/X", "shape attribute (28,)"),
    (put("X/indptr", np.zeros(28, dtype=int)), "E008", "/X", "indptr has 28 entries for 28 rows"),
    (set_item("X/indptr", 0, 1), "E008", "/X", "indptr starts at 1"),
    (set_item("X/indptr", 3, 10**6), "E008", "/X", "indptr decreases at position 4"),
    (set_item("X/indptr", 28, 10**6), "E008", "/X", "indptr ends at 1000000"),
    (set_item("X/indices", 2, 30), "E008", "/X", "index 30 at entry 2 is outside 0 to 29"),
    (set_item("X/indices", 2, -1), "E008", "/X", "index -1 at entry 2"),
    (set_attribute("X", "shape", np.array([28, 31])), "E009", "/X", "28 x 31"),
    (put("obs/target_gene/codes", np.zeros(27, np.int8)), "E011", "/obs/target_gene", "27 values"),
]


@pytest.mark.parametrize(("change", "code", "place", "found"), STRUCTURE)
def test_broken_structure(paths, tmp_path, change, code, place, found):
    report = check(defect(paths.entry, tmp_path / "bad.h5ad", change), **paths.options())
    expect(
        report,
        code,
        where=f"bad.h5ad:{place}",
        found=found.replace("1000000", "1,000,000").split(",")[0],
        only=True,
    )
    assert any("values" in entry.what for entry in report.not_checked)


def test_several_structural_problems_at_once(paths, tmp_path):
    def change(file):
        del file["X"], file["var"]

    report = check(defect(paths.entry, tmp_path / "bad.h5ad", change))
    assert [issue.code for issue in report.issues] == ["E005", "E005"]


@pytest.mark.parametrize("shape", [(10**7, 18_080), (2**40, 2**40)])
def test_a_huge_declared_shape_with_tiny_data(paths, tmp_path, shape):
    def change(file):
        for key, n in (("obs", shape[0]), ("var", shape[1])):
            del file[key]["_index"]
            file[key].create_dataset("_index", (n,), h5py.string_dtype(), chunks=(64,))
        del file["X"]
        file.create_dataset("X", shape, np.float32, chunks=(16, 16))

    bad = defect(paths.entry, tmp_path / "bad.h5ad", change)
    assert bad.stat().st_size < 2**20
    report = check(bad)
    assert codes_of(report) == {"E010"}
    assert "bytes declared" in report.issues[0].found and "0 stored" in report.issues[0].found


def test_rows_of_a_kind_the_edition_does_not_take(tmp_path):
    file = standard_h5ad(tmp_path / "means.h5ad", cells=1, controls=1)
    bad = defect(file, tmp_path / "bad.h5ad", put("uns/vcbench/rows", "mean"))
    assert check(bad, edition="core").valid
    edition = small_edition(gene_count=None)
    edition = edition.model_copy(update={"file": edition.file.model_copy(update={"rows": ("cell",)})})
    report = check(bad, edition=edition, pert_col="perturbation", control="control")
    expect(
        report, "E013", where="bad.h5ad:/uns/vcbench/rows", found="mean rows", expected="cell rows", only=True
    )


def test_a_profile_given_twice(tmp_path):
    file = standard_h5ad(tmp_path / "means.h5ad", cells=2, controls=1)
    bad = defect(file, tmp_path / "bad.h5ad", put("uns/vcbench/rows", "mean"))
    report = check(bad, edition="core")
    expect(report, "E212", found="4 of 5 profiles given more than once (first: 'K562: G000')", only=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (put("uns/vcbench/schema_version", 99), "schema version 99"),
        (put("uns/vcbench/schema_version", "one"), "schema version 'one'"),
        (put("uns/vcbench/rows", "tile"), "rows 'tile'"),
        (put("uns/vcbench/matrix/kind", "tpm"), "matrix kind 'tpm'"),
        (put("uns/vcbench/matrix", 5.0), "matrix kind None"),
        (put("uns/vcbench/matrix/target_sum", "many"), "target_sum 'many'"),
        (put("uns/vcbench/matrix/target_sum", -1.0), "target_sum -1.0"),
        (put("uns/vcbench/matrix/target_sum", np.nan), "target_sum nan"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, change, found):
    file = standard_h5ad(tmp_path / "core.h5ad")
    report = check(defect(file, tmp_path / "bad.h5ad", change), edition="core", matrix="counts")
    expect(report, "E014", where="bad.h5ad:/uns/vcbench", found=found, expected="schema version 1", only=True)


@pytest.mark.parametrize("text", ["{", "{}", "5", '["A"]', '[{"context": "A"}]'])
def test_a_list_of_refusals_that_cannot_be_read(tmp_path, text):
    file = standard_h5ad(tmp_path / "core.h5ad")

    def add(handle):
        handle["uns/vcbench"].create_dataset("refused", data=text, dtype=h5py.string_dtype())

    report = check(defect(file, tmp_path / "bad.h5ad", add), edition="core")
    expect(report, "E015", where="/uns/vcbench/refused", found=repr(text[:40]), only=True)


def test_a_packed_entry_names_the_container_not_the_temporary_file(paths, tmp_path):
    broken = defect(paths.entry, tmp_path / "inner.h5ad", set_item("X/data", 0, np.nan))
    write_vcc2025(broken, tmp_path / "pred.vcc")
    report = check(tmp_path / "pred.vcc", **paths.options())
    issue = expect(report, "E301", where="pred.vcc:/X/data", only=True)
    assert issue.fix == f"vcbench inspect {tmp_path / 'pred.vcc'}"
    assert report.facts["container"] == "vcc2025"
    for change, code in ((without("X"), "E005"), (put("obs/target_gene/codes", np.zeros(28)), "E012")):
        write_vcc2025(defect(paths.entry, broken, change), tmp_path / "pred2.vcc")
        issue = expect(check(tmp_path / "pred2.vcc", **paths.options()), code, where="pred2.vcc:/", only=True)
        assert issue.fix == f"vcbench inspect {tmp_path / 'pred2.vcc'}"
    assert not list(tmp_path.glob(".vcbench*"))


def test_containers_of_another_edition_and_broken_ones(paths, tmp_path):
    write_vcc2025(paths.entry, tmp_path / "pred.vcc")
    edition = small_edition()
    edition = edition.model_copy(update={"file": edition.file.model_copy(update={"containers": ("h5ad",)})})
    report = check(tmp_path / "pred.vcc", edition=edition, **paths.options())
    expect(report, "E540", found="vcc2025", expected="h5ad", only=True)
    whole = (tmp_path / "pred.vcc").read_bytes()
    (tmp_path / "cut.vcc").write_bytes(whole[: len(whole) // 3])
    report = check(tmp_path / "cut.vcc")
    assert not report.valid and all("cut.vcc" in issue.where for issue in report.issues)
    with pytest.raises(OutputError):
        validate(tmp_path / "pred.vcc", edition=edition, tmp=tmp_path / "none")


def test_unknown_editions_are_usage_errors(paths):
    with pytest.raises(UnknownName, match="vcc2025"):
        validate(paths.entry, edition="vcc2052")


def storage_offset(dataset):
    """Where the bytes of a dataset stand in its file."""
    return dataset.id.get_chunk_info(0).byte_offset if dataset.chunks else dataset.id.get_offset()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("key", ["X/data", "X/indices", "X/indptr", "obs/target_gene/codes"])
def test_flipped_bytes_of_stored_values_never_raise(paths, tmp_path, key, seed):
    with h5py.File(paths.entry) as file:
        low, n_bytes = storage_offset(file[key]), file[key].size * file[key].dtype.itemsize
    rng = np.random.default_rng(seed)
    raw = bytearray(paths.entry.read_bytes())
    for at in low + rng.integers(n_bytes, size=1 + 3 * seed):
        raw[at] = rng.integers(256)
    bad = tmp_path / "flipped.h5ad"
    bad.write_bytes(raw)
    report = check(bad, **paths.options())
    assert all(issue.found and issue.where and issue.fix for issue in report.issues)
