"""Commands pack, unpack, inspect: exit codes, JSON on stdout, the next command, issues on bad input."""

import json
import shlex
import subprocess
import sys

import click
import h5py
import numpy as np
import pytest
from packing_files import TARGETS, dense_of, pack_files, write_tar
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.containers import open_entry
from vcbench.data_specs.issues import catalogue
from vcbench.evaluator.cli import cli


@pytest.fixture
def files(tmp_path):
    return pack_files(tmp_path)


def call(capsys, *words):
    code = run(cli, [str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def packed(files, capsys, out, *more):
    words = ("pack", files.means, "--edition", "vcc2025", "--genes", files.genes, "--perts", files.perts)
    return call(capsys, *words, "--controls", files.cells, "-o", out, *more)


def test_pack_inspect_unpack(files, tmp_path, capsys):
    entry = tmp_path / "entry.vcc"
    code, out, err = packed(files, capsys, entry, "--mode", "scale", "--seed", 4)
    assert code == 0
    assert (
        "126 rows x 40 genes" in out
        and "valid for vcc2025" in out
        and out.splitlines()[-1].startswith("next: vcbench score")
    )
    assert "scale: asked for." in err
    code, out, _ = call(capsys, "inspect", entry)
    assert code == 0 and "vcc2025" in out and "non-targeting: 60" in out
    code, out, _ = call(capsys, "unpack", entry, "-o", tmp_path / "plain.h5ad")
    assert code == 0 and "126 rows x 40 genes" in out
    with open_entry(entry) as opened:
        np.testing.assert_array_equal(dense_of(tmp_path / "plain.h5ad"), dense_of(opened.h5ad))
    assert (tmp_path / "plain.h5ad").stat().st_mode & 0o777 == files.cells.stat().st_mode & 0o777


def test_pack_json(files, tmp_path, capsys):
    code, out, _ = packed(files, capsys, tmp_path / "entry.vcc", "--format", "json", "--quiet")
    answer = json.loads(out)
    assert code == 0 and answer["entry"].endswith("entry.vcc")
    assert answer["record"]["mode"] == "tile" and len(answer["record"]["emission"]) == len(TARGETS)
    assert json.loads((tmp_path / "entry.vcc.manifest.json").read_text()) == answer["record"]


def test_dry_run(files, tmp_path, capsys):
    code, out, _ = packed(files, capsys, tmp_path / "entry.vcc", "--dry-run")
    assert code == 0 and out.startswith("dry run: 126 rows")
    assert not (tmp_path / "entry.vcc").exists()


def test_force(files, tmp_path, capsys):
    entry = tmp_path / "entry.vcc"
    assert packed(files, capsys, entry)[0] == 0
    code, _, err = packed(files, capsys, entry)
    assert code == 1 and "--force" in err
    assert packed(files, capsys, entry, "--force")[0] == 0
    code, _, err = call(capsys, "unpack", entry, "-o", entry, "--force")
    assert code == 1 and "also an input" in err


def test_invalid_prediction_as_json(files, tmp_path, capsys):
    words = ("pack", files.means, "--edition", "vcc2025", "--genes", files.genes)
    code, out, err = call(capsys, *words, "-o", tmp_path / "a.vcc", "--format", "json")
    answer = json.loads(out)
    assert code == 1 and answer["valid"] is False
    assert [issue["code"] for issue in answer["issues"]] == ["E520"]
    assert "E520" in err and not (tmp_path / "a.vcc").exists()


@pytest.mark.parametrize("command", ["pack", "unpack", "inspect"])
@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "folder"])
def test_bad_input_files(command, kind, files, tmp_path, capsys):
    path = tmp_path / "bad.h5ad"
    if kind == "text":
        path.write_text("gene,value\n")
    elif kind == "truncated":
        path.write_bytes(files.cells.read_bytes()[:5000])
    elif kind == "folder":
        path.mkdir()
    more = {"pack": ["--edition", "vcc2025", "-o", tmp_path / "o.vcc"], "unpack": ["-o", tmp_path / "o.h5ad"]}
    code, _, err = call(capsys, command, path, *more.get(command, []))
    expected = {"missing": "E001", "text": "E003", "truncated": "E004", "folder": "E002"}[kind]
    if command == "pack" and kind == "folder":
        expected = "E532"
    assert code == 1 and expected in err
    assert not (tmp_path / "o.vcc").exists() and not (tmp_path / "o.h5ad").exists()


def test_usage_errors(files, tmp_path, capsys):
    assert call(capsys, "pack", files.cells, "-o", tmp_path / "a.vcc")[0] == 2
    code, _, err = call(capsys, "pack", files.cells, "--edition", "vcc2052", "-o", tmp_path / "a.vcc")
    assert code == 2 and "vcc2025" in err
    assert (
        call(capsys, "pack", files.cells, "--edition", "core", "--mode", "smear", "-o", tmp_path / "a.h5ad")[
            0
        ]
        == 2
    )
    code, _, err = call(capsys, "unpack", files.cells, "-o", tmp_path / "a.h5ad")
    assert code == 2 and "already" in err


