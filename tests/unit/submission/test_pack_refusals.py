"""What `pack` refuses: values, labels, lists, scales, outputs and full disks; inputs stay, nothing half is left."""

import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from builders import GENES, standard_h5ad
from packing_files import TARGETS, dense_of, edit, labels_of, write_means
from vcbench.data_specs import container_write
from vcbench.data_specs.errors import InvalidFile, OutputError, UsageError
from vcbench.data_specs.h5ad_write import CsrWriter, write_h5ad_stream
from vcbench.data_specs.temporary import TEMP_PREFIX
from vcbench.submission import pack_rows
from vcbench.submission import packing as pack_module
from vcbench.submission.packing import pack


def refusal(pred, edition, out, **options):
    """The issue codes of a refusal that leaves the output folder as it was."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(InvalidFile) as caught:
        pack(pred, edition, out=out, **options)
    assert sorted(out.parent.iterdir()) == before
    return [issue.code for issue in caught.value.issues if issue.severity == "error"]


def altered(files, folder, change):
    path = folder / "altered.h5ad"
    path.write_bytes(files.cells.read_bytes())
    return edit(path, change)


def set_value(value):
    def change(file):
        file["X/data"][7] = value

    return change


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "E614"), (np.inf, "E614"), (-1.0, "E615"), (0.5, "E616")]
)
def test_bad_values(value, code, files, tmp_path, out):
    assert code in refusal(altered(files, tmp_path, set_value(value)), "vcc2025", out, genes=files.genes)


def test_linear_values_are_refused(files, tmp_path, out):
    linear = tmp_path / "linear.h5ad"
    x = dense_of(files.cells)
    labels = np.where(labels_of(files.cells) == "control", "non-targeting", labels_of(files.cells))
    with write_h5ad_stream(linear, genes=GENES, obs={"target_gene": labels}) as writer:
        writer.append(sp.csr_array(x / x.sum(axis=1, keepdims=True) * 50))
    assert refusal(linear, "vcc2025", out, genes=files.genes) == ["E529"]


def test_missing_label(files, tmp_path, out):
    def change(file):
        file["obs/perturbation/codes"][3] = -1

    assert refusal(altered(files, tmp_path, change), "vcc2025", out, genes=files.genes) == ["E526"]


def test_repeated_gene(files, tmp_path, out):
    def change(file):
        file["var/_index"][1] = "G000"

    assert "E525" in refusal(altered(files, tmp_path, change), "core", out.with_suffix(".h5ad"))


def test_lists_that_differ(files, tmp_path, out):
    genes = tmp_path / "other.csv"
    genes.write_text("\n".join([*GENES[1:], "NEW"]) + "\n")
    assert refusal(files.cells, "vcc2025", out, genes=genes) == ["E523", "E524"]
    perts = tmp_path / "perts.csv"
    perts.write_text("target_gene,n_cells\nG000,5\nG001,5\nG002,5\nZZZ,5\n")
    assert refusal(files.cells, "vcc2025", out, genes=files.genes, perts=perts) == ["E521", "E522"]


def test_cells_per_target_must_be_known(files, out):
    assert refusal(files.means, "vcc2025", out, genes=files.genes, controls=files.cells) == ["E533"]


def test_mean_file_defects(files, tmp_path, out):
    options = {"genes": files.genes, "controls": files.cells, "n_cells": 3}
    profiles = dense_of(files.means)
    unknown = write_means(tmp_path / "a.h5ad", profiles, TARGETS, target_sum=None)
    assert refusal(unknown, "vcc2025", out, **options) == ["E528"]
    twice = write_means(tmp_path / "b.h5ad", profiles, ("G000", "G000", "G002", "G003"))
    assert refusal(twice, "vcc2025", out, **options) == ["E535"]
    profiles[1, 1] = np.nan
    broken = write_means(tmp_path / "c.h5ad", profiles, TARGETS)
    assert refusal(broken, "vcc2025", out, **options) == ["E614"]


def test_scales_that_differ(files, tmp_path, out):
    logs = standard_h5ad(
        tmp_path / "log.h5ad", perturbations=TARGETS, controls=30, kind="log1p", target_sum=200.0
    )
    options = {"genes": files.genes, "controls": logs, "n_cells": 3}
    assert refusal(files.means, "vcc2025", out, **options) == ["E534"]
    data = ad.read_h5ad(files.cells)
    pred = tmp_path / "pred.h5ad"
    data[data.obs["perturbation"] != "control"].copy().write_h5ad(pred)
    assert refusal(pred, "vcc2025", out, genes=files.genes, controls=logs) == ["E534"]


def test_too_many_cells(files, out):
    options = {"genes": files.genes, "controls": files.cells, "n_cells": 60_000}
    assert refusal(files.means, "vcc2025", out, **options) == ["E536"]


def test_control_file_without_controls(files, tmp_path, out):
    data = ad.read_h5ad(files.cells)
    other = tmp_path / "other.h5ad"
    data[data.obs["perturbation"] != "control"].copy().write_h5ad(other)
    assert refusal(other, "vcc2025", out, genes=files.genes, controls=other) == ["E520"]


def test_result_that_does_not_validate_is_refused(files, out, monkeypatch):
    """What the checks before writing miss, the validation after it stops."""
    original = pack_rows.Normalised.blocks

    def broken(self):
        for block in original(self):
            block.data[0] = np.nan
            yield block

    monkeypatch.setattr(pack_rows.Normalised, "blocks", broken)
    with pytest.raises(InvalidFile) as caught:
        pack(files.cells, "vcc2025", out=out, genes=files.genes)
    assert "E301" in [issue.code for issue in caught.value.issues]
    assert all(".vcbench" not in issue.render() for issue in caught.value.issues)
    assert list(out.parent.iterdir()) == []


def test_outputs_that_cannot_be_written(files, tmp_path, out):
    folder = tmp_path / "folder.vcc"
    folder.mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        pack(files.cells, "vcc2025", out=folder, genes=files.genes)
    with pytest.raises(OutputError, match="does not exist"):
        pack(files.cells, "vcc2025", out=tmp_path / "none" / "a.vcc", genes=files.genes)
    before = files.cells.read_bytes()
    with pytest.raises(OutputError, match="also an input"):
        pack(files.cells, "vcc2025", out=files.cells, genes=files.genes, force=True)
    link = out.with_name("link.vcc")
    os.link(files.cells, link)
    with pytest.raises(OutputError, match="also an input"):
        pack(files.cells, "vcc2025", out=link, genes=files.genes, force=True)
    link.unlink()
    assert files.cells.read_bytes() == before
    pack(files.cells, "vcc2025", out=out, genes=files.genes)
    with pytest.raises(OutputError, match="--force"):
        pack(files.cells, "vcc2025", out=out, genes=files.genes)
    pack(files.cells, "vcc2025", out=out, genes=files.genes, force=True)
    with pytest.raises(UsageError, match=r"\.vcc or \.h5ad"):
        pack(files.cells, "vcc2025", out=tmp_path / "a.txt", genes=files.genes)
    with pytest.raises(UsageError, match="edition core takes h5ad"):
        pack(files.cells, "core", out=tmp_path / "a.vcc")


@pytest.mark.parametrize("where", ["rows", "container", "manifest"])
def test_full_disk_leaves_nothing(where, files, out, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if where == "rows":
        monkeypatch.setattr(CsrWriter, "append", full)
    elif where == "container":
        monkeypatch.setattr(container_write, "_header", full)
    else:
        monkeypatch.setattr(pack_module, "write_text", full)
    with pytest.raises(OutputError, match=r"entry.*disk is full") as caught:
        pack(files.cells, "vcc2025", out=out, genes=files.genes)
    assert TEMP_PREFIX not in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_too_little_space_is_seen_before_writing(files, out, monkeypatch):
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="too full"):
        pack(files.cells, "vcc2025", out=out, genes=files.genes)
    assert list(out.parent.iterdir()) == []


def test_really_full_disk(files, tmp_path):
    """A tmpfs of 1 MiB: the error is ours, nothing stays, and the interpreter ends in peace."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        code = (
            "import sys\n"
            "from vcbench.submission import pack\n"
            "from vcbench.data_specs.errors import OutputError\n"
            "import vcbench.submission.packing as module\n"
            "module._check_space = lambda *a: None\n"
            "try:\n"
            "    module.pack(sys.argv[1], 'vcc2025', out=sys.argv[2], genes=sys.argv[3])\n"
            "except OutputError as error:\n"
            "    print(error)\n"
        ).replace("from vcbench.submission import pack\n", "")
        words = [sys.executable, "-c", code, str(files.cells), str(place / "a.vcc"), str(files.genes)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, list(place.iterdir())) == (0, []), done.stderr
        assert "a.h5ad: the disk is full" in done.stdout
    finally:
        subprocess.run(["umount", str(place)], check=False)


def test_inputs_are_never_changed(files, out):
    inputs = (files.cells, files.means, files.genes, files.perts)
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in inputs]
    pack(
        files.means,
        "vcc2025",
        out=out,
        genes=files.genes,
        perts=files.perts,
        controls=files.cells,
        mode="scale",
    )
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in inputs] == before
