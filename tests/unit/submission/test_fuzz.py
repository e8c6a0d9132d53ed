"""Broken and hostile files: every command answers with issues and an exit code, in bounded time, disk and memory."""

import os
import shutil
import time

import pytest
from fuzzing import CORPUS, mutant
from packing_2026 import files_2026
from vcbench.data_specs.cli_support import run
from vcbench.data_specs.containers import open_entry
from vcbench.evaluator.cli import cli
from vcbench.submission.packing import pack

COMMANDS = ("validate", "verify", "inspect", "unpack", "pack", "diff")
SLOWEST_S = 60.0
MOST_MIB = 1500


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    files = files_2026(folder)
    pack(files.means, "vcc2026", out=folder / "e.vcc", **files.options(mode="scale"))
    with open_entry(folder / "e.vcc") as opened:
        plain = opened.h5ad.read_bytes()
    return files, plain, (folder / "e.vcc").read_bytes()


def words(command, path, files, out):
    lists = ["--edition", "vcc2026", "--genes", files.genes, "--perts", files.perts, "--contexts", "A,B"]
    more = {
        "validate": [path, *lists, "--quiet"],
        "verify": [path, *lists, "--quiet"],
        "inspect": [path],
        "unpack": [path, "-o", out / "u.h5ad"],
        "pack": [path, *lists, "-o", out / "p.vcc", "--quiet"],
        "diff": [path, files.means],
    }
    return [command, *(str(word) for word in more[command])]


def peak_mib():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attack(number, base, folder, capsys):
    """One mutated file through the commands that its number picks; what is left of it is checked."""
    files, plain, vcc = base
    folder.mkdir()
    out = folder / "out"
    out.mkdir()
    path = mutant(number, plain, vcc, folder)
    before = sorted(p.name for p in folder.iterdir())
    chosen = ("verify" if path.suffix == ".vcc" else "validate", COMMANDS[number % len(COMMANDS)])
    for command in dict.fromkeys(chosen):
        started = time.perf_counter()
        code = run(cli, words(command, path, files, out))
        captured = capsys.readouterr()
        assert code in (0, 1, 2), (number, command, code, captured.err[-2000:])
        assert "Traceback" not in captured.err, (number, command, captured.err[-2000:])
        assert time.perf_counter() - started < SLOWEST_S, (number, command)
        assert sorted(p.name for p in folder.iterdir()) == before, (number, command)
        left = {p.name for p in out.iterdir()}
        assert left <= {"u.h5ad", "p.vcc", "p.vcc.manifest.json", "p.vcc.card.md"}, (number, command, left)
        shutil.rmtree(out)
        out.mkdir()
    shutil.rmtree(folder)


@pytest.mark.parametrize("part", range(4))
def test_kept_corpus(part, base, tmp_path, capsys):
    # The peak is the process's: tests before this one may have taken more than these files ever should.
    allowed = max(peak_mib(), MOST_MIB)
    for number in CORPUS[part::4]:
        attack(number, base, tmp_path / str(number), capsys)
    assert not os.path.exists("/tmp/escaped")  # noqa: PTH110
    assert peak_mib() <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_two_thousand_files(part, base, tmp_path, capsys):
    allowed = max(peak_mib(), MOST_MIB)
    for number in range(part, 2000, 20):
        attack(number, base, tmp_path / str(number), capsys)
    assert peak_mib() <= allowed
