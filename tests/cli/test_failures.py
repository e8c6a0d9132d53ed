"""How every command fails: JSON on stdout, exit codes, signals, closed pipes."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from builders import standard_h5ad
from vcbench.data_specs.atomic import atomic_file
from vcbench.data_specs.cli_support import run
from vcbench.evaluator.cli import cli


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["validate", "FILE", "--edition", "nope"], "UnknownName", 2),
        (["validate", "FILE"], "UsageError", 2),
        (["inspekt", "FILE"], "UsageError", 2),
        (["unpack", "FILE", "-o", "OUT"], "UsageError", 2),
        (["predict", "FILE", "-o", "OUT"], "ModelError", 1),
        (["train", "mean", "FILE", "-o", "FILE"], "OutputError", 1),
    ],
)
def test_failures_are_json_too(arguments, kind, code, tmp_path, capsys):
    places = {"FILE": standard_h5ad(tmp_path / "a.h5ad"), "OUT": tmp_path / "out.h5ad"}
    words = [str(places.get(word, word)) for word in arguments]
    assert run(cli, [*words, "--format", "json"]) == code
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert told["valid"] is None and told["issues"] == [] and told["error"]["kind"] == kind
    assert told["error"]["message"] in shown.err


def _group(body):
    group = click.Group("vcbench")
    group.add_command(click.Command("work", callback=body))
    return group


def test_internal_errors_are_json_too(capsys):
    def body():
        raise RuntimeError("a bug")

    group = _group(body)
    group.commands["work"].params.append(click.Option(["--format"]))
    group.commands["work"].callback = lambda format: body()
    assert run(group, ["work", "--format", "json"]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"] == {"kind": "InternalError", "message": "RuntimeError: a bug"}
    assert "Traceback" in shown.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_leave_no_partial_output(number, code, tmp_path):
    def body():
        with atomic_file(tmp_path / "out.txt") as part:
            part.write_text("half")
            os.kill(os.getpid(), number)
            for _ in range(1000):
                part.exists()
            raise AssertionError("the signal did nothing")

    before = signal.getsignal(signal.SIGTERM)
    # A background job starts with Ctrl-C ignored; here it must act as at a terminal.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(_group(body), ["work"]) == code
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("arguments", [["list", "issues"], ["inspect", "/nonexistent", "--format", "json"]])
def test_a_closed_pipe_is_no_verdict(arguments):
    """Exit code 1 means an invalid file; a reader that stopped reading says nothing about the file."""
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from vcbench.evaluator.cli import main; sys.argv[0] = 'vcbench'; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 141
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr
