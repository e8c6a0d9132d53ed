"""Entries of 2026: counts per context and target, no controls, `meta.json`, from every kind of input."""

import hashlib
import json
import tarfile

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES
from packing_2026 import CELLS, CONTEXTS, TARGETS, files_2026, official_cells, write_manifest
from packing_files import dense_of, labels_of, write_means
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.normalize import lognormalize
from vcbench.evaluator.validation import validate
from vcbench.evaluator.vcc2026.fingerprints import perturbations_fingerprint
from vcbench.submission.packing import pack
from vcbench.submission.unpacking import unpack


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return files_2026(folder)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "entry.vcc"


def codes(pred, out, **options):
    """The codes of a refusal that leaves nothing behind."""
    with pytest.raises(InvalidFile) as caught:
        pack(pred, "vcc2026", out=out, **options)
    assert list(out.parent.iterdir()) == []
    return sorted(issue.code for issue in caught.value.issues if issue.severity == "error")


def tally(path):
    """(context, target) to number of cells."""
    keys = zip(labels_of(path, "context"), labels_of(path, "target_gene"), strict=True)
    found = {}
    for key in keys:
        found[key] = found.get(key, 0) + 1
    return found


def test_mean_effects_become_a_valid_entry(files, out, tmp_path):
    result = pack(files.means, "vcc2026", out=out, **files.options())
    assert [issue.code for issue in result.warnings if issue.severity == "warning"] == ["W107"]
    plain = unpack(out, out=tmp_path / "plain.h5ad").h5ad
    assert tally(plain) == {(c, t): CELLS for c in CONTEXTS for t in TARGETS}
    data = ad.read_h5ad(plain)
    assert list(data.obs.columns) == ["target_gene", "context"] and list(data.var_names) == list(GENES)
    assert list(data.obs_names) == [str(i) for i in range(data.n_obs)] and not data.uns
    x = dense_of(plain)
    assert x.sum() > 0 and (x == np.rint(x)).all() and data.X.dtype == np.float32
    with H5ad(plain) as file:
        stored = file.matrix.n_stored
    with open_entry(out) as entry:
        assert entry.container == "vcc2026" and entry.notes == ()
        assert entry.meta == {
            "schema": 1,
            "nnz": stored,
            "n_obs": 180,
            "n_vars": 40,
            "cli_version": entry.meta["cli_version"],
            "contexts": list(CONTEXTS),
            "perts_fingerprint": perturbations_fingerprint(TARGETS),
        }
    assert result.next_command == f"vcc submit {out}"
    assert result.record["mode"] and result.record["mode_reason"] and len(result.record["emission"]) == 6


def test_the_order_is_contexts_as_asked_then_the_list(files, out):
    pack(files.means, "vcc2026", out=out, **files.options(contexts=("B", "A")))
    with open_entry(out) as entry:
        assert list(tally(entry.h5ad)) == [(c, t) for c in ("B", "A") for t in reversed(TARGETS)]


def test_group_means_follow_the_profiles_of_their_context(files, out):
    pack(files.means, "vcc2026", out=out, **files.options(n_cells=CELLS))
    with open_entry(out) as entry:
        logs = lognormalize(sp.csr_array(dense_of(entry.h5ad)), 80.0).toarray()
        names, places = labels_of(entry.h5ad, "target_gene"), labels_of(entry.h5ad, "context")
    wanted = dense_of(files.means)[:, ::-1]
    labels, contexts = labels_of(files.means), labels_of(files.means, "context")
    for profile, label, context in zip(wanted, labels, contexts, strict=True):
        mean = logs[(names == label) & (places == context)].mean(axis=0)
        assert np.corrcoef(mean, profile)[0, 1] > 0.9


def test_member_order_headers_and_meta_text(files, out):
    write_manifest(files.genes.parent)
    pack(files.means, "vcc2026", out=out, **files.options(contexts=None))
    with tarfile.open(out, "r:") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["meta.json", "pred.h5ad.zst"]
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
        handle = tar.extractfile("meta.json")
        assert handle is not None
        text = handle.read().decode()
    meta = json.loads(text)
    assert text == json.dumps(meta, sort_keys=True)
    assert meta["contexts"] == list(CONTEXTS) and meta["panel_id"] == "panel-1"