@pytest.mark.parametrize("factor", ["nan", "inf", "0", "-1"])
def test_an_effect_scale_is_a_positive_number(files, tmp_path, capsys, factor):
    words = ["--edition", "core", "--effect-scale", factor, "-o", tmp_path / "a.h5ad"]
    code, _, err = call(capsys, "pack", files.cells, *words)
    assert code == 2 and "positive number" in err and not (tmp_path / "a.h5ad").exists()


def test_an_output_below_a_file_says_so(files, tmp_path, capsys):
    code, _, err = call(capsys, "pack", files.cells, "--edition", "core", "-o", files.cells / "a.h5ad")
    assert code == 1 and f"{files.cells} is not a folder" in err


def test_damaged_entry_names_the_entry_not_the_temporary_file(tmp_path, capsys):
    import zstandard

    inner = tmp_path / "inner.h5ad"
    with h5py.File(inner, "w") as file:
        file["X"] = np.zeros((2, 2))
    entry = write_tar(
        tmp_path / "entry.vcc",
        [("pred.h5ad.zst", zstandard.compress(inner.read_bytes())), ("watermark.txt", b"vcc-prep")],
    )
    for words in (("inspect", entry), ("unpack", entry, "-o", tmp_path / "o.h5ad")):
        code, _, err = call(capsys, *words)
        assert code == 1 and "E005" in err
        assert "entry.vcc" in err and ".vcbench-tmp" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["entry.vcc", "inner.h5ad"]


def test_inspect_json_by_hand(tmp_path, capsys):
    import anndata as ad
    import pandas as pd

    x = np.array([[1, 0, 3], [0, 0, 2], [4, 5, 0], [0, 0, 0]], dtype=np.float32)
    obs = pd.DataFrame({"target_gene": ["A", "non-targeting", "A", None], "cell_type": ["c", "c", "d", "d"]})
    obs.index = obs.index.astype(str)
    path = tmp_path / "a.h5ad"
    ad.AnnData(x, obs=obs, var=pd.DataFrame(index=["g", "h", "i"])).write_h5ad(path)
    code, out, _ = call(capsys, "inspect", path, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert {k: found[k] for k in ("n_obs", "n_vars", "storage", "dtype", "stored", "nonzero", "values", "maximum")} == {
        "n_obs": 4, "n_vars": 3, "storage": "dense", "dtype": "float32", "stored": 12, "nonzero": 5,
        "values": "whole numbers", "maximum": 5.0,
    }  # fmt: skip
    assert found["density"] == pytest.approx(5 / 12)
    assert found["row_totals"] == {"minimum": 0.0, "median": 3.0, "mean": 3.75, "maximum": 9.0}
    assert found["detected"] == {"minimum": 0.0, "median": 1.5, "mean": 1.25, "maximum": 2.0}
    assert found["labels"] == {"A": 2, "non-targeting": 1} and found["n_unlabelled"] == 1
    assert found["controls"] == {"non-targeting": 1} and found["contexts"] == {"c": 2, "d": 2}
    assert found["memory"] == {
        "csr_float32": 5 * 8 + 5 * 8,
        "dense_float32": 48,
        "official_packing": int(2.2 * 8 * 5) + 2 * 2**30,
        "official_scoring": int(1.12 * 8 * 5) + 26 * 2**30,
    }
    assert (found["container"], found["declared"], found["notes"]) == ("h5ad", {}, [])


def test_inspect_counts_bad_values(files, capsys):
    with h5py.File(files.cells, "r+") as file:
        file["X/data"][:3] = [np.nan, np.inf, -2.5]
    code, out, _ = call(capsys, "inspect", files.cells, "--format", "json")
    found = json.loads(out)
    assert code == 0 and (found["n_nan"], found["n_infinite"], found["n_negative"]) == (1, 1, 1)
    assert found["values"] == "fractions"
    assert "1 NaN, 1 infinite, 1 negative" in call(capsys, "inspect", files.cells)[1]


def test_container_notes_are_shown(tmp_path, files, capsys):
    import zstandard

    payload = zstandard.compress(files.cells.read_bytes())
    members = [("pred.h5ad.zst", payload), ("watermark.txt", b"vcc-prep"), ("readme.md", b"hi")]
    entry = write_tar(tmp_path / "entry.vcc", members)
    code, _, err = call(capsys, "inspect", entry)
    assert code == 0 and "W501" in err
    code, out, _ = call(capsys, "inspect", entry, "--format", "json")
    assert [issue["code"] for issue in json.loads(out)["notes"]] == ["W501"]


def own_codes():
    return [code for code in catalogue() if "500" < code[1:] < "541"]


@pytest.mark.parametrize("code", own_codes())
def test_every_fix_is_a_command_that_parses(code):
    words = shlex.split(catalogue()[code].fix.format(file="FILE.vcc", edition="vcc2025"))
    assert words[0] == "vcbench"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    command.make_context(words[1], words[2:])


def test_inspect_and_pack_load_no_heavy_library(files, tmp_path):
    code = (
        "import sys\n"
        "from vcbench.data_specs.cli_support import run\n"
        "from vcbench.evaluator.cli import cli\n"
        f"run(cli, ['inspect', {str(files.cells)!r}])\n"
        f"run(cli, ['pack', {str(files.cells)!r}, '--edition', 'core', '-o', {str(tmp_path / 'o.h5ad')!r}])\n"
        "print([m for m in ('torch', 'scanpy', 'anndata', 'numba') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
