"""`pack`: contents of entries, what it refuses with which code, and that nothing is left behind."""

import hashlib
import json

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from packing_files import TARGET_SUM, TARGETS, dense_of, labels_of, pack_files, write_means
from vcbench.data_specs import containers
from vcbench.data_specs.errors import InvalidFile, UsageError
from vcbench.data_specs.h5ad import H5ad
from vcbench.data_specs.h5ad_write import write_h5ad_stream
from vcbench.data_specs.normalize import lognormalize
from vcbench.evaluator.validation import validate
from vcbench.submission import pack_rows
from vcbench.submission.emission_rules import MODES
from vcbench.submission.inspection import inspect_file
from vcbench.submission.packing import pack
from vcbench.submission.unpacking import unpack


def reordered(path, genes):
    with H5ad(path) as file:
        own = {gene: i for i, gene in enumerate(file.genes)}
    return dense_of(path)[:, [own[g] for g in genes]]


def refusal(pred, edition, out, **options):
    """The issue codes of a refusal that leaves the output folder as it was."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InvalidFile) as caught:
        pack(pred, edition, out=out, **options)
    assert sorted(out.parent.iterdir()) == before
    return [issue.code for issue in caught.value.issues if issue.severity == "error"]


def test_counts_become_median_normalised_log_values(files, out):
    result = pack(files.cells, "vcc2025", out=out, genes=files.genes)
    x = reordered(files.cells, files.gene_order)
    totals = x.sum(axis=1)
    target = np.median(totals)
    expected = np.log1p(x / (totals / target)[:, None])
    with containers.open_entry(out) as entry:
        np.testing.assert_allclose(dense_of(entry.h5ad), expected, rtol=1e-6)
    assert result.record["result"]["normalised_to_median_total"] == pytest.approx(target)


def test_inner_h5ad_is_as_the_format_says(files, out, tmp_path):
    pack(files.cells, "vcc2025", out=out, genes=files.genes)
    plain = unpack(out, out=tmp_path / "plain.h5ad").h5ad
    with h5py.File(plain) as f:
        assert dict(f["X"].attrs)["encoding-type"] == "csr_matrix" and list(f["X"].attrs["shape"]) == [
            108,
            40,
        ]
        assert f["X/data"].dtype == np.float32
        assert all(f["X"][key].compression is None for key in f["X"])
        assert list(f["obs"].attrs["column-order"]) == ["target_gene"]
        assert f["obs/target_gene"].attrs["encoding-type"] == "categorical"
        assert list(f["var"].attrs["column-order"]) == []
        assert f["uns/log1p/base"].attrs["encoding-type"] == "null"
        assert [len(f[key]) for key in ("layers", "obsm", "varm", "obsp", "varp")] == [0] * 5
    data = ad.read_h5ad(plain)
    assert list(data.obs_names) == [str(i) for i in range(108)]
    assert list(data.var_names) == list(files.gene_order)
    wanted = np.where(labels_of(files.cells) == "control", "non-targeting", labels_of(files.cells))
    assert list(data.obs["target_gene"]) == list(wanted)


def test_round_trip_keeps_log_values_labels_and_genes(files, tmp_path, out):
    """Packing what was unpacked changes nothing: log1p is accepted as it is."""
    pack(files.cells, "vcc2025", out=out, genes=files.genes)
    first = unpack(out, out=tmp_path / "first.h5ad").h5ad
    again = pack(first, "vcc2025", out=tmp_path / "again.vcc", genes=files.genes)
    second = unpack(tmp_path / "again.vcc", out=tmp_path / "second.h5ad").h5ad
    np.testing.assert_array_equal(dense_of(first), dense_of(second))
    assert list(labels_of(first, "target_gene")) == list(labels_of(second, "target_gene"))
    assert "log1p" in again.record["notes"][0]
    third = pack(out, "vcc2025", out=tmp_path / "third.vcc", genes=files.genes)
    assert third.record["entry"]["sha256"] == again.record["entry"]["sha256"]


@pytest.mark.parametrize("mode", [None, "scale"])
def test_equal_bytes_on_repeat_and_for_any_block_size(mode, files, tmp_path, monkeypatch):
    pred, controls = (files.cells, None) if mode is None else (files.means, files.cells)
    digests = set()
    for i, block_bytes in enumerate((2**26, 2**26, 700)):
        monkeypatch.setattr(pack_rows.FileRows, "block_bytes", block_bytes)
        monkeypatch.setattr(pack_rows.FileRows.__init__, "__defaults__", (block_bytes,))
        entry = tmp_path / str(i) / "entry.vcc"
        entry.parent.mkdir()
        pack(pred, "vcc2025", out=entry, genes=files.genes, perts=files.perts, controls=controls, mode=mode)
        digests.add(hashlib.sha256(entry.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_controls_are_copied_where_the_prediction_has_none(files, tmp_path, out):
    data = ad.read_h5ad(files.cells)
    pred = tmp_path / "pred.h5ad"
    data[data.obs["perturbation"] != "control"].copy().write_h5ad(pred)
    assert refusal(pred, "vcc2025", out, genes=files.genes) == ["E520"]
    result = pack(pred, "vcc2025", out=out, genes=files.genes, controls=files.cells)
    with containers.open_entry(out) as entry:
        labels = labels_of(entry.h5ad, "target_gene")
        assert list(labels[-60:]) == ["non-targeting"] * 60 and "non-targeting" not in labels[:-60]
        x = reordered(files.cells, files.gene_order)
        x = np.vstack([x[60:], x[:60]])
        totals = x.sum(axis=1)
        np.testing.assert_allclose(
            dense_of(entry.h5ad), np.log1p(x / (totals / np.median(totals))[:, None]), rtol=1e-6
        )
    assert (
        result.record["inputs"]["controls"]["sha256"] == hashlib.sha256(files.cells.read_bytes()).hexdigest()
    )


def test_own_controls_and_a_control_file_contradict(files, out):
    with pytest.raises(UsageError, match="control cells of its own"):
        pack(files.cells, "vcc2025", out=out, genes=files.genes, controls=files.cells)


def test_log_prediction_with_count_controls_share_one_scale(tmp_path, out):
    (tmp_path / "a").mkdir()
    files = pack_files(tmp_path / "a")
    logs = standard_h5ad(tmp_path / "log.h5ad", perturbations=TARGETS, controls=1, cells=5, kind="log1p")
    data = ad.read_h5ad(logs)
    data[data.obs["perturbation"] != "control"].copy().write_h5ad(logs)
    result = pack(logs, "vcc2025", out=out, genes=files.genes, controls=files.cells)
    assert result.record["result"]["controls_normalised_to"] == TARGET_SUM
    with containers.open_entry(out) as entry:
        x = dense_of(entry.h5ad)
        np.testing.assert_allclose(np.expm1(x).sum(axis=1), TARGET_SUM, rtol=1e-5)
        with h5py.File(entry.h5ad) as f:
            assert list(f["uns"]) == []


def test_tiled_means_are_the_profiles(files, out):
    result = pack(files.means, "vcc2025", out=out, genes=files.genes, perts=files.perts, controls=files.cells)
    assert result.record["mode"] == "tile" and "zero variance" in result.record["mode_reason"]
    with containers.open_entry(out) as entry:
        labels, x = labels_of(entry.h5ad, "target_gene"), dense_of(entry.h5ad)
    assert [int((labels == name).sum()) for name in TARGETS] == [15, 16, 17, 18]
    profiles = reordered(files.means, files.gene_order)
    for name, profile in zip(TARGETS, profiles, strict=True):
        np.testing.assert_array_equal(x[labels == name], np.tile(profile, ((labels == name).sum(), 1)))
    controls = reordered(files.cells, files.gene_order)[:60]
    np.testing.assert_allclose(x[-60:], lognormalize(sp.csr_array(controls), TARGET_SUM).toarray(), rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_a_valid_entry_with_a_report_per_group(mode, files, out):
    result = pack(
        files.means,
        "vcc2025",
        out=out,
        genes=files.genes,
        perts=files.perts,
        controls=files.cells,
        mode=mode,
        seed=3,
    )
    record = json.loads(result.manifest.read_text())
    assert [(r["perturbation"], r["n_cells"], r["mode"]) for r in record["emission"]] == [
        (name, 15 + i, mode) for i, name in enumerate(TARGETS)
    ]
    assert validate(out, edition="vcc2025", genes=files.genes, perts=files.perts).valid
    assert record["seed"] == 3 and record["versions"]["zstd"] and record["validation"]["valid"]
    assert record["entry"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    written = ["entry.vcc", "entry.vcc.card.md", "entry.vcc.manifest.json"]
    assert sorted(p.name for p in out.parent.iterdir()) == written


def test_seed_changes_drawn_cells(files, tmp_path):
    found = []
    for seed in (0, 0, 1):
        entry = tmp_path / f"{len(found)}.h5ad"
        pack(files.means, "core", out=entry, controls=files.cells, n_cells=9, mode="counts", seed=seed)
        found.append(dense_of(entry))
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_core_keeps_means(files, tmp_path):
    entry = tmp_path / "core.h5ad"
    result = pack(files.means, "core", out=entry, genes=files.genes)
    np.testing.assert_array_equal(dense_of(entry), reordered(files.means, files.gene_order))
    with H5ad(entry) as file:
        assert (file.vcbench["rows"], file.vcbench["matrix"]["target_sum"]) == ("mean", TARGET_SUM)
        assert file.obs_columns == ("context", "perturbation", "reason", "status")
    assert result.record["mode"] is None
    assert "vcbench score" in result.next_command


def test_core_keeps_counts(files, tmp_path):
    pack(files.cells, "core", out=tmp_path / "core.h5ad")
    np.testing.assert_array_equal(dense_of(tmp_path / "core.h5ad"), dense_of(files.cells))
    assert list(labels_of(tmp_path / "core.h5ad")) == list(labels_of(files.cells))


def test_core_emits_whole_counts_on_request(files, tmp_path):
    entry = tmp_path / "core.h5ad"
    result = pack(files.means, "core", out=entry, controls=files.cells, n_cells=25)
    assert result.record["mode"] == "counts" and "fewer than 500" in result.record["mode_reason"]
    x = dense_of(entry)
    assert x.shape == (100, 40) and (x == np.rint(x)).all()
    with H5ad(entry) as file:
        assert (file.vcbench["rows"], file.vcbench["matrix"]["kind"]) == ("cell", "counts")


def test_contexts_use_their_own_controls(tmp_path):
    cells = standard_h5ad(tmp_path / "c.h5ad", contexts=("A", "B"), perturbations=TARGETS, controls=40)
    x, labels, places = dense_of(cells), labels_of(cells), labels_of(cells, "context")
    logs = lognormalize(sp.csr_array(x), TARGET_SUM).toarray()
    rows = [(c, p) for c in ("A", "B") for p in TARGETS]
    profiles = np.array([logs[(places == c) & (labels == p)].mean(axis=0) for c, p in rows])
    means = write_means(tmp_path / "m.h5ad", profiles, [p for _, p in rows], contexts=[c for c, _ in rows])
    pack(means, "core", out=tmp_path / "e.h5ad", controls=cells, n_cells=4)
    assert (
        sorted(
            set(zip(labels_of(tmp_path / "e.h5ad", "context"), labels_of(tmp_path / "e.h5ad"), strict=True))
        )
        == rows
    )
    out = tmp_path / "out" / "x.vcc"
    out.parent.mkdir()
    assert refusal(means, "vcc2025", out, controls=cells, n_cells=4) == ["E531"]
    assert refusal(means, "vcc2025", out, controls=cells, n_cells=4, contexts=["C"]) == ["E531"]
    genes = tmp_path / "genes.csv"
    genes.write_text("\n".join(GENES) + "\n")
    pack(means, "vcc2025", out=out, controls=cells, n_cells=4, contexts=["B"], genes=genes)
    assert inspect_file(out).n_obs == 4 * 4 + 80


def test_context_without_controls(files, tmp_path, out):
    means = write_means(tmp_path / "m.h5ad", dense_of(files.means), TARGETS, contexts=["RPE1"] * 4)
    assert refusal(means, "core", out.with_suffix(".h5ad"), controls=files.cells, n_cells=4) == ["E530"]


def test_run_folder(files, tmp_path, out):
    run = tmp_path / "run"
    run.mkdir()
    assert refusal(run, "vcc2025", out) == ["E532"]
    (run / "prediction.h5ad").write_bytes(files.means.read_bytes())
    pack(run, "vcc2025", out=out, genes=files.genes, perts=files.perts, controls=files.cells)
    assert out.exists()


def test_anndata_in_memory_is_left_alone(files, out):
    data = ad.read_h5ad(files.cells)
    before = data.X.copy()
    pack(data, "vcc2025", out=out, genes=files.genes)
    assert (before != data.X).nnz == 0 and "perturbation" in data.obs
    twin = out.with_name("twin.vcc")
    pack(files.cells, "vcc2025", out=twin, genes=files.genes)
    assert twin.read_bytes() == out.read_bytes()


def test_edition_columns_and_detection(files, tmp_path, out):
    """A file without any record: whole numbers are counts for the 2025 rule, core refuses to guess."""
    bare = tmp_path / "bare.h5ad"
    labels = np.where(labels_of(files.cells) == "control", "ctl", labels_of(files.cells))
    with write_h5ad_stream(bare, genes=GENES, obs={"gene": labels}) as writer:
        writer.append(sp.csr_array(dense_of(files.cells)))
    assert refusal(bare, "vcc2025", out, genes=files.genes) == ["E527"]
    result = pack(bare, "vcc2025", out=out, genes=files.genes, pert_col="gene", control="ctl")
    assert "detected by the edition's rule (whole numbers)" in result.record["notes"][0]
    core = out.with_suffix(".h5ad")
    assert refusal(bare, "core", core, pert_col="gene", control="ctl") == ["E528"]
    pack(bare, "core", out=core, pert_col="gene", control="ctl", matrix="counts", target_sum=TARGET_SUM)
    assert set(labels_of(core)) == {"control", *TARGETS}


def test_dry_run_writes_nothing(files, out):
    result = pack(
        files.means,
        "vcc2025",
        out=out,
        genes=files.genes,
        perts=files.perts,
        controls=files.cells,
        dry_run=True,
    )
    assert list(out.parent.iterdir()) == []
    assert result.entry is None and result.record["planned"]["n_rows"] == 66 + 60
    assert result.next_command.startswith("vcbench pack")


def test_effect_scale_is_applied_and_flagged(files, tmp_path):
    control = lognormalize(sp.csr_array(dense_of(files.cells)[:60]), TARGET_SUM).toarray().mean(axis=0)
    for factor, flagged in ((2.0, False), (5.0, True)):
        entry = tmp_path / f"{factor}.h5ad"
        result = pack(files.means, "core", out=entry, controls=files.cells, effect_scale=factor)
        assert result.record["amplified"] is flagged
        expected = control + factor * (dense_of(files.means) - control)
        np.testing.assert_allclose(dense_of(entry), expected, atol=1e-5)
    with pytest.raises(UsageError, match="mean effects"):
        pack(files.cells, "core", out=tmp_path / "x.h5ad", effect_scale=2.0)