def test_panel_id_only_for_the_contexts_of_the_manifest(files, out):
    write_manifest(files.genes.parent, contexts=["A", "B", "C"])
    pack(files.means, "vcc2026", out=out, **files.options())
    with open_entry(out) as entry:
        assert "panel_id" not in entry.meta and entry.meta["contexts"] == list(CONTEXTS)


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_bytes(threads, files, tmp_path):
    digests = []
    for name in ("a", "b"):
        entry = tmp_path / f"{name}.vcc"
        pack(files.means, "vcc2026", out=entry, **files.options(threads=threads if name == "a" else 1))
        digests.append(hashlib.sha256(entry.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_official_controls_one_file_per_context_give_the_same_entry(files, tmp_path):
    entries = {}
    for name, controls in (
        ("standard", files.controls),
        ("listed", list(files.bundle.values())),
        ("named", [f"{c}={path}" for c, path in files.bundle.items()]),
        ("mapping", files.bundle),
    ):
        path = tmp_path / f"{name}.vcc"
        pack(files.means, "vcc2026", out=path, **files.options(controls=controls))
        entries[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(set(entries.values())) == 1


def test_h5ad_entry_equals_the_content_of_the_container(files, out, tmp_path):
    pack(files.means, "vcc2026", out=out, **files.options())
    plain = tmp_path / "plain.h5ad"
    pack(files.means, "vcc2026", out=plain, **files.options())
    unpacked = unpack(out, out=tmp_path / "unpacked.h5ad").h5ad
    assert plain.read_bytes() == unpacked.read_bytes()


def test_cell_predictions_lose_controls_and_keep_every_value(files, out, tmp_path):
    rng = np.random.default_rng(5)
    labels = ["non-targeting"] * 8 + [t for t in TARGETS for _ in range(CELLS)]
    keys = [(c, t) for c in CONTEXTS for t in labels]
    x = rng.poisson(2.0, (len(keys), len(GENES)))
    reverse = GENES[::-1]
    cells = official_cells(
        tmp_path / "cells.h5ad", x[:, ::-1], [t for _, t in keys], [c for c, _ in keys], reverse
    )
    pack(cells, "vcc2026", out=out, **files.options(controls=None))
    kept = np.array([t != "non-targeting" for _, t in keys])
    with open_entry(out) as entry:
        np.testing.assert_array_equal(dense_of(entry.h5ad), x[kept])
        assert list(labels_of(entry.h5ad, "context")) == [c for c, t in keys if t != "non-targeting"]
    again = pack(out, "vcc2026", out=tmp_path / "again.vcc", **files.options(controls=None))
    assert again.record["entry"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def test_one_file_per_context(files, out, tmp_path):
    rng = np.random.default_rng(6)
    labels = [t for t in TARGETS for _ in range(CELLS)]
    parts = {}
    for context in CONTEXTS:
        x = rng.poisson(2.0, (len(labels), len(GENES)))
        parts[context] = (x, official_cells(tmp_path / f"{context}.h5ad", x, labels, "unnamed", GENES))
    pack(
        [f"{c}={path}" for c, (_, path) in parts.items()], "vcc2026", out=out, **files.options(controls=None)
    )
    with open_entry(out) as entry:
        np.testing.assert_array_equal(dense_of(entry.h5ad), np.concatenate([x for x, _ in parts.values()]))
        assert tally(entry.h5ad) == {(c, t): CELLS for c in CONTEXTS for t in TARGETS}


def test_run_folder_and_one_context_without_its_column(files, out, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "prediction.h5ad").write_bytes(files.means.read_bytes())
    pack(run, "vcc2026", out=out, **files.options(contexts=["A"]))
    with open_entry(out) as entry:
        assert tally(entry.h5ad) == {("A", t): CELLS for t in TARGETS}


def test_list_with_contexts_is_kept_apart(files, out):
    rows = [("A", "G000", 7), ("A", "G001", 8), ("B", "G001", 9), ("B", "G002", "")]
    files.perts.write_text("context,target_gene,n_cells\n" + "\n".join(f"{c},{t},{n}" for c, t, n in rows))
    assert codes(files.means, out, **files.options()) == ["E522"]
    keep = [0, 1, 4, 5]
    with H5ad(files.means) as file:
        names, places = labels_of(files.means)[keep], list(labels_of(files.means, "context")[keep])
        genes = file.genes
    means = write_means(
        files.means.parent / "some.h5ad", dense_of(files.means)[keep], names, genes=genes, contexts=places
    )
    pack(means, "vcc2026", out=out, **files.options())
    with open_entry(out) as entry:
        assert tally(entry.h5ad) == {
            ("A", "G000"): 7,
            ("A", "G001"): 8,
            ("B", "G001"): 9,
            ("B", "G002"): 400,
        }


def test_without_n_cells_every_target_gets_the_400_of_the_edition(files, out):
    files.perts.write_text("target_gene\n" + "\n".join(TARGETS) + "\n")
    pack(files.means, "vcc2026", out=out, **files.options())
    with open_entry(out) as entry:
        assert set(tally(entry.h5ad).values()) == {400}


def test_cells_are_counted_per_context(files, out, tmp_path):
    """A target with the right number in all but one context is refused, whatever the sum."""
    rng = np.random.default_rng(5)
    keys = [(c, t) for c in CONTEXTS for t in TARGETS for _ in range(CELLS)]
    keys[0] = ("B", keys[0][1])
    x = rng.poisson(2.0, (len(keys), len(GENES)))
    cells = official_cells(tmp_path / "cells.h5ad", x, [t for _, t in keys], [c for c, _ in keys], GENES)
    assert codes(cells, out, **files.options(controls=None)) == ["E410"]


def test_refusals_before_anything_is_written(files, out, tmp_path):
    assert codes(files.means, out, **files.options(contexts=None)) == ["E411"]
    assert codes(files.means, out, **files.options(perts=None)) == ["E407"]
    assert codes(files.means, out, **files.options(contexts=("A", "B", "C"))) == ["E537"]
    assert codes(files.means, out, **files.options(contexts=("D",))) == ["E537"] * 1
    with pytest.raises(UsageError, match="needs control cells"):
        pack(files.means, "vcc2026", out=out, **files.options(controls=None))
    x = np.random.default_rng(0).poisson(2.0, (3 * CELLS, len(GENES)))
    labels = [t for t in TARGETS for _ in range(CELLS)]
    bare = official_cells(tmp_path / "bare.h5ad", x, labels, [None] * len(x), GENES)
    assert codes(bare, out, **files.options(controls=None)) == ["E538"]
    fractions = official_cells(tmp_path / "fractions.h5ad", np.log1p(x), labels, "A", GENES)
    assert codes(fractions, out, **files.options(controls=None, contexts=["A"])) == ["E304"]
    asked = files.options(controls=None, contexts=["A"], matrix="log1p", target_sum=80.0)
    assert codes(fractions, out, **asked) == ["E539"]
    write_manifest(files.genes.parent, contexts="AB")
    assert codes(files.means, out, **files.options(contexts=None)) == ["E411"]
    pack(files.means, "vcc2026", out=out, **files.options())


def test_files_named_twice_or_not_at_all(files, out):
    with pytest.raises(UsageError, match="'A' twice"):
        pack(files.means, "vcc2026", out=out, **files.options(controls=["A=a.h5ad", "A=b.h5ad"]))
    with pytest.raises(UsageError, match="names no file"):
        pack(["A="], "vcc2026", out=out, **files.options())
    with pytest.raises(UsageError, match="names no file"):
        pack([], "vcc2026", out=out, **files.options())


def test_validate_agrees(files, out):
    pack(files.means, "vcc2026", out=out, **files.options())
    report = validate(out, edition="vcc2026", genes=files.genes, perts=files.perts, contexts=CONTEXTS)
    assert report.valid and report.facts["contexts"] == dict.fromkeys(CONTEXTS, 3 * CELLS)
