"""What the official 2026 tool does not look at: meta.json, controls, copies, swapped contexts; and corrected copies."""

import json
import tarfile

import numpy as np
import pytest
from builders import GENES
from builders_entry import defect, replace_dataset, set_labels
from packing_2026 import CELLS, CONTEXTS, TARGETS, files_2026, official_cells
from packing_files import dense_of, labels_of, write_tar
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.errors import OutputError, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.evaluator.cli import cli
from vcbench.evaluator.fixing import fix_entry
from vcbench.evaluator.validation import CheckedNames, validate
from vcbench.submission.packing import pack


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return files_2026(tmp_path_factory.mktemp("in"))


@pytest.fixture(scope="module")
def entry(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("entry") / "entry.vcc"
    pack(files.means, "vcc2026", out=path, **files.options(mode="scale"))
    return path


@pytest.fixture(scope="module")
def plain(entry, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.h5ad"
    with open_entry(entry) as opened:
        path.write_bytes(opened.h5ad.read_bytes())
    return path


def names(files, **more):
    return {"genes": files.genes, "perts": files.perts, "contexts": CONTEXTS, **more}


def check(path, files, **more):
    return validate(path, edition="vcc2026", **names(files, **more))


def found(report):
    return {issue.code: issue for issue in report.issues}


def with_meta(entry, path, **changes):
    """The entry with other fields in its meta.json; None removes one."""
    with tarfile.open(entry) as tar:
        parts = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    meta = json.loads(parts["meta.json"]) | changes
    text = json.dumps({key: value for key, value in meta.items() if value is not None}).encode()
    return write_tar(path, [("meta.json", text), ("pred.h5ad.zst", parts["pred.h5ad.zst"])])


def test_an_entry_of_ours_has_nothing_to_remark_but_its_small_panel(entry, files):
    report = check(entry, files, controls=files.controls)
    assert report.valid and set(found(report)) == {"W107"}, report.issues


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"nnz": 5}, "nnz"),
        ({"n_obs": 181}, "n_obs"),
        ({"n_vars": 39}, "n_vars"),
        ({"perts_fingerprint": "sha256:0"}, "perts_fingerprint"),
        ({"contexts": ["A", "C"]}, "contexts"),
    ],
)
def test_meta_that_contradicts_the_content(changes, text, entry, files, tmp_path):
    report = check(with_meta(entry, tmp_path / "e.vcc", **changes), files)
    issue = found(report)["E541"]
    assert not report.valid and text in issue.found and issue.where == "e.vcc:meta.json"


def test_meta_of_other_contexts_than_required(entry, files):
    report = validate(
        entry, edition="vcc2026", genes=files.genes, perts=files.perts, contexts=("A", "B", "C")
    )
    assert {"E541", "E206"} <= set(found(report))


@pytest.mark.parametrize("changes", [{"nnz": True}, {"nnz": "5"}, {"contexts": "AB"}])
def test_meta_of_another_type_is_unknown(changes, entry, files, tmp_path):
    report = check(with_meta(entry, tmp_path / "e.vcc", **changes), files)
    assert report.valid and "W504" in found(report) and "E541" not in found(report)


def test_absent_fields_say_nothing(entry, files, tmp_path):
    path = with_meta(entry, tmp_path / "e.vcc", nnz=None, contexts=None, perts_fingerprint=None)
    assert set(found(check(path, files))) == {"W107"}


def cells(path, x, keys):
    return official_cells(path, x, [t for _, t in keys], [c for c, _ in keys], GENES)


@pytest.fixture
def keys():
    return [(c, t) for c in CONTEXTS for t in TARGETS for _ in range(CELLS)]


def real_cells(files, rng, n, context):
    rows = dense_of(files.bundle[context])
    return rows[rng.permutation(len(rows))[:n]]


def test_copies_of_controls(files, keys, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (len(keys), len(GENES))).astype(float)
    x[:4] = real_cells(files, rng, 4, "A")
    report = check(cells(tmp_path / "c.h5ad", x, keys), files, controls=files.bundle)
    assert found(report)["W324"].found.startswith("4 of 180 cells")


def test_copies_are_seen_in_another_gene_order(files, keys, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (len(keys), len(GENES))).astype(float)
    x[:4] = real_cells(files, rng, 4, "A")
    labels, places = [t for _, t in keys], [c for c, _ in keys]
    path = official_cells(tmp_path / "c.h5ad", x[:, ::-1], labels, places, GENES[::-1])
    assert "W324" in found(check(path, files, controls=files.controls))


@pytest.mark.parametrize(("option", "code", "kind"), [("truth", "W328", "truth"), ("train", "W329", "train")])
def test_copies_of_measured_cells(option, code, kind, files, plain, keys, tmp_path):
    rng = np.random.default_rng(1)
    held = rng.poisson(3.0, (20, len(GENES))).astype(float)
    held[15:] = dense_of(plain)[:5]
    # Rows of other genes, and control cells, may be equal: an entry's controls are the real ones.
    labels = [*["G000"] * 15, *["non-targeting"] * 5]
    real = official_cells(tmp_path / "real.h5ad", held[:, ::-1], labels, "A", GENES[::-1])
    assert code not in found(check(plain, files, **{option: real}))
    x = dense_of(plain)
    x[7], x[40], x[41] = held[3], held[3], held[12]
    report = check(cells(tmp_path / "leak.h5ad", x, keys), files, **{option: real})
    assert found(report)[code].found.startswith("3 of 180 predicted cells (first: row 7 ")
    assert kind in found(report)[code].expected and report.valid
    assert code in found(check(cells(tmp_path / "l.h5ad", x, keys), files, **{option: {"A": real}}))


def test_measured_cells_of_another_scale_are_not_compared(files, plain):
    report = check(plain, files, truth=files.means)
    assert "W328" not in found(report)
    assert any("--truth" in gap.what for gap in report.not_checked)
    assert any("training cells" in gap.what for gap in report.not_checked)


def test_leaks_by_command(files, plain, capsys):
    words = ["validate", plain, "--edition", "vcc2026", "--genes", files.genes, "--perts", files.perts]
    words += ["--contexts", "A,B", "--truth", plain, "--train", plain]
    assert run(cli, [str(word) for word in words]) == 0
    text = capsys.readouterr().out
    assert "W328" in text and "W329" in text and "180 of 180 predicted cells" in text


def test_swapped_contexts(files, plain, tmp_path):
    def swap(file):
        values = [{"A": "B", "B": "A"}[c] for c in labels_of(plain, "context")]
        set_labels(file, "context", values)

    swapped = defect(plain, tmp_path / "s.h5ad", swap)
    assert "W323" in found(check(swapped, files, controls=files.controls))
    assert "W323" not in found(check(plain, files, controls=files.controls))


def test_depth_and_detected_genes(files, plain, keys, tmp_path):
    deep = cells(tmp_path / "deep.h5ad", dense_of(plain) * 3, keys)
    assert "W325" in found(check(deep, files, controls=files.controls))
    few = dense_of(plain)
    few[:, :30] = 0
    few[:, 30:] += 1
    assert "W326" in found(check(cells(tmp_path / "few.h5ad", few, keys), files, controls=files.controls))


def test_repeated_cells(files, plain, keys, tmp_path):
    x = dense_of(plain)
    x[10:20] = x[:10]
    report = check(cells(tmp_path / "r.h5ad", x, keys), files)
    assert found(report)["W322"].found.startswith("10 of 180 cells")
    x = dense_of(plain)
    x[:CELLS] = x[0]
    report = check(cells(tmp_path / "t.h5ad", x, keys), files)
    assert "W318" in found(report) and "W322" not in found(report)


def test_all_perturbations_alike(files, plain, keys, tmp_path):
    x = np.tile(dense_of(plain)[:CELLS], (6, 1))
    assert "W317" in found(check(cells(tmp_path / "same.h5ad", x, keys), files))


def test_more_than_an_entry_needs(files, plain, tmp_path):
    def add(file):
        file["obs"].create_dataset("note", data=np.arange(180))
        file["layers"].create_dataset("raw", data=np.zeros((180, 40)))

    issue = found(check(defect(plain, tmp_path / "x.h5ad", add), files))["W327"]
    assert issue.severity == "info" and "obs/note" in issue.found and "layers" in issue.found


def test_memory_of_the_official_client(files, plain, monkeypatch):
    from vcbench.evaluator.checks import panel

    monkeypatch.setattr(panel, "physical_bytes", lambda: 2**30)
    assert "W411" in found(check(plain, files))


def test_unreadable_controls_are_an_issue(files, plain, tmp_path):
    report = check(plain, files, controls=tmp_path / "none.h5ad")
    assert "E001" in found(report) and not report.valid


def broken(plain, path):
    """Genes reversed, a stored zero, labels with spaces and guide suffixes, repeated row names, float64."""

    def change(file):
        genes = file["var/_index"][()]
        replace_dataset(file, "var/_index", genes[::-1])
        indices = 39 - file["X/indices"][()]
        replace_dataset(file, "X/indices", indices)
        data = file["X/data"][()].astype(np.float64)
        replace_dataset(file, "X/data", data)
        names = list(labels_of(plain, "target_gene"))
        names = [
            f" {n}" if n == "G000" else f"{n}-{1 + i % 2}" if n == "G001" else n for i, n in enumerate(names)
        ]
        set_labels(file, "target_gene", names)
        rows = file["obs/_index"][()]
        rows[1] = rows[0]
        replace_dataset(file, "obs/_index", rows)

    return defect(plain, path, change)


@pytest.mark.parametrize("name", ["fixed.h5ad", "fixed.vcc"])
def test_corrected_copy(name, files, plain, tmp_path):
    bad = broken(plain, tmp_path / "bad.h5ad")
    before = bad.read_bytes()
    assert not check(bad, files).valid
    result = fix_entry(bad, tmp_path / name, edition="vcc2026", names=CheckedNames(**names(files)))
    report = check(tmp_path / name, files)
    assert report.valid and set(found(report)) == {"W107"}, report.issues
    with open_entry(tmp_path / name) as opened:
        np.testing.assert_array_equal(dense_of(opened.h5ad), dense_of(plain))
        assert list(labels_of(opened.h5ad, "target_gene")) == list(labels_of(plain, "target_gene"))
    text = "\n".join(result.changes)
    for part in ("order of gene_names.csv", "labels of target_gene", "numbered anew", "float64"):
        assert part in text, text
    assert bad.read_bytes() == before


def test_nothing_to_correct(files, plain, tmp_path):
    result = fix_entry(plain, tmp_path / "f.h5ad", edition="vcc2026", names=CheckedNames(**names(files)))
    assert result.changes == []
    with H5ad(tmp_path / "f.h5ad") as fixed, H5ad(plain) as original:
        assert fixed.matrix == original.matrix
    with pytest.raises(OutputError, match="exists already"):
        fix_entry(plain, tmp_path / "f.h5ad", edition="vcc2026", names=CheckedNames(**names(files)))
    with pytest.raises(OutputError, match="also an input"):
        fix_entry(plain, plain, edition="vcc2026", names=CheckedNames(**names(files)), force=True)
    with pytest.raises(UsageError, match="takes"):
        fix_entry(plain, tmp_path / "f.txt", edition="vcc2026", names=CheckedNames(**names(files)))


def test_stored_zeros_are_counted(files, plain, keys, tmp_path):
    def zero(file):
        data = file["X/data"][()]
        data[:3] = 0
        replace_dataset(file, "X/data", data)

    bad = defect(plain, tmp_path / "z.h5ad", zero)
    result = fix_entry(bad, tmp_path / "f.h5ad", edition="vcc2026", names=CheckedNames(**names(files)))
    assert result.changes == ["3 stored zeros and repeated entries merged away"]


def test_commands(files, entry, plain, tmp_path, capsys):
    words = [
        "--edition",
        "vcc2026",
        "--genes",
        str(files.genes),
        "--perts",
        str(files.perts),
        "--contexts",
        "A,B",
    ]
    assert run(cli, ["verify", str(entry), *words, "--controls", str(files.controls)]) == 0
    assert "valid for edition vcc2026" in capsys.readouterr().out
    assert run(cli, ["verify", str(with_meta(entry, tmp_path / "e.vcc", nnz=1)), *words]) == 1
    assert run(cli, ["verify", str(plain), *words]) == 2
    assert run(cli, ["verify", str(tmp_path / "none.vcc"), *words]) == 1
    capsys.readouterr()
    bad = broken(plain, tmp_path / "bad.h5ad")
    fixed = str(tmp_path / "fixed.h5ad")
    assert run(cli, ["validate", str(bad), *words, "--fix", fixed, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] and any("order of" in change for change in answer["changes"])
