"""`vcbench validate` as a command: forms, exit codes, what it loads."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from builders import standard_h5ad
from builders_entry import ENTRY_GENES, defect, set_index, valid_entry
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.container_write import write_vcc2025
from vcbench.evaluator.cli import cli

ISSUE_KEYS = {"code", "severity", "message", "where", "found", "expected", "fix"}


@pytest.fixture
def paths(tmp_path):
    return valid_entry(tmp_path)


def call(*args):
    return run(cli, ["validate", *map(str, args)])


def lists(paths):
    return ("--genes", paths.genes, "--perts", paths.perts)


def test_json_of_a_valid_entry(paths, capsys):
    assert call(paths.entry, "--edition", "vcc2025", *lists(paths), "--format", "json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and set(report) == {"valid", "issues", "facts", "not_checked"}
    assert report["valid"] is True
    assert [issue["code"] for issue in report["issues"]] == ["W107"]
    assert set(report["issues"][0]) == ISSUE_KEYS
    assert report["facts"]["matrix"]["kind"] == "counts"
    assert all(set(entry) == {"what", "why"} for entry in report["not_checked"])


def test_table_lists_issues_then_summary_then_gaps(paths, tmp_path, capsys):
    bad = defect(paths.entry, tmp_path / "bad.h5ad", lambda f: set_index(f, "var", ENTRY_GENES[::-1]))
    assert call(bad, "--edition", "vcc2025", "--genes", paths.genes) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("E104 error: the gene order differs from the list   bad.h5ad:/var/_index")
    assert lines[1].startswith("     found 30 of 30 genes out of place (first: position 0 holds 'G029')")
    assert lines[2] == f"     fix: vcbench pack {bad} --edition vcc2025 --genes {paths.genes} -o ENTRY.vcc"
    summary = next(i for i, line in enumerate(lines) if "INVALID for edition vcc2025" in line)
    assert lines[summary] == (
        f"{bad}: INVALID for edition vcc2025: 28 rows x 30 genes; 1 errors, 1 warnings, 0 notes"
    )
    assert lines[summary + 1] == "not checked:"
    assert "  perturbations and cells against the official list: no --perts given" in lines[summary + 2 :]


def test_json_of_an_invalid_entry_stays_on_stdout(tmp_path, capsys):
    assert call(tmp_path / "none.h5ad", "--edition", "core", "--format", "json") == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["valid"] is False and report["issues"][0]["code"] == "E001"


@pytest.mark.parametrize(
    "args",
    [
        ("x.h5ad",),
        ("--edition", "core"),
        ("x.h5ad", "--edition", "nope"),
        ("x.h5ad", "--edition", "core", "--matrix", "tpm"),
        ("x.h5ad", "--edition", "core", "--contexts", ","),
        ("x.h5ad", "--edition", "core", "--memory", "much"),
    ],
)
def test_wrong_usage(args, capsys):
    assert call(*args) == 2
    assert capsys.readouterr().out == ""


def test_options_reach_the_check(tmp_path, capsys):
    file = standard_h5ad(tmp_path / "core.h5ad", contexts=("A", "B"))
    names = ("--edition", "core", "--contexts", "A, B", "--memory", "100MB", "--format", "json")
    assert call(file, *names) == 0
    assert call(file, "--edition", "core", "--contexts", "A,C") == 1
    assert {"E205", "E206"} <= set(capsys.readouterr().out.split())
    other = ("--pert-col", "label_source", "--control", "control", "--context-col", "context")
    assert call(file, "--edition", "vcc2025", *other, "--matrix", "counts") == 0
    assert call(file, "--edition", "core", "--pert-col", "nothing") == 1


def test_a_vcc_uses_the_given_temporary_folder_and_cleans_it(paths, tmp_path, capsys):
    write_vcc2025(paths.entry, tmp_path / "pred.vcc")
    (tmp_path / "tmp").mkdir()
    before = hashlib.sha256((tmp_path / "pred.vcc").read_bytes()).hexdigest()
    options = ("--edition", "vcc2025", *lists(paths), "--tmp", tmp_path / "tmp", "--format", "json")
    assert call(tmp_path / "pred.vcc", *options) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["container"] == "vcc2025"
    assert not list((tmp_path / "tmp").iterdir())
    assert hashlib.sha256((tmp_path / "pred.vcc").read_bytes()).hexdigest() == before
    assert call(tmp_path / "pred.vcc", "--edition", "vcc2025", "--tmp", tmp_path / "none") == 1


def test_validate_loads_no_heavy_package_and_prints_no_traceback(paths, tmp_path):
    nan = defect(paths.entry, tmp_path / "nan.h5ad", lambda f: f["X/data"].__setitem__(0, np.nan))
    script = (
        "import sys\n"
        "from vcbench.data_specs.cli_support import run\n"
        "from vcbench.evaluator.cli import cli\n"
        "codes = [run(cli, ['validate', path, '--edition', 'vcc2025']) for path in sys.argv[1:]]\n"
        "heavy = ('torch', 'scanpy', 'anndata', 'pandas', 'sklearn', 'numba', 'matplotlib')\n"
        "loaded = [name for name in heavy if name in sys.modules]\n"
        "print('RESULT', codes, loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths.entry), str(nan), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "RESULT [0, 1, 1] []", done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
